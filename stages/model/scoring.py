"""Log-probabilities of given answers: the choices of questions, held-out texts, the two answers of a pair.

Choices share their question, and letters are all read off one place behind it. So the model reads prefix
trees: a row holds every shared token once, its mask lets a token see what leads to it and nothing else, and a
token's position is its depth. Only the hidden states that predict answers meet the LM head, in float32 and a
part of the vocabulary at a time: whole logits are what scoring usually spends its memory on, and those of
letters tie in bfloat16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.settings.errors import Problem

CPU_TOKENS = 2048  # of a batch
GPU_TOKENS = (512, 16384)  # the fewest and the most
ATTENTION = 4096  # tokens of a row at which its attention costs about as much as all else
TILE = (1024, 4096)  # positions × vocabulary: the logits that exist at a time
CURE = "ask shorter ones, set `quantization: nf4` for the model, or end other programs on the GPU"
TEXTS = 512  # encoded at a time; the tokenizer returns a lot more than ids


@dataclass(frozen=True)
class Score:
    """Log-probability of a given answer: summed over its tokens, in nats, how many tokens it has, and how
    many characters.

    The blank that parts an answer from its prompt is no character of it.
    """

    logp: float
    tokens: int
    characters: int

    @property
    def per_token(self) -> float:
        return self.logp / self.tokens

    @property
    def per_character(self) -> float:
        return self.logp / self.characters


@dataclass(frozen=True)
class Sequence:
    """What the model reads to predict an answer, which is all but the answer's last token, and the tokens of
    the answer.
    """

    read: list[int]
    answer: list[int]


@dataclass
class Row:
    """A prefix tree of sequences, in one line. A branch starts at a column and goes on from another."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, int]] = field(default_factory=list)
    answers: dict[int, list[int]] = field(
        default_factory=dict
    )  # number of a sequence → columns that predict its answer


def choices(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[tuple[str, list[str]]],
    title: str,
    *,
    apart: bool = False,
    tokens: int | None = None,
) -> list[list[Score]]:
    """Scores of every choice of every question: (prompt, choices, each with the blank in front of it).

    What is scored are the tokens that lm-evaluation-harness 0.4.13 scores (HFLM.loglikelihood): blanks that
    end a prompt count with the choice. Where `apart` is true, prompt and choice are tokenised each for
    itself, as lighteval 0.13.0 does. `tokens` and errors as in `score`.
    """
    pairs = [
        (prompt, choice) if apart else parted(prompt, choice) for prompt, own in questions for choice in own
    ]
    found = iter(log_probabilities(model, tokenizer, pairs, title, tokens, apart))
    return [[Score(*next(found), characters(choice)) for choice in own] for _, own in questions]


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    title: str,
    tokens: int | None = None,
) -> list[Score]:
    """Scores of answers after their prompts, in the order given and whatever the batches.

    A batch holds up to `tokens` tokens, padding included, or as many as this machine takes well; it is halved
    where a GPU's memory does not hold it. Prompts that are too long for the model lose their start. Raises
    Problem for an empty prompt or answer, and for an answer that is too long.
    """
    found = log_probabilities(model, tokenizer, pairs, title, tokens)
    return [Score(*one, characters(answer)) for one, (_, answer) in zip(found, pairs)]


def parted(prompt: str, answer: str) -> tuple[str, str]:
    """The same text, but blanks at the end of the prompt are at the start of the answer."""
    end = len(prompt.rstrip())
    return prompt[:end], prompt[end:] + answer


def characters(answer: str) -> int:
    return len(answer.removeprefix(" "))


