"""The base model and every checkpoint trained on it, in memory once; their answers, as they come."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
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

BASE = "base"
FOLDER = Path("models")
TOP_P = 0.95  # of the probability is sampled from; the long tail of a large vocabulary is noise


class Models:
    """Answers by name of the checkpoint. One thread at a time.

    `refused` tells of each checkpoint that cannot be used why. `context` is the most tokens of a prompt and
    its answer.
    """

    def __init__(self, params: Params, context: int | None = None):
        check_base(params)
        self.template, self.system = modeling.template_of(params.prompt), params.prompt.system
        self.special = list(dict.fromkeys([*SPECIAL, self.template.end_of_text]))
        self.weights = params.chosen_model.weights
        self.tokenizer = modeling.load_tokenizer(params.prompt)
        self.stops = set(self.tokenizer.convert_tokens_to_ids(self.template.stops))
        self.refused = {
            name: reason for name in modeling.trained() if (reason := fault(FOLDER / name, params))
        }
        self.names = [BASE, *(name for name in modeling.trained() if name not in self.refused)]
        self.weights_sha256 = {
            BASE: base_sha256()
        }  # of what is in memory, which a later run may replace on disk
        self.shared, self.active = self.with_adapters(modeling.load_base(self.weights)), None
        self.whole: dict[str, PreTrainedModel] = {}
        self.context = self.checked_context(context or params.prompt.max_length, given=context is not None)

    def with_adapters(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """All of them before the first forward pass: attached after it, one silently changes a 4-bit model on
        a CPU.
        """
        model = base
        for name in self.names:
            if (FOLDER / name / "adapter_config.json").exists():
                self.weights_sha256[name] = modeling.weights_sha256(FOLDER / name)
                if model is base:
                    model = PeftModel.from_pretrained(base, FOLDER / name, adapter_name=name)
                else:
                    model.load_adapter(FOLDER / name, name)
        return model.eval()

    def checked_context(self, wanted: int, given: bool) -> int:
        longest = self.shared.config.max_position_embeddings
        if given and not 16 <= wanted <= longest:
            raise Problem(
                f"--context is {wanted}: it must be from 16 to {longest}, the most that this model can read"
            )
        return min(wanted, longest)

    def known(self, name: str) -> str:
        """The name of a checkpoint, or Problem."""
        if name in self.refused:
            raise Problem(self.refused[name])
        if name not in self.names:
            raise Problem(f"there is no checkpoint {name!r}: it must be one of {', '.join(self.names)}")
        return name

    # --- from messages to text
    # ---------------------------------------------------------------------------------------------

    def conversation(self, messages: list[Message]) -> list[Message]:
        """With the system turn of params.yaml where there is one and the messages bring none."""
        if self.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system}, *messages]
        return messages

    def reply(self, name: str, messages: list[Message], temperature: float = 0.0) -> "Reply":
        """What a checkpoint answers to a conversation; at temperature 0 its most probable token, always."""
        for message in messages:
            if message["role"] != "assistant" and any(token in message["content"] for token in self.special):
                raise Problem(
                    f"a message must not hold {', '.join(self.special)}: they mark the turns of a "
                    "conversation"
                )
        ids, forgotten = self.prompt(self.conversation(messages))
        return Reply(self, self.known(name), ids, temperature, forgotten)

    def prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """The tokens of a conversation, and how many of its oldest turns were left out to leave half of the
        context for the answer.
        """
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        room = self.context // 2

        def encoded(turn: int) -> list[int]:
            kept = [*messages[: starts[0]], *messages[starts[turn] :]]  # a system turn stays
            return self.tokenizer(self.template.render(kept))["input_ids"]

        forgotten = bisect_left(range(len(starts)), -room, key=lambda turn: -len(encoded(turn)))
        if forgotten == len(starts):
            raise Problem(
                f"the message takes {len(encoded(-1)):,} tokens and may take {room:,}, half of the "
                "context: shorten it, or give --context"
            )
        return encoded(forgotten), forgotten

    # --- from tokens to tokens
    # ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, name: str, ids: list[int], cache: Cache | None, temperature: float) -> tuple[int, Cache]:
        """The next token after `ids`, which come after what `cache` holds."""
        model = self.switched_to(name)
        row = torch.tensor([ids], device=model.device)
        output = model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        return chosen(logits, temperature), output.past_key_values

    def switched_to(self, name: str) -> PreTrainedModel | PeftModel:
        """The shared base with this checkpoint's adapter on or all off; a model of its own where the
        checkpoint is a whole one.
        """
        adapters = getattr(self.shared, "peft_config", {})
        if name != BASE and name not in adapters:
            return self.whole[name] if name in self.whole else self.loaded_whole(name)
        if adapters and name != self.active:
            self.active = None  # until the switch is done
            if name == BASE:
                self.shared.base_model.disable_adapter_layers()
            else:
                self.shared.base_model.enable_adapter_layers()
                self.shared.set_adapter(name, inference_mode=True)
            self.active = name
        return self.shared

    def loaded_whole(self, name: str) -> PreTrainedModel:
        self.weights_sha256[name] = modeling.weights_sha256(FOLDER / name)
        self.whole[name] = modeling.load_base(self.weights, FOLDER / name).eval()
        return self.whole[name]


@dataclass
class Reply:
    """An answer, read once: iterate over it for its pieces of text, none of them half a character."""

    models: Models
    name: str
    ids: list[int]
    temperature: float
    forgotten: int  # of the oldest turns, left out
    text: str = ""
    stopped: bool = False  # by itself; else the context ended, or whoever read it stopped
    tokens: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        decoder = DecodeStream(skip_special_tokens=True)
        for token in self.generated():
            self.tokens.append(token)
            found = decoder.step(self.models.tokenizer.backend_tokenizer, token) or ""
            if piece := found.replace("\ufffd", ""):  # bytes that never became a character
                self.text += piece
                yield piece

    def generated(self) -> Iterator[int]:
        """Token after token until a stop token, which is not among them, or the end of the context."""
        ids, cache = self.ids, None
        for _ in range(self.models.context - len(self.ids)):
            try:
                token, cache = self.models.step(self.name, ids, cache, self.temperature)
            except torch.cuda.OutOfMemoryError:
                raise Problem(
                    "the GPU's memory is full: clear the conversation, or give a smaller --context"
                ) from None
            if token in self.models.stops:
                self.stopped = True
                return
            yield token
            ids = [token]


def chosen(logits: torch.Tensor, temperature: float) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / temperature  # the largest is 0, so that no temperature is too small
    return int(torch.multinomial(TopPLogitsWarper(TOP_P)(None, scaled).softmax(-1), 1))


# --- what can be used ---------------------------------------------------------------------------------------


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
