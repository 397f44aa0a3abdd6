"""The schema of params.yaml: every setting, its type, its range, and what must fit together."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    model_validator,
)

from stages.settings.errors import Problem
from stages.settings.methods import METHODS
from stages.text.prompts import TEMPLATES

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
# Bounds far beyond any use, which tell a slip of the hand from a setting before it costs a night.
Batch = Annotated[int, Field(ge=1, le=65_536)]
Tokens = Annotated[int, Field(ge=1, le=1_048_576)]
Epochs = Annotated[float, Field(ge=0.001, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, le=1000)]
# Of a dataset: also of its file, and of a key that -S can write.
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
Amount = Annotated[Any, AfterValidator(lambda value: _amount(value))]
Columns = str | Annotated[list[str], Field(min_length=1)]  # of a dataset: one, or several that are joined
Encoding = Annotated[str, AfterValidator(lambda value: _encoding(value))]
# What a dataset is for → the layout of its rows: continued training takes rows like those of sft.
ROLES = {
    "instructions": "instructions",
    "preferences": "preferences",
    "continued": "instructions",
    "benchmarks": "benchmarks",
}

SAMPLED = "sampled"  # preferences that the stage sample makes: no dataset to fetch
NANO = "models/nano"  # the built-in base model

# What evaluate measures beside the benchmarks.
LOWER_IS_BETTER = {
    "validation_loss", "byte_perplexity", "place_bias", "loop_rate", "repetition", "empty_rate",
    "markup_rate", "latin_share", "cjk_share",
    "divergence",
}  # fmt: skip
HIGHER_IS_BETTER = {
    "preference", "preference_margin", "preference_accuracy_per_token", "stop_rate", "stop_probability",
    "reward_accuracy", "reward_margin", "distinct_2",
    "arabic_share", "length_ratio", "chrf",
}  # fmt: skip
# What else stands in its tables beside the benchmarks, and how the name of a benchmark's further scores ends.
BASELINES = {"longer_wins", "shorter_wins"}
FURTHER = (
    "f1", "judged", "loose", "instructions", "instructions_loose", "worked_examples", "worked_examples_f1",
    "sentence", "right_sentence", "choice",
)  # fmt: skip
# Those of what is measured that are no share of something.
UNBOUNDED = {
    "validation_loss", "byte_perplexity", "preference_margin", "reward_margin", "divergence", "length_ratio",
    "chrf",
}  # fmt: skip
# The linear layers of the architectures that `base` takes; LoRA on the head is none.
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRACKERS = (
    "tensorboard",
    "wandb",
    "mlflow",
    "trackio",
    "dvclive",
    "comet_ml",
    "swanlab",
)  # and their packages


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).model_fields:  # left out by `only`
            raise Problem(
                f"dvc.yaml declares no parameter that covers `{name}` ({type(self).__name__}) for this "
                "stage: add it there"
            )
        return super().__getattr__(name)


class Source(Section):
    """Where a dataset comes from and how its columns become ours: by `columns`, or by an `adapter` of
    stages/sources/catalog.py.
    """

    builtin: Literal["skills"] | None = None
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    columns: dict[str, Columns] | None = None
    adapter: str | None = None
    files: list[str] | None = None  # patterns of those to read, as xquad.ar/*; without: all tables
    encoding: Encoding | None = None  # of text files; without: found out, as is the delimiter
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quote: Annotated[str, Field(max_length=1)] | None = None  # '' makes quotes plain characters
    header: Annotated[list[str], Field(min_length=1)] | None = None  # of files whose first line is a row
    answer_base: Literal[0, 1] | None = None  # what the first choice of a benchmark is called

    @model_validator(mode="before")
    @classmethod
    def written_short(cls, given: Any) -> Any:
        """`repo: name@revision` as repo and revision, one pattern as a list."""
        given = _with_revision(given)
        if isinstance(given, dict) and isinstance(given.get("files"), str):
            given = given | {"files": [given["files"]]}
        return given

    @model_validator(mode="after")
    def one_source(self) -> "Source":
        if [self.builtin, self.repo, self.path].count(None) != 2:
            raise ValueError("needs exactly one of `builtin`, `repo` (with `revision`) and `path`")
        if self.repo and not self.revision:
            raise ValueError("needs a `revision` beside `repo`: a commit, a tag or main")
        if not self.builtin and (self.columns is None) == (self.adapter is None):
            raise ValueError(
                "needs `columns` (our column names and the dataset's) or an `adapter`, and not both"
            )
        return self


class Rows(Section):
    """How much to take: a sample of at most `rows`, and of at most `rows_per_task` of each task; which
    answers of a conversation are trained; and what the quality gate does otherwise than by `format`, to
    training data.
    """

    rows: Amount = "all"
    rows_per_task: Count | None = None
    train_on: Literal["all", "last"] = "all"
    language: Literal["arabic", "any"] | None = None
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = None


class Own(Source, Rows):
    """A dataset given where it is used: a source, and how much of it."""


def _is_own(value: Any) -> str:
    return (
        "[own]"
        if isinstance(value, Own) or (isinstance(value, dict) and set(value) & set(Source.model_fields))
        else "[rows]"
    )


GATE_KEYS = ("language", "near_duplicates")  # of a dataset, which fetch hands on to format
Wanted = Annotated[
    Annotated[Rows, Tag("[rows]")] | Annotated[Own, Tag("[own]")],
    Discriminator(_is_own),
    BeforeValidator(lambda value: value if isinstance(value, (dict, Rows)) else {"rows": value}),
]
Role = dict[Name, Wanted]


class Mixture(Section):
    """What a run learns from and is measured on. All but `instructions` may be empty."""

    instructions: Annotated[Role, Field(min_length=1)]
    preferences: Role
    continued: Role
    benchmarks: Role

    @model_validator(mode="after")
    def benchmarks_pass_no_gate(self) -> "Mixture":
        for name, wanted in self.benchmarks.items():
            for key in GATE_KEYS:
                if getattr(wanted, key) is not None:
                    raise ValueError(f"benchmarks.{name}.{key} is for data that is trained on: take it out")
        return self

    @model_validator(mode="after")
    def conversations_are_instructions(self) -> "Mixture":
        for role in ("preferences", "benchmarks"):
            for name, wanted in getattr(self, role).items():
                if wanted.train_on != "all":
                    raise ValueError(
                        f"{role}.{name}.train_on is {wanted.train_on!r}: it is for instructions and "
                        "continued, whose answers are trained"
                    )
        return self


def _written_out(sources: Any) -> Any:
    """`name: repo@revision` as a source: a hub's repository, read by the adapter of that name."""
    if not isinstance(sources, dict):
        return sources
    whole = {}
    for name, source in sources.items():
        if isinstance(source, str):
            repo, _, revision = source.partition("@")
            source = {"repo": repo, "revision": revision or None, "adapter": name}
        whole[name] = source
    return whole


