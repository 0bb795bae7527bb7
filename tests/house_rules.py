"""The rules of the house, each a function from one source file to what breaks it.

Rule of the rules: they read syntax trees and import nothing, so a broken room is still checked.
`test_house_rules.py` runs them over the repository, and proves with a canary that each can fail.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

# Lowest first: a room imports from itself and from the rooms before it.
ROOMS = ("config", "features", "invalidation", "scoring", "simulations", "freshscore")

# One module each, Kafka's apart: what it is used for are four things. Without a module it is a door
# that nobody has built yet.
DOORS: dict[str, tuple[str, ...]] = {
    "apscheduler": (),
    "fastapi": (),
    "kafka": (
        "invalidation/kafka_admin.py",
        "invalidation/kafka_batches.py",  # what reading brings: messages where they lie
        "invalidation/kafka_connecting.py",
        "invalidation/kafka_reading.py",
        "invalidation/kafka_writing.py",
    ),
    "lightgbm": ("scoring/lightgbm_door.py",),
    "redis": ("features/redis_connecting.py",),
}
# Libraries that must enter by one module, whichever that is.
SINGLE_DOORS = (
    "crc32c",
    "hiredis",
    "matplotlib",
    "prometheus_client",
    "pydantic_settings",
    "uvicorn",
)
ENVIRONMENT_DOOR = "config/environment.py"
CLOCK_DOOR = "config/clock.py"
CHANCE_DOOR = "config/secret.py"
NUMBA_DOOR = "features/compiled.py"

# What a room may import beside the standard library; all declared in pyproject.toml.
LIBRARIES = {
    *DOORS,
    *SINGLE_DOORS,
    "llvmlite",  # numba's own dependency, and of its version
    "msgspec",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "rich",
}

_MAY_SEED = ("simulations/", "tests/", "freshscore/commands/")
_SEEDED = {"default_rng", "SeedSequence", "PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"}
_VAGUE_NAMES = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
_COMPILERS = {"njit", "jit", "vectorize", "guvectorize", "cfunc", "config"}

# Functions that only build a value, so that a constant may be made with them. Methods do so too,
# but of literals alone: `replace` of a string builds one, of a path it moves a file.
_BUILDERS = set(
    "abs bin bytes bytes.fromhex dataclasses.field date datetime dict dict.fromkeys enumerate field"
    " float float.fromhex frozenset int int.from_bytes len list math.exp math.log math.sqrt max min"
    " namedtuple np.array np.bool_ np.dtype np.finfo np.float32 np.float64 np.iinfo np.int16"
    " np.int32 np.int64 np.int8 np.uint16 np.uint32 np.uint64 np.uint8 object ord partial range"
    " re.compile reversed round set slice sorted str sum timedelta tuple zip".split()
)
# Names in capitals are classes and build values too, these excepted: they are things that live.
_LIVING = set(
    "Barrier Condition Connection Console Event Live Lock Pool Popen Process ProcessPoolExecutor"
    " Progress Queue RLock Random Redis Scorer Semaphore Thread ThreadPoolExecutor Timer".split()
)


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root of the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        return self.path.split("/")[0]

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, dotted name) of everything imported, at any depth; `from a import b` is a.b.

        What is taken by a literal name counts too: import_module("a"), sys.modules["a"].
        """
        found = [*_taken_by_name(self)]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def names(self) -> list[tuple[ast.expr, str]]:
        """(node, dotted name) of each name that is used, with what imports call it resolved."""
        meant = self._meant
        found = []
        for node in ast.walk(self.tree):
            name = _dotted(node)
            if name and isinstance(node, ast.expr):
                first, dot, rest = name.partition(".")
                found.append((node, meant.get(first, first) + dot + rest))
        return found

    @property
    def _meant(self) -> dict[str, str]:
        meant: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                meant |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                meant |= {
                    alias.asname or alias.name: f"{node.module}.{alias.name}"
                    for alias in node.names
                }
        return meant


Rule = Callable[[Source], Iterator[tuple[int, str]]]


def imports_go_one_way(source: Source) -> Iterator[tuple[int, str]]:
    """Rooms import from themselves and from the rooms before them, by absolute names."""
    for line, name in source.imports:
        if name.startswith("."):
            yield line, "relative import: the order of the rooms cannot be read off it"
        if source.room not in ROOMS or name.split(".")[0] != "freshscore":
            continue
        parts = name.split(".")
        room = parts[1] if len(parts) > 1 and parts[1] in ROOMS else "freshscore"
        if ROOMS.index(room) > ROOMS.index(source.room):
            yield line, f"{source.room} imports {name}, which is above it"


def rooms_by_their_full_name(source: Source) -> Iterator[tuple[int, str]]:
    """A room under its bare name would be a second copy of every class in it."""
    for line, name in source.imports:
        if name.split(".")[0] in ROOMS[:-1]:
            yield line, f"import of {name}; the room's name is freshscore.{name.split('.')[0]}"


