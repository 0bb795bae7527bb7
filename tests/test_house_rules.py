"""The house keeps its rules, and each rule can fail."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from tests.house_rules import (
    CHANCE_DOOR,
    CLOCK_DOOR,
    DOORS,
    ENVIRONMENT_DOOR,
    LIBRARIES,
    NUMBA_DOOR,
    ROOM_RULES,
    ROOMS,
    TEST_RULES,
    Rule,
    Source,
    chance_is_passed_in,
    clock_at_its_door,
    environment_at_its_door,
    imports_go_one_way,
    libraries_with_two_doors,
    modules_have_telling_names,
    no_sleep_in_tests,
    nothing_runs_at_import,
    numba_at_its_door,
    one_door_each,
    only_declared_libraries,
    rooms_by_their_full_name,
)

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _sources(folder: str) -> list[Source]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [Source(p.relative_to(ROOT).as_posix(), p.read_text("utf-8")) for p in paths]


def _broken(rule: Rule, sources: list[Source]) -> list[str]:
    return [f"{s.path}:{line}: {said}" for s in sources for line, said in rule(s)]


@pytest.mark.parametrize("rule", ROOM_RULES, ids=lambda rule: rule.__name__)
def test_rooms_keep_the_rule(rule: Rule) -> None:
    sources = [source for room in ROOMS for source in _sources(room)]
    assert {source.room for source in sources} == set(ROOMS)
    assert _broken(rule, sources) == []


@pytest.mark.parametrize("rule", TEST_RULES, ids=lambda rule: rule.__name__)
def test_tests_keep_the_rule(rule: Rule) -> None:
    assert _broken(rule, _sources("tests")) == []


def test_each_library_has_one_door() -> None:
    assert libraries_with_two_doors([s for room in ROOMS for s in _sources(room)]) == []


def test_doors_stand_where_the_rules_say() -> None:
    """A door that was moved or renamed would leave its rule guarding nothing."""
    doors = [door for every in DOORS.values() for door in every]
    named = [ENVIRONMENT_DOOR, CLOCK_DOOR, CHANCE_DOOR, NUMBA_DOOR, *doors]
    assert [door for door in named if not (ROOT / door).is_file()] == []


def test_declared_libraries_are_those_of_pyproject() -> None:
    """Extras for development are not there where the wheel is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(w for e in set(extras) - {"dev"} for w in extras[e])]
    names = {re.split(r"[^a-z0-9-]", one)[0].replace("-", "_") for one in wanted}
    assert names - {"kafka_python"} | {"kafka", "llvmlite", "apscheduler"} == LIBRARIES


