"""The model card of an export (README.md): what it is, how it was trained and measured, under which licences,
in English and in Arabic.

Metadata: https://huggingface.co/docs/hub/model-cards
"""

import hashlib
import re
import subprocess
from io import StringIO
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML

from stages.model import modeling
from stages.settings import manifest
from stages.settings.errors import one_line
from stages.settings.files import file_hash, read_json, sha256
from stages.sources import hub
from tools.verify import dvc_md5

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
    tables, passed = evaluated(checkpoint), steps(checkpoint, provenance)
    sources = datasets(passed)
    parts = [
        f"---\n{metadata(checkpoint, base, sources, tables)}\n---\n",
        f"# {title(checkpoint, base)}\n",
        summary(checkpoint, passed, base) if "merged" not in provenance else average(provenance, base),
        f"## Use\n\n{serving}",
        f"## Training\n\n{training(passed)}",
        f"## Licences\n\n{licences(base, sources)}{elsewhere(passed)}",
        f"## Evaluation\n\n{evaluation(checkpoint, tables)}",
        f"## Export\n\n{exported(checked)}",
        f"## Provenance\n\n{origin(checkpoint, provenance)}",
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
    if name.startswith("merged-"):  # no stage of its own made it
        hashes.add(folder_md5(checkpoint))
    return read_json(Path(f"metrics/tables/{name}.json")) if asked and len(hashes) == 1 else {}


def stage_of(name: str) -> str:
    return (
        f"evaluate_refined@{name.removeprefix('refine-')}"
        if name.startswith("refine-")
        else f"evaluate@{name}"
    )


def steps(checkpoint: Path, provenance: dict) -> dict[str, dict]:
    """What trained a checkpoint, in order: the provenance of sft, dpo, refine-… by the names of their
    folders; {} of one that is no longer there. Of a merged one, what trained its parents.
    """
    if "merged" in provenance:
        return steps_of_parents(provenance)
    before = [Path(link["checkpoint"]) for link in provenance["chain"]]
    return {
        folder.name: read_json(folder / "provenance.json") if folder.exists() else {} for folder in before
    } | {checkpoint.name: provenance}


def steps_of_parents(provenance: dict, within: str = "") -> dict[str, dict]:
    """The same as they were when they were merged: by REVISION/NAME where they are of another revision, and
    {} of a checkpoint before them that is not here as it was then.
    """
    passed = {}
    for parent in provenance["merged"]["parents"]:
        place, _, name = parent["checkpoint"].rpartition("/")
        prefix, own = within if place == "models" else f"{within}{place}/", parent["provenance"]
        if "merged" in own:
            passed |= steps_of_parents(own, prefix)
            continue
        for link in own["chain"]:
            folder = Path(link["checkpoint"])
            same = folder.exists() and modeling.weights_sha256(folder) == link["weights_sha256"]
            passed.setdefault(prefix + folder.name, read_json(folder / "provenance.json") if same else {})
        passed[prefix + name] = own
    return passed


def role_of(step: str) -> str:
    name = step.rpartition("/")[2]
    return {"sft": "instructions", "refine-continued": "continued"}.get(name, "preferences")


def datasets(passed: dict[str, dict]) -> list[dict]:
    """What a checkpoint and those before it were trained on: role, name, what fetch recorded, and how many
    rows `format` left to train on, where its files are those of that training.
    """
    found = {}
    for step, provenance in passed.items():
        role = role_of(step)
        kept = kept_rows(role, provenance.get("data_sha256"))
        for name, facts in read_json(Path(f"data/raw/{role}/sources.json")).items():
            found[role, name] = {"role": role, "name": name, "kept": kept.get(name), **facts}
    return list(found.values())


def kept_rows(role: str, trained: str | None) -> dict[str, int]:
    """How many rows of each dataset `format` left to train on; {} where its files are no longer `trained`."""
    data, report = Path(f"data/formatted/{role}/train.parquet"), Path(f"data/reports/{role}.json")
    if not (data.exists() and report.exists() and sha256(data) == trained):
        return {}
    return {name: facts["train"] for name, facts in read_json(report)["sources"].items()}


def commit_of(checkpoint: Path) -> str | None:
    """The newest commit before this one, or this, whose dvc.lock names these very files; None where no commit
    does.
    """
    md5 = folder_md5(checkpoint)
    found = git("log", "--format=%H", f"-S{md5}", "--", "dvc.lock").split()
    return next((commit for commit in found if md5 in git("show", f"{commit}:dvc.lock")), None)


def folder_md5(folder: Path) -> str:
    """As DVC says it in dvc.lock."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return dvc_md5({path.relative_to(folder).as_posix(): file_hash(path, hashlib.md5()) for path in files})


def git(*arguments: str) -> str:
    """What it prints; "" where it fails, as outside of a repository."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8").stdout


def base_name(base: dict) -> str:
    return base.get("repo") or base["model"]


def title(checkpoint: Path, base: dict) -> str:
    return f"{base_name(base).split('/')[-1]}-arabic-{modeling.called(checkpoint.name, checkpoint)}"


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


