"""Raw rows → Arabic prompts: data/raw/<role> → data/formatted/<role>/{train,validation}.parquet, what was
dropped → data/reports/<role>.parquet, the account of all → data/reports/<role>.json.

Every row that comes in is kept or stands in the report with the reason why not. A conversation that is too
long keeps the turns that fit, whole, and a long document becomes several rows; both are counted.
"""

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from tqdm import tqdm

from stages.gate import account, documents, duplicates, leaks, quality
from stages.gate.examples import most_repeated
from stages.settings import manifest
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, replace_file, replace_folder, write_json
from stages.settings.params import Params
from stages.settings.stage import role_argument, stage
from stages.text.prompts import TEMPLATES

BENCHMARKS = Path("data/raw/benchmarks")
CURES = {  # of what may be no fault of the rows
    "too_long": "raise prompt.max_length",
    "too_short": "lower format.min_answer",
    "wrong_language": "`language: any` beside a dataset's rows lets all pass",
    "near_duplicate": "`near_duplicates: 1` beside a dataset's rows keeps them",
}
MOST_WORKERS = 8  # each holds a tokenizer and a row group, about half a gigabyte


def main(role: str) -> None:
    with stage("format", role) as params, scratch(Path(".cache/format") / role) as folder:
        # 1. single rows, in batches, on every core
        raw = Path("data/raw") / role
        sources = read_json(raw / "sources.json")
        batches = plan(raw, sources, folder)
        template = TEMPLATES[params.prompt.template].of(manifest.end_of_text())
        settings = quality.Settings(
            role, params.text, params.prompt, template, params.format,
            str(manifest.base_folder() / "tokenizer.json"),
            leaks.build(BENCHMARKS, params.format.leak_overlap),
            frozenset(name for name, source in sources.items() if source.get("language") == "any"),
        )  # fmt: skip
        thresholds = {
            name: source.get("near_duplicates", params.format.near_duplicates)
            for name, source in sources.items()
        }
        notes = allocate(folder, batches, thresholds)
        examine_all(batches, settings, notes)

        # 2. what takes all rows to see
        verdicts = judge(role, batches, notes, thresholds)

        # 3. write the kept rows, the dropped ones, and the account of both
        reports = Path(f"data/reports/{role}.parquet")
        with replace_folder(Path("data/formatted") / role) as formatted:
            tally = write(role, batches, verdicts, formatted, reports)
            twins = np.maximum(verdicts.exact, verdicts.near)  # of a row one of the two is -1
            clean = partial(quality.cleaned, policy=params.text)
            tally.shown = tally.seen.written(batches, twins, clean)
            tally.repeated = most_repeated(batches, twins, clean)
            report = account.report(tally, sources, settings.leaks)
            gate(role, params, report, tally.examples)
        write_json(reports.with_suffix(".json"), report)
        print(f"format: {role}: {summary(report)}")


