"""Fetch one role's raw data, from a hub, a file or the built-in generator →
data/raw/<role>/<dataset>.parquet, sources.json.

Every row taken from a dataset is written, one that cannot be used with its fault. sources.json says what each
dataset is: the commit its revision was resolved to, its licence, its rows and how many of them were taken.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from stages.builtin import skills
from stages.settings.errors import Problem, one_line, one_line_errors
from stages.settings.files import replace_folder, write_json
from stages.settings.params import GATE_KEYS, ROLES, Own, Rows, Source
from stages.settings.stage import role_argument, stage
from stages.sources import hub, tables
from stages.sources.catalog import adapter_of
from stages.sources.layouts import SCHEMAS, Adapter, Fault, Row, last_answer_alone

WATCHED = (Path("data/own"), Path("data/feedback"))  # by DVC
# Of a row group, what a later stage holds in memory at a time: rows, and characters of answers.
GROUP, GROUP_TEXT = 10_000, 2**22
Files = dict[str, tables.Dialect]  # of a dataset, by their paths in its folder, and how each is written
SAMPLE_SEED = 11  # of the fixed sample that a cap takes; as a dataset grows, what was taken stays


def main(role: str) -> None:
    with stage("fetch", role) as params, replace_folder(Path("data/raw") / role) as folder:
        sources = {}
        for name, (source, wanted) in params.sources(role).items():
            key = f"mixtures.{params.data}.{role}.{name}"
            if role == "preferences" and source.path and not Path(source.path).exists():
                # No error here: evaluate@sft does without. The preference stage does not: stages/check.py.
                print(f"note: {key}: {source.path} is not there, so there are no pairs of it")
                continue
            read = builtin if source.builtin else published
            rows, facts = read(key, role, name, source, wanted)
            count, faults, notes, example = write(
                folder / f"{name}.parquet", SCHEMAS[ROLES[role]], name, rows
            )
            if faults.total() == count:
                raise Problem(
                    f"{key}: none of {count:,} rows can be read as {role}: {example or 'the source is empty'}"
                )
            sources[name] = facts | {key: facts.get(key, count) for key in ("published", "taken")}
            sources[name] |= {key: value for key in GATE_KEYS if (value := getattr(wanted, key)) is not None}
            if notes:
                sources[name]["notes"] = dict(notes)
            print(summary(role, name, sources[name], faults))
        write_json(folder / "sources.json", sources)


def builtin(key: str, role: str, name: str, source: Source, wanted: Rows) -> tuple[Iterator[Row], dict]:
    if wanted.rows == "all" or wanted.rows_per_task:
        raise Problem(f"{key}: the built-in data has no end and no tasks, give a number of rows")
    return skills.MAKERS[role](wanted.rows), {"builtin": source.builtin}


def published(key: str, role: str, name: str, source: Source, wanted: Rows) -> tuple[Iterator[Row], dict]:
    """Rows of a dataset on a hub or in files, and what it is."""
    where = key if isinstance(source, Own) else f"datasets.{ROLES[role]}.{name}"
    adapter = adapter_of(where, role, source)
    root, names, facts = located(where, role, source, adapter)
    given = tables.Dialect(
        source.encoding or "", source.delimiter or "", '"' if source.quote is None else source.quote,
        tuple(source.header or ()),
    )  # fmt: skip
    files = {path: tables.dialect(root / path, given) for path in names}
    tasks, unread = survey(where, adapter, root, files)
    if wanted.rows_per_task and not adapter.task:
        raise Problem(f"{key}.rows_per_task: this dataset has no tasks; name their column as columns.task")
    if adapter.learn:
        adapter = replace(adapter, convert=adapter.learn(readable(root, files)))
    mask = sample(tasks, wanted)
    rows = adapted(role, name, adapter, root, files, mask)
    if wanted.train_on == "last":
        rows = map(last_answer_alone, rows)
    facts |= {
        "published": len(tasks), "note": adapter.note, "taken": int(mask.sum()), "unread": unread,
        "files": {path: tables.said(root / path, how) for path, how in files.items()},
        "splits": splits_of(role, names),
    }  # fmt: skip
    return (contradictions(list(rows)) if role == "benchmarks" else rows), facts


# --- files --------------------------------------------------------------------------------------------------


def located(key: str, role: str, source: Source, adapter: Adapter) -> tuple[Path, list[str], dict]:
    """A folder, the table files in it, and where they come from."""
    own = source.repo is None and source.columns is not None  # in a folder of one's own all tables are meant
    patterns = tuple(source.files or (("*",) if own else adapter.files))
    if source.repo:
        found = hub.snapshot(
            key, "dataset", source.repo, source.revision, lambda names: table_files(names, patterns)
        )
        root, names, there = found.folder, list(found.files), list(found.names)
        facts = {"repo": source.repo, "commit": found.commit, "licence": found.licence}
    else:
        path = Path(source.path)
        root, there = (path.parent, [path.name]) if path.is_file() else (path, [])
        if path.is_dir():
            there = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        names = there if path.is_file() else table_files(there, patterns)
        facts = {"path": source.path}
        if not {path, *path.parents} & set(WATCHED):
            print(
                f"note: {key}: {path} is outside {WATCHED[0]}, where DVC watches: edits of it need "
                f"`dvc repro -f fetch@{role}`"
            )
    if source.files and not any(matches(name, patterns) for name in there):
        raise Problem(
            f"{key}.files is {', '.join(patterns)}: none of {', '.join(there[:5]) or 'no files'} is so named"
        )
    if not any(tables.kind(name) for name in names):
        kinds = ", ".join(suffix[1:] for suffix in tables.READERS)
        cure = f": {adapter.cure} first" if adapter.cure else ""
        found = f"; there is {', '.join(sorted(there)[:5])}" if there else ""
        raise Problem(f"{key}: no table file ({kinds}) at {source.path or source.repo}{found}{cure}")
    there = there if own else visible(there)  # a repository holds much else
    return root, names, facts | {"left_out": left_out(there, names, patterns)}


def table_files(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The files to read, in order: those of the patterns (where the layout has changed, all).

    Of a table that stands there in several formats one is taken: the first of READERS.
    """
    seen = visible(names)
    found = [name for name in seen if matches(name, patterns)] or seen
    kinds, best = list(tables.READERS), {}
    for name in found:
        known = best.setdefault(tables.stem(name), name)
        if kinds.index(tables.kind(name)) < kinds.index(tables.kind(known)):
            best[tables.stem(name)] = name
    return sorted(best.values())


