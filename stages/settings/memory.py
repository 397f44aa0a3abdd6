"""The GPU memory plan: what a training run needs, from its configuration alone, before anything is loaded.

Sums over tensor shapes, in bytes unless a name says otherwise; GB here is 2**30 bytes, as graphics cards are
sold and as metrics/train_*.json count. What is live when was read off the code that runs: transformers' Qwen2
and Qwen3 layers, PEFT's LoRA layers, bitsandbytes' 4-bit product, TRL's chunked log-probabilities.
tests/test_memory.py measures every part on a CPU with small models; nothing here has been measured on a GPU.

Attention is taken as the GPU's memory-efficient kernel, which keeps q, k, v, its output, the log-sum-exp and
the mask. A mask is assumed: packed documents and padded pairs both need one, and then k and v are repeated to
as many heads as q.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stages.settings import manifest
from stages.settings.errors import Problem
from stages.settings.files import read_json
from stages.settings.methods import METHODS
from stages.settings.params import Lora, Params, Weights

GB = 2**30
CONTEXT = 0.7 * GB  # CUDA's context and cuBLAS' workspace: an assumption, it depends on driver and card
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
MASK = 1  # byte per value of a dropout or attention mask
TILE = (4096, 32768)  # tokens × vocabulary of TRL's chunks: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
REFERENCE_TOKENS = 2048  # of a no-grad batch of reference log-probabilities; a longer sequence stands alone


# --- models -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal model of one of ARCHITECTURES, which differ in no more than the last four.

    Qwen2 has biases on q, k and v; Qwen3 and Gemma 3 have a norm on q and k. Gemma 3 norms what attention and
    MLP give, too, and its layers see all that is before them or a window of it: two kinds of masks.
    """

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the LM head is the embedding
    attention_bias: bool
    qk_norm: bool
    norms: int = 2  # of a layer, as wide as its hidden states
    masks: int = 1

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: inputs, outputs."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Of all decoder layers: what nf4 quantises."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Embedding, LM head, norms and biases: what stays in 16 bit."""
        bias = (self.query + 2 * self.key_value) * self.attention_bias
        norms = self.norms * self.hidden + 2 * self.head_dim * self.qk_norm
        return self.vocabulary * self.hidden * (2 - self.tied) + self.layers * (bias + norms) + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    @property
    def largest_linear(self) -> int:
        return max(inputs * outputs for inputs, outputs in self.linears.values())


ARCHITECTURES = ("qwen2", "qwen3", "llama", "gemma3_text")


SIZES = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip


def shape_from(config: dict) -> Shape | None:
    """The shape in a Hugging Face config.json; None for an architecture that is not planned. Raises Problem
    where a size is missing or no size.
    """
    if not isinstance(config, dict):
        raise Problem("config.json holds no table of settings")
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return None
    for key in (*SIZES, *(["head_dim"] if config.get("head_dim") is not None else [])):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise Problem(f"config.json has {key}: {value!r}, where a whole number above 0 must stand")
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        key_value_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        tied=config.get(
            "tie_word_embeddings", kind == "gemma3_text"
        ),  # what transformers takes where none is given
        attention_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "gemma3_text"),
        norms=4 if kind == "gemma3_text" else 2,
        masks=2 if kind == "gemma3_text" else 1,
    )


# From the published config.json, so that a plan needs no download, in the order of Shape's fields.
SHAPES = {
    "Qwen/Qwen3-0.6B-Base": Shape(1024, 28, 3072, 16, 8, 128, 151936, True, False, True),
    "Qwen/Qwen3-1.7B-Base": Shape(2048, 28, 6144, 16, 8, 128, 151936, True, False, True),
    "Qwen/Qwen3-4B-Base": Shape(2560, 36, 9728, 32, 8, 128, 151936, True, False, True),
    "Qwen/Qwen3-8B-Base": Shape(4096, 36, 12288, 32, 8, 128, 151936, False, False, True),
    "Qwen/Qwen2.5-0.5B": Shape(896, 24, 4864, 14, 2, 64, 151936, True, True, False),
    "Qwen/Qwen2.5-1.5B": Shape(1536, 28, 8960, 12, 2, 128, 151936, True, True, False),
    "Qwen/Qwen2.5-3B": Shape(2048, 36, 11008, 16, 2, 128, 151936, True, True, False),
    "Qwen/Qwen2.5-7B": Shape(3584, 28, 18944, 28, 4, 128, 152064, False, True, False),
}


def shape_of(weights: Weights) -> Shape | None:
    """The shape of a configured model; None where it is not known before `base` has fetched it."""
    if weights.repo in SHAPES:
        return SHAPES[weights.repo]
    folder = Path(weights.path) if weights.path else fetched(weights.repo)
    try:
        return shape_from(read_json(folder / "config.json")) if folder else None
    except (OSError, ValueError, Problem):
        return None  # `base` says what is wrong with it


def unplanned(weights: Weights) -> str:
    """Why a model is not in the plan, in words; empty where it is."""
    if shape_of(weights):
        return ""
    folder = Path(weights.path) if weights.path else fetched(weights.repo)
    if not folder or not (folder / "config.json").exists():
        return f"not planned before its config.json is there ({weights.path or weights.repo})"
    try:
        config = read_json(folder / "config.json")
        shape_from(config)
        kind = config.get("model_type")
    except OSError as error:
        return f"not planned: {folder / 'config.json'} cannot be read ({error.strerror})"
    except ValueError:
        return f"not planned: {folder / 'config.json'} is not JSON"
    except Problem as problem:
        return f"not planned: its {problem}"
    return f"not planned: its architecture is {kind}, and the plan knows {', '.join(ARCHITECTURES)}"


def fetched(repo: str) -> Path | None:
    """The folder of a hub model that models/base.json names and that is on this machine."""
    if not manifest.MANIFEST.exists() or read_json(manifest.MANIFEST).get("repo") != repo:
        return None
    try:
        return manifest.base_folder()
    except Problem:
        return None


# --- a training run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training run, as far as its memory goes. `rows` is how many sequences a row of a batch is: a pair
    is two.
    """

    stage: str  # sft, dpo or refine-<method>
    key: str  # of its settings in params.yaml
    shape: Shape
    quantization: str
    dtype: str
    lora: Lora | None
    optimizer: str
    checkpointing: bool
    batch_size: int
    accumulation: int
    length: int  # tokens of one sequence
    rows: int = 1
    packed: bool = False  # the sequences of a batch are laid end to end, in one row
    reference: bool = False  # log-probabilities of the policy are computed before the first step
    least_batch: int = 1
    token_rows: bool = False  # rows of embedding and LM head are trained beside an adapter

    @property
    def tokens(self) -> int:
        return self.batch_size * self.rows * self.length

    @property
    def mask(self) -> int:
        """Values of the attention mask: one for every two tokens of a row."""
        return self.tokens * (self.batch_size * self.length if self.packed else self.length)

    @property
    def width(self) -> int:
        """Bytes of a value of the computation."""
        return BYTES[self.dtype]

    @property
    def outputs(self) -> int:
        """Bytes of a value that a linear layer gives. PEFT's DoRA promotes it to fp32, and only 16-bit layers
        cast it back.
        """
        return FLOAT32 if self.lora and self.lora.dora and self.quantization == "nf4" else self.width

    @property
    def residual(self) -> int:
        """Bytes of a value between layers: weights trained in full are fp32, and so is the embedding of a
        token.
        """
        return self.outputs if self.lora else FLOAT32

    @property
    def casts(self) -> bool:
        """PEFT casts the input of an adapter to fp32, except on a 4-bit layer under autocast, where it leaves
        it.
        """
        return self.lora is not None and self.width < FLOAT32 and self.quantization == "none"

    @property
    def targets(self) -> dict[str, tuple[int, int]]:
        """The linear layers that are trained."""
        if not self.lora or self.lora.targets == "all-linear":
            return self.shape.linears
        return {name: size for name, size in self.shape.linears.items() if name in self.lora.targets}