# --- 1. single rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A row group of a raw file, the place of its first row among all rows, and the file for its examined
    rows.
    """

    dataset: str
    path: Path
    group: int
    start: int
    rows: int
    shard: Path


@dataclass(frozen=True)
class Notes:
    """What is noted of every row, in arrays on disk that all processes write to at their own rows."""

    files: dict[str, Path]
    band_rows: int

    def open(self, mode: str) -> dict[str, np.ndarray]:
        return {name: np.load(path, mmap_mode=mode) for name, path in self.files.items()}


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder for intermediate results, which are larger than memory; gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plan(raw: Path, sources: dict[str, dict], folder: Path) -> list[Batch]:
    """The row groups of a role's datasets, in the order of params.yaml: the first of two duplicates is
    kept.
    """
    batches, start = [], 0
    for dataset in sources:
        path = raw / f"{dataset}.parquet"
        metadata = parquet.read_metadata(path)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            batches.append(Batch(dataset, path, group, start, rows, folder / f"{start}.parquet"))
            start += rows
    return batches


def allocate(folder: Path, batches: list[Batch], thresholds: dict[str, float]) -> Notes:
    rows = sum(batch.rows for batch in batches)
    band_rows = duplicates.band_rows(min(thresholds.values(), default=1))
    shapes = {
        "alive": (bool, (rows,)), "comparable": (bool, (rows,)), "validation": (bool, (rows,)),
        "exact": (np.uint64, (rows,)), "unordered": (np.uint64, (rows,)), "prompts": (np.uint64, (rows,)),
        "signatures": (np.uint32, (rows, duplicates.PERMUTATIONS)),
        "bands": (np.uint64, (duplicates.PERMUTATIONS // band_rows, rows)),
    }  # fmt: skip
    for name, (dtype, shape) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    return Notes({name: folder / f"{name}.npy" for name in shapes}, band_rows)


def examine_all(batches: list[Batch], settings: quality.Settings, notes: Notes) -> None:
    total = sum(batch.rows for batch in batches)
    workers = max(min(len(batches), os.cpu_count() or 1, MOST_WORKERS), 1)
    with tqdm(
        total=total, desc=f"format {settings.role}", unit=" rows", unit_scale=True, disable=None, leave=False
    ) as bar:
        if workers == 1:
            start_worker(settings, notes)
            for batch in batches:
                bar.update(examine(batch))
            return
        with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (settings, notes)) as pool:
            try:
                with deaf_to_interrupts():
                    examined = pool.map(examine, batches)
                for rows in examined:
                    bar.update(rows)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else it ends when all that is queued is done
                raise


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started in this block ignore a Ctrl-C for good, from before their first import on: each would
    print a traceback, and they end with this process anyway.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


worker: tuple[
    quality.Examiner, Notes
]  # of each process, made once: tokenizer and indexes take a while to load


def start_worker(settings: quality.Settings, notes: Notes) -> None:
    global worker
    worker = quality.Examiner(settings), notes


def examine(batch: Batch) -> int:
    """Examine a row group, write its rows to the shard and its hashes to the notes; return its number of
    rows.
    """
    examiner, notes = worker
    with parquet.ParquetFile(batch.path) as file, without_cycles():
        raw = file.read_row_group(batch.group).to_pylist()
        found = examiner.examine(batch.dataset, raw)
    parquet.write_table(found.rows, batch.shard)
    own, arrays = slice(batch.start, batch.start + batch.rows), notes.open("r+")
    arrays["alive"][own] = pc.equal(found.rows["reason"], "").to_numpy(zero_copy_only=False)
    arrays["validation"][own] = pc.equal(found.rows["split"], "validation").to_numpy(zero_copy_only=False)
    for name in ("comparable", "exact", "unordered", "prompts", "signatures"):
        arrays[name][own] = getattr(found, name)
    arrays["bands"][:, own] = duplicates.band_keys(found.signatures, notes.band_rows) ^ found.answers
    return batch.rows


@contextmanager
def without_cycles() -> Iterator[None]:
    """Of the millions of small objects that rows are none refers back: looking for cycles among them takes a
    tenth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- 2. all rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdicts:
    """Of every row: whether the same answers are preferred otherwise elsewhere, at least as often; the row it
    repeats or nearly repeats (-1: none); and whether its prompt stands in the validation split.
    """

    contradicted: np.ndarray
    exact: np.ndarray
    near: np.ndarray
    validation: np.ndarray


def judge(role: str, batches: list[Batch], notes: Notes, thresholds: dict[str, float]) -> Verdicts:
    arrays = notes.open("r")
    alive, prompts, claims = (np.array(arrays[name]) for name in ("alive", "prompts", "exact"))
    contradicted = duplicates.outvoted(claims, np.array(arrays["unordered"]), alive)
    alive &= ~contradicted
    exact = duplicates.exact_twins(claims, alive)
    near = np.full(len(alive), -1)
    least = np.repeat([thresholds[batch.dataset] for batch in batches], [batch.rows for batch in batches])
    if min(thresholds.values(), default=1) < 1:
        once = alive & (exact < 0) & arrays["comparable"]
        compare = partial(are_near, batches, least)
        near = duplicates.near_twins(arrays["bands"], arrays["signatures"], once, least, compare)
    # A prompt that one source holds out must not be trained on by way of another.
    validation = np.isin(prompts, prompts[alive & arrays["validation"]])
    kept = alive & (exact < 0) & (near < 0)
    holds_out = not role.startswith("sampled")
    if holds_out and not validation[kept].any():  # a few rows, none of which the hash holds out
        validation |= held_out_of_few(prompts, kept)
    return Verdicts(contradicted, exact, near, validation)


def are_near(
    batches: list[Batch], thresholds: np.ndarray, first: np.ndarray, later: np.ndarray
) -> np.ndarray:
    """Which pairs of rows are near duplicates by their texts: bool of the length of both. A threshold of 1
    leaves the later row alone.
    """
    texts = exchanges(batches, np.union1d(first, later))
    pairs = zip(first, later, thresholds[later])
    near = [least < 1 and duplicates.are_near(texts[a], texts[b], least) for a, b, least in pairs]
    return np.array(near, bool)


def exchanges(batches: list[Batch], rows: np.ndarray) -> dict[int, duplicates.Exchange]:
    """The texts of rows, by their places among all."""
    found = {}
    for batch in batches:
        own = rows[(rows >= batch.start) & (rows < batch.start + batch.rows)]
        if len(own):
            table = parquet.read_table(batch.shard, columns=["asked", "said"]).take(own - batch.start)
            texts = zip(table["asked"].to_pylist(), table["said"].to_pylist())
            found |= {
                place: duplicates.Exchange(asked, tuple(said)) for place, (asked, said) in zip(own, texts)
            }
    return found


