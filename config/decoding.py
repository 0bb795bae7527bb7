"""Typed decoding, one thread at a time.

msgspec resolves the fields of a type when it is first decoded, and two threads that do so at once
end the process (seen with 0.22); what is decoded here is small and rare, so all of it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
# One lock, made by whoever decodes first: nothing runs at import.
_LOCKS: Final[dict[str, threading.Lock]] = {}


def as_type(decode: Callable[..., Any], data: str | bytes, kind: type[T]) -> T:
    """`data` as a `kind`; decode: msgspec's for the format, whose errors pass."""
    with _LOCKS.setdefault("decoding", threading.Lock()):
        result: T = decode(data, type=kind)
    return result