def visible(names: list[str]) -> list[str]:
    """The tables among files, but for hidden ones."""
    shown = [name for name in sorted(names) if not any(part.startswith(".") for part in name.split("/"))]
    return [name for name in shown if tables.kind(name)]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def left_out(there: list[str], names: list[str], patterns: tuple[str, ...]) -> dict[str, str]:
    """The files that are not read, and why."""
    taken, found = {tables.stem(name): name for name in names}, {}
    for name in sorted(set(there) - set(names)):
        if tables.kind(name):
            twin = taken.get(tables.stem(name))
            found[name] = (
                f"{PurePosixPath(twin).name} is the same table" if twin else f"not {', '.join(patterns)}"
            )
        elif not PurePosixPath(name).name.startswith((".", *ABOUT)):
            found[name] = "no table"
    return found


ABOUT = ("README", "LICENSE", *sorted(tables.METADATA))  # what tables are described in
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "dev",
    "test": "test",
}
PIECE = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?([-_][0-9a-f]{16})?$")


def told_splits(names: list[str]) -> dict[str, str | None]:
    """The split that each file's name tells: a folder or a file of just that name, in pieces too
    (data/test-00000-of-00001.parquet), or a name that stands there with another split as well (arcd-train,
    arcd-test). driving-test.jsonl alone is no test split.
    """
    found, others = {}, defaultdict(set)
    for name in names:
        *folders, last = tables.stem(name).lower().split("/")
        last = PIECE.sub("", last)
        words = re.split(r"([._-])", last)
        place = next((i for i in reversed(range(len(words))) if words[i] in SPLITS), None)
        whole = next((SPLITS[part] for part in (last, *reversed(folders)) if part in SPLITS), None)
        if whole or place is None:
            found[name] = whole
        else:
            rest = (*folders, *words[:place], *words[place + 1 :])
            found[name] = (SPLITS[words[place]], rest)
            others[rest].add(SPLITS[words[place]])
    return {
        name: told if not isinstance(told, tuple) else told[0] if len(others[told[1]]) > 1 else None
        for name, told in found.items()
    }


def splits_of(role: str, names: list[str]) -> dict[str, str | None]:
    """The split of each file. A benchmark is asked in its test split, with worked examples from a dev split;
    training data has a validation split of its own only where there is a train split beside it."""
    found = told_splits(names)
    several = len(set(found.values())) > 1
    if role == "benchmarks":
        return {
            name: "dev" if several and split in ("dev", "validation", "train") else "test"
            for name, split in found.items()
        }
    if "train" not in found.values() or not {"validation", "dev", "test"} & set(found.values()):
        return dict.fromkeys(names)
    return {name: "train" if split in ("train", None) else "validation" for name, split in found.items()}


