"""Examples of the documentation print what they say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", ["existing-features.md"])
def test_an_example_prints_what_the_document_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", (DOCUMENTS / name).read_text("utf-8"), re.M | re.S)
    (language, code), (_, expected) = blocks[:2]
    assert language == "python"
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), {})
    assert printed.getvalue() == expected
