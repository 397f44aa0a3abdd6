"""The base model and every checkpoint trained on it, in memory once; their answers, as they come."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers.decoders import DecodeStream
from transformers import Cache, PreTrainedModel, TopPLogitsWarper

from stages.model import modeling
from stages.settings import manifest
from stages.settings.errors import Problem
from stages.settings.files import read_json
from stages.settings.params import Params
from stages.text.prompts import SPECIAL, Message
from tools import revisions

BASE = "base"
FOLDER = Path("models")
TOP_P = 0.95  # of the probability is sampled from; the long tail of a large vocabulary is noise


class Refusal(Problem):
    """A question that cannot be answered. `code` tells a program why, `status` is HTTP's."""

    def __init__(self, message: str, code: str, status: int = 400):
        super().__init__(message)
        self.code, self.status = code, status


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends. At temperature 0 the most probable token,
    always; a seed makes the draws above it repeatable.
    """

    temperature: float = 0.0
    top_p: float = TOP_P
    seed: int | None = None
    max_tokens: int | None = None  # else to the end of the context
    stop: tuple[str, ...] = ()  # texts that end it and do not belong to it


GREEDY = Sampling()


class Models:
    """Answers by name of the checkpoint. One thread at a time.

    `refused` tells of each checkpoint that cannot be used why. `context` is the most tokens of a prompt and
    its answer. `experiments`: revisions of git or experiments of DVC, whose checkpoints are there, too, as
    EXPERIMENT/NAME.
    """

    def __init__(self, params: Params, context: int | None = None, experiments: Sequence[str] = ()):
        check_base(params)
        self.title = params.model
        self.template, self.system = modeling.template_of(params.prompt), params.prompt.system
        self.special = list(dict.fromkeys([*SPECIAL, self.template.end_of_text]))
        self.weights = params.chosen_model.weights
        self.tokenizer = modeling.load_tokenizer(params.prompt)
        self.stops = set(self.tokenizer.convert_tokens_to_ids(self.template.stops))
        found = {modeling.called(name, FOLDER / name): FOLDER / name for name in standing()}
        self.refused = {name: why for name, folder in found.items() if (why := fault(folder, params))}
        for experiment in experiments:
            for name, folder in revisions.checkpoints(experiment).items():
                own = f"{experiment}/{modeling.called(name, folder)}"
                found[own] = folder
                if why := fault_of_another(folder, params):
                    self.refused[own] = f"{own}: {why}"
        self.folders = {name: folder for name, folder in found.items() if name not in self.refused}
        self.names = [BASE, *self.folders]
        self.aliases = {alias(name, folder): name for name, folder in found.items()}
        # Of what is in memory, which a later run may replace on disk.
        self.weights_sha256 = {BASE: base_sha256()}
        self.adapters: dict[str, str] = {}  # their names in PEFT, which takes no dots
        self.shared, self.active = self.with_adapters(modeling.load_base(self.weights)), None
        self.whole: dict[str, PreTrainedModel] = {}
        self.context = self.checked_context(context or params.prompt.max_length, given=context is not None)

    def with_adapters(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """All of them before the first forward pass: attached after it, one silently changes a 4-bit model on
        a CPU.
        """
        model = base
        for name, folder in self.folders.items():
            if (folder / "adapter_config.json").exists():
                self.weights_sha256[name] = modeling.weights_sha256(folder)
                self.adapters[name] = adapter = f"adapter{len(self.adapters)}"
                if model is base:
                    model = PeftModel.from_pretrained(base, folder, adapter_name=adapter)
                else:
                    model.load_adapter(folder, adapter)
        return model.eval()

    def checked_context(self, wanted: int, given: bool) -> int:
        longest = self.shared.config.max_position_embeddings
        if given and not 16 <= wanted <= longest:
            raise Problem(
                f"--context is {wanted}: it must be from 16 to {longest}, the most that this model can read"
            )
        return min(wanted, longest)

    def known(self, name: str) -> str:
        """The name of a checkpoint, given that or the name of its folder; or Refusal."""
        name = name if name in self.names else self.aliases.get(name, name)
        if name in self.refused:
            raise Refusal(self.refused[name], "model_not_found", 404)
        if name not in self.names:
            there = ", ".join(self.names)
            raise Refusal(
                f"there is no checkpoint {name!r}: it must be one of {there}", "model_not_found", 404
            )
        return name

    # --- from messages to text
    # ---------------------------------------------------------------------------------------------

    def conversation(self, messages: list[Message]) -> list[Message]:
        """With the system turn of params.yaml where there is one and the messages bring none."""
        if self.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system}, *messages]
        return messages

    def reply(self, name: str, messages: list[Message], sampling: Sampling = GREEDY) -> "Reply":
        """What a checkpoint answers to a conversation."""
        name = self.known(name)
        for message in messages:
            if message["role"] != "assistant" and any(token in message["content"] for token in self.special):
                raise Refusal(
                    f"a message must not hold {', '.join(self.special)}: they mark the turns of a "
                    "conversation",
                    "special_token",
                )
        ids, forgotten = self.prompt(self.conversation(messages), sampling.max_tokens)
        return Reply(self, name, ids, sampling, forgotten)

    def prompt(self, messages: list[Message], max_tokens: int | None = None) -> tuple[list[int], int]:
        """The tokens of a conversation, and how many of its oldest turns were left out to leave room for the
        answer: for `max_tokens`, but half of the context at most, and that where it is not said.
        """
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        half = self.context // 2
        room = self.context - min(max_tokens or half, half)

        def encoded(turn: int) -> list[int]:
            kept = [*messages[: starts[0]], *messages[starts[turn] :]]  # a system turn stays
            return self.tokenizer(self.template.render(kept))["input_ids"]

        forgotten = bisect_left(range(len(starts)), -room, key=lambda turn: -len(encoded(turn)))
        if forgotten == len(starts):
            raise Refusal(
                f"the message takes {len(encoded(-1)):,} tokens and may take {room:,} of the context of "
                f"{self.context:,}: shorten it, or start with a larger --context",
                "context_length_exceeded",
            )
        return encoded(forgotten), forgotten

    # --- from tokens to tokens
    # ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, name: str, ids: list[int], cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """The logits [1, vocabulary] of the next token after `ids`, which come after what `cache` holds."""
        model = self.switched_to(name)
        row = torch.tensor([ids], device=model.device)
        output = model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float(), output.past_key_values

    def switched_to(self, name: str) -> PreTrainedModel | PeftModel:
        """The shared base with this checkpoint's adapter on or all off; a model of its own where the
        checkpoint is a whole one.
        """
        if name != BASE and name not in self.adapters:
            return self.whole[name] if name in self.whole else self.loaded_whole(name)
        if self.adapters and name != self.active:
            self.active = None  # until the switch is done
            if name == BASE:
                self.shared.base_model.disable_adapter_layers()
            else:
                self.shared.base_model.enable_adapter_layers()
                self.shared.set_adapter(self.adapters[name], inference_mode=True)
            self.active = name
        return self.shared

    def loaded_whole(self, name: str) -> PreTrainedModel:
        self.weights_sha256[name] = modeling.weights_sha256(self.folders[name])
        self.whole[name] = modeling.load_base(self.weights, self.folders[name]).eval()
        return self.whole[name]


@dataclass
class Reply:
    """An answer, read once: iterate over it for its pieces of text, none of them half a character."""

    models: Models
    name: str
    ids: list[int]
    sampling: Sampling
    forgotten: int  # of the oldest turns, left out
    text: str = ""
    stopped: bool = False  # by itself or before a text of `sampling.stop`; else its tokens are used up
    tokens: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        held = ""  # what may be the beginning of a text that ends the answer
        for piece in self.decoded():
            held += piece
            if ends := [at for stop in self.sampling.stop if (at := held.find(stop)) >= 0]:
                self.stopped, held = True, held[: min(ends)]
                break
            ready = len(held) - begun(held, self.sampling.stop)
            if ready:
                self.text += held[:ready]
                yield held[:ready]
                held = held[ready:]
        if held:
            self.text += held
            yield held

    def decoded(self) -> Iterator[str]:
        decoder = DecodeStream(skip_special_tokens=True)
        for token in self.generated():
            self.tokens.append(token)
            found = decoder.step(self.models.tokenizer.backend_tokenizer, token) or ""
            if piece := found.replace("\ufffd", ""):  # bytes that never became a character
                yield piece

    def generated(self) -> Iterator[int]:
        """Token after token until a stop token, which is not among them, or the end of the context."""
        ids, cache, sampling = self.ids, None, self.sampling
        left = self.models.context - len(self.ids)
        generator = None if sampling.seed is None else seeded(sampling.seed, self.models.shared.device)
        for _ in range(min(left, sampling.max_tokens or left)):
            try:
                logits, cache = self.models.step(self.name, ids, cache)
            except torch.cuda.OutOfMemoryError:
                raise Refusal(
                    "the GPU's memory is full: clear the conversation, or give a smaller --context",
                    "out_of_memory",
                    503,
                ) from None
            token = chosen(logits, sampling, generator)
            if token in self.models.stops:
                self.stopped = True
                return
            yield token
            ids = [token]


def begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text are the beginning of one of these."""
    ends = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(ends, default=0)