def held_out_of_few(prompts: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows of the prompt with the least hash, where there are others to train on."""
    several = len(np.unique(prompts[kept])) > 1
    return prompts == prompts[kept].min() if several else np.zeros(len(prompts), bool)


# --- 3. writing ---------------------------------------------------------------------------------------------


def write(
    role: str, batches: list[Batch], verdicts: Verdicts, formatted: Path, reports: Path
) -> account.Tally:
    """Kept rows into train.parquet and validation.parquet, dropped and flagged ones into the report; returns
    the counts.
    """
    tally, twins = account.Tally(), Twins(batches)
    columns = ("prompt", *quality.ANSWERS[role], *quality.TOKENS[role], "source", "id", "tokens")
    trained = pa.schema([field for field in quality.schema(role) if field.name in columns])
    with (
        parquet.ParquetWriter(formatted / "train.parquet", trained) as train,
        parquet.ParquetWriter(formatted / "validation.parquet", trained) as validation,
        replace_file(reports) as temporary,
        parquet.ParquetWriter(temporary, account.DROPPED) as dropped,
    ):
        for batch in batches:
            rows = settled(parquet.read_table(batch.shard), batch, verdicts, twins)
            kept = pc.equal(rows["reason"], "")
            held_out = pc.equal(rows["split"], "validation")
            for mask, writer in ((pc.and_not(kept, held_out), train), (pc.and_(kept, held_out), validation)):
                writer.write_table(documents.in_pieces(rows.filter(mask)).select(trained.names))
            dropped.write_table(account.dropped(rows, role))
            tally.add(rows, batch.start)
    tally.repeats = twins.by_dataset(verdicts)
    return tally


def settled(rows: pa.Table, batch: Batch, verdicts: Verdicts, twins: "Twins") -> pa.Table:
    """A shard's rows with the verdicts over all rows put in: duplicates, and the split."""
    own = slice(batch.start, batch.start + batch.rows)
    reasons, details = rows["reason"].to_pylist(), rows["detail"].to_pylist()
    for i in np.flatnonzero(verdicts.contradicted[own]):
        reasons[i], details[i] = (
            "contradiction",
            "the same answers are preferred the other way round, at least as often",
        )
    for reason, found in (("duplicate", verdicts.exact[own]), ("near_duplicate", verdicts.near[own])):
        for i in np.flatnonzero(found >= 0):
            reasons[i], details[i] = reason, f"of {twins.id(found[i])}"
    splits = np.where(verdicts.validation[own], "validation", "train")
    for name, values in (("reason", reasons), ("detail", details), ("split", splits)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


class Twins:
    """The rows that others repeat, by their place among all rows."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches
        self.ids = pa.chunked_array(
            [parquet.read_table(batch.shard, columns=["id"])["id"].combine_chunks() for batch in batches],
            pa.string(),
        )

    def id(self, place: int) -> str:
        return self.ids[int(place)].as_py()

    def by_dataset(self, verdicts: Verdicts) -> Counter:
        """How many rows of a dataset repeat how many of another, or of itself: by (dataset, reason, it)."""
        names = list(dict.fromkeys(batch.dataset for batch in self.batches))
        datasets = np.repeat(
            [names.index(batch.dataset) for batch in self.batches], [batch.rows for batch in self.batches]
        )
        found = Counter()
        for reason, twins in (("duplicate", verdicts.exact), ("near_duplicate", verdicts.near)):
            rows = np.flatnonzero(twins >= 0)
            found.update((names[a], reason, names[b]) for a, b in zip(datasets[rows], datasets[twins[rows]]))
        return found


def summary(report: dict) -> str:
    """What became of the rows, and of those that are not as they came."""
    sources, kept = report["sources"].values(), report["train"] + report["validation"]
    rows, answers = (sum(one["shortened"][name] for one in sources) for name in ("rows", "answers"))
    lines = sum(one["lines"] for one in sources)
    parts = [
        f"{report['train']:,} train, {report['validation']:,} validation, "
        f"{sum(report['dropped'].values()):,} dropped",
        f"conversations cut after whole turns: {rows:,}, by {answers:,} answers" if rows else "",
        f"documents in pieces: {lines:,} rows of {kept:,}" if lines > kept else "",
    ]
    return "; ".join(filter(None, parts))


def gate(role: str, params: Params, report: dict, examples: dict[str, str]) -> None:
    """Raise Problem where too little is left, naming what took it and a row of each kind. A role may be empty
    from the start.
    """
    if not report["rows"]:
        return
    lost = sum(report["dropped"].values())
    most = sorted(report["dropped"].items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{count:,} {reason} ({examples[reason]})" for reason, count in most)
    if lost > params.format.max_dropped * report["rows"]:
        share = f"{lost:,} of {report['rows']:,} rows of {role} are lost"
        cure = CURES.get(most[0][0], "raise format.max_dropped where that is right")
        raise Problem(
            f"format.max_dropped is {params.format.max_dropped}, but {share} ({reasons}): see "
            f"data/reports/{role}.parquet; {cure}"
        )
    # Of sampled pairs none is held out: what is measured are the mixture's own.
    for split in ("train", "validation") if not role.startswith("sampled") else ("train",):
        if not report[split]:
            raise Problem(
                f"no {split} rows of {role} are left ({reasons or 'one prompt came in'}): two prompts are "
                "the least, one to train on and one to hold out"
            )


if __name__ == "__main__":
    with one_line_errors():
        main(role_argument("format", __doc__, quality.ANSWERS))
