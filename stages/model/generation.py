"""Generation in batches: greedy, or sampled and kept batch by batch. A row leaves its batch, and the cache,
with its last token, so the rest goes on without it.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stages.settings.files import read_json, write_json

TOKENS = 16384  # of a batch, prompts and answers: a 7B model's cache of so many takes 0.9 GB

Row = list[int]  # token ids
# The next tokens [rows] by logits [rows, vocabulary], the rows' places among all rows, and how many tokens
# they have so far.
Choose = Callable[[torch.Tensor, list[int], int], torch.Tensor]


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


def left_padded(rows: list[Row], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each [rows, longest]; every row ends in the last column."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    limit: int,
    title: str,
) -> list[Answer]:
    """Greedy answers of at most `limit` tokens; any token of `stops` ends one."""
    rows = tokenizer(prompts)["input_ids"] if prompts else []
    answers: list[Answer | None] = [None] * len(prompts)
    with progress(len(rows), title, "answer") as bar:
        for batch, found in in_batches(model, rows, list(range(len(rows))), stops, limit, greedy):
            for place, tokens in zip(batch, found):
                answers[place] = answer(tokenizer, tokens, stops)
            bar.update(len(batch))
    return answers


def greedy(logits: torch.Tensor, places: list[int], step: int) -> torch.Tensor:
    return logits.argmax(-1)


def answer(tokenizer: PreTrainedTokenizerBase, tokens: Row, stops: list[int]) -> Answer:
    stopped = bool(tokens) and tokens[-1] in stops
    said = tokens[:-1] if stopped else tokens
    return Answer(tokenizer.decode(said), tuple(said), stopped)


def cut(key: str, limit: int, stopped: list[bool], references: list[list[int]]) -> str:
    """What to say where `limit` tokens, set by `key`, are fewer than answers in the data have; else "".
    `stopped`: of the answers; `references`: the bounds of what is trained (`trained`) of rows of the data.
    """
    lengths = [bounds[-1] - bounds[-2] for bounds in references]  # of the last answer, its stop token with it
    longer = sum(length > limit for length in lengths)
    if not longer:
        return ""
    return (
        f"{stopped.count(False):,} of {len(stopped):,} answers were cut at {limit:,} tokens, and {longer:,} "
        f"of {len(lengths):,} in the data are longer: raise {key}; {max(lengths):,} would hold all of these"
    )


def in_batches(
    model: PreTrainedModel, rows: list[Row], left: list[int], stops: list[int], limit: int, choose: Choose
) -> Iterator[tuple[list[int], list[Row]]]:
    """The places of a batch of rows, and what follows each of them. The longest of `left` come first, as many
    as TOKENS hold with their answers; batches are halved where a GPU's memory is too small.
    """
    left, room = sorted(left, key=lambda place: -len(rows[place])), TOKENS
    while left:
        batch = left[: max(1, room // (len(rows[left[0]]) + limit))]
        try:
            found = continued(model, rows, batch, stops, limit, choose)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
            room //= 2
            continue
        yield batch, found
        left = left[len(batch) :]


@torch.inference_mode()
def continued(
    model: PreTrainedModel, rows: list[Row], places: list[int], stops: list[int], limit: int, choose: Choose
) -> list[Row]:
    """The tokens that the model puts after the rows at `places`, a stop token included."""
    ids, mask = left_padded([rows[place] for place in places], stops[0], model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    found, live, ends = [[] for _ in places], list(range(len(places))), set(stops)
    for step in range(limit):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        tokens = choose(logits, [places[at] for at in live], step)
        for at, token in zip(live, tokens.tolist()):
            found[at].append(token)
        going = [i for i, at in enumerate(live) if found[at][-1] not in ends]
        if not going:
            break
        if len(going) < len(live):
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            live = [live[i] for i in going]
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
    return found


def progress(total: int, title: str, unit: str) -> tqdm:
    return tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True, disable=None)


# --- sampled ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """`count` answers to each prompt, of at most `limit` tokens, from the `top_p` of the probability."""

    count: int
    temperature: float
    top_p: float
    limit: int
    seed: int


class Wanted:
    """Answers to be sampled, `count` to each prompt one after another, and those that a folder has of them: a
    file for each batch that was done, so no kill costs more than one.

    `rows`: the prompt of each answer; `seeds`: below 2^63, of the seed, the prompt and the answer's number
    alone, so that neither the other answers of a batch nor a kill draws another; `known`: how many answers
    were there at the start.
    """

    def __init__(
        self, prompts: list[str], tokenizer: PreTrainedTokenizerBase, settings: Sampling, folder: Path
    ):
        self.tokenizer, self.settings, self.folder = tokenizer, settings, folder
        encoded, numbers = tokenizer(prompts)["input_ids"] if prompts else [], range(settings.count)
        self.rows = [ids for ids in encoded for _ in numbers]
        texts = [f"{settings.seed}:{number}:{prompt}" for prompt in prompts for number in numbers]
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        self.seeds = [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]
        self.found: dict[int, Row] = {}
        for path in sorted(folder.glob("*.json")):
            self.found |= {int(place): row for place, row in read_json(path).items()}
        self.known = len(self.found)

    @property
    def left(self) -> list[int]:
        return [place for place in range(len(self.rows)) if place not in self.found]

    def keep(self, found: dict[int, Row]) -> None:
        write_json(self.folder / f"{min(found):08}.json", found)
        self.found |= found

    def answers(self, stops: list[int]) -> list[list[Answer]]:
        """Of each prompt."""
        whole = [answer(self.tokenizer, self.found[place], stops) for place in range(len(self.rows))]
        return [whole[i : i + self.settings.count] for i in range(0, len(whole), self.settings.count)]


def sample(model: PreTrainedModel, wanted: Wanted, stops: list[int], title: str) -> None:
    """The answers that are left. Between batches of other sizes and devices they differ where floats do."""
    settings, chances = wanted.settings, {}

    def choose(logits: torch.Tensor, places: list[int], step: int) -> torch.Tensor:
        for place in places if step == 0 else ():
            chances[place] = uniform(wanted.seeds[place], settings.limit)
        chance = torch.stack([chances[place][step] for place in places])
        return drawn(logits, chance.to(logits.device), settings)

    with progress(len(wanted.rows), title, "answer") as bar:
        bar.update(wanted.known)
        for batch, found in in_batches(model, wanted.rows, wanted.left, stops, settings.limit, choose):
            wanted.keep(dict(zip(batch, found)))
            chances.clear()
            bar.update(len(batch))


def uniform(seed: int, count: int) -> torch.Tensor:
    """Numbers in [0, 1), made on the CPU: the same ones for every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def drawn(logits: torch.Tensor, chances: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """The token of each row of `logits` [rows, vocabulary] at which the running sum of probabilities passes
    its chance (0..1), of the most probable tokens that hold `top_p` together, the first ones first.
    """
    scaled = (logits - logits.amax(-1, keepdim=True)) / settings.temperature  # so that none is too small
    probabilities, order = scaled.softmax(-1).sort(descending=True, stable=True)
    reached = probabilities.cumsum(-1)
    last = (reached < settings.top_p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    wanted = chances[:, None] * reached.gather(-1, last)
    return order.gather(-1, (reached <= wanted).sum(-1, keepdim=True).minimum(last))[:, 0]
