"""Is the difference real? Two results, or all experiments, compared question by question.

python -m tools.compare REV_A [REV_B] [--checkpoint dpo] [--by subject] [--markdown]
    REV_B: the workspace by default
python -m tools.compare [REV_A [REV_B]] --against sft [--checkpoint dpo]
    another checkpoint as A
python -m tools.compare --tournament [REV ...] [--checkpoint dpo] [--markdown]
    all experiments of HEAD by default
python -m tools.compare --votes [--markdown]
    what people said in the arena of the chat page, by pair of checkpoints
python -m tools.compare … --judge [BENCHMARK]
    beside the scores what evaluate.judge (of kind chat) says of the answers of A and B to held-out prompts,
    or to an open benchmark; and how often it agrees with the votes of people, where there are some

REV is a git revision, the name of an experiment, or `workspace`. The predictions come from the DVC cache, or
from the remote where the cache has none. Only questions that all sides answered count, in their published
order of choices, none found in training data and none with a fault. Better and worse are said where p,
corrected for the number of comparisons (Holm), is below 0.05; an interval is that of its own line,
uncorrected.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet
from ruamel.yaml import YAML

from stages.evaluation import statistics
from stages.settings.errors import Problem, one_line_errors
from stages.settings.stage import quiet
from tools import judged, revisions, votes
from tools.plan import aligned, markdown

WORKSPACE = "workspace"
GROUPS = ["subject", "group", "level", "country"]
ASKED = ["question", "reference"]  # what makes an item the same item
COLUMNS = ["benchmark", "id", "rotation", *ASKED, "score", "leaked", "fault", *GROUPS]
SIGNIFICANT = 0.05
SHOWN = 10  # groups of --by
CHANGES = 4  # params of an experiment


def main(arguments: list[str]) -> None:
    quiet()
    parser = argparse.ArgumentParser(
        "python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", metavar="REV")
    parser.add_argument("--checkpoint", default="dpo", help="base, sft, dpo, refine-…, merged-…")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown, for a pull request")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--against", metavar="CHECKPOINT", help="the checkpoint of A, where it is another")
    kind.add_argument("--tournament", action="store_true")
    kind.add_argument("--votes", action="store_true", help="of people, in the arena of the chat page")
    parser.add_argument(
        "--judge",
        nargs="?",
        const="held-out",
        metavar="BENCHMARK",
        help="its verdicts are kept, and asked once",
    )
    parser.add_argument("--by", choices=GROUPS, help="the parts of the benchmarks that differ most")
    asked = parser.parse_args(arguments)
    if asked.tournament and (asked.by or asked.judge):
        parser.error("--by and --judge go with two sides, not with --tournament")
    if asked.votes:
        if asked.revisions or asked.by or asked.judge:
            parser.error("--votes stands alone, or with --markdown")
        with one_line_errors():
            print("\n\n".join(voted(asked.markdown)))
        return
    too_few = not asked.revisions and not asked.against
    if not asked.tournament and (too_few or len(asked.revisions) > 2):
        parser.error("name one revision or two; none with --against alone; any number with --tournament")
    with one_line_errors():
        parts = tournament(asked.revisions, asked.checkpoint) if asked.tournament else duel(asked)
        print("\n\n".join(part if isinstance(part, str) else shown(part, asked.markdown) for part in parts))


def voted(as_markdown: bool) -> Iterator[str]:
    if len(table := votes.table()) == 1:
        raise Problem(f"{votes.VOTES} holds no votes: vote in `python -m tools.chat --web` first")
    yield "checkpoints by name and the first digits of their weights' hash; a tie is half of a win"
    yield shown(table, as_markdown)


# --- two sides ----------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A line of the table: what is compared, its scores (items x A and B), and p corrected over all lines it
    is one of.
    """

    names: list[str]
    scores: np.ndarray
    p: float

    @property
    def difference(self) -> statistics.Difference:
        return statistics.paired_difference(*self.scores.T)

    def cells(self) -> list[str]:
        change, low, high = self.difference
        interval = "" if low is None else f"{low:+.3f} … {high:+.3f}"
        p = f"{self.p:.4f}" if self.p >= 0.0001 else "<0.0001"
        verdict = "not significant" if self.p >= SIGNIFICANT else "better" if change > 0 else "worse"
        return [
            f"{len(self.scores):,}",
            *map(plus_minus, self.scores.T),
            f"{change:+.3f}",
            interval,
            p,
            verdict,
        ]


