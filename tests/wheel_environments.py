"""The wheel, built from what git has, and clean environments to install it in.

Both lie in build/wheel. An environment is made anew only when what it must hold has changed; the
wheel itself is put into it on every run.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("config", "features", "freshscore", "invalidation", "scoring", "simulations")
# What an operator deploys, which is no part of the package.
_NOT_SHIPPED = ("config/deploy/",)
_WORK = ROOT / "build" / "wheel"
_OLDEST = (3, 11)
_INSTALL_LIMIT_S = 900


@dataclass(frozen=True)
class Python:
    """An interpreter on this machine."""

    command: str
    version: tuple[int, int]

    @property
    def label(self) -> str:
        return "{}.{}".format(*self.version)


def files_of_git() -> list[str]:
    """Every file of the rooms that ships: tracked, or new and not ignored."""
    listed = _output(["git", "ls-files", "-co", "--exclude-standard", "--", *ROOMS], ROOT)
    shipped = [name for name in listed.splitlines() if not name.startswith(_NOT_SHIPPED)]
    return sorted(name for name in shipped if (ROOT / name).is_file())


def name_in_wheel(file: str) -> str:
    """Where a file of a room lies in the package."""
    return file if file.startswith("freshscore/") else f"freshscore/{file}"


@functools.cache
def built_wheel(without_package: str | None = None) -> Path:
    """The wheel of the files that git has, and of nothing else: no leavings of older builds.

    `without_package`: a package to strike from the list of pyproject.toml, for the canary.
    """
    work = _WORK / "canary" if without_package else _WORK
    source, target = work / "source", work / "dist"
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    for name in [*files_of_git(), "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    if without_package:
        project = project.replace(f'    "{without_package}",\n', "")
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    _output(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)],
        source,
    )
    (wheel,) = target.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> list[str]:
    """The files of the package in a wheel, its metadata left out."""
    with ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def pythons() -> list[Python]:
    """One interpreter for each version from 3.11 on that this machine has, oldest first."""
    found: dict[tuple[int, int], Python] = {}
    for command in _candidates():
        version = _version_of(command)
        if version and version >= _OLDEST:
            found.setdefault(version, Python(command, version))
    return [found[version] for version in sorted(found)]


@functools.cache
def environment_with_wheel(python: Python, extras: tuple[str, ...] = ()) -> Path:
    """The interpreter of a clean environment with the wheel, its dependencies, and `extras`."""
    name = "-".join([python.label, *(extras or ("bare",))])
    folder = _WORK / f"{name}-{_digest_of_dependencies(extras)}"
    command = folder / "bin" / "python"
    finished = folder / "finished"
    wanted = f"{built_wheel()}[{','.join(extras)}]" if extras else str(built_wheel())
    if not finished.exists():
        for old in _WORK.glob(f"{name}-*"):
            shutil.rmtree(old)
        _output([python.command, "-m", "venv", str(folder)], ROOT)
        _install(command, "--constraint", str(ROOT / "constraints.txt"), wanted)
    _install(command, "--no-deps", "--force-reinstall", str(built_wheel()))
    finished.touch()
    return command


def run_outside(
    command: Path, *arguments: str, folder: Path, variables: Mapping[str, str] | None = None
) -> str:
    """Run an environment's Python in `folder`, where nothing of the clone is importable."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FRESHSCORE_"))}
    # Compiled kernels are kept between runs, beside the environments.
    clean["FRESHSCORE_CACHE_DIR"] = str(_WORK / "cache")
    return _output([str(command), *arguments], folder, {**clean, **(variables or {})})


def readme_example() -> tuple[str, str | None]:
    """The first Python block of the README, and the text block right after it, if there is one."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    index = next((i for i, (kind, _) in enumerate(blocks) if kind == "python"), None)
    if index is None:
        raise AssertionError("README.md has no ```python block")
    following = blocks[index + 1 : index + 2]
    said = following[0][1] if following and following[0][0] == "text" else None
    return blocks[index][1], said


def _candidates() -> Iterator[str]:
    yield getattr(sys, "_base_executable", sys.executable)
    for minor in range(_OLDEST[1], _OLDEST[1] + 8):
        yield f"python3.{minor}"
    root = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    for folder in sorted(Path(root, "versions").glob("3.*")):
        yield str(folder / "bin" / "python3")
    yield "python3"


def _version_of(command: str) -> tuple[int, int] | None:
    """The version of an interpreter that can make environments; None of anything else."""
    question = "import ensurepip, sys; print(*sys.version_info[:2])"
    try:
        major, minor = _output([command, "-c", question], ROOT).split()
    except (OSError, AssertionError):
        return None
    return int(major), int(minor)


def _digest_of_dependencies(extras: tuple[str, ...]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [project["dependencies"], [project["optional-dependencies"][e] for e in extras]]
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    return hashlib.blake2b(f"{wanted} {constraints}".encode(), digest_size=5).hexdigest()


def _install(command: Path, *wanted: str) -> None:
    _output(
        [str(command), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        ROOT,
    )


def _output(command: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=_INSTALL_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout
