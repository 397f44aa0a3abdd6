"""Batched inference for evaluation: greedy answers and log-probabilities of given answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its token ids without the stop token, and whether it stopped by itself."""

    text: str
    tokens: tuple[int, ...]
    stopped: bool

    @property
    def repetition(self) -> float:
        """Share of its 4-grams of tokens that it has said before."""
        grams = [self.tokens[i : i + 4] for i in range(len(self.tokens) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Score:
    """Log-probability of a given answer: summed over its tokens, in nats, and how many tokens it has."""

    logp: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.logp / self.tokens


def batches(lengths: list[int], size: int, title: str) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and memory trouble shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in tqdm(range(0, len(order), size), desc=title, unit="batch", leave=False, dynamic_ncols=True, disable=None):
        yield order[start : start + size]


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and position_ids, each [rows, longest]; every row ends in the last column."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "position_ids": positions.to(device)}


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    batch_size: int,
    limit: int,
    title: str,
) -> list[Answer]:
    """Greedy answers of at most `limit` tokens; any token of `stops` ends one."""
    encoded = tokenizer(prompts)["input_ids"]
    answers: list[Answer | None] = [None] * len(prompts)
    for batch in batches([len(row) for row in encoded], batch_size, title):
        inputs = left_padded([encoded[i] for i in batch], tokenizer.pad_token_id, model.device)
        del inputs["position_ids"]  # generate() makes its own
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
        for i, row in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist()):
            end = next((at for at, token in enumerate(row) if token in stops), None)
            tokens = row[:end]
            answers[i] = Answer(tokenizer.decode(tokens), tuple(tokens), stopped=end is not None)
    return answers


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