def seeded(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def chosen(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """A token by logits [1, vocabulary]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The largest is 0, so that no temperature is too small.
    scaled = (logits - logits.max()) / sampling.temperature
    kept = TopPLogitsWarper(sampling.top_p)(None, scaled) if sampling.top_p < 1 else scaled
    return int(torch.multinomial(kept.softmax(-1), 1, generator=generator))


# --- what can be used ---------------------------------------------------------------------------------------


def standing() -> list[str]:
    """The checkpoints in models/: trained, in the order of training, then merged (tools/merge)."""
    merged = sorted(path.parent.name for path in FOLDER.glob("merged-*/provenance.json"))
    return [*modeling.trained(), *merged]


def alias(name: str, folder: Path) -> str:
    """Its folder's name in the place of the method's: dpo for kto, EXPERIMENT/dpo for EXPERIMENT/kto."""
    *experiment, _ = name.rsplit("/", 1)
    return "/".join([*experiment, folder.name])


def check_base(params: Params) -> None:
    """Raise Problem where there is no base yet, or that of another model."""
    if not manifest.MANIFEST.exists():
        raise Problem(
            f"{manifest.MANIFEST} does not exist: run `dvc repro`, or `dvc checkout` where it has run"
        )
    if (found := read_json(manifest.MANIFEST)["model"]) != params.model:
        raise Problem(
            f"{manifest.MANIFEST} is {found}, but params.yaml names model: {params.model}: run `dvc repro`"
        )


def base_sha256() -> str:
    """As modeling.weights_sha256 says it of a folder, from the hashes that models/base.json holds already."""
    files = read_json(manifest.MANIFEST)["files"]
    hashes = [files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors")]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def fault(folder: Path, params: Params) -> str | None:
    """Why a checkpoint would not answer as it was trained to; None where it would."""
    try:
        modeling.check_template(folder, params.prompt)
        modeling.check_origin(folder, params.chosen_model.weights)
    except Problem as problem:
        return str(problem)
    return None


def fault_of_another(folder: Path, params: Params) -> str | None:
    """The same for a checkpoint of an experiment, whose chain does not stand in models/."""
    try:
        modeling.check_template(folder, params.prompt)
    except Problem as problem:
        return str(problem)
    ours, current = (
        read_json(folder / "provenance.json")["base"],
        modeling.base_identity(params.chosen_model.weights),
    )
    if ours != current:
        return f"it was trained on another base ({ours['model']}, {ours['quantization']}) than this one"
    return None