def duel(asked: argparse.Namespace) -> Iterator[str | list[list[str]]]:
    """Title, table and notes of a comparison of A with B, and of their groups where asked for."""
    first = asked.revisions[0] if asked.revisions else WORKSPACE
    second = asked.revisions[1] if len(asked.revisions) > 1 else first if asked.against else WORKSPACE
    old = asked.against or asked.checkpoint
    tables = {"A": load(first, old), "B": load(second, asked.checkpoint)}
    pairs = paired(tables)
    yield f"A: {old} of {first}   B: {asked.checkpoint} of {second}"
    yield table_of(
        ["benchmark"], corrected([([pair.benchmark], pair.scores) for pair in pairs if len(pair.scores)])
    )
    if asked.by:
        yield from by_group(pairs, asked.by)
    yield from bullets(left_out(pairs, tables))
    if asked.judge:
        yield from by_judge((first, old), (second, asked.checkpoint), asked.judge)


def corrected(compared: list[tuple[list[str], np.ndarray]]) -> list[Line]:
    adjusted = statistics.holm([statistics.paired_test(*scores.T) for _, scores in compared])
    return [Line(names, scores, p) for (names, scores), p in zip(compared, adjusted)]


def table_of(names: list[str], lines: list[Line]) -> list[list[str]]:
    """The first name begins a line, the second ends it: a terminal would draw numbers behind an Arabic word
    on its other side.
    """
    header = [names[0], "n", "A", "B", "B − A", "95 % interval", "p (Holm)", "B is", *names[1:]]
    return [header, *([line.names[0], *line.cells(), *line.names[1:]] for line in lines)]


def by_group(pairs: list["Paired"], column: str) -> Iterator[str | list[list[str]]]:
    """The groups that differ most clearly; p corrected over all groups, those not shown included."""
    lines = corrected(
        [([pair.benchmark, name], pair.scores[rows]) for pair in pairs for name, rows in pair.groups(column)]
    )
    if not lines:
        raise Problem(
            f"no benchmark that both sides have tells the {column} of its questions: --by another of "
            f"{', '.join(GROUPS)}"
        )
    lines.sort(key=lambda line: (line.p, -abs(line.difference.value)))
    yield table_of(["benchmark", column], lines[:SHOWN])
    yield f"the clearest {min(SHOWN, len(lines))} of {len(lines)}"


def by_judge(
    first: tuple[str, str], second: tuple[str, str], benchmark: str
) -> Iterator[str | list[list[str]]]:
    """What the judge says of the answers of two (revision, checkpoint), A and B; and the votes of people."""
    judge = judged.of_pairs()
    old, new = (
        judged.answers(content(revision, predictions(checkpoint)), f"{checkpoint} of {revision}", benchmark)
        for revision, checkpoint in (first, second)
    )
    result = judged.compared(judge, new, old, benchmark)
    row = result.row
    interval = "" if row["ci_low"] is None else f"{row['ci_low']:.3f} … {row['ci_high']:.3f}"
    header = ["judged", "n", "B won", "ties", "A won", "B's win rate", "95 % interval", "at equal length"]
    counts = [f"{row[key]:,}" for key in ("prompts", "won", "tied", "lost")]
    rates = [f"{row['win_rate']:.3f}", interval, f"{row['at_equal_length']:.3f}"]
    yield [header, [benchmark, *counts, *rates]]
    notes = [f"B's answers are {row['longer']:+.0f} characters longer (median)"]
    if result.without:
        notes.append(f"{result.without:,} prompts without a verdict, or asked otherwise, are left out")
    if votes.VOTES.exists():
        notes.append(f"the judge beside people: {'; '.join(judged.beside_votes(judge))}")
    yield from bullets([*notes, f"judge: {judge.report()}"])


# --- all experiments ----------------------------------------------------------------------------------------


def tournament(revisions: list[str], checkpoint: str) -> Iterator[str | list[list[str]]]:
    """Every experiment's score on every benchmark, best mean rank first (Demšar 2006, JMLR 7)."""
    tables, notes = competitors(revisions or ["HEAD", *experiments()], checkpoint)
    if len(tables) < 2:
        raise Problem(
            "; ".join(["fewer than two results to compare: name some of `dvc exp list -A`", *notes])
        )
    pairs = paired(tables)
    scored = [pair for pair in pairs if len(pair.scores)]
    ranks = mean_ranks([pair for pair in scored if len(pair.sides) == len(tables)], list(tables))
    marks = best_and_below(scored)
    baseline, settings = params_of("HEAD"), {name: params_of(name) for name in tables}
    header = [
        "experiment",
        "mean rank",
        *(f"{pair.benchmark} ({len(pair.scores):,})" for pair in scored),
        "changed params",
    ]
    rows = [
        [
            name,
            f"{rank:.1f}",
            *(cell(pair, name, marks) for pair in scored),
            changed(settings[name], baseline),
        ]
        for name, rank in sorted(ranks.items(), key=lambda one: (one[1], one[0]))
    ]
    yield (
        f"checkpoint {checkpoint}; ± one standard error; ▲ best; ▼ significantly below the best; (n) "
        "questions that all answered"
    )
    yield [header, *rows]
    yield from bullets([*notes, *left_out(pairs, tables)])


