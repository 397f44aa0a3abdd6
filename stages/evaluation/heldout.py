"""What a checkpoint makes of held-out text: how well it predicts answers, which answer of a pair it prefers,
how far it has moved.
"""

import math
from statistics import fmean

import torch
from transformers import PreTrainedModel

from stages.evaluation.candidate import Candidate, as_reference
from stages.evaluation.health import health as signs
from stages.model.generation import Answer
from stages.model.scoring import Score


def text_scores(rows: list[dict], scores: list[Score], stop: str) -> dict[str, float]:
    """Of held-out answers with the stop token that ends each. Loss is in nats per token; perplexity per byte
    of the answer's text can be compared across tokenizers.
    """
    nats = -sum(score.logp for score in scores)
    size = sum(len(row["completion"].removesuffix(stop).encode()) for row in rows)
    return {
        "validation_loss": round(nats / sum(score.tokens for score in scores), 4),
        "byte_perplexity": round(math.exp(nats / size), 4),
    }


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
            "score": float(good.logp > bad.logp),
            "logps": [good.logp, bad.logp],
        }
        for pair, good, bad in zip(pairs, chosen, rejected)
    ]


def preference_scores(chosen: list[Score], rejected: list[Score]) -> dict[str, float]:
    """The mean margin in nats; accuracy by the mean per token; and what a judge reaches that only likes long
    answers.

    Nothing where all that is held out are single votes.
    """
    both = list(zip(chosen, rejected))
    if not both:
        return {}
    return {
        "preference_margin": round(fmean(good.logp - bad.logp for good, bad in both), 4),
        "preference_accuracy_per_token": round(
            fmean(good.per_token > bad.per_token for good, bad in both), 4
        ),
        "longer_wins": round(fmean(good.tokens > bad.tokens for good, bad in both), 4),
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
