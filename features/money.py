"""Currencies: which codes exist as codes, and how many digits their minor unit has (ISO 4217).

State holds integer minor units; features and files are in major units.
"""

from __future__ import annotations

import re

from freshscore.config.errors import BadTransaction

# The bound on every amount, in minor units: with it, sums and sums of squares are exact
# (features/kernels.py), and an amount fits the 48 bits that a record has for it.
MAX_AMOUNT_MINOR = 2**40

_CODE = re.compile(r"[A-Z]{3}\Z")
_DIGITS_NOT_TWO = (
    dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0)
    | dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3)
    | dict.fromkeys("CLF UYW".split(), 4)
)


def is_currency_code(code: object) -> bool:
    """Whether `code` has the form of an ISO 4217 code: three capital letters."""
    return isinstance(code, str) and _CODE.match(code) is not None


def minor_digits(currency: str) -> int:
    """Decimal digits of the minor unit of `currency`: 2 for EUR, 0 for JPY, 3 for KWD."""
    return _DIGITS_NOT_TWO.get(currency, 2)


def minor_from_major(amount: float, currency: str) -> int:
    """The integer minor units nearest to `amount` in major units.

    Raises BadTransaction for NaN, infinities and what exceeds the bound.
    """
    scaled = amount * float(10 ** minor_digits(currency))
    if not abs(scaled) <= MAX_AMOUNT_MINOR:
        raise BadTransaction(
            f"amount is {amount!r} {currency}; the limit is {MAX_AMOUNT_MINOR} minor units"
        )
    return round(scaled)