Sources = Annotated[dict[str, Source], BeforeValidator(_written_out)]


class Datasets(Section):
    instructions: Sources
    preferences: Sources
    benchmarks: Sources


class Text(Section):
    tashkeel: Literal["keep", "strip"]
    tatweel: Literal["strip", "keep"]
    digits: Literal["keep", "western"]
    lookalikes: Literal["keep", "arabic"]


class Prompt(Section):
    template: Literal[tuple(TEMPLATES)]
    system: str
    max_length: Annotated[int, Field(ge=16, le=1_048_576)]


# What is wrong with rows that are kept all the same: stages/gate/defects.py.
DEFECTS = ("html_entities", "private_use", "replacement_character", "stretched", "cut_off", "refusal")


class Format(Section):
    """The quality gate of stages/gate/quality.py."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    min_answer: Count
    min_arabic: Annotated[float, Field(ge=0, le=1)]
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)]
    leaks: Literal["drop", "flag"]
    leak_overlap: Annotated[float, Field(gt=0, le=1)]
    drop: list[Literal[DEFECTS]]
    max_dropped: Annotated[float, Field(ge=0, le=1)]


class Schedule(Section):
    warmup: Annotated[float, Field(ge=0, le=0.5)]
    schedule: Literal["cosine", "linear", "constant"]
    evaluations: Annotated[int, Field(ge=0, le=1000)]
    keep: Literal["best", "last"]
    patience: Annotated[int, Field(ge=0)]


class Sft(Schedule):
    epochs: Epochs
    train_markers: Literal["auto", "always", "never"]
    packing: bool


class Refinement(Section):
    """How a pass after models/dpo differs from the stage that it repeats: with a larger β it stays closer."""

    beta_factor: Weight


class Hardware(Section):
    """Of the GPU that training must fit: stages/settings/memory.py."""

    vram_gb: Annotated[float, Field(gt=0, le=10_000)]
    cpu: bool


class Common(Section):
    """What every training stage shares."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    max_grad_norm: Positive
    compile: bool
    trackers: list[Literal[TRACKERS]]