def weights_bytes(shape: Shape, quantization: str, width: int) -> float:
    """The model's own weights. nf4: 4 bits a value, a byte per 64 and an fp32 per 256 of those (arXiv
    2305.14314, section 3).
    """
    if quantization == "none":
        return shape.parameters * width
    return shape.linear_parameters * (1 / 2 + 1 / 64 + FLOAT32 / (64 * 256)) + shape.other_parameters * width


def trained_parameters(run: Run) -> int:
    """Of LoRA (A: r × inputs, B: outputs × r) with DoRA's magnitude per output, or of the whole model."""
    if not run.lora:
        return run.shape.parameters
    r, dora = run.lora.r, run.lora.dora
    return run.shape.layers * sum(
        r * (inputs + outputs) + dora * outputs for inputs, outputs in run.targets.values()
    )


def copied_parameters(run: Run) -> int:
    """Of which autocast keeps a 16-bit copy for one forward pass: fp32 weights of linear layers."""
    if run.width == FLOAT32:
        return 0
    return trained_parameters(run) if run.lora else run.shape.linear_parameters


def optimizer_bytes(optimizer: str, parameters: int) -> float:
    """AdamW's two moments: fp32, or 8 bit with an fp32 per block of 256. Paged ones count as if they stayed
    on the GPU.
    """
    return parameters * 2 * (FLOAT32 if optimizer == "adamw" else 1 + FLOAT32 / 256)