def one_door_each(source: Source) -> Iterator[tuple[int, str]]:
    """Libraries that reach the world are imported only in the modules that are their door."""
    for line, name in source.imports:
        library = name.split(".")[0]
        if library in DOORS and source.path not in DOORS[library]:
            door = ", ".join(DOORS[library]) or "none yet: name it in DOORS"
            yield line, f"{library} is imported; its door is {door}"


def only_declared_libraries(source: Source) -> Iterator[tuple[int, str]]:
    """What a room imports is declared; a library that only the tests install is not there."""
    for line, name in source.imports:
        top = name.split(".")[0]
        if top and top not in {*sys.stdlib_module_names, *LIBRARIES, *ROOMS}:
            yield line, f"{top} is not among the libraries that pyproject.toml declares"


def environment_at_its_door(source: Source) -> Iterator[tuple[int, str]]:
    """Environment variables are read in one module."""
    if source.path == ENVIRONMENT_DOOR:
        return
    for node, name in source.names:
        if re.fullmatch(r"(os\.)(environb?|getenvb?|putenv|unsetenv)", name):
            yield node.lineno, f"{name}; environment variables enter by {ENVIRONMENT_DOOR}"


def clock_at_its_door(source: Source) -> Iterator[tuple[int, str]]:
    """The time is an argument; only the door asks the system for it, and nobody sleeps."""
    if source.path == CLOCK_DOOR:
        return
    for line, name in source.imports:
        if name == "time" or name.startswith("time."):
            yield line, f"import of {name}; the system clock enters by {CLOCK_DOOR}"
    for node, name in source.names:
        if re.search(r"(?:^|\.)(datetime|date|Timestamp)\.(now|utcnow|today)$", name):
            yield node.lineno, f"{name}; the system clock enters by {CLOCK_DOOR}"
        if name == "os.times":
            yield node.lineno, f"{name}; the system clock enters by {CLOCK_DOOR}"
        if name.endswith(".sleep"):
            yield node.lineno, f"{name}: nothing here may sleep"
    for call in ast.walk(source.tree):
        # numpy and pandas take the time under these names.
        if isinstance(call, ast.Call) and {"now", "today"} & set(_texts_given(call)):
            yield call.lineno, f"a time named by a string; the system clock enters by {CLOCK_DOOR}"


def no_sleep_in_tests(source: Source) -> Iterator[tuple[int, str]]:
    """Tests move the clock."""
    for node, name in source.names:
        if name.endswith(".sleep"):
            yield node.lineno, f"{name}: move the clock instead"


def chance_is_passed_in(source: Source) -> Iterator[tuple[int, str]]:
    """Generators are arguments; they are made from a seed that is named, where runs begin."""
    if source.path == CHANCE_DOOR:
        return
    for line, name in source.imports:
        if name.split(".")[0] in {"random", "secrets"}:
            yield line, f"import of {name}; chance enters by {CHANCE_DOOR} or as a Generator"
    for node, name in source.names:
        if re.fullmatch(r"os\.(urandom|getrandom)|uuid\.uuid[1467]", name):
            yield node.lineno, f"{name}; chance enters by {CHANCE_DOOR}"
        drawn = re.fullmatch(r"(?:np|numpy)\.random\.(\w+)", name)
        if drawn and drawn[1] not in {"Generator", "BitGenerator", *_SEEDED}:
            yield node.lineno, f"{name} draws from a global generator"
    for call in ast.walk(source.tree):
        if isinstance(call, ast.Call):
            made = (_dotted(call.func) or "").split(".")[-1]
            if made in _SEEDED and not source.path.startswith(_MAY_SEED):
                yield call.lineno, f"{made}() outside {', '.join(_MAY_SEED)}: take a Generator"
            elif made in _SEEDED and not _has_seed(call):
                yield call.lineno, f"{made}() without a seed cannot be repeated"


def numba_at_its_door(source: Source) -> Iterator[tuple[int, str]]:
    """Kernels are compiled by one decorator, which keeps their machine code where it is valid."""
    if source.path == NUMBA_DOOR:
        return
    for node, name in [*source.names, *_as_names(source.imports)]:
        parts = name.split(".")
        if parts[0] == "numba" and _COMPILERS & set(parts[1:]):
            yield node.lineno, f"{name}; use `kernel` of {NUMBA_DOOR}"


def nothing_runs_at_import(source: Source) -> Iterator[tuple[int, str]]:
    """A module holds imports, constants, definitions and decorators."""
    yield from _body_runs(source.tree.body, source.path)


