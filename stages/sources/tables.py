"""Rows of table files, one by one: parquet, arrow, jsonl, json, csv, tsv and Excel; of text, also packed.

Real files hold rows that cannot be read: a line cut in the middle, bytes that are not UTF-8, a cell too many.
Such a row comes out as an `Unreadable`, in its place, so that every row of a file is counted.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
from pyarrow import parquet

from stages.settings.errors import Problem

UTF8 = "utf-8-sig"  # which passes over a byte order mark
SAMPLE = 1 << 20  # bytes of a file that tell its encoding; characters that tell its delimiter
LETTERS, MARKS = (
    re.compile(f"[{first}-{last}]") for first, last in ("\u0621\u064a", "\u064b\u0652")
)  # Arabic


@dataclass(frozen=True)
class Unreadable:
    """A row that is no table row: why, and what stands there."""

    why: str
    text: str = ""


@dataclass(frozen=True)
class Dialect:
    """How a text file is written. An `encoding` or `delimiter` of "" is found out from the file; `header` are
    the columns of a file whose first line names none; a `quote` of "" makes quotes plain characters.
    """

    encoding: str = ""
    delimiter: str = ""
    quote: str = '"'
    header: tuple[str, ...] = ()

    @property
    def quoting(self) -> dict[str, Any]:
        """For the csv module."""
        return {"quotechar": self.quote} if self.quote else {"quotechar": None, "quoting": csv.QUOTE_NONE}


# --- what a file is -----------------------------------------------------------------------------------------

PACKED = (".gz", ".bz2", ".zst")
ALIASES = {".ndjson": ".jsonl", ".feather": ".arrow", ".xls": ".xlsx", ".tab": ".tsv"}
# Of `Dataset.save_to_disk` and of the hub: JSON that describes tables.
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def kind(name: str) -> str:
    """The key in READERS of a file, by its name in any case, packed or not: .jsonl of A.JSONL.gz; "" of no
    table.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    last = suffixes[-2 if packed else -1] if len(suffixes) > packed else ""
    last = ALIASES.get(last, last)
    known = last in (TEXTS if packed else READERS) and PurePosixPath(name).name not in METADATA
    return last if known else ""


def stem(name: str) -> str:
    """The path of a table without what tells its kind: data/a of data/a.jsonl.gz."""
    path = PurePosixPath(name)
    path = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return path.with_suffix("").as_posix()


def dialect(path: Path, given: Dialect = Dialect()) -> Dialect:
    """How a file is written: as given, and what is not given as found out. Of no text: as given.

    Raises Problem where its encoding cannot be told.
    """
    if kind(path.name) not in TEXTS:
        return given
    with _as_named(path):
        named = given.encoding and codecs.lookup(given.encoding).name
        found = replace(given, encoding=(UTF8 if named == "utf-8" else named) or _encoding_of(path))
        if kind(path.name) in (".csv", ".tsv") and not given.delimiter:
            first = "\t,;|" if kind(path.name) == ".tsv" else ",;\t|"
            with _text(path, found.encoding) as file:
                found = replace(found, delimiter=_delimiter_of(file.read(SAMPLE >> 4), first, found))
        return found


def said(path: Path, how: Dialect) -> str:
    """What a person would want to know of how a file is read, "" where it is as they would expect."""
    parts = [how.encoding] if how.encoding not in ("", UTF8) else []
    if how.delimiter and how.delimiter != ("\t" if kind(path.name) == ".tsv" else ","):
        parts.append(f"delimiter {'tab' if how.delimiter == chr(9) else how.delimiter}")
    if kind(path.name) == ".xlsx":
        with _book(path) as book:
            first, *others = map(str, book.sheet_names)
        parts += [f"sheet {first}, and not {', '.join(others)}"] if others else []
    return ", ".join(parts)


def columns(path: Path) -> list[str]:
    """The columns of a file that names them once, in its schema; [] of one whose rows do."""
    with _as_named(path):
        if kind(path.name) == ".parquet":
            return parquet.read_schema(path).names
        if kind(path.name) == ".arrow":
            with _arrow_reader(path) as reader:
                return reader.schema.names
    return []


def rows(
    path: Path, columns: list[str] | None = None, how: Dialect | None = None
) -> Iterator[dict | Unreadable]:
    """The rows of a file. `columns` spares reading the others where the format can (parquet, arrow); [] just
    counts. `how` is its dialect, found out where it is not given.

    Raises Problem where the file as a whole is not what its name says.
    """
    with _as_named(path):
        yield from READERS[kind(path.name)](path, columns, how or dialect(path))