def layer_bytes(run: Run) -> float:
    """What one decoder layer keeps for its backward pass."""
    shape, width = run.shape, run.width
    inner = (shape.query + shape.key_value) * shape.qk_norm
    norms = FLOAT32 * (shape.norms * shape.hidden + inner)  # computed in fp32
    if not run.lora:  # their output, for their weight; Gemma multiplies in fp32
        norms += FLOAT32 * shape.norms * shape.hidden + (FLOAT32 if shape.norms == 4 else width) * inner
    attention = width * 4 * shape.query + FLOAT32 * shape.heads
    mlp = run.outputs * 3 * shape.intermediate  # gate, silu(gate), up
    inputs = sum(input_bytes(run, group) for group in INPUTS)
    return run.tokens * (norms + attention + mlp + inputs) + run.mask * width + adapter_bytes(run)


INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)  # linear layers with one input


def input_bytes(run: Run, group: tuple[str, ...]) -> float:
    """Per token: the input of linear layers that share one, as far as they are trained; a frozen layer keeps
    none.

    With dropout, or where it is cast, every layer keeps its own. The input of o_proj is attention's output,
    which is kept anyway.
    """
    trained = [run.targets[name] for name in group if name in run.targets]
    if not trained:
        return 0
    dropout = run.lora is not None and run.lora.dropout > 0
    kept = int(group != ("o_proj",))
    if dropout or run.casts or (not run.lora and run.residual > run.width and kept):
        kept = len(trained)
    return trained[0][0] * (kept * run.width + len(trained) * dropout * MASK)


def adapter_bytes(run: Run) -> float:
    """What LoRA keeps between A and B; with DoRA the outputs of both branches, and a matrix where there is
    dropout.
    """
    if not run.lora:
        return 0
    r, dora, width = run.lora.r, run.lora.dora, run.width
    matrix = (
        dora and run.lora.dropout > 0
    )  # PEFT then multiplies once more with the cast or dequantised weight
    return sum(
        width * (run.tokens * (r + 2 * outputs * dora) + inputs * outputs * matrix)
        for inputs, outputs in run.targets.values()
    )


