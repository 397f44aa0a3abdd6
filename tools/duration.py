"""How long the stages will take on a card: computed from the rows and lengths at hand, never measured.

Training and scoring: floating-point operations over a share of what the card's tensor cores can do.
Generation reads all weights and the cache for each token of a batch, so a share of its memory bandwidth
counts, and never less than what Python needs to start the kernels of a step. The shares are a judgement, so
times are ranges: `python -m benchmarks.gpu` measures tokens a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pyarrow.compute as pc
from pyarrow import parquet

from stages.settings import memory
from stages.settings.errors import Problem
from stages.settings.files import read_json
from stages.settings.memory import BYTES, Run, Shape
from stages.settings.methods import METHODS
from stages.settings.params import Params

TERA, GIGA = 1e12, 1e9
SHARE = (
    0.5,
    0.2,
)  # of a card's peak, fast and slow: a judgement; 4-bit weights are unpacked for every product
SHARE_NF4 = (0.4, 0.12)
STEP = (0.015, 0.04)  # seconds that starting one decoding step's kernels takes: a judgement
BATCH = 16384  # tokens of a generated batch, as in stages/model/generation.py
ANSWER = 0.5  # of evaluate.max_new_tokens: where a batch's longest answer ends, if all goes well


@dataclass(frozen=True)
class Card:
    """Peak of bfloat16 products that add up in fp32, without sparsity, in TFLOPS, and GB/s of memory."""

    tflops: float
    bandwidth: float
    source: str


# GeForce: two operations a clock for each FP32 core at boost clock, and tensor cores that add up in fp32 at
# twice that rate.
CARDS = {
    "RTX 3060": Card(25.5, 360, "3,584 cores at 1.78 GHz (nvidia.com), rate as in the GA102 whitepaper v2"),
    "RTX 3090": Card(71, 936, "NVIDIA Ampere GA102 whitepaper v2, table 2"),
    "RTX 4060 Ti": Card(44.1, 288, "4,352 cores at 2.54 GHz (nvidia.com), rate as in the Ada whitepaper"),
    "RTX 4070": Card(58.3, 504, "5,888 cores at 2.48 GHz (nvidia.com), rate as in the Ada whitepaper"),
    "RTX 4090": Card(165.2, 1008, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "L4": Card(121, 300, "NVIDIA L4 datasheet, half of its number with sparsity"),
    "A100": Card(312, 2039, "NVIDIA A100 80GB datasheet"),
    "H100": Card(989, 3350, "NVIDIA H100 SXM datasheet, half of its number with sparsity"),
}


@dataclass(frozen=True)
class Work:
    """What a stage has to do: floating-point operations, and answers (rows, prompt tokens, most new ones)."""

    stage: str
    basis: str  # rows and tokens at hand, in words
    operations: float
    generated: tuple[tuple[int, float, int], ...] = ()


@dataclass(frozen=True)
class Rows:
    """Formatted rows: how many, the tokens of all, and the share of those that are trained."""

    count: int
    tokens: int
    answers: float

    @property
    def length(self) -> float:
        return self.tokens / max(self.count, 1)


def forward(shape: Shape, tokens: float, seen: float, predicted: float) -> float:
    """Operations of a forward pass over `tokens`, of which each is multiplied with `seen` others in attention
    and `predicted` meet the LM head: 2 a weight and token (arXiv 2001.08361, section 2.1).
    """
    attention = 4 * shape.layers * shape.query * seen
    head = 2 * shape.vocabulary * shape.hidden
    return tokens * (2 * shape.linear_parameters + attention) + predicted * head


def training(run: Run, tokens: float, seen: float, predicted: float) -> float:
    """Of a step's passes over the model: forward, again where checkpointed, and backward for the inputs, for
    the weights only where they are trained. The fused LM head computes its logits twice.
    """
    layers, head = forward(run.shape, tokens, seen, 0), forward(run.shape, 0, 0, predicted)
    passes = 2 + run.checkpointing + (not run.lora)
    adapters = 2 * tokens * memory.trained_parameters(run) * (3 + run.checkpointing) if run.lora else 0
    return layers * passes + head * (3 + (not run.lora)) + adapters


# --- what is at hand ----------------------------------------------------------------------------------------


def rows_of(path: Path, prompt: str, answer: str) -> Rows:
    """Of a formatted Parquet file. Where it has no trained spans (of pairs, whose tokens are those of prompt
    and longer answer) the share is that of the answers in the text. Raises Problem where it is not there.
    """
    if not path.exists():
        raise Problem(f"{path} is not there, and times are computed from its rows: dvc repro format report")
    spans = "trained" in parquet.read_schema(path).names
    table = parquet.read_table(path, columns=["trained", "tokens"] if spans else [prompt, answer, "tokens"])
    if not len(table):
        return Rows(0, 0, 0.0)
    if spans:
        bounds, tokens = pc.list_flatten(table["trained"]).to_numpy(), pc.sum(table["tokens"]).as_py()
        return Rows(len(table), tokens, int((bounds[1::2] - bounds[::2]).sum()) / tokens)
    sizes = {name: pc.sum(pc.utf8_length(table[name])).as_py() or 0 for name in (prompt, answer)}
    share = sizes[answer] / max(1, sum(sizes.values()))
    return Rows(len(table), pc.sum(table["tokens"]).as_py(), share)


def characters_per_token(path: Path) -> float:
    """Of formatted instructions: how many characters of text a token of this tokenizer holds."""
    table = parquet.read_table(path, columns=["prompt", "completion", "tokens"])
    text = sum(pc.sum(pc.utf8_length(table[name])).as_py() or 0 for name in ("prompt", "completion"))
    return text / max(1, pc.sum(table["tokens"]).as_py() or 0)


FORMATTED, BENCHMARKS = Path("data/formatted"), Path("data/raw/benchmarks")


def works(params: Params, name: str) -> Iterator[Work]:
    """Of every stage that a run of this model has ahead."""
    shape = memory.shape_of(params.models[name].weights)
    for stage, method in memory.passes(params).items():
        run = memory.run_of(params, name, stage, method)
        preference = method not in (None, "continued")
        yield (of_pairs if preference else of_texts)(params, run, method)
    for checkpoint in ("base", *memory.passes(params)):
        yield evaluation(params, shape, checkpoint)


def of_texts(params: Params, run: Run, method: str | None) -> Work:
    role = "continued" if method else "instructions"
    rows = rows_of(FORMATTED / role / "train.parquet", "prompt", "completion")
    tokens = rows.tokens * params.sft.epochs
    seen = run.length if run.packed else rows.length
    return Work(run.stage, described(rows, "rows"), training(run, tokens, seen, tokens * rows.answers))


def of_pairs(params: Params, run: Run, method: str) -> Work:
    """Both answers of a pair come with its prompt; its tokens are those of the longer one, as padding makes
    them. KTO compares every answer with that of another prompt, too, without gradients.
    """
    rows, kind = rows_of(FORMATTED / "preferences/train.parquet", "prompt", "chosen"), METHODS[method]
    tokens, epochs = 2 * rows.tokens, params.methods[method].epochs
    once = forward(run.shape, tokens, rows.length, tokens * rows.answers)
    kl = kind.trainer == "kto"
    reference = once * (1 + kl) * kind.has_reference + once * kl * epochs
    trained = training(run, tokens * epochs, rows.length, tokens * epochs * rows.answers)
    return Work(f"{run.stage} ({method})", described(rows, "pairs"), trained + reference)


def evaluation(params: Params, shape: Shape, checkpoint: str) -> Work:
    """Benchmarks, held-out texts and pairs scored, a pair's prompt once; some prompts answered. What has a
    parent is compared with it: on those answers, and after a preference stage on the pairs.
    """
    settings = params.evaluate
    texts = rows_of(FORMATTED / "instructions/validation.parquet", "prompt", "completion")
    pairs = rows_of(FORMATTED / "preferences/validation.parquet", "prompt", "chosen")
    read = scored = 0.0
    for rows, answers, times in ((texts, 1, 1), (pairs, 2, 1 if checkpoint in ("base", "sft") else 2)):
        tokens = times * min(rows.count, settings.held_out) * rows.length
        read += tokens * (1 + (answers - 1) * rows.answers)
        scored += tokens * answers * rows.answers
    prompts = min(texts.count, settings.health_prompts)
    generated = [(prompts, texts.length * (1 - texts.answers), settings.max_new_tokens)] if prompts else []
    items, rate = 0, characters_per_token(FORMATTED / "instructions/train.parquet")
    for name in read_json(BENCHMARKS / "sources.json"):
        asked = benchmark_rows(name, settings.split)
        items += len(asked)
        turns = max((len(row["choices"] or ()) for row in asked), default=0) if settings.rotate else 1
        closed = [row for row in asked if row["choices"]]
        read += turns * sum(length(row) for row in closed) * (1 + settings.shots) / rate
        scored += turns * len(closed) * 2
        open_ = [row for row in asked if not row["choices"] or name == "skills"]
        if open_:
            generated += [(len(open_), fmean(map(length, open_)) / rate, settings.max_new_tokens)] * (
                2 if name == "skills" else 1
            )  # as a chat turn, and after worked examples
    compared = 2 * prompts * (texts.length + settings.max_new_tokens) * (checkpoint != "base")
    # Answers meet the head in fp32, which takes twice as long as in bfloat16 on tensor cores, or longer.
    operations = forward(shape, read + compared, texts.length, 2 * scored + compared)
    held = [f"{min(rows.count, settings.held_out):,}" for rows in (pairs, texts)]
    answered = sum(rows for rows, _, _ in generated)
    basis = f"{items:,} items, {held[0]} pairs, {held[1]} texts, {answered:,} answers"
    return Work(f"evaluate@{checkpoint}", basis, operations, tuple(generated))


def benchmark_rows(name: str, split: str) -> list[dict]:
    """The items that evaluation asks: of `split`, or of test where there is none."""
    columns = ["question", "context", "choices", "split"]
    rows = parquet.read_table(BENCHMARKS / f"{name}.parquet", columns=columns).to_pylist()
    wanted = split if any(row["split"] == split for row in rows) else "test"
    return [row for row in rows if row["split"] == wanted and row["question"] is not None]


def length(row: dict) -> int:
    """Characters of a question, its context and its choices."""
    return sum(map(len, (row["question"], row["context"] or "", *(row["choices"] or ()))))


def described(rows: Rows, noun: str) -> str:
    return f"{rows.count:,} {noun} of {rows.length:.0f} tokens"


# --- times --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """One end of a range: what is used of a card, and how long a decoding step and an answer are."""

    card: Card
    share: float
    step: float
    until: float  # of the most new tokens

    def computing(self, operations: float) -> float:
        """Seconds."""
        return operations / (self.share * self.card.tflops * TERA)

    def answering(self, work: Work, shape: Shape, held: float, width: int) -> float:
        """Seconds. `held` are bytes of weights, `width` those of a value of the cache."""
        found = 0.0
        for rows, prompt, most in work.generated:
            batch = max(1, min(rows, int(BATCH // (prompt + most))))
            cache = batch * (prompt + most) * 2 * shape.layers * shape.key_value * width
            step = max(self.step, (held + cache) / (self.share * self.card.bandwidth * GIGA))
            found += -(-rows // batch) * most * self.until * step
            found += self.computing(forward(shape, rows * prompt, prompt, rows))
        return found


def seconds(work: Work, params: Params, name: str, card: Card) -> tuple[list[float], list[float]]:
    """The fast and the slow end: of all, and of the answers in it."""
    weights = params.models[name].weights
    shape, width = memory.shape_of(weights), BYTES[weights.dtype]
    shares = SHARE_NF4 if weights.quantization == "nf4" else SHARE
    held = memory.weights_bytes(shape, weights.quantization, width)
    speeds = [Speed(card, *ends) for ends in zip(shares, STEP, (ANSWER, 1))]
    answers = [speed.answering(work, shape, held, width) for speed in speeds]
    return [speed.computing(work.operations) + own for speed, own in zip(speeds, answers)], answers


def shown(fast: float, slow: float) -> str:
    return f"{clock(fast)} to {clock(slow)}"


def clock(time: float) -> str:
    """Two digits that count: 40 s, 12 min, 3.4 h."""
    if time < 90:
        return f"{time:.0f} s"
    if time < 90 * 60:
        return f"{time / 60:.0f} min"
    return f"{time / 3600:.1f} h"


HEADER = ["model", "stage", "at hand", "computed time"]


def table(params: Params, names: list[str], card: str) -> Iterator[list[str]]:
    """A row per stage, and their sum."""
    yield HEADER
    for name in names:
        times = []
        for work in works(params, name):
            time, answers = seconds(work, params, name, CARDS[card])
            times.append(time)
            part = f", of it answers {shown(*answers)}" if work.generated else ""
            yield [name, work.stage, work.basis, shown(*time) + part]
        yield [name, "all of them", "", shown(*map(sum, zip(*times)))]
