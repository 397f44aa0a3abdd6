"""Batched generation: greedy, or sampled and kept batch by batch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.settings.files import read_json, write_json

TOKENS = 16384  # of a batch, prompts and answers: a 7B model's cache of so many takes 0.9 GB


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text, its token ids without the stop token, and whether it stopped by
    itself.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool

    @property
    def repetition(self) -> float:
        """Share of its 4-grams of tokens that it has said before."""
        grams = [self.tokens[i : i + 4] for i in range(len(self.tokens) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, each [rows, longest]; every row ends in the last column."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    limit: int,
    title: str,
) -> list[Answer]:
    """Greedy answers of at most `limit` tokens; any token of `stops` ends one. Batches are halved where a
    GPU's memory is too small.
    """
    encoded = tokenizer(prompts)["input_ids"] if prompts else []
    left, tokens = sorted(range(len(prompts)), key=lambda i: -len(encoded[i])), TOKENS
    answers: list[Answer | None] = [None] * len(prompts)
    with tqdm(
        total=len(prompts), desc=title, unit="answer", leave=False, dynamic_ncols=True, disable=None
    ) as bar:
        while left:
            batch = left[: max(1, tokens // (len(encoded[left[0]]) + limit))]
            try:
                output = continued(model, [encoded[i] for i in batch], stops, limit, tokenizer.pad_token_id)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                tokens //= 2
                continue
            for i, row in zip(batch, output):
                end = next((at for at, token in enumerate(row) if token in stops), None)
                answers[i] = Answer(tokenizer.decode(row[:end]), tuple(row[:end]), stopped=end is not None)
            left = left[len(batch) :]
            bar.update(len(batch))
    return answers


def continued(
    model: PreTrainedModel, rows: list[list[int]], stops: list[int], limit: int, pad: int
) -> list[list[int]]:
    """The tokens that the model puts after each row, padded after a stop token."""
    inputs = left_padded(rows, pad, model.device)
    output = model.generate(
        **inputs, max_new_tokens=limit, do_sample=False, eos_token_id=stops, pad_token_id=pad
    )
    return output[:, inputs["input_ids"].shape[1] :].tolist()


# --- sampled ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """`count` answers to each prompt, of at most `limit` tokens, from the `top_p` of the probability."""

    count: int
    temperature: float
    top_p: float
    limit: int
    seed: int


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    settings: Sampling,
    title: str,
    folder: Path,
) -> list[list[Answer]]:
    """Sampled answers to each prompt. Every batch stands in a file of `folder` once it is done, and is not
    asked again.

    Batches and their seeds follow from the prompts and the seed alone: on a CPU a run that was killed ends in
    the same answers as one that was not. Batches are halved where a GPU's memory is too small.
    """
    encoded = tokenizer(prompts)["input_ids"] if prompts else []
    answers: list[list[Answer]] = [[] for _ in prompts]
    with tqdm(
        total=len(prompts), desc=title, unit="prompt", leave=False, dynamic_ncols=True, disable=None
    ) as bar:
        for number, batch in enumerate(batches(list(map(len, encoded)), settings)):
            path = folder / f"{number:06}.json"
            if not path.exists():
                with torch.random.fork_rng():
                    torch.manual_seed(batch_seed(settings.seed, number))
                    rows = drawn(model, [encoded[i] for i in batch], stops, settings, tokenizer.pad_token_id)
                write_json(path, {"answers": rows})
            for place, row in enumerate(read_json(path)["answers"]):
                end = next((at for at, token in enumerate(row) if token in stops), None)
                found = Answer(tokenizer.decode(row[:end]), tuple(row[:end]), stopped=end is not None)
                answers[batch[place // settings.count]].append(found)
            bar.update(len(batch))
    return answers


def batches(lengths: list[int], settings: Sampling) -> list[list[int]]:
    """The places of prompts, the longest first, as many in a batch as TOKENS hold with their answers."""
    left, found = sorted(range(len(lengths)), key=lambda i: -lengths[i]), []
    while left:
        size = max(1, TOKENS // ((lengths[left[0]] + settings.limit) * settings.count))
        found.append(left[:size])
        left = left[size:]
    return found


def batch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:7], "big")


def drawn(
    model: PreTrainedModel, rows: list[list[int]], stops: list[int], settings: Sampling, pad: int
) -> list[list[int]]:
    """The tokens of each row's answers, one after another, padded after a stop token."""
    inputs = left_padded(rows, pad, model.device)
    try:
        output = model.generate(
            **inputs, max_new_tokens=settings.limit, do_sample=True, temperature=settings.temperature,
            top_p=settings.top_p, top_k=0, num_return_sequences=settings.count, eos_token_id=stops,
            pad_token_id=pad,
        )  # fmt: skip
    except torch.cuda.OutOfMemoryError:
        if len(rows) == 1:
            raise
        half = len(rows) // 2
        parts = (rows[:half], rows[half:])
        return [row for part in parts for row in drawn(model, part, stops, settings, pad)]
    return output[:, inputs["input_ids"].shape[1] :].tolist()