def temporaries(run: Run) -> float:
    """The most that one layer needs beside what it keeps. It is around the product of the MLP, at the end of
    the forward pass (product, PEFT's fp32 copy of it and that after dropout) or early in the backward pass
    (three gradients of the product, its saved input being freed)."""
    shape, width = run.shape, run.outputs
    product = width if (run.lora and run.lora.dropout) or run.casts else 0
    copies = FLOAT32 * (2 if run.lora.dropout else 1) if run.casts and "down_proj" in run.targets else 0
    forward = run.tokens * ((product + copies) * shape.intermediate + 5 * run.residual * shape.hidden)
    gradient = run.tokens * width * shape.intermediate
    buffer = (
        run.width * shape.largest_linear if run.quantization == "nf4" else 0
    )  # down_proj, dequantised for the second of the three
    backward = (
        2 * gradient
        + max(gradient, buffer)
        + run.tokens * (2 * run.residual * shape.hidden - input_bytes(run, ("down_proj",)))
    )
    head = (
        FLOAT32 * shape.vocabulary * shape.hidden if shape.tied and not run.lora else 0
    )  # its gradient waits for the embedding's
    return max(forward, backward) + head + dora_bytes(run) + copied_parameters(run) * run.width / shape.layers


def dora_bytes(run: Run) -> float:
    """PEFT computes B·A as B(A(identity)), so a square of the inputs, then adds it to the weight for its
    norm.
    """
    if not (run.lora and run.lora.dora):
        return 0
    cast = run.width if run.width < FLOAT32 else 0
    matrix = FLOAT32 if run.casts else run.width
    squares = [(FLOAT32 + cast) * inputs**2 for inputs, _ in run.targets.values()]
    norms = [
        (cast or FLOAT32) * inputs**2 + 4 * matrix * inputs * outputs
        for inputs, outputs in run.targets.values()
    ]
    return max(squares + norms, default=0)


def logprob_bytes(run: Run) -> float:
    """TRL's fused LM head, if every token is trained: one tile of logits, never the whole.

    Per token the fp32 input of the final norm, its output and a copy of that. Beside them either what
    autocast has cast (end of the forward pass), or the fp32 gradient per token and of a trained LM head, with
    a 16-bit chunk of it. Of a head of which some rows are trained PEFT makes a copy.
    """
    hidden, width = run.shape.hidden, run.width
    tile = min(run.tokens, TILE[0]) * TILE[1] * width
    head = 0
    if not run.lora:
        head = FLOAT32 * run.shape.vocabulary * hidden + (TILE[1] * hidden * width if width < FLOAT32 else 0)
    copies = copied_parameters(run) * width if run.checkpointing else 0
    rows = width * (run.shape.vocabulary + run.tokens) * hidden if run.token_rows else 0
    return (
        run.tokens * hidden * (FLOAT32 + 2 * run.residual)
        + tile
        + rows
        + max(copies, run.tokens * hidden * FLOAT32 + head)
    )


def embedding_bytes(run: Run) -> float:
    """The last gradient of a model trained in full: the embedding's. Where it is tied, the LM head's and
    their sum are alive too.
    """
    return 0 if run.lora else FLOAT32 * run.shape.vocabulary * run.shape.hidden * (3 if run.shape.tied else 1)


def reference_bytes(run: Run) -> float:
    """A batch of reference log-probabilities, without gradients: the larger of one layer's MLP and the LM
    head.

    In the MLP silu(gate) and what up_proj adds up: outputs of weight and adapter, their sum. What autocast
    has cast stays.
    """
    shape, width = run.shape, run.width
    tokens = max(REFERENCE_TOKENS, run.length)
    value = FLOAT32 if run.lora and run.lora.dora else width
    buffer = width * shape.largest_linear if run.quantization == "nf4" else 0
    layer = tokens * 4 * value * shape.intermediate + buffer + dora_bytes(run)
    head = tokens * shape.hidden * run.residual + min(tokens, TILE[0]) * TILE[1] * width
    head += shape.vocabulary * shape.hidden * width * run.token_rows
    states = tokens * ((4 * run.residual + FLOAT32 * run.casts) * shape.hidden + run.length * MASK)
    return max(layer, head) + states + copied_parameters(run) * width


