"""Currencies: which codes exist as codes, and how many digits their minor unit has (ISO 4217).

State holds integer minor units; features and files are in major units.
"""

from __future__ import annotations

import re

# The bound on every amount, in minor units: with it, sums and the limbs of sums of squares
# are exact (features/memory.py, spread_double), and an amount fits the 48 bits of a record's word.
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
