"""Typed decoding by many threads at once."""

from __future__ import annotations

import subprocess
import sys

_MANY_AT_ONCE = """
import sys, threading
from freshscore.features.columns import ColumnMap
from freshscore.features.specification import FeatureSpecification
sys.setswitchinterval(1e-5)
start = threading.Barrier(8)
found = []
def first_use():
    start.wait()
    found.append((len(ColumnMap.shipped()), FeatureSpecification.shipped("payments").name))
threads = [threading.Thread(target=first_use) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
assert len(set(found)) == 1 and len(found) == 8, found
"""


def test_threads_that_decode_a_type_first_at_once_do_not_end_the_process() -> None:
    for _ in range(8):
        subprocess.run([sys.executable, "-c", _MANY_AT_ONCE], check=True, timeout=60)