def parts(run: Run) -> dict[str, float]:
    """What a run needs, part by part; the sum is its peak.

    Of the phases that do not overlap only the largest counts: the log-probabilities or the backward pass of
    one layer, over the activations; or, for what they need beyond that, two phases without activations: the
    gradient of the embedding, and the reference pass, at which there are no gradients and no optimiser yet.
    """
    trained, copies = trained_parameters(run), copied_parameters(run) * run.width
    kept = run.shape.layers * (
        run.tokens * run.shape.hidden * run.residual if run.checkpointing else layer_bytes(run)
    )
    backward = temporaries(run) + (layer_bytes(run) if run.checkpointing else 0)
    logprobs = logprob_bytes(run)
    found = {
        "weights": weights_bytes(run.shape, run.quantization, run.width if run.lora else FLOAT32),
        "adapters": trained * FLOAT32 if run.lora else 0,
        "gradients": trained * FLOAT32,
        "optimiser": optimizer_bytes(run.optimizer, trained),
        "CUDA context": CONTEXT,
        "activations": kept + run.mask * MASK * run.shape.masks,
        "16-bit copies": 0 if run.checkpointing else copies,
        "backward of one layer": backward if backward >= logprobs else 0,
        "log-probabilities": logprobs if logprobs > backward else 0,
    }
    found["gradient of the embedding"] = max(
        0, embedding_bytes(run) - found["activations"] - max(backward, logprobs)
    )
    before = found["weights"] + found["adapters"] + CONTEXT + reference_bytes(run) if run.reference else 0
    found["reference pass"] = max(0, before - sum(found.values()))
    return {name: size for name, size in found.items() if size}


def predicted(run: Run) -> float:
    """The peak of a run, GB."""
    return sum(parts(run).values()) / GB


def inference(shape: Shape, quantization: str, dtype: str, length: int) -> dict[str, float]:
    """Generating one answer, prompt and answer being `length` tokens: weights, cache of keys and values, one
    layer at work.
    """
    width = BYTES[dtype]
    buffer = width * shape.largest_linear if quantization == "nf4" else 0
    return {
        "weights": weights_bytes(shape, quantization, width),
        "key-value cache": 2 * shape.layers * shape.key_value * length * width,
        "forward of one layer": length * width * (3 * shape.intermediate + 4 * shape.hidden) + buffer,
        "CUDA context": CONTEXT,
    }


# --- params.yaml --------------------------------------------------------------------------------------------


def runs(params: Params) -> list[Run]:
    """The training runs ahead of the chosen model; none where its shape is not known yet."""
    found = [run_of(params, params.model, stage, method) for stage, method in passes(params).items()]
    return [run for run in found if run]


def passes(params: Params) -> dict[str, str | None]:
    """The training stages ahead, and the method of each."""
    return {"sft": None, "dpo": params.method, **{f"refine-{item}": item for item in params.refine}}


def run_of(params: Params, name: str, stage: str, method: str | None) -> Run | None:
    """The run of a model by its name in params.yaml: of sft (no method, or continued), or of a preference
    stage by a method.

    A pair is two sequences, which KTO takes one by one; its second forward pass, for the KL, is without
    gradients and smaller.
    """
    model = params.models[name]
    method = None if method == "continued" else method
    shape, settings = shape_of(model.weights), model.preference if method else model.sft
    if not shape:
        return None
    run = Run(
        stage=stage,
        key=f"models.{name}.{'preference' if method else 'sft'}",
        shape=shape,
        quantization=model.weights.quantization,
        dtype=model.weights.dtype,
        lora=model.sft.lora,
        optimizer=params.training.optimizer,
        checkpointing=settings.gradient_checkpointing,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        length=params.prompt.max_length,
        packed=params.sft.packing and not method,
        token_rows=bool(model.sft.lora and trained_markers(params, name)),
    )
    if not method:
        return run
    kind = METHODS[method]
    return replace(run, rows=2, reference=kind.has_reference, least_batch=kind.min_batch_size)


