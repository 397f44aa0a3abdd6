"""What people said in the arena: data/feedback/preferences.jsonl, counted by pair of checkpoints.

python -m tools.compare --votes shows it as a table, the chat page beside the arena.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stages.evaluation import statistics

VOTES = Path("data/feedback/preferences.jsonl")
WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}  # of a vote to the first answer


@dataclass
class Result:
    """The votes on one pair of checkpoints, by name and the first digits of their weights' hashes: a
    checkpoint that was trained anew is another one.
    """

    names: tuple[str, str]
    weights: tuple[str, str]
    values: list[float] = field(default_factory=list)  # to the first of the pair

    @property
    def row(self) -> dict:
        """`win_rate` is that of the first; a tie, or two bad answers, is half of a win. Its interval is
        Wilson's, which is wide enough for halves, too: they spread less than wins and losses.
        """
        rate = statistics.proportion(self.values)
        return {
            "names": list(self.names),
            "weights": list(self.weights),
            "votes": len(self.values),
            "won": self.values.count(1.0),
            "lost": self.values.count(0.0),
            "ties": self.values.count(0.5),
            "win_rate": rate["value"],
            "ci_low": rate["ci_low"],
            "ci_high": rate["ci_high"],
        }


def results() -> list[Result]:
    """Of all pairs, the one with the latest vote first."""
    found: dict[tuple, Result] = {}
    for sides, worth in read():
        if sides[0] > sides[1]:
            sides, worth = sides[::-1], 1 - worth
        result = found.pop(tuple(sides), None) or Result(*zip(*sides))
        result.values.append(worth)
        found[tuple(sides)] = result
    return list(found.values())[::-1]


def read() -> Iterator[tuple[list[tuple[str, str]], float]]:
    """The checkpoints and the first one's worth of each vote, oldest first. What is no vote, a torn line say,
    is passed over: `fetch` counts it.
    """
    for line in VOTES.read_text(encoding="utf-8").splitlines() if VOTES.exists() else []:
        with suppress(ValueError, TypeError, KeyError):
            vote = json.loads(line)
            first, second = vote["answers"]
            sides = [(str(one["checkpoint"]), str(one["weights_sha256"])[:8]) for one in (first, second)]
            worth = WORTH[vote["vote"]]
            yield sides, worth


def table() -> list[list[str]]:
    """As rows of text, the first the header's."""
    header = ["A", "B", "votes", "A won", "ties", "B won", "A's win rate", "95 % interval"]
    return [header, *(cells(result.row) for result in results())]


def cells(row: dict) -> list[str]:
    names = [f"{name} ({weights})" for name, weights in zip(row["names"], row["weights"])]
    counts = [str(row[key]) for key in ("votes", "won", "ties", "lost")]
    return [*names, *counts, f"{row['win_rate']:.3f}", f"{row['ci_low']:.3f} … {row['ci_high']:.3f}"]
