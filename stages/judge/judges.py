"""The judges: who scores an answer in words.

Each has `scores(answers, title)`, a number or None (no verdict) for each answer, higher is better;
`record`, who it is, for the record; and `report()`, what it did, in a line.
"""

from collections.abc import Callable
from statistics import fmean
from typing import Protocol

from stages.judge.answered import Answered
from stages.judge.chat import ChatJudge
from stages.judge.people import PeopleJudge
from stages.judge.reference import exact_match, f1
from stages.settings import params


class Judge(Protocol):
    record: dict

    def scores(self, answers: list[Answered], title: str) -> list[float | None]: ...

    def report(self) -> str: ...


class ReferenceJudge:
    """The answer in the data: the mean of exact match and F1, 0..1; no verdict where the data holds none."""

    def __init__(self, key: str, settings: params.Judge):
        self.record, self.without = {"kind": settings.kind}, 0

    def scores(self, answers: list[Answered], title: str) -> list[float | None]:
        found = [
            fmean((exact_match(one.answer, one.references), f1(one.answer, one.references)))
            if one.references
            else None
            for one in answers
        ]
        self.without += found.count(None)
        return found

    def report(self) -> str:
        return f"{self.without:,} answers without a reference"


def reward(key: str, settings: params.Judge) -> Judge:
    from stages.judge.reward import RewardJudge  # which loads torch

    return RewardJudge(key, settings)


JUDGES: dict[str, Callable[[str, params.Judge], Judge]] = {
    "reference": ReferenceJudge,
    "reward": reward,
    "chat": ChatJudge,
    "people": PeopleJudge,
}


def open_judge(key: str, settings: params.Judge) -> Judge | None:
    """The judge that params.yaml describes at `key`; None where it names none."""
    return None if settings.kind == "none" else JUDGES[settings.kind](key, settings)
