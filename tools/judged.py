"""A judge compares what two checkpoints answered, or is compared with people's votes.

python -m tools.judged dpo [--against sft] [--benchmark held-out]
    the answers of both in data/predictions, each pair in both orders; --against: what it was trained from
python -m tools.judged --votes
    the judge beside the votes in data/feedback/preferences.jsonl

The judge is the one of evaluate.judge, of kind chat. Its verdicts are kept: what it said once is not asked
again. A judge that goes by the order of two answers has seen no difference, which is a tie.
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from pyarrow import parquet

from stages.evaluation import statistics
from stages.judge.chat import ChatJudge
from stages.settings.errors import Problem, one_line_errors
from stages.settings.reader import read
from stages.settings.stage import quiet
from stages.text.prompts import TEMPLATES
from tools.votes import VOTES, WORTH

PREDICTIONS = Path("data/predictions")
TRAINED_FROM = {"sft": "base", "dpo": "sft"}
Pair = tuple[str, str, str]  # question, and two answers


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(
        "python -m tools.judged", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="sft, dpo, refine-… or merged-…")
    parser.add_argument("--against", metavar="CHECKPOINT")
    parser.add_argument("--benchmark", default="held-out", help="cidar-eval, alrage, your open questions")
    parser.add_argument("--votes", action="store_true")
    asked = parser.parse_args()
    if asked.votes == bool(asked.checkpoint):
        parser.error("name a checkpoint, or --votes")
    with one_line_errors():
        judge = of_pairs()
        if asked.votes:
            lines = beside_votes(judge)
        else:
            against = asked.against or TRAINED_FROM.get(asked.checkpoint, "dpo")
            lines = duel(judge, asked.checkpoint, against, asked.benchmark)
        print("\n".join([*lines, f"judge: {judge.report()}"]))


def of_pairs() -> ChatJudge:
    """The judge of evaluate.judge. Raises Problem where it compares no pairs."""
    settings = read().evaluate.judge
    if settings.kind != "chat":
        raise Problem(
            f"evaluate.judge.kind is {settings.kind!r}: pairs need one of kind chat: docs/evaluation.md"
        )
    return ChatJudge("evaluate.judge", settings)


# --- two checkpoints ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a judge said of two checkpoints: of each prompt 1 (the new one wins), 0 or ½, and how many
    characters longer the new one's answer is; `without`: prompts without a verdict, or asked otherwise.
    """

    wins: list[float]
    longer: list[int]
    without: int

    @property
    def row(self) -> dict:
        whole = statistics.mean(self.wins)
        counts = {name: self.wins.count(worth) for name, worth in (("won", 1), ("tied", 0.5), ("lost", 0))}
        return counts | {
            "prompts": len(self.wins),
            "win_rate": whole["value"],
            "ci_low": whole["ci_low"],
            "ci_high": whole["ci_high"],
            "at_equal_length": length_controlled(self.wins, self.longer),
            "longer": float(np.median(self.longer)),
        }


def duel(judge: ChatJudge, checkpoint: str, against: str, benchmark: str) -> Iterator[str]:
    """Win rate of a checkpoint over another on the prompts that both answered, in lines."""
    paths = [PREDICTIONS / f"{name}.parquet" for name in (checkpoint, against)]
    for path in paths:
        if not path.exists():
            raise Problem(f"{path} does not exist: run `dvc repro`, or `dvc checkout` where it has run")
    new, old = (answers(path.read_bytes(), str(path), benchmark) for path in paths)
    result = compared(judge, new, old, benchmark)
    row = result.row
    interval = "" if row["ci_low"] is None else f", 95 % {row['ci_low']:.3f} … {row['ci_high']:.3f}"
    yield f"{checkpoint} against {against} on {benchmark}: {row['prompts']:,} prompts"
    counts = f"{row['won']} won, {row['tied']} tied, {row['lost']} lost"
    yield f"win rate {row['win_rate']:.3f}{interval} ({counts})"
    yield f"at equal length {row['at_equal_length']:.3f}"
    yield f"{row['longer']:+.0f} characters longer (median)"
    if result.without:
        yield f"{result.without:,} prompts without a verdict are left out"


