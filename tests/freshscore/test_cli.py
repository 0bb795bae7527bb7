"""The command line: quick to answer, and honest in its exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import freshscore
from freshscore import cli
from freshscore.config.errors import BadFile
from freshscore.config.loading import flat
from freshscore.config.settings import Settings

# What an answer to --help must not wait for.
_HEAVY = {"lightgbm", "matplotlib", "msgspec", "numba", "numpy", "pandas", "pyarrow", "pydantic"}
_HELP_LIMIT_S = 0.4


def _loaded_by(statement: str) -> set[str]:
    question = f"import sys\n{statement}\nprint(*(set(sys.modules) & {_HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", question], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_importing_freshscore_loads_nothing_heavy() -> None:
    assert _loaded_by("import freshscore, freshscore.config, freshscore.cli") == set()


@pytest.mark.parametrize("command", [[], *(name.split() for name in sorted(cli.COMMANDS))])
def test_help_of_every_command_loads_nothing_heavy(command: list[str]) -> None:
    asked = [*command, "--help"]
    statement = (
        f"import freshscore.cli\ntry: freshscore.cli.main({asked!r})\nexcept SystemExit: print()"
    )
    assert _loaded_by(statement) == set()


def test_help_answers_in_time() -> None:
    """The best of five, for the promise is about this program and not about its neighbours."""
    took_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "freshscore", "--help"], capture_output=True, check=True
        )
        took_s.append(time.perf_counter() - began_s)
    assert min(took_s) <= _HELP_LIMIT_S


def test_canary_heavy_imports_are_seen() -> None:
    assert "numpy" in _loaded_by("import numpy")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_of_the_table_has_its_module(name: str) -> None:
    module = importlib.import_module(f"freshscore.commands.{cli.module_of(name)}")
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_every_command_module_is_in_the_table() -> None:
    folder = Path(cli.__file__).parent / "commands"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules == {cli.module_of(name) for name in cli.COMMANDS}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["-h"], 0),
        (["--version"], 0),
        (["settings", "--help"], 0),
        ([], 2),
        (["settings"], 2),
        (["setings", "show"], 2),
        (["--unknown"], 2),
        (["settings", "show", "--config", "absent.toml"], 2),
        (["settings", "show", "--profile", "absent"], 2),
        (["settings", "show", "--settings", "store.max_entities=0"], 2),
    ],
)
def test_exit_code_and_one_line_of_complaint(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    said = capsys.readouterr()
    assert bool(said.out) is (code == 0)
    assert bool(said.err) is (code != 0)
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "words", [["settings", "show", "--bad"], ["settings", "show", "--settings"]]
)
def test_wrong_options_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_a_word_that_no_option_takes_may_be_an_identifier_and_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["entities", "forget", "--entity", "card", "4111-1111", "--crad=4222-2222", "--bad"]
    with pytest.raises(SystemExit):
        cli.main(words)
    said = capsys.readouterr().err
    assert "unrecognized arguments: --crad, --bad, 1 that are no options" in said
    assert "4111" not in said
    assert "4222" not in said


def test_near_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["settings", "shwo"])
    cli.main(["setings", "show"])
    assert "did you mean 'settings show'" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"freshscore {freshscore.__version__}\n"


def _command_that_raises(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> list[str]:
    def run(arguments: Namespace) -> int:
        raise problem

    def add_arguments(parser: ArgumentParser) -> None:
        pass

    module = SimpleNamespace(run=run, add_arguments=add_arguments)
    monkeypatch.setitem(cli.COMMANDS, "fail", "fails")
    monkeypatch.setitem(sys.modules, "freshscore.commands.fail", module)
    return ["fail"]


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (BadFile("x.csv is empty"), 2, "freshscore: x.csv is empty\n"),
        (FileNotFoundError(2, "No such file", "x.csv"), 2, "freshscore: x.csv: No such file\n"),
        (OSError(28, "No space left"), 2, "freshscore: a file or stream: No space left\n"),
        (KeyboardInterrupt(), 130, "freshscore: interrupted\n"),
    ],
)
def test_trouble_is_one_line(
    problem: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(_command_that_raises(monkeypatch, problem)) == code
    assert capsys.readouterr().err == said


def test_bugs_stay_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(_command_that_raises(monkeypatch, ZeroDivisionError()))


def test_reader_that_goes_away_is_no_error() -> None:
    """As `freshscore settings reference | head -1`, without the shell."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "freshscore", "settings", "reference"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_settings_show_prints_value_and_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures" / "settings.json"
    words = ["settings", "show", "--profile", "tiny", "--json", str(file)]
    assert cli.main([*words, "--settings", "store.skew_s=5", "--settings", "store.path=x/y"]) == 0
    printed = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    written = {one["name"]: one for one in json.loads(file.read_text("utf-8"))}
    assert printed["store.skew_s"] == ["5", "argument"]
    assert printed["store.path"] == ["x/y", "argument"]
    assert printed["store.horizon_s"] == ["60", "profile", "tiny"]
    assert written["store.skew_s"] == {"name": "store.skew_s", "value": 5, "from": "argument"}
    assert written["model.seed"]["from"] == "default"
    assert set(written) | {"setting"} == set(printed)


