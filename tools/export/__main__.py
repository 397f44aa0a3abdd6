"""Make of a checkpoint a model that others can run → exports/<checkpoint>: weights, tokenizer, chat template,
stop tokens, model card.

python -m tools.export models/dpo [--gguf f16|q8_0|q6_k|q5_k_m|q4_k_m] [--out FOLDER] [--push OWNER/NAME]
python -m tools.export exports/dpo --push OWNER/NAME [--dry-run]     a finished export, as it stands

The result is compared with the checkpoint before it is written. --gguf adds a file for llama.cpp and a
Modelfile for Ollama; --push uploads the folder to the Hugging Face hub, with the token of HF_TOKEN, into a
private repository where there is none yet; --dry-run only lists what it would upload.
"""

import argparse
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import read_json, replace_folder, write_json
from stages.settings.params import Params
from stages.settings.reader import read
from stages.settings.stage import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.text.prompts import Template
    from tools.export.checks import Record

KINDS = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
PROMPTS = 16  # held-out ones, on which export and checkpoint are compared
HELD_OUT = Path("data/formatted/instructions/validation.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="CHECKPOINT|EXPORT", help="models/sft, models/dpo, …; or exports/…"
    )
    parser.add_argument("--gguf", choices=KINDS)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--push", metavar="OWNER/NAME")
    parser.add_argument("--dry-run", action="store_true", help="of --push: list the files, send nothing")
    asked = parser.parse_args()
    quiet()
    if not asked.push or asked.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with one_line_errors():
        run(asked)


def run(asked: argparse.Namespace) -> None:
    from tools.export import owned, upload

    finished = (asked.source / owned.MARK).is_file()
    check_options(asked, finished)
    if asked.push and not asked.dry_run:
        upload.check(asked.push)  # exporting takes minutes
    out = asked.source if finished else asked.out or Path("exports", named(asked.source))
    if finished:
        owned.require_untouched(out)
    else:
        export(asked.source, out, asked.gguf, read())
    if asked.push:
        (upload.show if asked.dry_run else upload.push)(out, asked.push)


def check_options(asked: argparse.Namespace, finished: bool) -> None:
    """Raise Problem for options that say nothing of what is asked."""
    if finished and not asked.push:
        raise Problem(f"{asked.source} is an export: --push OWNER/NAME uploads it")
    if finished and (asked.gguf or asked.out):
        raise Problem(
            f"{asked.source} is an export, which --push uploads as it stands: leave --gguf, --out out"
        )
    if asked.dry_run and not (asked.push and finished):
        raise Problem("--dry-run goes with --push of a finished export: export first, then give its folder")


def named(checkpoint: Path) -> str:
    """By its method, as everywhere: preference training, whose folder is always dpo, as kto, orpo, …"""
    from stages.model import modeling

    there = (checkpoint / "provenance.json").exists()
    return modeling.called(checkpoint.name, checkpoint) if there else checkpoint.name


def export(checkpoint: Path, out: Path, kind: str | None, params: Params) -> None:
    check(checkpoint, out, kind, params)
    from stages.model import modeling
    from stages.settings import manifest
    from tools.export import card, checks, gguf_file, importance, merge, owned, templates

    # 1. what the checkpoint itself answers
    weights, limit = params.chosen_model.weights, params.evaluate.max_new_tokens
    template, tokenizer = modeling.template_of(params.prompt), modeling.load_tokenizer(params.prompt)
    stops = tokenizer.convert_tokens_to_ids(template.stops)
    model = modeling.load_checkpoint(weights, checkpoint).eval()
    expected = checks.record(model, tokenizer, held_out(), stops, limit)
    del model
    gc.collect()  # a base and its merged copy need not fit into memory together

    # 2. merged weights, and all that is needed to run them
    whole = not (checkpoint / "adapter_config.json").exists()
    source = checkpoint if whole else manifest.base_folder()
    with replace_folder(out) as folder:
        merge.merge(weights, source, None if whole else checkpoint, folder)
        context = describe(
            folder, read_json(source / "config.json"), weights.dtype, stops, tokenizer.pad_token_id
        )
        tokenizer.chat_template = templates.jinja(template, params.prompt.system, checks.begins(tokenizer))
        save_tokenizer(tokenizer, folder)
        checks.check_template(tokenizer, template, params.prompt.system)

        # 3. does it answer like the checkpoint?
        checked = {"merged": checks.check_merged(folder, expected, limit)}
        serving, file = templates.TRANSFORMERS + templates.VLLM, ""
        if kind:
            file = f"{out.name}-{kind}.gguf"
            matrix = importance.measure(folder) if kind in importance.KINDS else None
            gguf_file.write(folder, folder / file, kind, matrix)
            checked[file] = checks.check_gguf(folder / file, expected, stops, limit)
            (folder / "Modelfile").write_text(
                templates.modelfile(template, params.prompt.system, file, min(context, 4096)),
                encoding="utf-8",
            )
            serving += templates.LLAMA_CPP
        question, answer = example(expected, template, tokenizer)
        shown = {"question": templates.quoted(question), "answer": card.quoted(answer)}
        serving %= {"name": out.name, "file": file, **shown}
        (folder / "README.md").write_text(card.card(checkpoint, checked, serving), encoding="utf-8")
        owned.mark(folder)
    report(out, checked)