def experiments() -> list[str]:
    """The names of the finished experiments of HEAD."""
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "list", "--name-only"], capture_output=True, text=True
    )
    if listed.returncode:
        raise Problem(f"dvc exp list: {listed.stderr.strip()}")
    return listed.stdout.split()


def competitors(revisions: list[str], checkpoint: str) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The tables of revisions and workspace, and a line for each that has none; the workspace only where it
    is none of the others.
    """
    tables, notes = {}, []
    for revision in dict.fromkeys([*revisions, WORKSPACE]):
        try:
            table = load(revision, checkpoint)
        except Problem as problem:
            notes.append(f"left out: {problem}")
        else:
            if revision != WORKSPACE or not any(table.equals(other) for other in tables.values()):
                tables[revision] = table
    return tables, notes


def mean_ranks(pairs: list["Paired"], names: list[str]) -> dict[str, float]:
    """1 is best; equal scores share the mean of their ranks. Only of benchmarks that all have; without any,
    all rank alike.
    """
    means = np.array([pair.scores.mean(axis=0) for pair in pairs]).reshape(len(pairs), len(names))
    ahead = (means[:, None, :] > means[:, :, None]).sum(axis=2)
    equal = (means[:, None, :] == means[:, :, None]).sum(axis=2)
    ranks = ahead + (equal + 1) / 2
    return dict(zip(names, ranks.mean(axis=0) if len(pairs) else np.ones(len(names))))


def best_and_below(pairs: list["Paired"]) -> dict[tuple[str, str], str]:
    """(benchmark, side) → ▲ for the best, ▼ for those significantly below it."""
    marks, p = {}, {}
    for pair in pairs:
        means = pair.scores.mean(axis=0)
        best = int(means.argmax())
        for side, name in enumerate(pair.sides):
            if means[side] == means[best]:
                marks[pair.benchmark, name] = " ▲"
            else:
                p[pair.benchmark, name] = statistics.paired_test(pair.scores[:, best], pair.scores[:, side])
    family = sum(len(pair.sides) * (len(pair.sides) - 1) // 2 for pair in pairs)
    return marks | {
        key: " ▼"
        for key, adjusted in zip(p, statistics.holm(list(p.values()), family))
        if adjusted < SIGNIFICANT
    }


def cell(pair: "Paired", name: str, marks: dict[tuple[str, str], str]) -> str:
    if name not in pair.sides:
        return "–"
    return plus_minus(pair.scores[:, pair.sides.index(name)]) + marks.get((pair.benchmark, name), "")


def params_of(revision: str) -> dict[str, object]:
    """params.yaml of a revision, flat: dotted key → value."""
    return dict(flat(YAML(typ="safe", pure=True).load(content(revision, Path("params.yaml")))))


def flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flat(below, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def changed(params: dict[str, object], baseline: dict[str, object]) -> str:
    """What an experiment set, as `-S` writes it; ~ before what it took away."""
    found = [
        f"{key}={value}" for key, value in params.items() if key not in baseline or baseline[key] != value
    ]
    found += [f"~{key}" for key in baseline if key not in params]
    return ", ".join(found[:CHANGES]) + (f" and {len(found) - CHANGES} more" if len(found) > CHANGES else "")


# --- the same questions -------------------------------------------------------------------------------------


@dataclass
class Paired:
    """One benchmark's scores, items x sides, of the items that count; and why the others do not."""

    benchmark: str
    sides: list[str]
    items: pd.DataFrame  # of the first side, a row per row of `scores`
    scores: np.ndarray
    differ: int  # items of one id that are not the same question: where there are any, nothing is compared
    leaked: int
    unscored: int
    unpaired: dict[str, int]
    has_scores: bool  # of any item: answers in words have none where no judge was asked

    def note(self) -> str:
        """What was left out, in one line; "" where nothing was."""
        if self.differ:
            return (
                f"{self.benchmark}: not compared: the benchmark changed, {self.differ:,} questions or "
                "answers of the same id differ"
            )
        if not self.has_scores:
            return f"{self.benchmark}: {self.unscored:,} answers that nothing scored: --judge asks a judge"
        left = [f"{self.leaked:,} leaked"] if self.leaked else []
        left += [f"{self.unscored:,} with a fault or without a score"] if self.unscored else []
        if unpaired := " and ".join(f"{n:,} of {side}" for side, n in self.unpaired.items() if n):
            left.append(f"unpaired {unpaired}")
        return f"{self.benchmark}: left out: {', '.join(left)}" if left else ""

    def groups(self, column: str) -> Iterator[tuple[str, np.ndarray]]:
        """The name and the rows of each group that has a name."""
        yield from (
            (" ".join(name.split()), rows)
            for name, rows in self.items.groupby(column).indices.items()
            if name
        )


