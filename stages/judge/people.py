"""People judge: the scores that they wrote beside a checkpoint's sampled answers, in VERDICTS.

Votes of the arena are not read here: they are on answers given there, which a sampled answer equals by chance
alone, and are pairs by themselves (the dataset `feedback`). The page shows no sampled answers; a line a
person writes a number into needs no page, and several people can share the file.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from stages.judge.answered import Answered
from stages.settings.errors import Problem
from stages.settings.params import Judge

VERDICTS = Path("data/feedback/verdicts.jsonl")


class PeopleJudge:
    """Of several scores of one answer the mean. What has none is counted, and left out."""

    def __init__(self, key: str, settings: Judge):
        self.record, self.without = {"kind": settings.kind}, 0
        if not VERDICTS.exists():
            raise Problem(
                f"{key}.kind is 'people', and {VERDICTS} is not there: sample with another judge first; "
                f"`python -m tools.answers sft --sampled > {VERDICTS}` writes the answers, people the scores"
            )
        self.known = read(VERDICTS)

    def scores(self, answers: list[Answered], title: str) -> list[float | None]:
        found = [self.known.get((one.question, one.answer)) for one in answers]
        self.without += found.count(None)
        return found

    def report(self) -> str:
        return f"{len(self.known):,} answers with a score of people; {self.without:,} sampled ones without"


def read(path: Path) -> dict[tuple[str, str], float]:
    """The score of each question and answer; a line whose score is null has none yet. Raises Problem where a
    line is none.
    """
    found = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer, score = (row[key] for key in ("question", "answer", "score"))
            if score is not None:
                if isinstance(score, bool) or not math.isfinite(score):
                    raise ValueError
                found[question, answer].append(score)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise Problem(
                f"{path}: line {number} is no verdict: it needs question, answer and score, a number or null"
            ) from None
    return {asked: fmean(scores) for asked, scores in found.items()}
