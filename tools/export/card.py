"""The model card of an export (README.md): what it is, how it was trained and measured, under which licences,
in English and in Arabic.

Metadata: https://huggingface.co/docs/hub/model-cards
"""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML

from stages.model import modeling
from stages.settings import manifest
from stages.settings.errors import one_line
from stages.settings.files import read_json
from stages.sources import hub
from tools.chat.models import called

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
)  # others are `other` with a name


def card(checkpoint: Path, checked: dict, serving: str) -> str:
    """`checked`: what tools/export/checks.py found; `serving`: commands to run the model."""
    provenance, base = read_json(checkpoint / "provenance.json"), read_json(manifest.MANIFEST)
    tables = evaluated(checkpoint)
    sources = datasets(provenance)
    parts = [
        f"---\n{metadata(checkpoint, base, sources, tables)}\n---\n",
        f"# {title(checkpoint, base)}\n",
        summary(checkpoint, provenance, base),
        f"## Use\n\n{serving}",
        f"## Licences\n\n{licences(base, sources)}",
        f"## Evaluation\n\n{evaluation(checkpoint, tables)}",
        f"## Export\n\n{exported(checked)}",
        f"## Provenance\n\n{origin(checkpoint, provenance, base)}",
        f"## Limits\n\n{LIMITS}",
        arabic(base, provenance, tables),
    ]
    return "\n".join(parts)


# --- what there is ------------------------------------------------------------------------------------------


def evaluated(checkpoint: Path) -> dict:
    """The scores of evaluate, where dvc.lock says that they are those of this checkpoint; {} otherwise."""
    name, lock = checkpoint.name, Path("dvc.lock")
    stages = (
        YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
    )
    trained, asked = stages.get(name.replace("-", "@", 1), {}), stages.get(stage_of(name), {})
    hashes = {
        entry["md5"]
        for entry in [*trained.get("outs", []), *asked.get("deps", [])]
        if entry["path"] == checkpoint.as_posix()
    }
    return read_json(Path(f"metrics/tables/{name}.json")) if asked and len(hashes) == 1 else {}


def stage_of(name: str) -> str:
    return (
        f"evaluate_refined@{name.removeprefix('refine-')}"
        if name.startswith("refine-")
        else f"evaluate@{name}"
    )


def datasets(provenance: dict) -> list[dict]:
    """What the checkpoint and those before it were trained on: role, name, and what fetch recorded."""
    roles = ["instructions"]
    if provenance["chain"]:
        roles.append("preferences")
    if provenance.get("method") == "continued":
        roles.append("continued")
    return [
        {"role": role, "name": name, **facts}
        for role in roles
        for name, facts in read_json(Path(f"data/raw/{role}/sources.json")).items()
    ]


def base_name(base: dict) -> str:
    return base.get("repo") or base["model"]


def title(checkpoint: Path, base: dict) -> str:
    return f"{base_name(base).split('/')[-1]}-arabic-{called(checkpoint.name, checkpoint)}"


def metadata(checkpoint: Path, base: dict, sources: list[dict], tables: dict) -> str:
    licence = base.get("licence")
    named = (
        {"license": licence}
        if licence in HUB_LICENCES
        else {"license": "other", "license_name": licence}
        if licence
        else {}
    )
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=entry["benchmark"], dataset_name=entry["benchmark"],
            metric_type="accuracy", metric_value=entry["value"],
        )
        for entry in tables.get("scores", [])
    ]  # fmt: skip
    data = ModelCardData(
        language=["ar"],
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base.get("repo"),
        datasets=sorted({source["repo"] for source in sources if "repo" in source}) or None,
        model_name=title(checkpoint, base) if results else None,
        eval_results=results or None,
        **named,
    )
    return data.to_yaml()


# --- in words -----------------------------------------------------------------------------------------------


def summary(checkpoint: Path, provenance: dict, base: dict) -> str:
    steps = ["supervised fine-tuning"]
    if provenance["chain"]:
        steps.append("preference training")
    weights = "LoRA, merged" if (checkpoint / "adapter_config.json").exists() else "the whole model"
    how = f"`{provenance.get('method') or provenance['params'].get('method')}`" if provenance["chain"] else ""
    return f"{base_name(base)} for Arabic: {' and '.join(steps)}{f' ({how})' if how else ''} ({weights}).\n"


def licences(base: dict, sources: list[dict]) -> str:
    rows = ["| | name | revision | rows | licence |", "|---|---|---|---|---|"]
    commit = (base.get("commit") or "")[:12]
    rows.append(f"| base model | {cell(base_name(base))} | {commit} | | {cell(base_licence(base))} |")
    for source in sources:
        cells = [
            source["role"],
            source.get("repo") or source["name"],
            source.get("commit", "")[:12],
            f"{source['taken']:,}",
            data_licence(source),
        ]
        rows.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join([*rows, "", "What is made from several of these must keep to the strictest of them.\n"])


