"""Batched greedy generation, and how any batch is laid out."""

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