class Judge(Section):
    """Who scores answers in words: stages/judge/judges.py."""

    kind: Literal["none", "reference", "reward", "chat", "people"]
    model: Annotated[str, Field(min_length=1)] | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    max_tokens: Count | None = None
    max_length: Count | None = None

    @model_validator(mode="after")
    def keys_fit(self) -> "Judge":
        taken = JUDGE_KEYS[self.kind]
        for key in ("model", "base_url", "max_tokens", "max_length"):
            if (getattr(self, key) is None) == (key in taken):
                raise ValueError(
                    f"a judge of kind {self.kind} {'needs' if key in taken else 'takes no'} `{key}`"
                )
        return self


JUDGE_KEYS = {
    "none": (),
    "reference": (),
    "reward": ("model", "max_length"),  # a folder or a hub's repo@revision; tokens it reads
    "chat": ("base_url", "model", "max_tokens"),  # of an OpenAI-compatible endpoint; of its answer
    "people": (),  # of sampled answers alone: data/feedback/verdicts.jsonl
}


class Evaluate(Section):
    split: Literal["test", "validation"]
    style: Literal["lm-eval", "oall"]
    shots: Annotated[int, Field(ge=0, le=100)]
    chat: bool
    rotate: bool
    held_out: Count
    health_prompts: Count
    max_new_tokens: Tokens
    judge: Judge
    require: dict[str, float]

    @model_validator(mode="after")
    def people_judge_samples(self) -> "Evaluate":
        if self.judge.kind == "people":
            raise ValueError("judge.kind is 'people', who score sampled answers: it is for sample.judge")
        return self