@contextmanager
def _as_named(path: Path) -> Iterator[None]:
    """Raise Problem where a file is not what its name says."""
    try:
        yield
    except UnicodeError as error:
        raise Problem(
            f"{path} is not in the encoding that it is read in ({error}): name its `encoding`"
        ) from None
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        name = kind(path.name)[1:]
        raise Problem(f"{path} cannot be read as {name}: {str(error).splitlines()[0]}") from None


def _encoding_of(path: Path) -> str:
    """UTF-8, UTF-16 or Windows-1256, by the file's first bytes that are not ASCII."""
    with _open(path) as file:
        head = file.read(SAMPLE)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        nulls = [head[place::2].count(0) for place in (0, 1)]  # blanks and digits have one each
        if max(nulls) > len(head) / 100 and min(nulls) < max(nulls) / 20:
            return "utf-16-be" if nulls[0] > nulls[1] else "utf-16-le"
        while head.isascii() and (more := file.read(SAMPLE)):
            head = more
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)
    foreign = len(re.findall("[\udc80-\udcff]", text))
    if foreign <= sum(not char.isascii() for char in text) - foreign:
        return UTF8
    beyond = MARKS.sub("", bytes(byte for byte in head if byte > 127).decode("cp1256"))
    if len(LETTERS.findall(beyond)) < len(beyond) / 2:
        raise Problem(f"{path} is neither UTF-8 nor UTF-16 nor Arabic in Windows-1256: name its `encoding`")
    return "cp1256"


def _delimiter_of(sample: str, candidates: str, how: Dialect) -> str:
    """The candidate by which most rows have as many cells as the first one, which has more than one."""

    def fit(delimiter: str) -> tuple[bool, float, int]:
        found = [
            row for row in csv.reader(io.StringIO(sample, ""), delimiter=delimiter, **how.quoting) if row
        ]
        cells = [len(row) for row in found[:100]] or [0]
        return cells[0] > 1, cells.count(cells[0]) / len(cells), cells[0]

    return max(candidates, key=fit)


# --- readers ------------------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    """Its bytes, unpacked."""
    if path.suffix.lower() not in PACKED:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), _compression(path)))


def _compression(path: Path) -> str:
    return {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[path.suffix.lower()]


def _text(path: Path, encoding: str) -> TextIO:
    """Its characters. In UTF-8, what is none becomes half a surrogate pair: the fault of a row, not of a
    file.
    """
    errors = "surrogateescape" if encoding == UTF8 else "strict"
    return io.TextIOWrapper(_open(path), encoding, errors, newline="")


def _lines(path: Path, how: Dialect) -> Iterator[bytes]:
    """Its lines in UTF-8: bytes, as str lines would also break at U+2028."""
    with _open(path) as file:
        if how.encoding == UTF8:
            yield from file
        else:
            for line in io.TextIOWrapper(file, how.encoding, newline="\n"):
                yield line.encode("utf-8", "surrogatepass")


def _parquet(path: Path, columns: list[str] | None, _: Dialect) -> Iterator[dict | Unreadable]:
    with parquet.ParquetFile(path) as file:
        known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1000, columns=known):
            yield from _records(batch)


def _records(batch: pa.RecordBatch) -> Iterator[dict | Unreadable]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        yield from (_one(batch.slice(i, 1)) for i in range(len(batch)))


def _one(row: pa.RecordBatch) -> dict | Unreadable:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8: {error.reason}")


def _arrow(path: Path, columns: list[str] | None, _: Dialect) -> Iterator[dict | Unreadable]:
    with _arrow_reader(path) as reader:
        stream = isinstance(reader, pa.RecordBatchStreamReader)
        batches = reader if stream else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            if columns is not None:
                batch = batch.select([name for name in columns if name in batch.schema.names])
            for start in range(0, len(batch), 1000):
                yield from _records(batch.slice(start, 1000))


@contextmanager
def _arrow_reader(path: Path) -> Iterator[Any]:
    """Of a stream, as `save_to_disk` writes it, or of a file, as feather is one."""
    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        yield pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _jsonl(path: Path, _: list[str] | None, how: Dialect) -> Iterator[dict | Unreadable]:
    yield from (_object(line) for line in _lines(path, how) if line.strip())


def _object(line: bytes) -> dict | Unreadable:
    try:
        value = json.loads(line.decode(UTF8))
    except (ValueError, RecursionError) as error:
        return Unreadable(
            f"not JSON: {str(error).splitlines()[0]}", line[:2000].decode("utf-8", "backslashreplace")
        )
    return (
        value
        if isinstance(value, dict)
        else Unreadable("not a JSON object", line[:2000].decode("utf-8", "backslashreplace"))
    )


