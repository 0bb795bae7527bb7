"""Settings, errors, and the doors to the clock, the environment and the identifier secret.

Names are resolved when first used: importing the room loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freshscore.config.clock import Clock as Clock
    from freshscore.config.clock import SystemClock as SystemClock
    from freshscore.config.loading import load_settings as load_settings
    from freshscore.config.secret import Secret as Secret
    from freshscore.config.secret import load_secret as load_secret
    from freshscore.config.settings import Settings as Settings

_HOMES = {
    "Clock": "freshscore.config.clock",
    "Secret": "freshscore.config.secret",
    "Settings": "freshscore.config.settings",
    "SystemClock": "freshscore.config.clock",
    "load_secret": "freshscore.config.secret",
    "load_settings": "freshscore.config.loading",
}

__all__ = ["Clock", "Secret", "Settings", "SystemClock", "load_secret", "load_settings"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
