"""freshscore: real-time scores of card transactions, re-used only where they are provably fresh.

The public names. Each is resolved when first used, so that the command line starts at once and an
import costs nothing; what is not listed here may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freshscore.config.clock import Clock as Clock
    from freshscore.config.clock import SystemClock as SystemClock
    from freshscore.config.errors import AsOfTooOld as AsOfTooOld
    from freshscore.config.errors import Backpressure as Backpressure
    from freshscore.config.errors import BadFact as BadFact
    from freshscore.config.errors import BadFile as BadFile
    from freshscore.config.errors import BadModel as BadModel
    from freshscore.config.errors import BadSpecification as BadSpecification
    from freshscore.config.errors import BadTransaction as BadTransaction
    from freshscore.config.errors import Closed as Closed
    from freshscore.config.errors import DamagedModel as DamagedModel
    from freshscore.config.errors import DamagedState as DamagedState
    from freshscore.config.errors import DeadlineExceeded as DeadlineExceeded
    from freshscore.config.errors import EventRefused as EventRefused
    from freshscore.config.errors import ForkedScorer as ForkedScorer
    from freshscore.config.errors import FreshscoreError as FreshscoreError
    from freshscore.config.errors import ModelMismatch as ModelMismatch
    from freshscore.config.errors import NoModel as NoModel
    from freshscore.config.errors import SettingsError as SettingsError
    from freshscore.config.errors import StoreFull as StoreFull
    from freshscore.config.errors import StoreInUse as StoreInUse
    from freshscore.config.errors import Unavailable as Unavailable
    from freshscore.config.errors import UnknownTransaction as UnknownTransaction
    from freshscore.config.errors import WrongSecret as WrongSecret
    from freshscore.config.loading import load_settings as load_settings
    from freshscore.config.settings import Settings as Settings
    from freshscore.features.specification import FeatureSpecification as FeatureSpecification
    from freshscore.features.transaction import Transaction as Transaction
    from freshscore.scoring.callable_model import CallableModel as CallableModel
    from freshscore.scoring.model import Model as Model
    from freshscore.scoring.model_file import CohortThresholds as CohortThresholds
    from freshscore.scoring.result import Result as Result
    from freshscore.scoring.scorer import Scorer as Scorer

__version__ = "0.1.0"

_HOMES = {
    "AsOfTooOld": "freshscore.config.errors",
    "Backpressure": "freshscore.config.errors",
    "BadFact": "freshscore.config.errors",
    "BadFile": "freshscore.config.errors",
    "BadModel": "freshscore.config.errors",
    "BadSpecification": "freshscore.config.errors",
    "BadTransaction": "freshscore.config.errors",
    "CallableModel": "freshscore.scoring.callable_model",
    "Clock": "freshscore.config.clock",
    "Closed": "freshscore.config.errors",
    "CohortThresholds": "freshscore.scoring.model_file",
    "DamagedModel": "freshscore.config.errors",
    "DamagedState": "freshscore.config.errors",
    "DeadlineExceeded": "freshscore.config.errors",
    "EventRefused": "freshscore.config.errors",
    "FeatureSpecification": "freshscore.features.specification",
    "ForkedScorer": "freshscore.config.errors",
    "FreshscoreError": "freshscore.config.errors",
    "Model": "freshscore.scoring.model",
    "ModelMismatch": "freshscore.config.errors",
    "NoModel": "freshscore.config.errors",
    "Result": "freshscore.scoring.result",
    "Scorer": "freshscore.scoring.scorer",
    "Settings": "freshscore.config.settings",
    "SettingsError": "freshscore.config.errors",
    "StoreFull": "freshscore.config.errors",
    "StoreInUse": "freshscore.config.errors",
    "SystemClock": "freshscore.config.clock",
    "Transaction": "freshscore.features.transaction",
    "Unavailable": "freshscore.config.errors",
    "UnknownTransaction": "freshscore.config.errors",
    "WrongSecret": "freshscore.config.errors",
    "load_settings": "freshscore.config.loading",
}

__all__ = [
    "AsOfTooOld",
    "Backpressure",
    "BadFact",
    "BadFile",
    "BadModel",
    "BadSpecification",
    "BadTransaction",
    "CallableModel",
    "Clock",
    "Closed",
    "CohortThresholds",
    "DamagedModel",
    "DamagedState",
    "DeadlineExceeded",
    "EventRefused",
    "FeatureSpecification",
    "ForkedScorer",
    "FreshscoreError",
    "Model",
    "ModelMismatch",
    "NoModel",
    "Result",
    "Scorer",
    "Settings",
    "SettingsError",
    "StoreFull",
    "StoreInUse",
    "SystemClock",
    "Transaction",
    "Unavailable",
    "UnknownTransaction",
    "WrongSecret",
    "__version__",
    "load_settings",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
