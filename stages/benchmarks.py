"""The benchmarks: how a question is asked, and when an answer is right.

Each item of the built-in benchmark (the others guard the training data, see leaks.py) is asked three ways: as a chat turn whose
greedy answer is read, as a worked-examples prompt that needs no chat markup (the fair way to ask a base model), and as a choice
between given answers by their probability.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from pyarrow import parquet

from stages import skills
from stages.params import Problem

SHOTS = 3


def load(split: str, folder: Path = Path("data/raw/benchmarks")) -> tuple[list[dict], dict[str, list[dict]]]:
    """The items of a split, and the worked examples of each subject (from the dev split).

    Raises Problem where the built-in benchmark is not configured.
    """
    path = folder / "skills.parquet"
    if not path.exists():
        raise Problem("data.benchmarks has no skills, which is what evaluate asks: add `skills: 60`")
    rows = parquet.read_table(path).to_pylist()
    examples = defaultdict(list)
    for row in rows:
        if row["split"] == "dev":
            examples[row["subject"]].append(row)
    return [row for row in rows if row["split"] == split], examples


def right(item: dict) -> str:
    return item["choices"][item["answer"]]


def few_shot(item: dict, examples: dict[str, list[dict]]) -> str:
    """Worked examples of the same subject, then the question, in plain text."""
    shots = [f"سؤال: {shot['question']}\nجواب: {right(shot)}\n" for shot in examples[item["subject"]][:SHOTS]]
    return "".join(shots) + f"سؤال: {item['question']}\nجواب:"


def is_right(item: dict, text: str) -> bool:
    """Exact match of what the answer says, in either of the two good forms."""
    return skills.content(text.strip()) == right(item)


def is_sentence(text: str) -> bool:
    return skills.is_sentence(text.strip())


def chance(subject: str) -> float:
    """Exact match of a blind pick among the answers that stand in the question; 0 where none does."""
    return skills.FAMILIES[subject].chance


def average(values: Iterable[float]) -> float:
    return round(fmean(values), 4)


def proportion(hits: list[bool]) -> dict[str, float | int]:
    """A share with its standard error √(p(1−p)/n)."""
    share = fmean(hits)
    return {"value": round(share, 4), "stderr": round(math.sqrt(share * (1 - share) / len(hits)), 4), "n": len(hits)}
