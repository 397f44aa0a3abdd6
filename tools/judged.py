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
from pathlib import Path

import numpy as np
from pyarrow import parquet

from stages.evaluation import statistics
from stages.judge.chat import ChatJudge
from stages.settings.errors import Problem, one_line_errors
from stages.settings.reader import read
from stages.settings.stage import quiet
from stages.text.prompts import TEMPLATES, Template
from tools.votes import VOTES, WORTH

PREDICTIONS = Path("data/predictions")
TRAINED_FROM = {"sft": "base", "dpo": "sft"}
Pair = tuple[str, str, str]  # question, and two answers


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(
        "python -m tools.judged", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help="sft, dpo or refine-<method>")
    parser.add_argument("--against", metavar="CHECKPOINT")
    parser.add_argument("--benchmark", default="held-out", help="cidar-eval, alrage, your open questions")
    parser.add_argument("--votes", action="store_true")
    asked = parser.parse_args()
    if asked.votes == bool(asked.checkpoint):
        parser.error("name a checkpoint, or --votes")
    with one_line_errors():
        params = read()
        if params.evaluate.judge.kind != "chat":
            raise Problem(
                f"evaluate.judge.kind is {params.evaluate.judge.kind!r}: pairs need one of kind chat: "
                "docs/evaluation.md"
            )
        judge = ChatJudge("evaluate.judge", params.evaluate.judge)
        if asked.votes:
            lines = beside_votes(judge)
        else:
            against = asked.against or TRAINED_FROM.get(asked.checkpoint, "dpo")
            template = TEMPLATES[params.prompt.template]
            lines = duel(judge, asked.checkpoint, against, asked.benchmark, template)
        print("\n".join([*lines, f"judge: {judge.report()}"]))


# --- two checkpoints ----------------------------------------------------------------------------------------


def duel(
    judge: ChatJudge, checkpoint: str, against: str, benchmark: str, template: Template
) -> Iterator[str]:
    """Win rate of a checkpoint over another on the prompts that both answered, in lines."""
    new, old = (answers(name, benchmark) for name in (checkpoint, against))
    ids = [one for one in new if one in old]
    if not ids:
        raise Problem(f"{checkpoint} and {against} answered no same prompt of {benchmark}")
    pairs = [(plain(new[one]["question"], template), new[one]["answer"], old[one]["answer"]) for one in ids]
    same = [first == second for _, first, second in pairs]
    found = iter(judge.preferences([pair for pair, equal in zip(pairs, same) if not equal], benchmark))
    wins = [0.5 if equal else next(found) for equal in same]  # equal answers need no judge
    kept = [i for i, win in enumerate(wins) if win is not None]
    values = [wins[i] for i in kept]
    differences = [len(pairs[i][1]) - len(pairs[i][2]) for i in kept]
    whole = statistics.mean(values)
    won, tied = values.count(1.0), values.count(0.5)
    interval = "" if whole["ci_low"] is None else f", 95 % {whole['ci_low']:.3f} … {whole['ci_high']:.3f}"
    yield f"{checkpoint} against {against} on {benchmark}: {len(kept):,} prompts"
    yield f"win rate {whole['value']:.3f}{interval} ({won} won, {tied} tied, {values.count(0.0)} lost)"
    yield f"at equal length {length_controlled(values, differences):.3f}"
    yield f"{np.median(differences):+.0f} characters longer (median)"
    if len(kept) < len(ids):
        yield f"{len(ids) - len(kept):,} prompts without a verdict are left out"


def answers(checkpoint: str, benchmark: str) -> dict[str, dict]:
    """The answers in words of a checkpoint, by id."""
    path = PREDICTIONS / f"{checkpoint}.parquet"
    if not path.exists():
        raise Problem(f"{path} does not exist: run `dvc repro`, or `dvc checkout` where it has run")
    columns = ["benchmark", "id", "question", "answer", "tokens"]
    rows = parquet.read_table(path, columns=columns).to_pylist()
    found = {row["id"]: row for row in rows if row["benchmark"] == benchmark and row["tokens"] is not None}
    if not found:
        named = sorted({row["benchmark"] for row in rows if row["tokens"] is not None})
        raise Problem(f"{path} holds no answers in words of {benchmark}: it has {', '.join(named)}")
    return found


def plain(question: str, template: Template) -> str:
    """A prompt without the markers of the template that it was rendered with."""
    for marker in (template.system, template.user, template.assistant, template.turn_end):
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
    """Pairs of answers, and what people said: 1 for the first, 0 for the second, ½ for a tie or both bad."""
    if not VOTES.exists():
        raise Problem(f"{VOTES} is not there: vote in `python -m tools.chat --web` first")
    pairs, votes = [], []
    for line in VOTES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = "\n\n".join(turn["content"] for turn in row["prompt"] if turn["role"] != "system")
        pairs.append((asked, *(answer["answer"] for answer in row["answers"])))
        votes.append(WORTH[row["vote"]])
    return pairs, votes


if __name__ == "__main__":
    with one_line_errors():
        main()
