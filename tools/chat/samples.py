"""Questions that the loaded checkpoint can answer, for a page that is opened for the first time."""

from itertools import islice
from pathlib import Path

from pyarrow import ArrowException, parquet

from stages.text.prompts import Template
from tools.judged import PREDICTIONS, plain

HELD_OUT = Path("data/formatted/instructions/validation.parquet")
LONGEST = 80  # characters: what fits on a button
SHOWN = 3


def samples(checkpoint: str, template: Template) -> list[str]:
    """Three short held-out questions: what this checkpoint answered word for word as its reference says;
    of the data that it was trained on where it is not evaluated yet.
    """
    known = right(file(checkpoint)) or prompts(HELD_OUT)
    asked = (plain(one) for one in known if one.count(template.user) == 1)
    short = (one for one in dict.fromkeys(asked) if "\n" not in one and one.strip() and len(one) <= LONGEST)
    by_kind: dict[str, str] = {}  # not three of one kind
    for one in short:
        by_kind.setdefault(one.split()[0], one)
    return list(islice(by_kind.values(), SHOWN))


def file(checkpoint: str) -> Path:
    """Of its predictions; that of preference training is dpo's, whatever the method."""
    own = PREDICTIONS / f"{checkpoint}.parquet"
    known = checkpoint in ("base", "sft") or checkpoint.startswith(("refine-", "merged-"))
    return own if known else PREDICTIONS / "dpo.parquet"


def right(path: Path) -> list[str]:
    return [
        row["question"]
        for row in rows(path, ["benchmark", "question", "reference", "answer"])
        if row["benchmark"] == "held-out" and row["answer"] and row["answer"].strip() == row["reference"]
    ]


def prompts(path: Path) -> list[str]:
    return [row["prompt"] for row in rows(path, ["prompt"])]


def rows(path: Path, columns: list[str]) -> list[dict]:
    """None of a file that is not there, or is of another version: no sample is worth a server."""
    try:
        return parquet.read_table(path, columns=columns).to_pylist()
    except (ArrowException, OSError):
        return []