def _json(path: Path, columns: list[str] | None, how: Dialect) -> Iterator[dict | Unreadable]:
    """A document with all rows in it, or one object a line."""
    lines = (line for line in _lines(path, how) if line.strip())
    start = list(islice(lines, 2))
    if len(start) == 2 and isinstance(_object(start[0]), dict):
        yield from _jsonl(path, columns, how)
        return
    try:
        document = json.loads(b"".join([*start, *lines]).decode(UTF8))
    except (ValueError, RecursionError) as error:
        if start and start[0].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            yield from _jsonl(path, columns, how)  # in which what cannot be read is a row
            return
        raise Problem(f"{path} cannot be read as json: {str(error).splitlines()[0]}") from None
    yield from (
        value if isinstance(value, dict) else Unreadable("not a JSON object", repr(value)[:2000])
        for value in _document_rows(path, document)
    )


TABLES = ("data", "rows", "examples", "instances", "items", "records", "train")  # keys that hold all rows


def _document_rows(path: Path, document: Any) -> list:
    """The rows in a JSON document: a list; one under a key of its own, SQuAD's nested one too; or a frame as
    pandas writes it.
    """
    if not isinstance(document, dict):
        return document if isinstance(document, list) else [document]
    tables = [key for key, value in document.items() if _is_table(value)]
    table = next((key for key in TABLES if key in tables), None)
    if table and len(tables) > 1:
        raise Problem(f"{path} holds several tables ({', '.join(tables)}): write each into a file of its own")
    if table:
        found = document[table]
        return _squad(path, found) if "paragraphs" in found[0] else found
    return _frame_rows(document)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _frame_rows(document: dict) -> list[dict]:
    """The rows of a frame that pandas wrote: as split, as lists of cells, by column, or by row. All else is
    one row.
    """
    names, cells, values = document.get("columns"), document.get("data"), list(document.values())
    if isinstance(names, list) and isinstance(cells, list) and all(isinstance(row, list) for row in cells):
        return [dict(zip(names, row)) for row in cells]
    listed = all(isinstance(value, list) and not _is_table(value) for value in values)
    if listed and len({len(value) for value in values}) == 1:
        return [dict(zip(document, row)) for row in zip(*values)]
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        if all(str(label).isdecimal() for label in values[0]):  # of rows, in each column
            return [{name: column[label] for name, column in document.items()} for label in values[0]]
        return values
    return [document]


def _squad(path: Path, articles: list) -> list[dict]:
    """A row for each question of a paragraph, in the columns that the hub's SQuAD has."""
    try:
        return [
            item
            | {"title": article.get("title", ""), "context": paragraph["context"]}
            | {
                "answers": {
                    name: [one.get(name) for one in item.get("answers") or []]
                    for name in ("text", "answer_start")
                }
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{path} has paragraphs, but not as SQuAD has them: {error!r}") from None


def _csv(path: Path, _: list[str] | None, how: Dialect) -> Iterator[dict | Unreadable]:
    """Strictly: a quote that opens and does not close would swallow the rows after it."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB cuts real documents
    with _text(path, how.encoding) as file:
        options = {"delimiter": how.delimiter, "strict": True} | how.quoting
        reader = csv.DictReader(file, list(how.header) or None, **options)
        line = 1
        try:
            if not how.header:
                reader.fieldnames = _header(path, reader.fieldnames or [])
            line = reader.line_num + 1
            for row in reader:
                extra = row.pop(None, [])
                yield (
                    Unreadable("more cells than the header has", repr([row, extra])[:2000])
                    if any(extra)
                    else row
                )
                line = reader.line_num + 1
        except csv.Error as error:
            raise Problem(
                f"{path}: the row that begins in line {line} opens a quote that does not close ({error}): "
                "close it, double the quotes inside, or set `quote: ''` where quotes are plain characters"
            ) from None


def _header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise Problem(f"{path} has two columns of the name {twice[0]!r}: rename one")
    return names


def _excel(path: Path, _: list[str] | None, how: Dialect) -> Iterator[dict | Unreadable]:
    """The first sheet. Empty cells are null."""
    options = {"header": None, "names": list(how.header)} if how.header else {}
    with _book(path) as book:
        frame = book.parse(dtype=object, keep_default_na=False, **options)
    frame.columns = [str(name) for name in frame.columns]
    for row in frame.to_dict("records"):
        yield {name: None if isinstance(cell, str) and not cell else cell for name, cell in row.items()}


@contextmanager
def _book(path: Path) -> Iterator[Any]:
    import pandas

    try:
        with pandas.ExcelFile(path, engine="calamine") as book:
            yield book
    except Exception as error:  # of whatever kind a broken archive makes the library raise
        raise Problem(f"{path} cannot be read as xlsx: {str(error).splitlines()[0]}") from None


TEXTS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}
READERS = {".parquet": _parquet, ".arrow": _arrow, **TEXTS, ".xlsx": _excel}
