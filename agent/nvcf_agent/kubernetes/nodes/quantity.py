"""Quantities of Kubernetes, such as `7500m` and `64Gi`. Pure."""

import re
from decimal import Decimal

_NUMBER = r"[+-]?[0-9]{1,24}(?:\.[0-9]{1,24})?"
_QUANTITY = re.compile(rf"({_NUMBER})(?:([eE][+-]?[0-9]{{1,2}})|([numkMGTPE]|[KMGTPE]i)?)")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_SMALL = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_UNITS = (
    {name: Decimal(1024) ** power for power, name in enumerate(_BINARY)}
    | {name: Decimal(1000) ** power for power, name in enumerate("kMGTPE", 1)}
    | _SMALL
)
# A number with more digits than this is shown in the next unit.
_LARGEST_SHOWN = 10_000


def quantity(value: object) -> Decimal:
    """Return the value of a quantity; 0 for what is none."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return Decimal(0)
    return Decimal(match[1] + (match[2] or "")) * _UNITS[match[3] or ""]


def in_bytes(count: int) -> str:
    """Return bytes in the largest unit that keeps at least a digit of them: `64Gi`, `2500Mi`."""
    power = 0
    while power < len(_BINARY) - 1 and (count >= _LARGEST_SHOWN or (count and count % 1024 == 0)):
        count, power = count // 1024, power + 1
    return f"{count}{_BINARY[power]}"


def in_processors(millis: int) -> str:
    """Return thousandths of processors: `8`, `7500m`."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"
