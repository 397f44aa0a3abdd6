"""Rows of table files, one by one: parquet, jsonl, json and csv.

Real files hold rows that cannot be read: a line cut in the middle, bytes that are not UTF-8, a cell too many.
Such a row comes out as an `Unreadable`, in its place, so that every row of a file is counted.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from stages.settings.errors import Problem


@dataclass(frozen=True)
class Unreadable:
    """A row that is no table row: why, and what stands there."""

    why: str
    text: str = ""


def rows(path: Path, columns: list[str] | None = None) -> Iterator[dict | Unreadable]:
    """The rows of a file. `columns` spares reading the others where the format can (parquet); [] just counts.

    Raises Problem where the file as a whole is not what its name says.
    """
    try:
        yield from READERS[path.suffix](path, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise Problem(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None


def _parquet(path: Path, columns: list[str] | None) -> Iterator[dict]:
    with parquet.ParquetFile(path) as file:
        known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1000, columns=known):
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:
                yield from (_one(batch.slice(i, 1)) for i in range(len(batch)))


def _one(row: pa.RecordBatch) -> dict | Unreadable:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8: {error.reason}")


def _jsonl(path: Path, _: list[str] | None) -> Iterator[dict | Unreadable]:
    with path.open("rb") as file:
        for line in file:  # bytes, as str lines would also break at U+2028
            if line.strip():
                yield _object(line)


def _object(line: bytes) -> dict | Unreadable:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Unreadable(
            f"not JSON: {str(error).splitlines()[0]}", line[:2000].decode("utf-8", "backslashreplace")
        )
    return (
        value
        if isinstance(value, dict)
        else Unreadable("not a JSON object", line[:2000].decode("utf-8", "backslashreplace"))
    )


def _json(path: Path, columns: list[str] | None) -> Iterator[dict | Unreadable]:
    """A list of objects, or one object a line."""
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:
        yield from _jsonl(path, columns)
        return
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} cannot be read as json: {str(error).splitlines()[0]}") from None
    yield from (
        value if isinstance(value, dict) else Unreadable("not a JSON object", repr(value)[:2000])
        for value in values
    )


def _csv(path: Path, _: list[str] | None) -> Iterator[dict | Unreadable]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB cuts real documents
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Unreadable(f"not CSV: {error}")
                continue
            yield Unreadable("more cells than the header has", repr(row)[:2000]) if None in row else row


READERS = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".csv": _csv}