SHARD = re.compile(rf"(?:^|[._-])(?:{'|'.join(SPLITS)})(?=$|[._-])|-\d+-of-\d+(?:-[0-9a-f]+)?$")


def subjects_in(names: list[str]) -> dict[str, str]:
    """The subject of each file, where every subject is a folder or a file of its own; {} where none is."""
    paths = [PurePosixPath(tables.stem(name)) for name in names]
    folders = [path.parent.name for path in paths]
    if len(set(folders)) > 1:
        return dict(zip(names, folders))
    plain = ["_".join(SHARD.sub("", path.name).strip("._-").split("-")) for path in paths]
    plain = ["" if stem in SPLITS else stem for stem in plain]
    return dict(zip(names, plain)) if len(set(plain)) > 1 else {}


# --- rows ---------------------------------------------------------------------------------------------------


def survey(key: str, adapter: Adapter, root: Path, files: Files) -> tuple[list[str], list[str]]:
    """The task of every row, "" where it has none; and the columns that nothing reads. Raises Problem where
    params.yaml names a column that no file has.
    """
    tasks, columns = [], {}
    for path, how in files.items():
        columns |= dict.fromkeys(tables.columns(root / path))
        for row in tables.rows(root / path, [adapter.task] if adapter.task else [], how):
            cells = row if isinstance(row, dict) else {}
            if not cells.keys() <= columns.keys():
                columns |= dict.fromkeys(cells)
            value = cells.get(adapter.task)
            tasks.append("" if value is None else str(value))
    named = {name: ours for ours, names in adapter.named.items() for name in names}
    tops = {*named, *(name.partition(".")[0] for name in named)}
    for name, ours in named.items():
        if columns and not {name, name.partition(".")[0]} & columns.keys():
            raise Problem(
                f"{key}.columns.{ours} is {name!r}: there is no such column, but "
                f"{', '.join(map(str, columns))[:300]}{headless(files)}"
            )
    return tasks, [str(name) for name in columns if named and name and name not in tops]


def headless(files: Files) -> str:
    """The cure for a table without a header, whose first row was taken for one."""
    plain = any(tables.kind(path) in (".csv", ".tsv", ".xlsx") for path in files)
    return "; where the first line is a row, name the columns in order as `header`" if plain else ""


def readable(root: Path, files: Files) -> Iterator[Row]:
    """All rows that can be read."""
    for path, how in files.items():
        yield from (row for row in tables.rows(root / path, None, how) if isinstance(row, dict))


def sample(tasks: list[str], wanted: Rows) -> np.ndarray:
    """Which rows to take, as a mask: those of the lowest random priority, at most `rows_per_task` of a task
    and `rows` in all.
    """
    order = np.argsort(np.random.default_rng(SAMPLE_SEED).random(len(tasks)), kind="stable")  # of priority
    taken = np.ones(len(tasks), bool)
    if wanted.rows_per_task:
        by_task = defaultdict(list)
        for position in order:
            by_task[tasks[position]].append(position)
        for positions in by_task.values():
            taken[positions[wanted.rows_per_task :]] = False
    if wanted.rows != "all":
        taken[order[taken[order]][wanted.rows :]] = False
    return taken


def adapted(
    role: str, name: str, adapter: Adapter, root: Path, files: Files, taken: np.ndarray
) -> Iterator[Row]:
    """The rows taken, in the layout of `role`; one that cannot be used has its fault and its original
    text.
    """
    splits, number = splits_of(role, list(files)), 0
    subjects = subjects_in(list(files)) if role == "benchmarks" else {}
    for path, how in files.items():
        for row in tables.rows(root / path, None, how):
            if taken[number]:
                found = usable(adapter, row)
                for part, ours in enumerate(found, 1):
                    ours |= {
                        "source": name,
                        "id": f"{name}:{number}" + (f".{part}" if len(found) > 1 else ""),
                        "split": splits[path],
                    }
                    if subjects.get(path) and not ours.get("subject"):
                        ours["subject"] = subjects[path]
                    yield ours
            number += 1


