"""Results to files, whole or not at all.

Rule: a reader of the path sees the old file or the complete new one, whatever happens in between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from freshscore.config.errors import BadFile


def write_table(path: str | Path, columns: Mapping[str, Any] | pa.Table) -> None:
    """Write `columns` (name -> array of equal length) to Parquet or CSV, as the suffix says.

    In CSV an absent value is an empty cell, and NaN is "nan". An existing file is replaced.
    Raises BadFile for another suffix, or where the file cannot be written.
    """
    to = Path(path)
    if to.suffix.lower() not in _WRITERS:
        raise BadFile(f"{to.name}: a table is written to {' or '.join(_WRITERS)}")
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                _WRITERS[to.suffix.lower()](table, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(to)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as problem:
        raise BadFile(f"cannot write {to.name}: {problem.strerror or problem}") from problem


def _to_parquet(table: pa.Table, file: BinaryIO) -> None:
    arrow_parquet.write_table(table, file, write_page_checksum=True)


def _to_csv(table: pa.Table, file: BinaryIO) -> None:
    arrow_csv.write_csv(table, file)


_WRITERS: Final = {".parquet": _to_parquet, ".csv": _to_csv}