def modules_have_telling_names(source: Source) -> Iterator[tuple[int, str]]:
    """No module is named for nothing, or like a library or a standard module."""
    *folders, file = source.path.removesuffix(".py").split("/")
    for name in [*folders[1:], file]:
        if set(name.split("_")) & _VAGUE_NAMES:
            yield 1, f"{name} says nothing: if something has no room, a room is missing"
        if name in {*sys.stdlib_module_names, *LIBRARIES}:
            yield 1, f"{name} is the name of a library"


ROOM_RULES: tuple[Rule, ...] = (
    imports_go_one_way,
    rooms_by_their_full_name,
    one_door_each,
    only_declared_libraries,
    environment_at_its_door,
    clock_at_its_door,
    chance_is_passed_in,
    numba_at_its_door,
    nothing_runs_at_import,
    modules_have_telling_names,
)
TEST_RULES: tuple[Rule, ...] = (rooms_by_their_full_name, no_sleep_in_tests)


def libraries_with_two_doors(sources: list[Source]) -> list[str]:
    """Libraries of SINGLE_DOORS that more than one module imports."""
    problems = []
    for library in SINGLE_DOORS:
        doors = sorted(
            {s.path for s in sources for _, name in s.imports if name.split(".")[0] == library}
        )
        # The settings and what loads them are one door in two modules.
        if (
            len({door.split("/")[0] if library == "pydantic_settings" else door for door in doors})
            > 1
        ):
            problems.append(f"{library} is imported by {', '.join(doors)}")
    return problems


def _body_runs(body: list[ast.stmt], path: str) -> Iterator[tuple[int, str]]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _defaults_run(node.args)
        elif isinstance(node, ast.ClassDef):
            for value in [*node.bases, *(keyword.value for keyword in node.keywords)]:
                yield from _value_runs(value)
            yield from _body_runs(node.body, path)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is not None:
                yield from _value_runs(node.value)
        elif isinstance(node, ast.If) and _is_guard(node.test, path):
            # What a guard keeps from running at import is its body; what else it has runs.
            yield from _body_runs(node.orelse, path)
        elif isinstance(node, ast.If) and "sys.version_info" in ast.unparse(node.test):
            yield from _value_runs(node.test)
            yield from _body_runs([*node.body, *node.orelse], path)
        elif isinstance(node, ast.Try) and all(_is_import(inner) for inner in node.body):
            handled = [inner for handler in node.handlers for inner in handler.body]
            yield from _body_runs([*handled, *node.orelse, *node.finalbody], path)
        else:
            yield node.lineno, f"{type(node).__name__} runs at import"


def _value_runs(value: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(value, ast.Lambda):
        yield from _defaults_run(value.args)
        return
    if isinstance(value, ast.Call) and not _only_builds(value):
        yield value.lineno, f"{ast.unparse(value.func)}() runs at import"
    for inner in ast.iter_child_nodes(value):
        # Comprehensions and keyword arguments hold their expressions one level further down.
        yield from _value_runs(inner)


def _defaults_run(arguments: ast.arguments) -> Iterator[tuple[int, str]]:
    for default in [*arguments.defaults, *arguments.kw_defaults]:
        if default is not None:
            yield from _value_runs(default)


def _only_builds(call: ast.Call) -> bool:
    if any(keyword.arg == "key" for keyword in call.keywords):
        return False  # of `sorted`, `min` and `max`: a function that they call
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Constant):
        return True
    name = _dotted(call.func) or ""
    last = name.split(".")[-1]
    return name in _BUILDERS or (last.lstrip("_")[:1].isupper() and last not in _LIVING)


def _is_guard(test: ast.expr, path: str) -> bool:
    text = ast.unparse(test)
    main = text == "__name__ == '__main__'" and path.endswith("__main__.py")
    return main or text in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _has_seed(call: ast.Call) -> bool:
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return bool(values) and not (isinstance(values[0], ast.Constant) and values[0].value is None)


def _taken_by_name(source: Source) -> Iterator[tuple[int, str]]:
    """(line, module) of what is imported, or taken from what was imported, by a literal name."""
    names = dict(source.names)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            taker, given = node.func, _texts_given(node)
        elif isinstance(node, ast.Subscript):
            taker, given = node.value, _texts([node.slice])
        else:
            continue
        if re.search(r"\b(import_module|__import__|sys\.modules(\.\w+)?)$", names.get(taker, "")):
            yield from ((node.lineno, module) for module in given)


def _texts_given(call: ast.Call) -> list[str]:
    """The literal strings among the arguments of a call."""
    return _texts([*call.args, *(keyword.value for keyword in call.keywords)])


def _texts(values: list[ast.expr]) -> list[str]:
    return [one.value for one in values if isinstance(one, ast.Constant) and type(one.value) is str]


def _as_names(imports: list[tuple[int, str]]) -> list[tuple[ast.expr, str]]:
    return [(ast.Name("", lineno=line), name) for line, name in imports]


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else None
    return None
