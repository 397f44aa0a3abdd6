"""What a checkpoint makes of held-out text: how well it predicts answers, which answer of a pair it prefers,
how far it has moved.
"""

import math
from dataclasses import replace
from statistics import fmean

import torch
from transformers import PreTrainedModel

from stages.evaluation.candidate import Candidate, as_reference
from stages.evaluation.health import health as signs
from stages.model.generation import Answer
from stages.model.scoring import Score


def score_texts(candidate: Candidate, rows: list[dict]) -> tuple[list[Score], list[Score]]:
    """Of held-out answers without the stop token, and of the stop token after each."""
    stop = candidate.template.stop
    texts = [(row["prompt"], row["completion"].removesuffix(stop)) for row in rows]
    scores = candidate.score([*texts, *((prompt + text, stop) for prompt, text in texts)], "held-out texts")
    return scores[: len(rows)], scores[len(rows) :]


def text_scores(rows: list[dict], scores: list[Score], stops: list[Score], stop: str) -> dict[str, float]:
    """Loss is in nats per token of an answer; perplexity per byte of it can be compared across tokenizers.
    The stop token is in neither: a base model that never learned it would seem to gain in all else. How
    probable it is where an answer ends stands apart.
    """
    nats = -sum(score.logp for score in scores)
    size = sum(len(row["completion"].removesuffix(stop).encode()) for row in rows)
    return {
        "validation_loss": round(nats / sum(score.tokens for score in scores), 4),
        "byte_perplexity": round(math.exp(nats / size), 4),
        "stop_probability": round(fmean(math.exp(score.logp) for score in stops), 4),
    }


def score_pairs(candidate: Candidate, pairs: list[dict]) -> tuple[list[Score], list[Score]]:
    """Of the chosen answers and of the rejected; they share their prompts, so they are scored together."""
    asked = [(pair["prompt"], pair[kind]) for kind in ("chosen", "rejected") for pair in pairs]
    scores = candidate.score(asked, "held-out pairs")
    return scores[: len(pairs)], scores[len(pairs) :]


def reward_scores(
    candidate: Candidate, pairs: list[dict], chosen: list[Score], rejected: list[Score]
) -> dict:
    """Of a checkpoint that learned from preferences, how often and how far the chosen answer has gained more
    than the rejected one since training began, in nats: what these losses train (DPO's implicit reward over
    β).
    """
    if not pairs:
        return {}
    with as_reference(candidate) as model:
        before = score_pairs(replace(candidate, model=model), pairs)
    gained = [
        (good.logp - old_good.logp) - (bad.logp - old_bad.logp)
        for good, bad, old_good, old_bad in zip(chosen, rejected, *before)
    ]
    return {
        "reward_accuracy": round(fmean(above(margin, 0) for margin in gained), 4),
        "reward_margin": round(fmean(gained), 4),
    }


def above(one: float, other: float) -> float:
    """1 where the first is greater, 0 where it is less, ½ where they are equal."""
    return ((one > other) + (one >= other)) / 2


def preferences(pairs: list[dict], chosen: list[Score], rejected: list[Score]) -> list[dict]:
    """A row per pair: whether the chosen answer is more probable than the rejected one."""
    return [
        {
            "benchmark": "preference",
            "id": pair["id"],
            "subject": pair["source"],
            "group": "chosen is longer" if good.tokens > bad.tokens else "chosen is not longer",
            "question": pair["prompt"],
            "reference": pair["chosen"],
            "answer": pair["chosen" if good.logp > bad.logp else "rejected"],
            "score": above(good.logp, bad.logp),
            "logps": [good.logp, bad.logp],
        }
        for pair, good, bad in zip(pairs, chosen, rejected)
    ]


def preference_scores(chosen: list[Score], rejected: list[Score]) -> dict[str, float]:
    """The mean margin in nats; accuracy by the mean per token; and what a judge reaches that only likes long
    answers, or only short ones. Equal ones count half.

    Nothing where all that is held out are single votes.
    """
    both = list(zip(chosen, rejected))
    if not both:
        return {}
    return {
        "preference_margin": round(fmean(good.logp - bad.logp for good, bad in both), 4),
        "preference_accuracy_per_token": round(
            fmean(above(good.per_token, bad.per_token) for good, bad in both), 4
        ),
        "longer_wins": round(fmean(above(good.tokens, bad.tokens) for good, bad in both), 4),
        "shorter_wins": round(fmean(above(bad.tokens, good.tokens) for good, bad in both), 4),
    }


def health(candidate: Candidate, texts: list[dict]) -> tuple[dict[str, float], list[dict]]:
    """Of the candidate's answers to held-out prompts, and the answers as rows of predictions: to be read, not
    scored.
    """
    prompts, stop = [row["prompt"] for row in texts], candidate.template.stop
    answers, references = (
        candidate.answers(prompts, "held-out prompts"),
        [row["completion"].removesuffix(stop) for row in texts],
    )
    facts = signs(answers, references)
    if candidate.reference:
        facts["divergence"] = divergence(candidate, prompts, answers)
    rows = [
        {
            "benchmark": "held-out",
            "id": row["id"],
            "subject": row["source"],
            "question": row["prompt"],
            "reference": reference,
            "answer": answer.text,
            "tokens": len(answer.tokens),
            "stopped": answer.stopped,
        }
        for row, reference, answer in zip(texts, references, answers)
    ]
    return facts, rows


@torch.inference_mode()
def divergence(candidate: Candidate, prompts: list[str], answers: list[Answer]) -> float:
    """KL(candidate ‖ reference) in nats per token, exact over the vocabulary, along the candidate's own
    answers.
    """
    total = tokens = 0.0
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor(
            [[*candidate.tokenizer(prompt)["input_ids"], *answer.tokens]], device=candidate.model.device
        )
        keep = len(answer.tokens) + 1
        ours = log_softmax(candidate.model, ids, keep)
        with as_reference(candidate) as reference:
            theirs = log_softmax(reference, ids, keep)
        total += (ours.exp() * (ours - theirs)).sum().item()
        tokens += keep
    return round(total / tokens, 4)


def log_softmax(model: PreTrainedModel, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """Log-probabilities [1, keep, vocabulary] of what follows the last `keep` positions, the stop token with
    them.
    """
    return model(ids, logits_to_keep=keep, use_cache=False).logits.float().log_softmax(-1)
