"""A server's temporary folder, which a later run removes where this one could not.

Rule: a folder is in use as long as the process that made it holds the lock on it. A test run that
is killed with -9 leaves its folders behind, with gigabytes of a soak in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "freshscore-server-"


class Folder:
    """An empty folder, ours until it is removed."""

    def __init__(self) -> None:
        _remove_abandoned()
        # Under another name until it is locked: nobody takes it for abandoned in between.
        made = Path(tempfile.mkdtemp(prefix="freshscore-new-"))
        self._lock = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name.replace("freshscore-new-", _PREFIX)))

    def remove(self) -> None:
        """Delete it with all that is in it; again does no harm."""
        if self.path.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # It may be gone meanwhile, or somebody else's.
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