def trained_markers(params: Params, name: str) -> bool:
    """Whether rows of special tokens are trained; of `auto` that is known once `base` has looked at the
    model.
    """
    if params.sft.train_markers != "auto" or not manifest.MANIFEST.exists():
        return params.sft.train_markers == "always"
    base = read_json(manifest.MANIFEST)
    return base["model"] == name and "untrained" in base


def check(params: Params) -> None:
    """Raise Problem, in one line with the cure, for the first run ahead that does not fit
    hardware.vram_gb.
    """
    vram_gb = params.hardware.vram_gb
    for run in runs(params):
        if predicted(run) > vram_gb:
            needs = f"{run.stage} needs {predicted(run):.1f} GB of {vram_gb:g} (hardware.vram_gb)"
            raise Problem(f"params.yaml: {explain(run, needs, vram_gb)}")


def advice(params: Params, stage: str) -> str:
    """For a run that the GPU's memory did not hold though the plan did: the nearest setting that needs a
    tenth less, in one line.

    `params` is the whole file; `stage` is sft, dpo or refine@<method>.
    """
    run = next((run for run in runs(params) if run.stage == stage), None)
    if run is None:
        return (
            f"{stage} ran out of GPU memory: lower batch_size (and raise accumulation) or prompt.max_length"
        )
    return explain(
        run, f"{stage} ran out of GPU memory; {predicted(run):.1f} GB were predicted", 0.9 * predicted(run)
    )


def explain(run: Run, problem: str, limit: float) -> str:
    """One line: the key to change, its value, the problem and the cure."""
    cured = cure(run, limit)
    if cured is None:
        other = "" if run.lora else ", or give sft.lora"
        return (
            f"{run.key}.batch_size is {run.batch_size}: {problem}, and no smaller setting helps: choose "
            f"a smaller `model`{other}"
        )
    (key, value, _), *_ = changed = changes(run, cured)
    return (
        f"{key} is {value}: {problem}; {', '.join(text for *_, text in changed)} needs "
        f"{predicted(cured):.1f} GB"
    )


def cure(run: Run, limit: float) -> Run | None:
    """The nearest setting that needs no more than `limit`, GB; None where there is none."""
    return next((candidate for candidate in candidates(run) if predicted(candidate) <= limit), None)


def candidates(run: Run) -> Iterator[Run]:
    """Nearest first: checkpointing, then a smaller batch with the same rows per step, then 4-bit weights,
    then shorter rows.
    """
    product = run.batch_size * run.accumulation
    batches = [size for size in range(run.batch_size, run.least_batch - 1, -1) if product % size == 0]
    for quantization in dict.fromkeys([run.quantization, "nf4" if run.lora else run.quantization]):
        for size in batches:
            last = replace(
                run,
                checkpointing=True,
                batch_size=size,
                accumulation=product // size,
                quantization=quantization,
            )
            yield last
    for length in range((run.length - 1) // 128 * 128, 0, -128):
        yield replace(last, length=length)


def changes(old: Run, new: Run) -> list[tuple[str, object, str]]:
    """What a cure changes: key, value now, and the new value in words."""
    found = []
    if new.checkpointing != old.checkpointing:
        found.append((f"{old.key}.gradient_checkpointing", "false", "gradient_checkpointing true"))
    if new.batch_size != old.batch_size:
        found.append(
            (
                f"{old.key}.batch_size",
                old.batch_size,
                f"batch_size {new.batch_size} with accumulation {new.accumulation}",
            )
        )
    if new.quantization != old.quantization:
        found.append(
            (f"{old.key.rsplit('.', 1)[0]}.weights.quantization", old.quantization, "quantization nf4")
        )
    if new.length != old.length:
        found.append(("prompt.max_length", old.length, f"prompt.max_length {new.length}"))
    return found