def compared(judge: ChatJudge, new: dict[str, dict], old: dict[str, dict], benchmark: str) -> Result:
    """The judge's verdicts on answers to the prompts that both have. Raises Problem where there is none."""
    shared = [one for one in new if one in old]
    ids = [one for one in shared if plain(new[one]["question"]) == plain(old[one]["question"])]
    if not ids:
        raise Problem(f"both sides answered no same prompt of {benchmark}")
    pairs = [(plain(new[one]["question"]), new[one]["answer"], old[one]["answer"]) for one in ids]
    found = iter(judge.preferences([pair for pair in pairs if pair[1] != pair[2]], benchmark))
    wins = [0.5 if first == second else next(found) for _, first, second in pairs]  # equal ones need no judge
    kept = [i for i, win in enumerate(wins) if win is not None]
    if not kept:
        raise Problem(f"the judge gave no verdict on {len(wins):,} pairs of {benchmark}")
    longer = [len(pairs[i][1]) - len(pairs[i][2]) for i in kept]
    return Result([wins[i] for i in kept], longer, len(shared) - len(kept))


def answers(predictions: bytes, name: str, benchmark: str) -> dict[str, dict]:
    """The answers in words of a checkpoint, by id. `name` is what an error calls the predictions."""
    columns = ["benchmark", "id", "question", "answer", "tokens"]
    rows = parquet.read_table(BytesIO(predictions), columns=columns).to_pylist()
    found = {row["id"]: row for row in rows if row["benchmark"] == benchmark and row["tokens"] is not None}
    if not found:
        named = sorted({row["benchmark"] for row in rows if row["tokens"] is not None})
        raise Problem(f"{name} holds no answers in words of {benchmark}: it has {', '.join(named)}")
    return found


def plain(question: str) -> str:
    """A prompt without the markers of the template that it was rendered with."""
    for one in TEMPLATES.values():
        for marker in (one.system, one.user, one.assistant, one.turn_end):
            question = question.replace(marker, "\n") if marker.strip() else question
    return question.strip()


def length_controlled(wins: list[float], differences: list[int]) -> float:
    """The win rate that a logistic regression on the difference in length gives at none: σ(a) of
    σ(a + b·tanh(Δ/s)), s the standard deviation of Δ, by Newton's method.

    AlpacaEval 2 (arXiv 2404.04475) without its terms for models and items. A small pull towards 0 keeps the
    coefficients finite where one side wins everything.
    """
    spread = float(np.std(differences)) or 1.0
    x = np.column_stack([np.ones(len(wins)), np.tanh(np.asarray(differences) / spread)])
    y, pull, coefficients = np.asarray(wins), 1e-2, np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ coefficients))
        gradient = x.T @ (y - p) - pull * coefficients
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + pull * np.eye(2), gradient)
        coefficients += np.clip(step, -2, 2)
    return 1 / (1 + math.exp(-coefficients[0]))


# --- people -------------------------------------------------------------------------------------------------


def beside_votes(judge: ChatJudge) -> Iterator[str]:
    """How often the judge prefers the answer that people preferred."""
    pairs, votes = voted()
    found = judge.preferences(pairs, "votes")
    both = [(vote, verdict) for vote, verdict in zip(votes, found) if verdict is not None]
    decided = [float(vote == verdict) for vote, verdict in both if 0.5 not in (vote, verdict)]
    yield f"{len(votes):,} votes; both decided {len(decided):,}"
    if decided:
        share = statistics.proportion(decided)
        yield f"agreement {share['value']:.3f}, 95 % {share['ci_low']:.3f} … {share['ci_high']:.3f}"
    ties = [verdict == 0.5 for vote, verdict in both if vote == 0.5]
    if ties:
        yield f"of {len(ties):,} ties of people {sum(ties):,} are ties of the judge"


def voted() -> tuple[list[Pair], list[float]]:
    """Pairs of answers, and what people said: 1 for the first, 0 for the second, ½ for a tie or both bad.
    What is no vote is passed over: `fetch` counts it.
    """
    if not VOTES.exists():
        raise Problem(f"{VOTES} is not there: vote in `python -m tools.chat --web` first")
    pairs, votes = [], []
    for line in VOTES.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, TypeError, KeyError):  # a torn line, say
            row = json.loads(line)
            asked = "\n\n".join(turn["content"] for turn in row["prompt"] if turn["role"] != "system")
            first, second = (answer["answer"] for answer in row["answers"])
            worth = WORTH[row["vote"]]
            pairs.append((asked, first, second))
            votes.append(worth)
    return pairs, votes


if __name__ == "__main__":
    with one_line_errors():
        main()