def test_settings_reference_prints_the_file_and_writes_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reference.json"
    assert cli.main(["settings", "reference", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "[store]\n# unit: " in said
    written = {one["name"]: one for one in json.loads(file.read_text("utf-8"))}
    assert list(written) == [name for name, _ in flat(Settings())]
    assert written["store.path"]["default"] is None
    assert written["store.horizon_s"]["default"] == 86_400
    assert written["store.horizon_s"]["unit"] == "seconds, 0 to a year"
    # Whole, though the file has it on two lines.
    assert written["store.horizon_s"]["why"].endswith("in memory for every entity")
    as_in_the_file = re.sub(r"\n#  +", " ", said)
    for one in written.values():
        assert f"# unit: {one['unit']}\n# why: {one['why']}\n" in as_in_the_file


def _ended(words: list[str], output: str = os.devnull, *, buffered: bool = True) -> tuple[int, str]:
    """Exit code and standard error of a process whose standard output is the file `output`."""
    env = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    with open(output, "w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "freshscore", *words],
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=env,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "buffered"),
    [
        (["settings", "show"], True),
        (["settings", "show"], False),
        (["--help"], True),
        (["settings", "show", "-h"], True),
    ],
)
def test_standard_output_that_is_full_is_said(words: list[str], buffered: bool) -> None:
    said = "freshscore: standard output: No space left on device\n"
    assert _ended(words, "/dev/full", buffered=buffered) == (2, said)


def test_json_on_a_full_disk_is_said() -> None:
    said = "freshscore: cannot write /dev/full: No space left on device\n"
    assert _ended(["settings", "show", "--json", "/dev/full"]) == (2, said)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("taken/x.json", "taken is no folder"),
        ("taken/below/x.json", "taken is no folder"),
        (".", "it is a folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_json_that_cannot_be_written_is_said_before_the_work(
    path: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert cli.main(["settings", "show", "--json", str(tmp_path / path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("freshscore: cannot write ")
    assert shown.err.endswith(f"{said}\n")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_results_that_cannot_be_written_are_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the file is even looked for; a report makes the folders that it lacks."""
    (tmp_path / "taken").write_text("")
    for words in (["features", "compute", "--out", "missing/x.csv"], ["replay", "--report", "."]):
        *command, output = words
        asked = [*command, str(tmp_path / output), "--data", str(tmp_path / "absent.csv")]
        assert cli.main(asked) == 2
        assert capsys.readouterr().err.startswith(f"freshscore: cannot write {tmp_path}")


def test_a_setting_of_endless_brackets_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["settings", "show", "--settings", "store.skew_s=" + "[" * 100_000]
    assert cli.main(words) == 2
    assert "store.skew_s" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--seed", "-1"],
        ["replay", "--seed", "-1"],
        ["generate", "--seed", "-1"],
        ["models", "evaluate", "--seeds", "1", "-3"],
    ],
)
def test_a_seed_below_zero_is_a_wrong_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "is no seed; it must be 0 or more" in capsys.readouterr().err


def test_an_unknown_command_of_a_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "wat"]) == 2
    assert "no command 'models wat'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("consume", "hiredis"),
        ("consume", "kafka"),
        ("consume", "redis"),
        ("lag", "redis"),
        ("topics check", "kafka"),
    ],
)
def test_without_the_extra_of_the_servers_one_line_says_how_to_install_it(
    command: str, missing: str
) -> None:
    words = [*command.split(), "--profile", "shared"]
    statement = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from freshscore.cli import main; sys.exit(main({words!r}))"
    )
    # Nobody listens there: what is not stopped by the missing module ends soon.
    nowhere = {
        "FRESHSCORE_SECRET": "00" * 32,
        "FRESHSCORE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "FRESHSCORE_KAFKA__REQUEST_TIMEOUT_S": "1",
        "FRESHSCORE_REDIS__URL": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(
        [sys.executable, "-c", statement],
        capture_output=True,
        text=True,
        env=os.environ | nowhere,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{missing} is not installed: pip install 'freshscore[shared]'" in done.stderr


def test_a_module_that_is_missing_for_another_reason_is_a_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(arguments: Namespace) -> int:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr("freshscore.commands.settings_show.run", run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["settings", "show"])