# --- tokens -------------------------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], longest: int, apart: bool = False
) -> list[Sequence]:
    """An answer's tokens are those that it adds to its prompt's, or its own where `apart`; `longest` is how
    many the model reads.
    """
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    ids = dict(zip(prompts, tokenized(tokenizer, prompts)))
    sequences = []
    texts = [answer if apart else prompt + answer for prompt, answer in pairs]
    # An answer that is tokenised for itself is no start of a text, which a tokenizer may mark (<bos>).
    for (prompt, answer), found in zip(pairs, tokenized(tokenizer, texts, not apart)):
        start, end = ids[prompt], found if apart else found[len(ids[prompt]) :]
        if not start or not 0 < len(end) <= longest:
            raise Problem(
                f"cannot score {answer[:40]!r} after {prompt[-40:]!r}: {len(start)} tokens and {len(end)}. "
                f"Both must have at least one, and the answer at most {longest}"
            )
        sequences.append(Sequence((start + end[:-1])[-longest:], end))
    return sequences


def tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = True
) -> Iterator[list[int]]:
    for start in range(0, len(texts), TEXTS):
        part = texts[start : start + TEXTS]
        yield from tokenizer(part, return_attention_mask=False, add_special_tokens=special)["input_ids"]


# --- rows ---------------------------------------------------------------------------------------------------


def lay_out(sequences: dict[int, Sequence], tokens: int) -> list[Row]:
    """Every sequence on a row, beside those that begin as it does, the longest row first.

    No row is longer than `tokens`, unless one sequence alone is.
    """
    rows, path, before = [Row()], [], []
    for number in sorted(sequences, key=lambda number: sequences[number].read):
        read = sequences[number].read
        shared = common(before, read)
        if not joins(len(read), shared, len(rows[-1].tokens), tokens):
            rows.append(Row())
            shared = 0
        row, start = rows[-1], len(rows[-1].tokens)
        if shared < len(read) and start:
            row.branches.append((start, path[shared - 1]))
        row.tokens += read[shared:]
        row.positions += range(shared, len(read))
        path = [*path[:shared], *range(start, len(row.tokens))]
        row.answers[number] = path[-len(sequences[number].answer) :]
        before = read
    return sorted(rows[1:], key=lambda row: -len(row.tokens))


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences share at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def joins(length: int, shared: int, row: int, tokens: int) -> bool:
    """Whether a sequence costs less on a row, where its new tokens attend to all that stands there, than on
    one of its own.
    """
    new = length - shared
    together = new + ((row + new) ** 2 - row**2) / ATTENTION
    return shared > 0 and row + new <= max(tokens, row) and together <= length + length**2 / ATTENTION


def inputs(rows: list[Row], model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor | dict]:
    """input_ids [rows, longest], padded at the end, where nothing sees it; with trees position_ids, and a
    mask of all pairs. Where layers see no further back than a window, theirs is one of its own.
    """
    longest = max(len(row.tokens) for row in rows)
    found = {"input_ids": padded([row.tokens for row in rows], longest)}
    if any(row.branches for row in rows):
        places = found["position_ids"] = padded([row.positions for row in rows], longest)
        seen = torch.from_numpy(np.stack([mask(row, longest) for row in rows]))
        found["attention_mask"] = seen[:, None].to(model.device)
        if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
            near = places[:, :, None] - places[:, None, :] < model.config.sliding_window
            masks = {"full_attention": seen, "sliding_attention": seen & near}
            found["attention_mask"] = {kind: own[:, None].to(model.device) for kind, own in masks.items()}
    return {name: one.to(model.device) if name != "attention_mask" else one for name, one in found.items()}


def padded(lists: list[list[int]], longest: int) -> torch.Tensor:
    return torch.tensor([own + [0] * (longest - len(own)) for own in lists])


def mask(row: Row, longest: int) -> np.ndarray:
    """[longest, longest]: the token of a line sees those of the columns that are True, which lead to it from
    the root.
    """
    seen = np.tri(longest, dtype=bool)
    ends = [start for start, _ in row.branches[1:]] + [longest]
    for (start, parent), end in zip(row.branches, ends):
        seen[start:end, :start] = seen[parent, :start]
    return seen


# --- log-probabilities --------------------------------------------------------------------------------------


def log_probabilities(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[str, str]],
    title: str,
    tokens: int | None,
    apart: bool = False,
) -> list[tuple[float, int]]:
    """In nats, summed over the answer's tokens, and the number of these."""
    sequences = encode(tokenizer, pairs, model.config.max_position_embeddings, apart)
    found = summed(model, sequences, title, tokens)
    return [(logp, len(sequence.answer)) for logp, sequence in zip(found, sequences)]


