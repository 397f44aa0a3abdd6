"""What a checkpoint makes of held-out text: how well it predicts answers, which answer of a pair it prefers,
how far it has moved.
"""

import math
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from transformers import PreTrainedModel

from stages.evaluation.candidate import Candidate, as_reference
from stages.evaluation.health import health as signs
from stages.model.generation import Answer
from stages.model.scoring import Score, Sequence, summed


@dataclass(frozen=True)
class Held:
    """Log-probability of a held-out text in nats, its tokens and its bytes as UTF-8."""

    logp: float
    tokens: int
    size: int


def score_texts(candidate: Candidate, rows: list[dict]) -> tuple[list[Held], list[float]]:
    """Of all that is trained of held-out rows (answers, and raw text), without the token that ends it; and of
    the stop token after each answer the log-probability.
    """
    stop, *others = candidate.tokenizer.convert_tokens_to_ids(candidate.template.stops)
    texts, stops = [], []
    for ids, trained in ((row["input_ids"], row["trained"]) for row in rows):
        for start, end in zip(trained[::2], trained[1::2]):
            last = end - (ids[end - 1] in (stop, *others))
            if last > start:  # one token of a text and its end leave nothing
                texts.append(Sequence(ids[: last - 1], ids[start:last]))
            if ids[end - 1] == stop:
                stops.append(Sequence(ids[: end - 1], [stop]))
    found = summed(candidate.model, [*texts, *stops], f"{candidate.name}: held-out texts")
    sizes = [len(text.encode()) for text in candidate.tokenizer.batch_decode([one.answer for one in texts])]
    held = [Held(logp, len(one.answer), size) for logp, one, size in zip(found, texts, sizes)]
    return held, found[len(texts) :]


def text_scores(texts: list[Held], stops: list[float]) -> dict[str, float]:
    """Loss is in nats per token of what is trained; perplexity per byte of it can be compared across
    tokenizers. The stop token is in neither: a base model that never learned it would seem to gain in all
    else. How probable it is where an answer ends stands apart, if there are answers.
    """
    nats = -sum(text.logp for text in texts)
    measures = {
        "validation_loss": round(nats / sum(text.tokens for text in texts), 4),
        "byte_perplexity": round(math.exp(nats / sum(text.size for text in texts)), 4),
    }
    return measures | ({"stop_probability": round(fmean(map(math.exp, stops)), 4)} if stops else {})


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
    """Of the candidate's answers to held-out prompts (the last turn of conversations), and the answers as
    rows of predictions: to be read, not scored.
    """
    if not texts:
        return {}, []
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
