"""Amounts of memory, and rates, as people write them."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("KMGTP", start=1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGTP", start=1)},
}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*?)B?\s*")


def parse_bytes(amount: str | int | float) -> int:
    """Bytes in an amount such as `1.4Ti`, `14Gi`, `512M` or `1024`; `k` counts as `K`, and a trailing `B` is fine.

    Raises:
        ValueError: not an amount, an unknown unit, or not above 0.
    """
    return _parse(amount, "memory", "an amount of memory")


def parse_rate(amount: str | int | float) -> int:
    """Bytes or operations a second, written like amounts of memory: `450G`, `19.5T`; errors as `parse_bytes`."""
    return _parse(amount, "a rate", "a rate")


def _parse(amount: str | int | float, kind: str, what: str) -> int:
    match = None if isinstance(amount, bool) else _AMOUNT.fullmatch(str(amount))
    unit = match[2].replace("k", "K") if match else ""
    if match is None or unit not in _FACTORS:
        raise ValueError(f"not {what}: {amount!r}; write a number and one of {', '.join(_FACTORS)[2:]}")
    number = round(float(match[1]) * _FACTORS[unit])
    if number <= 0:
        raise ValueError(f"{kind} must be above 0, not {amount!r}")
    return number


def format_bytes(num_bytes: int) -> str:
    """`1503238553600` as `1.4 TiB`."""
    power = 0
    amount = float(num_bytes)
    while amount >= 1024 and power < 5:
        amount /= 1024
        power += 1
    return f"{amount:.4g} {' KMGTP'[power].strip()}{'i' if power else ''}B"