class Sample(Section):
    """Pairs of the model's own answers, for mixtures whose preferences name `sampled`."""

    prompts: Annotated[int, Field(ge=0)]
    dataset: str
    answers: Annotated[int, Field(ge=2, le=1000)]
    temperature: Annotated[float, Field(gt=0, le=100)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Tokens
    engine: Literal["transformers", "vllm"]
    keep: Literal["pairs", "votes"]
    good: float
    margin: Annotated[float, Field(ge=0)]
    refine: Literal["sft", "dpo"]
    judge: Judge


class Lora(Section):
    r: Batch
    alpha: Batch
    dropout: Share
    targets: Annotated[Literal["all-linear"] | list[str], AfterValidator(lambda value: _targets(value))]
    rslora: bool
    dora: bool


class Training(Section):
    """How a model is trained in one stage. A step sees batch_size x accumulation rows."""

    learning_rate: Rate
    batch_size: Batch
    accumulation: Batch
    gradient_checkpointing: bool


class SftTraining(Training):
    lora: Lora | None


class Precision(Section):
    """How a base model is held in memory."""

    quantization: Literal["none", "nf4"]
    dtype: Literal["float32", "bfloat16", "float16"]


class Weights(Precision):
    """Where a base model comes from, too: a hub `repo` at a `revision`, or a local `path`."""

    repo: str | None = None
    path: str | None = None
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def written_short(cls, given: Any) -> Any:
        """`repo: name@revision` as repo and revision."""
        return _with_revision(given)

    @model_validator(mode="after")
    def one_source(self) -> "Weights":
        if (self.repo is None) == (self.path is None):
            raise ValueError("needs either `repo` (with `revision`) or `path`, and not both")
        if self.repo and not self.revision:
            raise ValueError("needs a `revision` beside `repo`: a commit, a tag or main")
        return self


class Model(Section):
    weights: Weights
    sft: SftTraining
    preference: Training

    @model_validator(mode="after")
    def quantised_needs_lora(self) -> "Model":
        if self.weights.quantization == "nf4" and self.sft.lora is None:
            raise ValueError("4-bit weights cannot be trained in full: give sft.lora, or quantization: none")
        return self


class ModelDefaults(Section):
    """What an entry of `models` need not say: reader.read puts it there."""

    weights: Precision
    sft: SftTraining
    preference: Training


class MethodDefaults(Section):
    """The same of `methods`."""

    learning_rate_factor: Weight
    epochs: Epochs


class Method(MethodDefaults):
    """Hyperparameters of a method; which of the optional ones it takes is in methods.METHODS."""

    beta: Weight | None = None
    sft_weight: Annotated[float, Field(ge=0, le=1000)] | None = None
    desirable_weight: Weight | None = None
    undesirable_weight: Weight | None = None
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    simpo_gamma: Annotated[float, Field(ge=0, le=1000)] | None = None


class Params(Section):
    """The whole file. Every setting is required: a default hidden in code would be a hyperparameter that DVC
    cannot see.
    """

    model: str
    data: str
    method: str
    refine: list[str]
    launch: Annotated[str, Field(pattern=r"\S")]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    allow_builtin: bool
    mixtures: dict[Name, Mixture]
    text: Text
    prompt: Prompt
    format: Format
    hardware: Hardware
    training: Common
    sft: Sft
    preference: Schedule
    refinement: Refinement
    sample: Sample
    evaluate: Evaluate
    model_defaults: ModelDefaults
    models: dict[str, Model]
    method_defaults: MethodDefaults
    methods: dict[str, Method]
    datasets: Datasets
    _require_unchanged: Callable[[str], None] | None = PrivateAttr(default=None)

    def guarded(self, require_unchanged: Callable[[str], None]) -> "Params":
        self._require_unchanged = require_unchanged
        return self

    def require_unchanged(self, otherwise: str) -> None:
        """Before a stage swaps a result in: raise Problem where what it reads was edited since it started.
        `otherwise` is what to do then.
        """
        if self._require_unchanged:
            self._require_unchanged(otherwise)

    @model_validator(mode="after")
    def names_exist(self) -> "Params":
        _known("model", self.model, self.models)
        _known("data", self.data, self.mixtures)
        _known("method", self.method, self.methods)
        for name in self.refine:
            _known("refine", name, self.methods)
        for mixture, roles in self.mixtures.items():
            for role in ROLES:
                for name, wanted in getattr(roles, role).items():
                    if not isinstance(wanted, Own) and (role, name) != ("preferences", SAMPLED):
                        _known(f"mixtures.{mixture}.{role}", name, getattr(self.datasets, ROLES[role]))
        if "continued" in self.refine and not self.mixture.continued:
            raise ValueError(
                f"refine has continued, but mixtures.{self.data}.continued is empty: name a dataset there"
            )
        if METHODS.get(self.method) and METHODS[self.method].trainer == "sft":
            raise ValueError(
                f"method is {self.method!r}, which learns from no preferences: write refine: [{self.method}]"
            )
        if len(set(self.refine)) < len(self.refine):
            raise ValueError(f"refine is {self.refine}: each pass can stand in it once")
        return self

    @model_validator(mode="after")
    def methods_fit(self) -> "Params":
        for name, given in self.methods.items():
            _known("methods", name, METHODS)
            method = METHODS[name]
            optional = [key for key, field in Method.model_fields.items() if not field.is_required()]
            extra = {key for key in optional if getattr(given, key) is not None}
            for key in sorted(extra ^ set(method.hyperparameters)):
                raise ValueError(
                    f"methods.{name}.{key} is {'not used by' if key in extra else 'required by'} {name}"
                )
        for name in {self.method, *self.refine}:
            batch = self.models[self.model].preference.batch_size
            if batch < METHODS[name].min_batch_size:
                key = f"models.{self.model}.preference.batch_size"
                raise ValueError(
                    f"{key} is {batch}: {name} compares rows of a batch and needs at least "
                    f"{METHODS[name].min_batch_size}"
                )
        return self

    @model_validator(mode="after")
    def sampled_pairs_are_made_and_used(self) -> "Params":
        named, key = SAMPLED in self.mixture.preferences, f"mixtures.{self.data}.preferences"
        if named and not self.sample.prompts:
            raise ValueError(f"{key} has {SAMPLED}, but sample.prompts is 0: say how many are to be asked")
        if self.sample.prompts and not named:
            raise ValueError(
                f"sample.prompts is {self.sample.prompts}, but {key} has no {SAMPLED}: add `{SAMPLED}: all`"
            )
        if named and self.sample.judge.kind == "none":
            raise ValueError("sample.judge.kind is 'none': name who tells the better answer")
        if self.sample.engine == "vllm" and self.chosen_model.weights.quantization == "nf4":
            raise ValueError(
                f"sample.engine is 'vllm', and {self.model} is held in 4 bit, which it would hold otherwise: "
                "take transformers"
            )
        if self.sample.refine == "dpo" and not set(self.refine) - {"continued"}:
            raise ValueError(
                f"sample.refine is 'dpo', but refine is {self.refine}: no pass would learn from those pairs"
            )
        if self.sample.dataset != "all":
            _known("sample.dataset", self.sample.dataset, self.mixture.instructions)
        return self

    @model_validator(mode="after")
    def requirements_are_measured(self) -> "Params":
        known = LOWER_IS_BETTER | HIGHER_IS_BETTER | set(self.mixture.benchmarks)
        for name in self.evaluate.require:
            if not any(name == one or name.startswith(f"{one}_") for one in self.mixture.benchmarks):
                _known("evaluate.require", name, dict.fromkeys(sorted(known)))
        for name, bound in self.evaluate.require.items():
            if name not in UNBOUNDED and not 0 <= bound <= 1:
                raise ValueError(
                    f"evaluate.require.{name} is {bound}: it is a share, so give one from 0 to 1"
                )
        return self

    @model_validator(mode="after")
    def benchmarks_have_names_of_their_own(self) -> "Params":
        """One called like a measure, or like a further score of another, would be mixed with it."""
        for mixture, roles in self.mixtures.items():
            taken = {f"{name}_{further}": name for name in roles.benchmarks for further in FURTHER}
            taken |= dict.fromkeys(LOWER_IS_BETTER | HIGHER_IS_BETTER | BASELINES, "every checkpoint")
            for name in roles.benchmarks:
                if name in taken:
                    raise ValueError(
                        f"mixtures.{mixture}.benchmarks.{name}: {name} is what a measure of {taken[name]} is "
                        "called: give it another name"
                    )
        return self

    @model_validator(mode="after")
    def no_toy_data_in_a_real_run(self) -> "Params":
        """Own rows beside the default's built-in pairs would train a real model on synthetic ones, unseen."""
        sources = {
            f"mixtures.{self.data}.{role}.{name}": source
            for role in ROLES
            for name, (source, _) in self.sources(role).items()
        }
        toys = [key for key, source in sources.items() if source.builtin]
        if toys and not self.allow_builtin:
            cure = "choose another `data`, take it out, or set allow_builtin: true"
            if self.chosen_model.weights.path != NANO:
                raise ValueError(f"{toys[0]} is built-in toy data, and model is {self.model!r}: {cure}")
            if len(toys) < len(sources):
                other = next(key for key in sources if key not in toys)
                raise ValueError(f"{toys[0]} is built-in toy data, beside {other}: {cure}")
        return self

    @property
    def chosen_model(self) -> Model:
        return self.models[self.model]

    @property
    def mixture(self) -> Mixture:
        return self.mixtures[self.data]

    def key(self, role: str, name: str) -> str:
        """Where the source of a dataset stands: in the mixture, or in `datasets`."""
        own = isinstance(getattr(self.mixture, role)[name], Own)
        return f"mixtures.{self.data}.{role}.{name}" if own else f"datasets.{ROLES[role]}.{name}"

    def sources(self, role: str) -> dict[str, tuple[Source, Rows]]:
        """The datasets of a role, in order: where each comes from and how much of it is taken."""
        wanted, known = getattr(self.mixture, role), getattr(self.datasets, ROLES[role])
        return {
            name: (own if isinstance(own, Own) else known[name], own)
            for name, own in wanted.items()
            if (role, name) != ("preferences", SAMPLED)
        }


def _amount(value: Any) -> int | str:
    if value == "all" or (type(value) is int and value > 0):
        return value
    raise ValueError(f"must be a number of rows or `all`, not {value!r}")


def _targets(value: str | list[str]) -> str | list[str]:
    wrong = [name for name in value if name not in LINEARS] if isinstance(value, list) else []
    if wrong or not value:
        named = f"{wrong[0]!r} is none" if wrong else "it names none"
        raise ValueError(f"must be all-linear, or some of {', '.join(LINEARS)}: {named}")
    return value


def _encoding(value: str) -> str:
    try:
        "".encode(value)
        return value
    except LookupError:
        raise ValueError(f"{value!r} is no encoding that Python knows, as utf-16 or cp1256 are") from None


def _with_revision(given: Any) -> Any:
    if isinstance(given, dict) and isinstance(given.get("repo"), str) and "@" in given["repo"]:
        repo, _, revision = given["repo"].partition("@")
        return given | {"repo": repo, "revision": revision}
    return given


def _known(key: str, value: str, table: dict) -> None:
    if value not in table:
        raise ValueError(f"{key} is {value!r}: it must be one of {', '.join(table)}")
