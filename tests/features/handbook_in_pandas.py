"""The Handbook's 15 features as pandas gives them, from their published definition."""

from __future__ import annotations

import pandas as pd

_WINDOWS_DAYS = (1, 7, 30)
_DELAY_DAYS = 7


def handbook_features(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of a frame with the Handbook's columns, in time order, under our names."""
    times = frame["TX_DATETIME"]
    features = pd.DataFrame(
        {
            "amount": frame["TX_AMOUNT"],
            "weekend": (times.dt.day_of_week >= 5).astype(float),
            "night": (times.dt.hour <= 6).astype(float),
        }
    )
    indexed = frame.set_index("TX_DATETIME")
    of_card = indexed.groupby("CUSTOMER_ID")["TX_AMOUNT"]
    for days in _WINDOWS_DAYS:
        windows = of_card.rolling(f"{days}D")
        features[f"card_count_{days}d"] = _in_rows(windows.count(), frame, "CUSTOMER_ID")
        features[f"card_amount_mean_{days}d"] = _in_rows(windows.mean(), frame, "CUSTOMER_ID")
    of_terminal = indexed.groupby("TERMINAL_ID")["TX_FRAUD"]
    recent = of_terminal.rolling(f"{_DELAY_DAYS}D")
    for days in _WINDOWS_DAYS:
        whole = of_terminal.rolling(f"{_DELAY_DAYS + days}D")
        count = _in_rows(whole.count() - recent.count(), frame, "TERMINAL_ID")
        frauds = _in_rows(whole.sum() - recent.sum(), frame, "TERMINAL_ID")
        features[f"merchant_count_{days}d"] = count
        features[f"merchant_fraud_share_{days}d"] = (frauds / count).where(count > 0, 0.0)
    return features


def tied_rows(frame: pd.DataFrame) -> pd.Series:
    """Whether another payment of the same card, or at the same terminal, has the same second."""
    card = frame.duplicated(["CUSTOMER_ID", "TX_DATETIME"], keep=False)
    terminal = frame.duplicated(["TERMINAL_ID", "TX_DATETIME"], keep=False)
    return card | terminal


def _in_rows(by_group: pd.Series, frame: pd.DataFrame, group: str) -> pd.Series:
    # Rolling gives group after group, each in the order of the frame.
    order = frame[group].argsort(kind="stable").to_numpy()
    return pd.Series(by_group.to_numpy(), index=frame.index[order]).reindex(frame.index)
