"""Log-probabilities of given answers, in batches."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.generation import batches, left_padded


@dataclass(frozen=True)
class Score:
    """Log-probability of a given answer: summed over its tokens, in nats, and how many tokens it has."""

    logp: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.logp / self.tokens


@torch.inference_mode()
def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], batch_size: int, title: str
) -> list[Score]:
    """Log-probabilities of answers after their prompts. Logits are made for the answers' positions alone."""
    encoded = [(tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]) for prompt, answer in pairs]
    scores: list[Score | None] = [None] * len(pairs)
    for batch in batches([len(whole) for _, whole in encoded], batch_size, title):
        inputs = left_padded([encoded[i][1] for i in batch], tokenizer.pad_token_id, model.device)
        counts = [len(encoded[i][1]) - len(encoded[i][0]) for i in batch]
        keep = max(counts) + 1
        logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, :-1].float()
        targets = inputs["input_ids"][:, 1 - keep :]
        logps = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        for i, row, count in zip(batch, logps, counts):
            scores[i] = Score(row[-count:].sum().item(), count)
    return scores