@torch.inference_mode()
def summed(
    model: PreTrainedModel | PeftModel, asked: list[Sequence], title: str, tokens: int | None = None
) -> list[float]:
    """Log-probabilities of the sequences' answers in nats, summed over their tokens."""
    sequences = dict(enumerate(asked))
    tokens, found = tokens or batch_tokens(model), {}
    rows = lay_out(sequences, tokens)
    with (
        by_sdpa(model),
        tqdm(
            total=len(asked), desc=title, unit="answer", leave=False, dynamic_ncols=True, disable=None
        ) as bar,
    ):
        while rows:
            batch = rows[: max(1, tokens // len(rows[0].tokens))]
            try:
                found |= scored(model, batch, sequences)
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1 and not batch[0].branches:
                    raise Problem(
                        f"{title}: the GPU has no memory left for {len(batch[0].tokens)} tokens: {CURE}"
                    ) from error
                tokens = len(batch) * len(batch[0].tokens) // 2
                rows = lay_out(
                    {number: sequence for number, sequence in sequences.items() if number not in found},
                    tokens,
                )
            else:
                rows = rows[len(batch) :]
                bar.update(len(found) - bar.n)
    return [found[number] for number in sequences]


def scored(
    model: PreTrainedModel | PeftModel, rows: list[Row], sequences: dict[int, Sequence]
) -> dict[int, float]:
    """Log-probability of every answer on the rows of a batch, by the sequence's number."""
    states = model.get_decoder()(**inputs(rows, model), use_cache=False).last_hidden_state
    asked = [(i, number, columns) for i, row in enumerate(rows) for number, columns in row.answers.items()]
    places = [i * states.shape[1] + column for i, _, columns in asked for column in columns]
    targets = [token for _, number, _ in asked for token in sequences[number].answer]
    logps = token_log_probabilities(
        states.flatten(0, 1), model.get_output_embeddings().weight, places, targets
    )
    sums = (own.sum().item() for own in logps.double().cpu().split([len(columns) for _, _, columns in asked]))
    return {number: logp for (_, number, _), logp in zip(asked, sums)}


def token_log_probabilities(
    states: torch.Tensor, head: torch.Tensor, places: list[int], targets: list[int]
) -> torch.Tensor:
    """Of each target after the hidden state at its place: states [positions, hidden], head [vocabulary,
    hidden]; float32.
    """
    distinct, which = torch.tensor(places, device=states.device).unique(return_inverse=True)
    states = states[distinct].float()
    logits = (states[which] * head[targets].float()).sum(1)
    return logits - normalizers(states, head)[which]


def normalizers(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """log Σ exp of every state's logits. A sum over parts of the vocabulary, whose weights become float32 one
    part at a time.
    """
    parts = []
    for weights in head.split(TILE[1]):
        weights = weights.float().T
        parts.append(torch.cat([(some @ weights).logsumexp(1) for some in states.split(TILE[0])]))
    return torch.stack(parts).logsumexp(0)


@contextmanager
def by_sdpa(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """FlashAttention takes no mask of pairs; torch's own attention does, and calls the same kernel where
    there is no mask.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def batch_tokens(model: PreTrainedModel | PeftModel) -> int:
    """Tokens of a batch. On a GPU a power of two, so that small changes of free memory do not change the
    batches.

    One layer's MLP and residuals, all as if in float32, may take half of the free memory; the rest is for
    masks and logits.
    """
    if model.device.type == "cpu":
        return CPU_TOKENS
    free = (
        torch.cuda.mem_get_info(model.device)[0]
        + torch.cuda.memory_reserved(model.device)
        - torch.cuda.memory_allocated(model.device)
    )
    values = 4 * (model.config.intermediate_size + model.config.hidden_size)
    return int(np.clip(2 ** int(np.log2(free / 2 / (4 * values))), *GPU_TOKENS))