def summary(checkpoint: Path, passed: dict[str, dict], base: dict) -> str:
    methods = [f"`{method_of(step, own)}`" for step, own in passed.items() if step != "sft"]
    how = f" and then {', then '.join(methods)}" if methods else ""
    weights = "LoRA, merged" if (checkpoint / "adapter_config.json").exists() else "the whole model"
    return f"{base_name(base)} for Arabic: supervised fine-tuning{how} ({weights}).\n"


def average(provenance: dict, base: dict) -> str:
    """What was merged, in one sentence."""
    merged = provenance["merged"]
    parents = [f"`{parent_name(one)}` ({one['weight']:g})" for one in merged["parents"]]
    return (
        f"{base_name(base)} for Arabic: an average of the weights ({merged['method']}) of "
        f"{', '.join(parents)}.\n"
    )


def parent_name(parent: dict) -> str:
    """As people call it: kto, or that of another revision, REVISION/kto."""
    place, _, name = parent["checkpoint"].rpartition("/")
    name = parent["provenance"].get("method", name) if name == "dpo" else name
    return name if place == "models" else f"{place}/{name}"


def elsewhere(passed: dict[str, dict]) -> str:
    """What the table of licences does not tell: the data of other revisions is not here."""
    others = sorted({step.rpartition("/")[0] for step in passed if "/" in step})
    return "".join(
        f"\nThe data of {cell(one)}, whose checkpoints are in the average, is not in this table.\n"
        for one in others
    )


def method_of(step: str, provenance: dict) -> str:
    """dpo, kto, orpo, … of a step whose folder may be dpo whatever its method."""
    return provenance.get("method", step.removeprefix("refine-"))


def quoted(answer: str) -> str:
    """An answer as Markdown shows it word by word; "" for none."""
    if not answer:
        return ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", answer)), default=0))
    return f"\nThe checkpoint's answer to this held-out question:\n\n{fence}text\n{answer}\n{fence}\n"


def training(passed: dict[str, dict]) -> str:
    """The settings that each step read, as params.yaml has them, but for where a base model stood."""
    parts = []
    for step, provenance in passed.items():
        title = f"`{method_of(step, provenance)}`, step {len(parts) + 1}"
        if not provenance:
            parts.append(f"{title}: its settings are not known, for its checkpoint is no longer there.\n")
            continue
        text = StringIO()
        yaml = YAML()
        yaml.dump(shown(provenance["params"]), text)
        parts.append(f"{title}, {provenance['step']:,} updates kept:\n\n```yaml\n{text.getvalue()}```\n")
    return "\n".join(parts)


def shown(settings: dict) -> dict:
    return {
        key: shown(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value is not None and key != "path"
    }


def licences(base: dict, sources: list[dict]) -> str:
    rows = ["| | name | revision | rows taken | trained on | licence |", "|---|---|---|---|---|---|"]
    commit = (base.get("commit") or "")[:12]
    rows.append(f"| base model | {cell(base_name(base))} | {commit} | | | {cell(base_licence(base))} |")
    for source in sources:
        cells = [
            source["role"],
            source.get("repo") or source["name"],
            source.get("commit", "")[:12],
            f"{source['taken']:,}",
            "not known" if source["kept"] is None else f"{source['kept']:,}",
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


def origin(checkpoint: Path, provenance: dict) -> str:
    facts = {"base manifest": provenance["base"]["manifest_sha256"]}
    if "merged" in provenance:
        facts |= {parent_name(one): one["weights_sha256"] for one in provenance["merged"]["parents"]}
    else:
        facts["training data"] = provenance["data_sha256"]
    if sampled := provenance.get("sampled_sha256"):
        facts["its own sampled pairs"] = sampled
    facts |= {
        link["checkpoint"].removeprefix("models/"): link["weights_sha256"] for link in provenance["chain"]
    }
    facts[checkpoint.name] = modeling.weights_sha256(checkpoint)
    facts["prompt template"] = provenance["template_sha256"]
    commit = commit_of(checkpoint)
    named = f"`{commit}`, whose dvc.lock names this checkpoint" if commit else "not committed"
    versions = ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
    lines = [
        f"- commit of the project: {named}",
        *(f"- {name}: sha256 `{value}`" for name, value in facts.items()),
        f"- base in training: {provenance['base']['quantization']} quantisation",
        f"- {versions}",
    ]
    return "\n".join(lines) + "\n"


LIMITS = """\
- It states wrong things with confidence. Do not rely on it in medical, legal or religious questions.
- It was not trained to refuse harmful requests, beyond what its base model and its data taught it.
- Dialects, long conversations and code were not measured unless a score above says so.
"""


def arabic(base: dict, provenance: dict, tables: dict) -> str:
    trained = "ضبط دقيق على تعليمات عربية" + (" ثم تدريب على التفضيلات" if provenance["chain"] else "")
    if "merged" in provenance:
        trained = "متوسط أوزان نماذج ضُبطت على بيانات عربية"
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

نموذج لغوي للعربية مبني على {base_name(base)}: {trained}.

- **القياس:** {measured} لا تصحّ مقارنة نتائج قيست بصيغ أسئلة مختلفة.
- **الرخصة:** تسري أشدّ الرخص المذكورة في جدول الرخص أعلاه.
- **الحدود:** قد يخطئ النموذج وهو واثق، فلا يُعتمد عليه في الطب أو القانون أو الفتوى،
  ولم تُقَس اللهجات ولا المحادثات الطويلة.

</div>
"""
