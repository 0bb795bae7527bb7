"""The wheel is what git has, and works where nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.wheel_environments import (
    Python,
    built_wheel,
    environment_with_wheel,
    files_of_git,
    name_in_wheel,
    names_in,
    pythons,
    readme_example,
    run_outside,
)

pytestmark = pytest.mark.wheel

_EXTRAS = ("shared", "service", "report")
_IMPORT_EACH = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    print(name)
"""


def test_wheel_holds_exactly_what_git_has() -> None:
    """A package that pyproject.toml does not list imports in a clone, and is not in the wheel."""
    assert names_in(built_wheel()) == sorted(name_in_wheel(file) for file in files_of_git())


def test_canary_a_package_missing_from_the_list_is_seen() -> None:
    lacking = set(names_in(built_wheel())) - set(names_in(built_wheel("freshscore.commands")))
    assert "freshscore/commands/settings_show.py" in lacking
    assert {name.rpartition("/")[0] for name in lacking} == {"freshscore/commands"}


def test_every_module_imports_with_all_extras(tmp_path: Path) -> None:
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names_in(built_wheel())
        if name.endswith(".py")
    ]
    command = environment_with_wheel(pythons()[0], _EXTRAS)
    printed = run_outside(command, "-c", _IMPORT_EACH, json.dumps(modules), folder=tmp_path)
    assert printed.split() == modules


@pytest.mark.parametrize("python", pythons(), ids=lambda python: python.label)
class TestWithoutExtras:
    """On each Python that this machine has, in an environment without any extra."""

    def test_environment_has_no_extras(self, python: Python, tmp_path: Path) -> None:
        question = "import importlib.util as u; print([n for n in {!r} if u.find_spec(n)])"
        extras = ["redis", "kafka", "crc32c", "fastapi", "uvicorn", "matplotlib"]
        command = environment_with_wheel(python)
        assert run_outside(command, "-c", question.format(extras), folder=tmp_path) == "[]\n"

    def test_package_and_command_line_answer(self, python: Python, tmp_path: Path) -> None:
        command = environment_with_wheel(python)
        where = run_outside(
            command, "-c", "import freshscore; print(freshscore.__file__)", folder=tmp_path
        )
        assert Path(where.strip()).is_relative_to(command.parent.parent)
        script = command.with_name("freshscore")
        version = built_wheel().name.split("-")[1]
        assert run_outside(script, "--version", folder=tmp_path) == f"freshscore {version}\n"
        shown = run_outside(script, "settings", "show", "--profile", "tiny", folder=tmp_path)
        assert "profile tiny" in shown

    def test_readme_example_runs_and_prints_what_it_says(
        self, python: Python, tmp_path: Path
    ) -> None:
        example, said = readme_example()
        file = tmp_path / "example.py"
        file.write_text(example, encoding="utf-8")
        printed = run_outside(environment_with_wheel(python), str(file), folder=tmp_path)
        assert printed.strip()
        if said is not None:
            assert printed == said
