"""The checkpoint under evaluation, and how it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.model import generation, modeling, scoring
from stages.model.generation import Answer
from stages.model.scoring import Score
from stages.settings.params import Params
from stages.text.prompts import Template


@dataclass(frozen=True)
class Candidate:
    """`reference` is what its training started from: the checkpoint before it, or the base model."""

    name: str
    model: PreTrainedModel | PeftModel
    reference: PreTrainedModel | PeftModel | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    system: str
    limit: int

    def chat(self, question: str) -> str:
        return self.template.render([{"role": "user", "content": question}], self.system)

    def answers(
        self, prompts: list[str], title: str, stops: list[int] | None = None, limit: int | None = None
    ) -> list[Answer]:
        """Greedy answers of at most `limit` tokens, evaluate.max_new_tokens where a benchmark sets none. They
        end at the template's stop token, or at one of `stops`.
        """
        stops = stops or [self.tokenizer.eos_token_id]
        return generation.generate(
            self.model, self.tokenizer, prompts, stops, limit or self.limit, f"{self.name}: {title}"
        )

    def choices(
        self, questions: list[tuple[str, list[str]]], title: str, apart: bool = False
    ) -> list[list[Score]]:
        """The log-probability of each continuation of each prompt; `apart`: tokenised each for itself."""
        return scoring.choices(self.model, self.tokenizer, questions, f"{self.name}: {title}", apart=apart)

    def score(self, pairs: list[tuple[str, str]], title: str) -> list[Score]:
        """The log-probability of the answer to each prompt."""
        return scoring.score(self.model, self.tokenizer, pairs, f"{self.name}: {title}")

    @cached_property
    def line_ends(self) -> list[int]:
        """Tokens that end a line, or the text: where an answer that needs no chat markup ends."""
        ends = [token for token in range(len(self.tokenizer)) if "\n" in self.tokenizer.decode([token])]
        return [*ends, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id]


def load(name: str, params: Params, parent: Path | None) -> Candidate:
    """models/<name>, or the base model where `name` is base. `parent` is the checkpoint that its training
    started from.

    Raises Problem for a checkpoint that was trained on another base or parent than the one that stands there
    now.
    """
    weights = params.chosen_model.weights
    model = modeling.load_checkpoint(weights, None if name == "base" else Path("models") / name).eval()
    if name == "base":
        reference = None
    elif isinstance(model, PeftModel):
        reference = model  # another adapter on the same base, or none
        if parent:
            model.load_adapter(parent, "reference")
    else:
        reference = modeling.load_checkpoint(weights, parent).eval()
    template = modeling.template_of(params.prompt)
    tokenizer = modeling.load_tokenizer(params.prompt)
    return Candidate(
        name, model, reference, tokenizer, template, params.prompt.system, params.evaluate.max_new_tokens
    )


@contextmanager
def as_reference(candidate: Candidate) -> Iterator[PreTrainedModel | PeftModel]:
    """What the candidate was trained from, ready to be asked."""
    model = candidate.reference
    if not isinstance(model, PeftModel) or model is not candidate.model:
        yield model
    elif "reference" in model.peft_config:
        model.set_adapter("reference")
        yield model
        model.set_adapter("default")
    else:
        with model.disable_adapter():
            yield model