def cell(text: str) -> str:
    """What a table of Markdown holds as it stands, wherever it comes from."""
    return one_line(text).replace("|", "\\|")


def base_licence(base: dict) -> str:
    return hub.licence_note(base["licence"]) if "repo" in base else "a local model: its owner's"


def data_licence(source: dict) -> str:
    if "builtin" in source:
        return "generated by the project, Apache-2.0"
    return hub.licence_note(source["licence"]) if "repo" in source else "own data"


def evaluation(checkpoint: Path, tables: dict) -> str:
    if not tables:
        return (
            f"Not measured: no evaluation of this very checkpoint ({checkpoint.name}) stands in the "
            "project's metrics.\n"
        )
    rows = ["| benchmark | score | 95 % interval | blind guessing | n |", "|---|---|---|---|---|"]
    for entry in tables["scores"]:
        interval = (
            f"{entry['ci_low']:.3f} to {entry['ci_high']:.3f}" if entry.get("ci_low") is not None else ""
        )
        chance = f"{entry['chance']:.2f}" if entry.get("chance") else ""
        rows.append(
            f"| {entry['benchmark']} | {entry['value']:.3f} | {interval} | {chance} | {entry['n']:,} |"
        )
    asked = ["", "How it was asked (scores under another protocol cannot be compared with these):", ""]
    asked += [
        f"- {one_line(', '.join(f'{key} {value}' for key, value in protocol(entry).items()))}"
        for entry in tables["protocol"]
    ]
    return "\n".join([*rows, *asked, "", "Measured on the checkpoint before it was merged.\n"])


def protocol(entry: dict) -> dict:
    shown = {
        key: value
        for key, value in entry.items()
        if key not in ("template_sha256", "path") and value not in ("", None)
    }
    return {
        key.replace("_", " "): str(value)[:12] if key == "commit" else value for key, value in shown.items()
    }


def exported(checked: dict) -> str:
    merged = checked["merged"]
    lines = [
        f"- merged weights beside the checkpoint: {merged['divergence']:.6f} nats per token apart on "
        "held-out prompts, "
        f"{merged['same_answers']} of {merged['prompts']} greedy answers the same token by token; "
        f"{merged['stopped']} stopped by themselves (of the checkpoint's {merged['checkpoint_stopped']})",
    ]
    lines += [
        f"- {name} in llama.cpp: {facts['same_answers']} of {facts['prompts']} greedy answers the same "
        "token by token"
        for name, facts in checked.items()
        if name != "merged"
    ]
    return "\n".join(lines) + "\n"


def origin(checkpoint: Path, provenance: dict, base: dict) -> str:
    facts = {
        "base manifest": provenance["base"]["manifest_sha256"],
        "training data": provenance["data_sha256"],
    }
    facts |= {
        link["checkpoint"].removeprefix("models/"): link["weights_sha256"] for link in provenance["chain"]
    }
    facts[checkpoint.name] = modeling.weights_sha256(checkpoint)
    facts["prompt template"] = provenance["template_sha256"]
    lines = [f"- {name}: sha256 `{value}`" for name, value in facts.items()]
    versions = ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
    return (
        "\n".join(
            [
                *lines,
                f"- base in training: {provenance['base']['quantization']} quantisation",
                f"- {versions}",
            ]
        )
        + "\n"
    )


LIMITS = """\
- It states wrong things with confidence. Do not rely on it in medical, legal or religious questions.
- It was not trained to refuse harmful requests, beyond what its base model and its data taught it.
- Dialects, long conversations and code were not measured unless a score above says so.
"""


def arabic(base: dict, provenance: dict, tables: dict) -> str:
    preference = " ثم تدريب على التفضيلات" if provenance["chain"] else ""
    first = tables.get("scores", [None])[0]
    error = f" (الخطأ المعياري {first['stderr']:.3f}، عدد الأسئلة {first['n']:,})" if first else ""
    measured = (
        f"نتيجته في {first['benchmark']} هي {first['value']:.3f}{error}؛ والجدول الكامل أعلاه."
        if first
        else "لم يُقَس بعد."
    )
    return f"""\
## بالعربية

<div dir="rtl">

نموذج لغوي للعربية مبني على {base_name(base)}: ضبط دقيق على تعليمات عربية{preference}.

- **القياس:** {measured} لا تصحّ مقارنة نتائج قيست بصيغ أسئلة مختلفة.
- **الرخصة:** تسري أشدّ الرخص المذكورة في جدول الرخص أعلاه.
- **الحدود:** قد يخطئ النموذج وهو واثق، فلا يُعتمد عليه في الطب أو القانون أو الفتوى،
  ولم تُقَس اللهجات ولا المحادثات الطويلة.

</div>
"""