_TRY = "try:\n    import a\nexcept ImportError:\n    a = None\n"
BROKEN = [
    (imports_go_one_way, "features/x.py", "from freshscore.scoring.model import Model"),
    (imports_go_one_way, "features/x.py", "def f():\n    import freshscore.scoring"),
    (imports_go_one_way, "scoring/x.py", "from freshscore import Scorer"),
    (imports_go_one_way, "simulations/x.py", "from freshscore.output import progress"),
    (imports_go_one_way, "scoring/x.py", "from . import model"),
    (rooms_by_their_full_name, "scoring/x.py", "import features"),
    (rooms_by_their_full_name, "tests/test_x.py", "from features.schema import Transaction"),
    (rooms_by_their_full_name, "scoring/x.py", "importlib.import_module('features.schema')"),
    (imports_go_one_way, "features/x.py", "importlib.import_module('freshscore.scoring.scorer')"),
    (imports_go_one_way, "features/x.py", "__import__('freshscore.scoring')"),
    (rooms_by_their_full_name, "scoring/x.py", "import_module(name='features.schema')"),
    (one_door_each, "scoring/x.py", "from importlib import import_module as f\nf('lightgbm')"),
    (one_door_each, "scoring/x.py", "import sys\ndef f(): return sys.modules.get('lightgbm')"),
    (only_declared_libraries, "scoring/x.py", "import importlib\nimportlib.import_module('scipy')"),
    (one_door_each, "scoring/x.py", "import lightgbm as lgb"),
    (one_door_each, "scoring/x.py", "def f():\n    from lightgbm.basic import Booster"),
    (one_door_each, "features/x.py", "import redis.asyncio"),
    (one_door_each, "invalidation/x.py", "from kafka import KafkaConsumer"),
    (one_door_each, "invalidation/kafka_refusals.py", "import kafka.errors"),
    (one_door_each, "scoring/x.py", "from fastapi import FastAPI"),
    (one_door_each, "scoring/x.py", "from apscheduler.schedulers import background"),
    (only_declared_libraries, "scoring/x.py", "from sklearn.metrics import roc_auc_score"),
    (only_declared_libraries, "features/x.py", "import cachetools"),
    (environment_at_its_door, "config/settings.py", "import os\nhome = os.environ['HOME']"),
    (environment_at_its_door, "scoring/x.py", "from os import environ as e\nx = e.get('A')"),
    (environment_at_its_door, "scoring/x.py", "import os\ndef f(): return os.getenv('A')"),
    (clock_at_its_door, "scoring/x.py", "import time"),
    (clock_at_its_door, "scoring/x.py", "from time import perf_counter_ns as now"),
    (clock_at_its_door, "features/x.py", "from datetime import datetime as d\nx = d.now()"),
    (clock_at_its_door, "features/x.py", "import datetime\nx = datetime.date.today()"),
    (clock_at_its_door, "features/x.py", "import pandas as pd\nx = pd.Timestamp.utcnow()"),
    (clock_at_its_door, "scoring/x.py", "import importlib\nt = importlib.import_module('time')"),
    (clock_at_its_door, "scoring/x.py", "import sys\nx = sys.modules['time'].time()"),
    (clock_at_its_door, "scoring/x.py", "import os\ndef f(): return os.times()"),
    (clock_at_its_door, "scoring/x.py", "import pandas\ndef f(): return pandas.to_datetime('now')"),
    (clock_at_its_door, "scoring/x.py", "import numpy as np\ndef f(): np.datetime64('now', 'ms')"),
    (clock_at_its_door, "scoring/x.py", "import numpy as np\ndef f(): np.datetime64('today')"),
    (clock_at_its_door, "scoring/x.py", "import asyncio\nasync def f(): await asyncio.sleep(1)"),
    (no_sleep_in_tests, "tests/test_x.py", "import time\ndef f(): time.sleep(1)"),
    (no_sleep_in_tests, "tests/test_x.py", "from time import sleep as nap\ndef f(): nap(1)"),
    (chance_is_passed_in, "scoring/x.py", "import random"),
    (chance_is_passed_in, "scoring/x.py", "from secrets import token_bytes"),
    (chance_is_passed_in, "scoring/x.py", "import os\ndef f(): return os.urandom(8)"),
    (chance_is_passed_in, "scoring/x.py", "import uuid\ndef f(): return uuid.uuid4()"),
    (chance_is_passed_in, "scoring/x.py", "from uuid import uuid7\ndef f(): return uuid7()"),
    (chance_is_passed_in, "scoring/x.py", "import uuid\ndef f(): return uuid.uuid6()"),
    (chance_is_passed_in, "scoring/x.py", "import sys\ndef f(): sys.modules['random'].random()"),
    (chance_is_passed_in, "simulations/x.py", "import numpy as np\ndef f(): np.random.rand()"),
    (chance_is_passed_in, "simulations/x.py", "from numpy.random import shuffle\nshuffle([])"),
    (chance_is_passed_in, "scoring/x.py", "import numpy as np\nr = np.random.default_rng(1)"),
    (chance_is_passed_in, "simulations/x.py", "import numpy as np\nnp.random.default_rng()"),
    (chance_is_passed_in, "simulations/x.py", "import numpy as np\nnp.random.PCG64(None)"),
    (numba_at_its_door, "features/x.py", "import numba\n@numba.njit\ndef f(): pass"),
    (numba_at_its_door, "scoring/x.py", "from numba import njit"),
    (numba_at_its_door, "scoring/x.py", "import numba.core.config"),
    (nothing_runs_at_import, "scoring/x.py", "print('hello')"),
    (nothing_runs_at_import, "scoring/x.py", "for i in range(3):\n    pass"),
    (nothing_runs_at_import, "scoring/x.py", "MODEL = load_model('x')"),
    (nothing_runs_at_import, "scoring/x.py", "LOCK = threading.Lock()"),
    (nothing_runs_at_import, "scoring/x.py", "A = [(lambda: 1), *(load(i) for i in range(3))]"),
    (nothing_runs_at_import, "scoring/x.py", "class A:\n    store = open_store()"),
    (nothing_runs_at_import, "scoring/x.py", "def f(seed=draw()): pass"),
    (nothing_runs_at_import, "scoring/x.py", "with open('x') as f:\n    pass"),
    (nothing_runs_at_import, "scoring/x.py", "X = list(map(os.mkdir, ['a']))"),
    (nothing_runs_at_import, "scoring/x.py", "X = sorted(['a'], key=os.mkdir)"),
    (nothing_runs_at_import, "scoring/x.py", "X = Path('a').replace('b')"),
    (nothing_runs_at_import, "scoring/x.py", "X = _THREAD.join()"),
    (nothing_runs_at_import, "scoring/x.py", "X = lambda a=load(): a"),
    (nothing_runs_at_import, "scoring/x.py", "if TYPE_CHECKING:\n    import a\nelse:\n    f()"),
    (
        nothing_runs_at_import,
        "scoring/x.py",
        "if TYPE_CHECKING:\n    import a\nelif f():\n    1",
    ),
    (nothing_runs_at_import, "scoring/x.py", "if sys.version_info > (3, 12):\n    f()"),
    (
        nothing_runs_at_import,
        "scoring/x.py",
        "if sys.version_info:\n    A = 1\nelse:\n    f()",
    ),
    (nothing_runs_at_import, "scoring/x.py", "if sys.version_info > f():\n    A = 1"),
    (nothing_runs_at_import, "scoring/x.py", "try:\n    import a\nexcept ImportError:\n    f()"),
    (nothing_runs_at_import, "scoring/x.py", f"{_TRY}else:\n    f()"),
    (nothing_runs_at_import, "scoring/x.py", f"{_TRY}finally:\n    f()"),
    (nothing_runs_at_import, "scoring/x.py", "class A(made_base()):\n    pass"),
    (nothing_runs_at_import, "scoring/x.py", "class A(B, metaclass=made()):\n    pass"),
    (nothing_runs_at_import, "scoring/x.py", "if True:\n    import a"),
    (nothing_runs_at_import, "scoring/x.py", "if __name__ == '__main__':\n    main()"),
    (modules_have_telling_names, "scoring/utils.py", ""),
    (modules_have_telling_names, "scoring/cache_manager.py", ""),
    (modules_have_telling_names, "features/common/x.py", ""),
    (modules_have_telling_names, "scoring/statistics.py", ""),
    (modules_have_telling_names, "features/redis.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_canary_is_caught(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


KEPT = [
    (imports_go_one_way, "scoring/x.py", "from freshscore.features.schema import Transaction"),
    (imports_go_one_way, "freshscore/commands/x.py", "from freshscore.simulations import replay"),
    (rooms_by_their_full_name, "tests/test_x.py", "from tests.features.streams import stream"),
    (one_door_each, "scoring/lightgbm_door.py", "import lightgbm"),
    (one_door_each, "invalidation/kafka_writing.py", "import kafka.errors"),
    (environment_at_its_door, "scoring/x.py", "import os\ndef f(): return os.getpid()"),
    (clock_at_its_door, "scoring/x.py", "from datetime import datetime\nD = datetime(2020, 1, 1)"),
    (clock_at_its_door, "scoring/x.py", "def f(row): return row.time"),
    (chance_is_passed_in, "scoring/x.py", "def f(rng: np.random.Generator): return rng.random()"),
    (chance_is_passed_in, "simulations/x.py", "def f(seed): return np.random.default_rng(seed)"),
    (numba_at_its_door, "scoring/x.py", "from numba import types\nT = types.int64"),
    (nothing_runs_at_import, "scoring/x.py", "A = frozenset({1})\nB = re.compile('x')\nC = 2**3"),
    (nothing_runs_at_import, "scoring/x.py", "@kernel(nogil=True)\ndef f(a=1): return g(a)"),
    (nothing_runs_at_import, "scoring/x.py", "if TYPE_CHECKING:\n    import a"),
    (nothing_runs_at_import, "scoring/x.py", "A = ','.join(['a'])"),
    (nothing_runs_at_import, "scoring/x.py", "if sys.version_info > (3, 12):\n    import a"),
    (nothing_runs_at_import, "scoring/x.py", f"{_TRY}else:\n    from a import b"),
    (
        nothing_runs_at_import,
        "scoring/x.py",
        "class A(NamedTuple('B', []), b=True):\n    a = 1",
    ),
    (clock_at_its_door, "scoring/x.py", "def f(): return np.datetime64('2020-01-01')"),
    (one_door_each, "scoring/x.py", "def f(name): return importlib.import_module(name)"),
    (modules_have_telling_names, "scoring/baseline.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "text"), KEPT)
def test_what_is_allowed_is_not_caught(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_every_rule_has_a_canary() -> None:
    assert {*ROOM_RULES, *TEST_RULES} == {rule for rule, _, _ in BROKEN}


def test_canary_two_doors_are_caught() -> None:
    pair = [Source("simulations/a.py", "import matplotlib.pyplot"), Source("scoring/b.py", "")]
    assert libraries_with_two_doors(pair) == []
    pair[1] = Source("scoring/b.py", "def f():\n    from matplotlib import figure")
    assert libraries_with_two_doors(pair) == [
        "matplotlib is imported by scoring/b.py, simulations/a.py"
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_resolve(room: str) -> None:
    """`__all__`, the table of homes and what type checkers see name the same things."""
    package = importlib.import_module(
        "freshscore" if room == "freshscore" else f"freshscore.{room}"
    )
    public = list(getattr(package, "__all__", []))
    assert [name for name in public if not hasattr(package, name)] == []
    homes = getattr(package, "_HOMES", None)
    if homes is not None:
        lazy = {name for name in public if name != "__version__"}
        assert lazy == set(homes) == _seen_by_type_checkers(ROOT / room / "__init__.py")


def _seen_by_type_checkers(path: Path) -> set[str]:
    guards = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.If)]
    imports = [node for guard in guards for node in guard.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}
