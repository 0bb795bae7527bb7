"""Doors for tables: Parquet and CSV files, pandas frames and Arrow tables, as raw columns.

Rule: what cannot be read as what it was said to be is BadFile, with the library's reason; nothing
is half read. A row that alone is broken (a CSV row with too few or too many cells) is set aside.
In CSV an empty cell, quoted or not, is an absent value; blank lines are no rows. CSV is UTF-8; of
cells that are not, those that are read are wrong cells, and the header must be.
"""

from __future__ import annotations

import codecs
import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from freshscore.config.errors import BadFile
from freshscore.features.columns import shown
from freshscore.features.table import Int64s, Problem

# What Arrow raises for files that are damaged, cut short or of another kind.
_UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError)
# A header longer than this is no header, but a file without line ends.
_MAX_HEADER_CHARACTERS: Final = 1_000_000
_BYTES_AT_ONCE: Final = 1 << 20
# What stands for bytes that are no UTF-8 while CSV is parsed: Unicode will never assign it.
_ILLEGIBLE: Final = "\ufdd0"
_ESCAPED: Final = re.compile("[\udc80-\udcff]")
# Where Arrow quotes what it could not read; not the apostrophe of "Couldn't".
_QUOTE: Final = re.compile(r"(?<!\w)'")


@dataclass(frozen=True, slots=True, eq=False)
class RawColumn:
    """One column as it came.

    values: an Arrow array, or a list of objects that no one Arrow type holds. Strings may have
    bytes that are no UTF-8.
    cells: `typed` (a cell is what its column's type says), `text` (CSV: numbers, times and truths
    may be written as text) or `objects` (frames: each cell may be anything).
    """

    name: str
    values: pa.Array | list[object]
    cells: Literal["typed", "text", "objects"] = "typed"

    def __repr__(self) -> str:
        return f"RawColumn({self.name!r}, {len(self.values)} cells, {self.cells})"

    def cells_or_refused(self, what: str) -> list[object]:
        """The cells of a column whose type is wrong as a whole, to be looked at one by one.

        Raises BadFile, naming `what` they should be, unless each cell may be anything.
        """
        if isinstance(self.values, list):
            return self.values
        if self.cells != "objects":
            raise BadFile(f"column {self.name!r} holds {self.values.type}, which {what} cannot be")
        objects: list[object] = self.values.to_pylist()
        return objects


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Columns that were read, and rows that could not be.

    row: int64 (n,), row numbers of the source, ascending. broken: of those not among them, why.
    """

    columns: dict[str, RawColumn]
    row: Int64s
    broken: dict[int, Problem]

    def __repr__(self) -> str:
        return f"Loaded({len(self.row)} rows, {len(self.broken)} broken)"


@dataclass(frozen=True, slots=True)
class Source:
    """Something with named columns.

    load(wanted, texts): reads the columns `wanted`, of which `texts` hold strings.
    """

    name: str
    names: tuple[str, ...]
    load: Callable[[Sequence[str], Collection[str]], Loaded]

    def __repr__(self) -> str:
        # The first row of a file without a header is taken for its names.
        return f"Source({self.name!r}, {len(self.names)} columns)"


def opened(source: Any) -> Source:
    """A Parquet or CSV file by path, a pandas DataFrame or an Arrow table; raises BadFile."""
    pandas = sys.modules.get("pandas")
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() not in _READERS:
            raise BadFile(f"{path.name}: a file of payments ends in {' or '.join(_READERS)}")
        found = _READERS[path.suffix.lower()](path)
    elif isinstance(source, pa.Table):
        found = Source("the table", tuple(source.schema.names), lambda w, _: _from_arrow(source, w))
    # Whoever passes a frame has imported pandas; nobody else pays for it.
    elif pandas is not None and isinstance(source, pandas.DataFrame):
        names = tuple(name for name in source.columns if isinstance(name, str))
        found = Source("the frame", names, lambda wanted, _: _from_frame(source, wanted))
    else:
        raise TypeError(
            "payments come as a path, a DataFrame, an Arrow table or a list of transactions;"
            f" not {type(source).__name__}"
        )
    twice = sorted(name for name, times in Counter(found.names).items() if times > 1)
    if twice:
        raise BadFile(f"{found.name}: columns appear more than once: {shown(twice, found.names)}")
    return found


def _parquet(path: Path) -> Source:
    try:
        with arrow_parquet.ParquetFile(path) as file:
            names, n_rows = tuple(file.schema_arrow.names), file.metadata.num_rows
    except _UNREADABLE as problem:
        raise _unreadable(path, problem) from problem
    if n_rows == 0:
        raise BadFile(f"{path.name}: the file has no rows")

    def load(wanted: Sequence[str], texts: Collection[str]) -> Loaded:
        try:
            with arrow_parquet.ParquetFile(path, page_checksum_verification=True) as file:
                return _from_arrow(file.read(columns=list(wanted)), wanted)
        except _UNREADABLE as problem:
            raise _unreadable(path, problem) from problem

    return Source(path.name, names, load)


def _from_arrow(
    table: pa.Table, wanted: Sequence[str], cells: Literal["typed", "text"] = "typed"
) -> Loaded:
    columns = {name: RawColumn(name, _whole(table.column(name)), cells) for name in wanted}
    return Loaded(columns, np.arange(table.num_rows), {})


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    combined = column.combine_chunks()
    # Arrow gives several chunks back where one cannot hold all the bytes.
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _csv(path: Path) -> Source:
    try:
        # Escaped, since any line behind the header may be what is no UTF-8.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline(_MAX_HEADER_CHARACTERS)
            while header and not header.rstrip("\r\n"):
                header = file.readline(_MAX_HEADER_CHARACTERS)
            names = tuple(next(csv.reader([header]), ()))
            empty = not any(line.strip() for line in file)
    except (OSError, csv.Error) as problem:
        raise _unreadable(path, problem) from problem
    if not names:
        raise BadFile(f"{path.name}: the file is empty")
    if "\0" in header or _ESCAPED.search(header):
        raise BadFile(
            f"cannot read {path.name}: its first line is no UTF-8 text; the file is binary, or in"
            " another encoding such as UTF-16 or Latin-1"
        )
    if empty:
        raise BadFile(f"{path.name}: the file has no rows")

    def load(wanted: Sequence[str], texts: Collection[str]) -> Loaded:
        try:
            return _read_csv(path, wanted, texts)
        except _UNREADABLE as problem:
            raise _unreadable(path, problem) from problem

    return Source(path.name, names, load)


def _read_csv(path: Path, wanted: Sequence[str], texts: Collection[str]) -> Loaded:
    wrong: list[Any] = []

    def set_aside(row: Any) -> str:
        wrong.append(row)
        return "skip"

    source = path if _is_utf8(path) else _marked(path)

    def read(use_threads: bool) -> pa.Table:
        wrong.clear()
        return arrow_csv.read_csv(
            pa.BufferReader(source) if isinstance(source, bytes) else source,
            read_options=arrow_csv.ReadOptions(use_threads=use_threads),
            parse_options=arrow_csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=set_aside
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in texts},
                include_columns=list(wanted),
                # "NA" is Namibia's code before it is an absent value; numbers see to it later.
                null_values=[""],
                strings_can_be_null=True,
            ),
        )

    table = read(use_threads=True)
    if wrong:
        # Only a reader without threads says which row it was.
        table = read(use_threads=False)
    if isinstance(source, bytes):
        table = _unmarked(table, texts)
    loaded = _from_arrow(table, wanted, "text")
    # Arrow counts from one and counts the header.
    broken = {
        row.number - 2: Problem(
            "row", f"the row has {row.actual_columns} cells; the header has {row.expected_columns}"
        )
        for row in wrong
    }
    row = np.delete(np.arange(table.num_rows + len(broken)), [*broken])
    return Loaded(loaded.columns, row, broken)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while piece := file.read(_BYTES_AT_ONCE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _marked(path: Path) -> bytes:
    """The file with a mark for each byte that is no UTF-8, so that Arrow can say all it finds.

    Unchecked bytes would do for cells, but Arrow cannot hand over a row of another width with them.
    """
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(_ILLEGIBLE, text).encode()


def _unmarked(table: pa.Table, texts: Collection[str]) -> pa.Table:
    """Columns that hold strings with a byte that is no UTF-8 where a mark was.

    In the others the mark may stay: it is no part of a number, a time or a truth.
    """
    unchecked = pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True)
    for place, name in enumerate(table.column_names):
        if name in texts:
            raw = table.column(place).cast(pa.binary())
            damaged = pc.replace_substring(raw, _ILLEGIBLE.encode(), b"\xff")
            table = table.set_column(place, name, damaged.cast(options=unchecked))
    return table


def _from_frame(frame: Any, wanted: Sequence[str]) -> Loaded:
    columns = {name: RawColumn(name, _from_series(frame[name]), "objects") for name in wanted}
    return Loaded(columns, np.arange(len(frame)), {})


def _from_series(series: Any) -> pa.Array | list[object]:
    try:
        values = pa.array(series, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        # Objects of several kinds: they are looked at one by one.
        return list(series)
    return _whole(values) if isinstance(values, pa.ChunkedArray) else values


def _unreadable(path: Path, problem: BaseException) -> BadFile:
    what = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    # Arrow puts what it could not read behind the first line or in quotes: no payload in messages.
    first = _QUOTE.split(what.splitlines()[0])[0][:200].strip() if what.strip() else ""
    return BadFile(f"cannot read {path.name}: {first or type(problem).__name__}")


_READERS: Final = {".parquet": _parquet, ".csv": _csv}
