"""The shares of train, validation and test by which both projects split a table: `--split-fractions .8,.1,.1`."""

from __future__ import annotations

from collections.abc import Sequence

from tml.common.errors import ConfigError

_OPTION = "--split-fractions"


def parse_split_fractions(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise ConfigError("shares cannot be read", where=_OPTION, value=text, limit="numbers like .8,.1,.1") from None


def check_split_fractions(shares: Sequence[float]) -> None:
    """Refuse shares that cannot be those of train, validation and test.

    Raises:
        ConfigError: they are not three, add up to something else than 1, or leave nothing for training.
    """
    fine = len(shares) == 3 and shares[0] > 0 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
    if not fine:
        raise ConfigError(
            "a table cannot be split like this", where=_OPTION, value=tuple(shares),
            limit="three shares of train (above 0), validation and test that add up to 1, like .8,.1,.1",
        )  # fmt: skip