def usable(adapter: Adapter, row: Row | tables.Unreadable) -> list[Row]:
    """A published row in our layout, as one row or several, or one that says why it cannot be used."""
    try:
        if isinstance(row, tables.Unreadable):
            raise Fault("malformed", row.why)
        found = adapter.convert(row)
        task = {"task": plain(row.get(adapter.task))} if adapter.task else {}
        rows = [ours | task for ours in (found if isinstance(found, list) else [found])]
        return [ours | ({"original": original(row)} if "fault" in ours else {}) for ours in rows]
    except Fault as fault:
        reason, detail = fault.args
        return [{"fault": reason, "detail": plain(detail), "original": original(row)}]


def original(row: Row | tables.Unreadable) -> str:
    """A row as text, for a person to see what is wrong: its first 2,000 characters."""
    if isinstance(row, tables.Unreadable):
        return plain(row.text)
    try:
        return plain(json.dumps(row, ensure_ascii=False, default=str))[:2000]
    except (ValueError, TypeError, RecursionError):
        return ""


def plain(value: object) -> str:
    """Any value as text that can be written as UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def contradictions(rows: list[Row]) -> Iterator[Row]:
    """Benchmark items that stand twice: with two answers all of them are out, with one answer the first is
    kept.
    """
    answers = defaultdict(set)
    seen = set()
    for row in rows:
        if "fault" not in row:
            answers[item_key(row)].add(row["choices"][row["answer"]] if row["answer"] is not None else None)
    for row in rows:
        if "fault" in row:
            yield row
            continue
        key = item_key(row)
        if len(answers[key]) > 1:
            row |= {
                "fault": "contradiction",
                "detail": f"the same question stands with {len(answers[key])} answers",
            }
        elif key in seen:
            row |= {"fault": "duplicate", "detail": "the same item stands before"}
        seen.add(key)
        yield row


def item_key(row: Row) -> tuple:
    return (" ".join(row["question"].split()), " ".join(row["context"].split()), *sorted(row["choices"]))


def write(path: Path, schema: pa.Schema, name: str, rows: Iterable[Row]) -> tuple[int, Counter, Counter, str]:
    """Write rows in row groups of bounded size; return how many, the faults among them, what is left out of
    others, and one fault in words.
    """
    taken, faults, notes, example = 0, Counter(), Counter(), ""
    with (
        parquet.ParquetWriter(path, schema) as writer,
        tqdm(desc=name, unit=" rows", disable=None, leave=False) as bar,
    ):
        for group in groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema))
            bad = [row for row in group if row.get("fault")]
            example = example or (f"{bad[0]['id']}: {bad[0]['detail']}" if bad else "")
            faults.update(row["fault"] for row in bad)
            notes.update(row["detail"] for row in group if row.get("detail") and not row.get("fault"))
            taken += len(group)
            bar.update(len(group))
    return taken, faults, notes, example


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in groups of bounded size: a few hundred of long documents fill one."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += sum(len(turn["content"]) for turn in row.get("completion") or ())
        if len(group) == GROUP or size >= GROUP_TEXT:
            yield group
            group, size = [], 0
    if group:
        yield group


def summary(role: str, name: str, source: dict, faults: dict[str, int]) -> str:
    """What was fetched, under which licence, and what of it is not read, in lines for a person."""
    lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(faults.items()))
    lines = [
        f"fetch: {role}: {name}: {source['taken']:,} of {source['published']:,} "
        f"rows{f' ({lost})' if lost else ''}"
    ]
    if "repo" in source:
        lines.append(f"{source['repo']} at {source['commit'][:12]}, {hub.licence_note(source['licence'])}")
    if source.get("note"):
        lines.append(source["note"])
    lines += file_lines(source.get("files", {}), source.get("splits", {}))
    lines += [f"{count:,} rows: {note}" for note, count in sorted(source.get("notes", {}).items())]
    if source.get("left_out"):
        lines.append("left out: " + listed(f"{name} ({why})" for name, why in source["left_out"].items()))
    if source.get("unread"):
        lines.append("columns that nothing reads: " + listed(source["unread"]))
    return "\n       ".join(map(one_line, lines))


def file_lines(files: dict[str, str], splits: dict[str, str | None]) -> list[str]:
    """The files of each split, and how they are read; none of a single plain file."""
    if len(files) < 2 and not any(files.values()):
        return []
    by_split = defaultdict(list)
    for name, how in files.items():
        by_split[splits[name] or "train and validation by prompt"].append(f"{name} ({how})" if how else name)
    return [f"{split}: {listed(names)}" for split, names in by_split.items()]


def listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


if __name__ == "__main__":
    with one_line_errors():
        main(role_argument("fetch", __doc__, ROLES))