def paired(tables: dict[str, pd.DataFrame]) -> list[Paired]:
    """Every benchmark that at least two tables have, by its name."""
    names = sorted({name for table in tables.values() for name in table["benchmark"].unique()})
    own = {
        name: {side: rows for side, table in tables.items() if len(rows := table[table["benchmark"] == name])}
        for name in names
    }
    found = [pair(name, sides) for name, sides in own.items() if len(sides) > 1]
    if not any(len(pair.scores) for pair in found):
        raise Problem(f"nothing to compare: {'; '.join(left_out(found, tables))}")
    return found


def pair(benchmark: str, tables: dict[str, pd.DataFrame]) -> Paired:
    """The rows of one benchmark, paired by id."""
    by_id = [table.set_index("id") for table in tables.values()]
    shared = reduce(pd.Index.intersection, [rows.index for rows in by_id])
    first, *others = sides = [rows.loc[shared] for rows in by_id]
    differ = np.any([(rows[ASKED] != first[ASKED]).any(axis=1) for rows in others], axis=0)
    leaked = np.any([rows["leaked"] for rows in sides], axis=0)
    unscored = np.any([rows["score"].isna() | (rows["fault"] != "") for rows in sides], axis=0) & ~leaked
    kept = ~leaked & ~unscored & (differ.sum() == 0)
    return Paired(
        benchmark,
        list(tables),
        first[kept],
        np.column_stack([rows["score"][kept] for rows in sides]),
        int(differ.sum()),
        int(leaked.sum()),
        int(unscored.sum()),
        {side: len(rows) - len(shared) for side, rows in zip(tables, by_id)},
        any(rows["score"].notna().any() for rows in sides),
    )


def left_out(pairs: list[Paired], tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """A line for each benchmark of which something was left out, and for each that only one side has."""
    yield from filter(None, (pair.note() for pair in pairs))
    having = {}
    for side, table in tables.items():
        for benchmark in table["benchmark"].unique():
            having.setdefault(benchmark, []).append(side)
    yield from (f"{benchmark}: only in {sides[0]}" for benchmark, sides in having.items() if len(sides) == 1)


# --- the predictions of a revision --------------------------------------------------------------------------


def load(revision: str, checkpoint: str) -> pd.DataFrame:
    """The rows in their published order of choices (rotation 0); no text is null."""
    path = predictions(checkpoint)
    buffer = BytesIO(content(revision, path))
    if missing := [column for column in COLUMNS if column not in parquet.read_schema(buffer).names]:
        raise Problem(
            f"{path} of {revision} has no column {missing[0]}: another version of the evaluate stage made "
            "it; evaluate again"
        )
    table = parquet.read_table(buffer, columns=COLUMNS).to_pandas()
    table = table[table["rotation"] == 0].reset_index(drop=True)
    for _, row in table[table.duplicated(["benchmark", "id"])][:1].iterrows():
        raise Problem(f"{path} of {revision} holds {row['id']} of {row['benchmark']} twice: evaluate again")
    text = [*ASKED, "fault", *GROUPS]
    return table.assign(**table[text].fillna(""))


def predictions(checkpoint: str) -> Path:
    return Path(f"data/predictions/{checkpoint}.parquet")


def content(revision: str, path: Path) -> bytes:
    """A file of the workspace, or of a revision: from git, DVC's cache or its remote."""
    if revision == WORKSPACE:
        if not path.exists():
            raise Problem(f"{path} does not exist: `dvc repro` makes it, `dvc pull` gets what was pushed")
        return path.read_bytes()
    with revisions.files_of(revision, path.as_posix()) as files:
        if not files.exists(path.as_posix()):
            raise Problem(f"{revision} has no {path}; {made(files, path)}")
        return files.read_bytes(path.as_posix())


def made(files: "DVCFileSystem", path: Path) -> str:  # noqa: F821
    names = sorted(Path(name).stem for name in files.glob(f"{path.parent.as_posix()}/*.parquet"))
    return f"it has {', '.join(names)} (--checkpoint)" if names else "commit dvc.lock after `dvc repro`"


# --- how it reads -------------------------------------------------------------------------------------------


def plus_minus(scores: np.ndarray) -> str:
    """Mean ± one standard error; the mean alone of a single score that is neither 0 nor 1."""
    score = statistics.summary(scores)
    return f"{score['value']:.3f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.3f}")


def bullets(lines: Iterable[str]) -> Iterator[str]:
    """One part of all lines; none where there is no line."""
    if text := "\n".join(f"- {line}" for line in lines):
        yield text


def shown(table: list[list[str]], as_markdown: bool) -> str:
    return (
        markdown([[text.replace("|", "\\|") for text in row] for row in table])
        if as_markdown
        else aligned(table)
    )


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
