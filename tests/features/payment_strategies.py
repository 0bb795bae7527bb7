"""Random payments, as mappings with the names of Transaction, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from freshscore.features.money import MAX_AMOUNT_MINOR
from freshscore.features.transaction import EARLIEST_MS, KINDS, LATEST_MS

# No surrogates: they are no Unicode. No NUL: CSV files have none.
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
# Texts that parsers like to take for something else.
_tricky = st.sampled_from(
    [
        *("007", "1", "1.0", "1e5", "NaN", "nan", "NA", "null", "None", "true", "-", "=1", "#"),
        *("'", '"', '""', ",", ";", "a,b", 'a"b', "a\nb", "a\r\nb", "\r", " ", " x ", "\ufeff"),
        "é" * 128,
    ]
)
texts = _tricky | st.text(_characters, min_size=1, max_size=20)
amounts_minor = st.integers(0, 100_000) | st.integers(0, MAX_AMOUNT_MINOR)
# Few distinct times, so that equal ones are common.
times_ms = st.integers(1_546_300_800_000, 1_546_300_800_009) | st.integers(
    EARLIEST_MS, LATEST_MS - 1
)
_degrees = st.floats(-90, 90) | st.sampled_from([-90.0, 0.0, 4.35, 90.0, 0.00000005])


@st.composite
def payments(draw: st.DrawFn) -> dict[str, Any]:
    """A valid payment under `payment_forms.SPECIFICATION`."""
    kind = draw(st.sampled_from(KINDS))
    currency = draw(st.sampled_from(["EUR", "EUR", "USD", "JPY", "KWD"]))
    amount = 0 if kind == "verification" else draw(amounts_minor)
    base = draw(amounts_minor if currency != "EUR" else st.none() | amounts_minor)
    number = st.floats(allow_nan=False) | st.integers(-(2**53), 2**53) | st.booleans()
    return {
        "transaction_id": draw(texts),
        "time": draw(times_ms),
        "amount_minor": amount,
        "currency": currency,
        "entities": draw(st.fixed_dictionaries({}, optional={"card": texts, "merchant": texts})),
        "kind": kind,
        "base_amount_minor": 0 if kind == "verification" and base is not None else base,
        "original_id": draw(st.none() | texts),
        "fields": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "risk": st.none() | number,
                    "mcc": st.none() | texts,
                    "channel": st.sampled_from(["web", "pos"]) | texts,
                },
            )
        ),
        "location": draw(st.none() | st.tuples(_degrees, _degrees | st.sampled_from([-180.0]))),
        "flags": draw(
            st.dictionaries(st.sampled_from(["declined", "fraud"]), st.booleans(), max_size=2)
        ),
    }
