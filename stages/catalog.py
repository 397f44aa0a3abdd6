"""The datasets: how each source becomes rows in one of our three layouts.

instructions: prompt [{role, content}], completion [{role, content}], source, id
preferences:  prompt, chosen, rejected (message lists), source, id
benchmarks:   question, context, choices, answer (index), subject, id
A source with a split of its own adds `split` (train, validation, test; dev for worked examples).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, json, parquet

from stages import hub, skills
from stages.params import Dataset, Problem

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TEXT = pa.string()
SCHEMAS = {
    "instructions": {"prompt": MESSAGES, "completion": MESSAGES, "source": TEXT, "id": TEXT, "split": TEXT},
    "preferences": {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "source": TEXT, "id": TEXT, "split": TEXT},
    "benchmarks": {
        "question": TEXT,
        "context": TEXT,
        "choices": pa.list_(TEXT),
        "answer": pa.int64(),
        "subject": TEXT,
        "id": TEXT,
        "split": TEXT,
    },
}


def rows(role: str, name: str, dataset: Dataset, cap: int | None) -> Iterator[dict]:
    """The first `cap` rows of a dataset in the layout of `role`.

    Raises Problem when the source cannot be had or has not the columns that params.yaml names.
    """
    if dataset.builtin == "skills":
        maker = {"instructions": skills.instructions, "preferences": skills.preferences, "benchmarks": skills.benchmark}[role]
        if cap is None:
            raise Problem(f"data.{role}.{name} is null: the built-in data has no end, give a number of rows")
        return maker(cap)
    return islice(_mapped(role, name, dataset), cap)


def _mapped(role: str, name: str, dataset: Dataset) -> Iterator[dict]:
    """Rows of a table file or a hub repository of such files, through the `columns` of params.yaml."""
    if role == "benchmarks":
        raise Problem(f"data.benchmarks.{name}: only the built-in skills can be a benchmark so far")
    columns = dataset.columns or {}
    answers = {"instructions": ("completion",), "preferences": ("chosen", "rejected")}[role]
    if set(columns) != {"prompt", *answers}:
        raise Problem(f"datasets.{name}.columns names {sorted(columns)}: {role} need prompt, {', '.join(answers)}")
    number = 0
    for path in _files(name, dataset):
        for row in _read(path, list(columns.values()), name):
            cells = {ours: row[theirs] for ours, theirs in columns.items()}
            layout = {"prompt": _messages("user", cells["prompt"])}
            layout |= {answer: _messages("assistant", cells[answer]) for answer in answers}
            yield layout | {"source": name, "id": f"{name}:{number}", "split": None}
            number += 1


def _messages(role: str, cell: str | list[dict] | None) -> list[dict[str, str]]:
    """A cell as messages: a plain string is one turn of `role`, a chat list stays as it is."""
    if isinstance(cell, list):
        return [{"role": turn["role"], "content": turn["content"]} for turn in cell]
    return [{"role": role, "content": cell or ""}]


def _files(name: str, dataset: Dataset) -> list[Path]:
    """The table files of a dataset, downloaded first where it stands on a hub."""
    root = Path(dataset.path) if dataset.path else hub.download(dataset.repo, dataset.revision, [f"*{s}" for s in READERS], "dataset")
    files = sorted(path for path in root.rglob("*") if path.suffix in READERS) if root.is_dir() else [root]
    if not files or not files[0].exists():
        raise Problem(f"datasets.{name}: no parquet, jsonl or csv file at {dataset.path or dataset.repo}")
    return files


def _read(path: Path, columns: list[str], name: str) -> Iterator[dict]:
    table = READERS[path.suffix](path)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise Problem(f"datasets.{name}.columns names {', '.join(missing)}, but {path.name} has {', '.join(table.column_names)}")
    for batch in table.select(columns).to_batches():
        yield from batch.to_pylist()


READERS = {".parquet": parquet.read_table, ".jsonl": json.read_json, ".csv": csv.read_csv}
