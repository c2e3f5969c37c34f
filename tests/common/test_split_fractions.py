"""Shares of train, validation and test."""

import pytest

from tml.common.errors import ConfigError
from tml.common.split_fractions import check_split_fractions, parse_split_fractions


@pytest.mark.parametrize("text", [".8,.1,.1", " 0.8, 0.2 ,0", "1,0,0"])
def test_shares_are_read(text) -> None:
    shares = parse_split_fractions(text)
    assert shares == tuple(float(share) for share in text.split(","))
    check_split_fractions(shares)


@pytest.mark.parametrize("text", ["", "half,half", ".8;.1;.1", ".8,.1,"])
def test_shares_that_are_no_numbers_are_refused(text) -> None:
    with pytest.raises(ConfigError, match="--split-fractions"):
        parse_split_fractions(text)


@pytest.mark.parametrize(
    "shares", [(0.8, 0.2), (0, 0.5, 0.5), (0.9, 0.2, -0.1), (0.8, 0.1, 0.2), (0.8, 0.1, float("nan"))]
)
def test_shares_that_are_none_are_refused(shares) -> None:
    with pytest.raises(ConfigError, match="three shares"):
        check_split_fractions(shares)