def check(checkpoint: Path, out: Path, kind: str | None, params: Params) -> None:
    """Raise Problem where there is nothing to export, where it was trained with another template than it
    would be exported with, where a folder would be replaced that is no export, or where llama.cpp would
    compute something else from a GGUF of it.
    """
    from stages.model import modeling
    from stages.settings import manifest
    from tools.chat.models import standing
    from tools.export import gguf_file, owned

    there = [Path("models", name) for name in standing()]
    if checkpoint not in there:
        names = ", ".join(path.as_posix() for path in there) or "none"
        raise Problem(
            f"{checkpoint} is no trained checkpoint; there is {names}: run `dvc repro`, or `dvc pull` "
            "where it has run"
        )
    modeling.check_template(checkpoint, params.prompt)
    owned.require_own(out)
    if kind:
        gguf_file.check(manifest.base_folder())


def held_out() -> list[str]:
    from pyarrow import parquet

    if not HELD_OUT.exists():
        raise Problem(
            f"{HELD_OUT} does not exist, whose prompts the export is checked on: run `dvc pull "
            f"{HELD_OUT.parent}`"
        )
    prompts = parquet.read_table(HELD_OUT, columns=["prompt"])["prompt"].to_pylist()
    return prompts[:: -(-len(prompts) // PROMPTS)]


def example(
    expected: "Record", template: "Template", tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, str]:
    """A held-out question and the checkpoint's answer to it: the first that stopped by itself. A question
    without an answer where there is none.
    """
    for prompt, tokens, stopped in zip(expected.prompts, expected.answers, expected.stopped):
        if stopped and (question := template.question(prompt)):
            return question, tokenizer.decode(tokens)
    return "ما عاصمة مصر؟", ""


def describe(folder: Path, config: dict, dtype: str, stops: list[int], pad: int) -> int:
    """Write config.json, as published but for the dtype, the stop token and the class, always the one with
    the head, and generation_config.json; give the length of the context.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for key in ("_name_or_path", "quantization_config"):
        config.pop(key, None)
    of_dtype = "torch_dtype" if "torch_dtype" in config else "dtype"  # its name before transformers 5
    made = {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]],
        of_dtype: dtype,
        "eos_token_id": stops[0],
        "pad_token_id": pad,
    }
    write_json(folder / "config.json", config | made)
    write_json(
        folder / "generation_config.json", {"do_sample": False, "eos_token_id": stops, "pad_token_id": pad}
    )
    return config["max_position_embeddings"]


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """As transformers does, but a class that version 5 alone knows by the name that version 4 has for it."""
    tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    here = ("backend", "is_local", "local_files_only")  # how it was loaded on this machine
    write_json(
        folder / "tokenizer_config.json", {key: value for key, value in settings.items() if key not in here}
    )


def report(out: Path, checked: dict) -> None:
    merged = checked["merged"]
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"export: {out}, {size / 1e6:,.1f} MB")
    for name, facts in checked.items():
        print(
            f"        {name}: {facts['same_answers']} of {facts['prompts']} greedy answers are the "
            "checkpoint's, token by token"
        )
    print(f"        {merged['divergence']:.6f} nats per token between merged model and checkpoint")
    if merged["stopped"] < merged["prompts"]:
        print(
            f"note: {merged['prompts'] - merged['stopped']} of {merged['prompts']} answers did not stop "
            "within evaluate.max_new_tokens"
        )


if __name__ == "__main__":
    with one_line_errors():
        main()
