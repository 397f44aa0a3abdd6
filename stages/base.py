"""Pin the base model: a hub snapshot or a local folder → models/base.json, every file with its size and
sha256.

The manifest is what DVC tracks; the weights stay where they are, so 15 GB are not stored twice.
"""

from fnmatch import fnmatch
from pathlib import Path

from stages.settings import manifest, memory
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, sha256, write_json
from stages.settings.params import Prompt, Weights
from stages.settings.stage import stage
from stages.sources import hub
from stages.text.prompts import END_OF_TEXT, TEMPLATES

NEEDED = ("*.safetensors", "*.json", "*.txt")  # no pickled weights, ever
SPARE = (
    "consolidated*",
    "provenance.json",
)  # a second copy of the weights in another layout; where nano comes from
INDEX = "model.safetensors.index.json"
SAMPLE = "### السؤال: كم ١٢ + 3؟\n\nعِلْمٌ، Arabic\tand \u200fcode: x = [1, 2]  \r\n<|im_end|>\n"
# Architectures that are tested from here to the export (tests/test_architectures.py); another may be scored
# wrongly in silence, as hybrid ones with linear attention are, whose layers do not heed a mask.
TESTED = ("qwen2", "qwen3", "llama", "gemma3_text")


def main() -> None:
    with stage("base") as params:
        key = f"models.{params.model}.weights"
        folder, names, source = locate(key, params.chosen_model.weights)
        check(key, folder, names)
        vocabulary = describe(key, folder, params.prompt)
        files = {
            name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names
        }
        write_json(manifest.MANIFEST, {"model": params.model, **source, **vocabulary, "files": files})
        print(
            f"base: {params.model}, {len(files)} files, "
            f"{sum(f['size'] for f in files.values()) / 1e6:,.1f} MB"
        )
        if why := memory.unplanned(params.chosen_model.weights):
            print(f"      its memory is {why}: whether it fits shows at the first steps")
        if "untrained" in vocabulary:
            print(
                f"      {', '.join(vocabulary['untrained'])}: its pretraining never used them, so sft trains "
                "their rows, too (sft.train_markers)"
            )
        if "repo" in source:
            print(f"      {source['repo']} at {source['commit'][:12]}, {hub.licence_note(source['licence'])}")


def locate(key: str, weights: Weights) -> tuple[Path, list[str], dict[str, str]]:
    """The folder that holds the model, downloaded first where it stands on a hub, its files, and where it
    came from.
    """
    if weights.path:
        folder = Path(weights.path)
        return folder, model_files([path.name for path in folder.glob("*")]), {"path": weights.path}
    found = hub.snapshot(key, "model", weights.repo, weights.revision, model_files)
    return (
        found.folder,
        list(found.files),
        {"repo": weights.repo, "commit": found.commit, "licence": found.licence},
    )


def describe(key: str, folder: Path, prompt: Prompt) -> dict:
    """What a template must know of the vocabulary, where it is not as Qwen's: the token that ends texts, and
    the template's tokens that no text has trained. Raises Problem where the template's tokens are not there.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    from stages.sources import markers

    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = tokenizer.get_vocab()
    end = END_OF_TEXT if END_OF_TEXT in known else tokenizer.eos_token
    if not end:
        raise Problem(f"{key}: its tokenizer names no token that ends a text (eos_token)")
    template = TEMPLATES[prompt.template].of(end)
    if missing := [token for token in template.markers if token not in known]:
        raise Problem(
            f"{key}: its vocabulary has no {', '.join(missing)}, of which prompt.template "
            f"{prompt.template} is "
            "made: set prompt.template: arabic, which needs none"
        )
    if (
        tokenizer(SAMPLE)["input_ids"]
        != Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SAMPLE).ids
    ):
        raise Problem(
            f"{key}: transformers makes other tokens of a text than its tokenizer.json says, which "
            "`format` reads: "
            "save the tokenizer anew (AutoTokenizer.from_pretrained, save_pretrained) and name that folder "
            "as `path`"
        )
    found = {"end_of_text": end} if end != END_OF_TEXT else {}
    untrained = markers.untrained(folder, tokenizer, template.markers)
    return found | ({"untrained": untrained} if untrained else {})


def model_files(names: list[str]) -> list[str]:
    """The files a model is loaded from: those at the top of the repository."""
    top = [
        name
        for name in sorted(names)
        if "/" not in name and any(fnmatch(name, pattern) for pattern in NEEDED)
    ]
    return [name for name in top if not any(fnmatch(name, pattern) for pattern in SPARE)]


def check(key: str, folder: Path, names: list[str]) -> None:
    """Raise Problem where config, tokenizer or weights are missing, or a shard of the weights is; and where
    the architecture is none that is tested.
    """
    shards = ["model.safetensors"]
    if INDEX in names:
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    missing = [name for name in ("config.json", "tokenizer.json", *shards) if name not in names]
    if missing:
        raise Problem(
            f"{key}: {folder} lacks {', '.join(missing)}: a model needs its config, its tokenizer and "
            "safetensors weights"
        )
    config = settings(key, folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if name in names and settings(key, folder / name).get("auto_map"):
            raise Problem(
                f"{key}: its {name} asks to run code of its own (auto_map), which is never run here: take "
                "a model that needs none, or the entry out of the file"
            )
    if (kind := config.get("model_type")) not in TESTED:
        raise Problem(f"{key}: its architecture is {kind}: take a model of one of {', '.join(TESTED)}")
    if cap := config.get("final_logit_softcapping"):
        raise Problem(
            f"{key}: its config.json caps logits (final_logit_softcapping: {cap}), which no loss here "
            "does: take "
            "another model"
        )
    try:
        memory.shape_from(config)
    except Problem as problem:
        raise Problem(f"{key}: its {problem}: take the file as it was published") from None
    if "quantization_config" not in config:
        require_weights(key, folder, shards)


def settings(key: str, path: Path) -> dict:
    """One of a model's files of settings. Raises Problem where it holds none."""
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Problem(f"{key}: its {path.name} is not JSON with settings: take the file as it was published")
    return found


def require_weights(key: str, folder: Path, shards: list[str]) -> None:
    """Raise Problem where the weights are not those that config.json describes: transformers would fill what
    is missing with random numbers, and say so in a log.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except Exception as error:  # of whatever kind a stranger's settings raise
        raise Problem(f"{key}: transformers can make no model of its config.json ({error})") from None
    wanted = {name: list(weight.shape) for name, weight in model.named_parameters()}  # a tied one once
    found = {}
    for shard in shards:
        try:
            with safe_open(folder / shard, "pt") as file:
                found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise Problem(f"{key}: {folder / shard} cannot be read ({error}): fetch it again") from None
    for name, shape in wanted.items():
        held = found.get(name, found.get(name.removeprefix("model.")))  # saved without its head
        if held != shape:
            size = "has none" if held is None else f"has it as {held}"
            raise Problem(
                f"{key}: by config.json {name} is {shape}, and the safetensors file {size}: config and "
                "weights are of two models, or not whole"
            )


if __name__ == "__main__":
    with one_line_errors():
        main()
