"""What evaluate reports: error bars, parts, leaked and faulty items apart, the gate, the distance from the
reference.
"""

import json
import math
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from stages import evaluate
from stages.evaluation import benchmarks, candidate, heldout, scores
from stages.settings.errors import Problem
from stages.settings.reader import read
from tests.conftest import Workspace


def row(i: int, score: float, **more) -> dict:
    known = {"benchmark": "exam", "id": f"exam:{i}", "rotation": 0, "subject": "لغة" if i % 2 else "تاريخ",
        "group": "", "level": "",
             "country": "", "chance": 0.25, "leaked": False, "fault": None}  # fmt: skip
    return known | {"score": score} | more


def entries(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(entry["slice"], entry["name"]): entry for entry in scores.scores(rows)}


def test_a_score_has_its_error_bar_and_its_parts():
    found = entries([row(i, float(i < 30)) for i in range(40)])
    whole = found["all", ""]
    assert (whole["value"], whole["n"], whole["chance"]) == (0.75, 40, 0.25)
    assert whole["ci_low"] < 0.75 < whole["ci_high"]
    assert found["subject", "لغة"]["n"] + found["subject", "تاريخ"]["n"] == 40
    assert not any(part == "country" for part, _ in found)  # one value tells nothing


def test_leaked_and_faulty_items_are_scored_apart():
    rows = [row(i, 0.0) for i in range(8)] + [row(8, 1.0, leaked=True), row(9, 1.0, fault="overwritten")]
    found = entries(rows)
    assert (found["all", ""]["value"], found["all", ""]["n"]) == (0.0, 8)
    assert (
        found["leaked", "in the training data"]["value"],
        found["leaked", "in the training data"]["n"],
    ) == (1.0, 1)
    assert found["with faulty", "questions with a fault, too"]["n"] == 10


def test_answers_without_a_reference_are_not_scored():
    assert scores.scores([row(0, None)]) == []


def test_a_model_that_always_says_one_letter_shows_in_its_rotations():
    item = {"choices": ["أحمر", "أخضر", "أزرق", "أصفر"], "answer": 1}
    turned = [benchmarks.rotated(item, by) for by in range(4)]
    assert [one["choices"][one["answer"]] for one in turned] == ["أخضر"] * 4
    always_a = [
        row(0, **benchmarks.choice_of(one, [0.0, -9.0, -9.0, -9.0]), rotation=by) for by,
        one in enumerate(turned)
    ]  # fmt: skip
    found = entries(always_a)
    assert found["rotated", "mean over rotations"]["value"] == 0.25
    assert found["consistent", "same choice in every rotation"]["value"] == 0
    assert [found["place", letter]["value"] for letter in "ABCD"] == [1, 0, 0, 0]
    four = [row(i, 0.0, picked=0, gold=i) for i in range(4)]
    assert scores.place_bias(four) == {"place_bias": 0.75}
    assert scores.place_bias([one | {"picked": 3 - one["gold"]} for one in four]) == {"place_bias": 0}


def test_held_out_rows_come_from_every_part():
    assert evaluate.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert evaluate.spread([1, 2], 4) == [1, 2]


def test_confidence_is_the_softmax_of_the_choices():
    logps = [-1.0, -2.0, -4.0]
    found = benchmarks.choice_of({"choices": ["أ", "ب", "ج"], "answer": 2}, logps)
    assert (found["picked"], found["gold"], found["score"]) == (0, 2, 0.0)
    assert found["confidence"] == pytest.approx(torch.softmax(torch.tensor(logps), 0)[0].item())


def test_a_requirement_stops_a_trained_checkpoint_and_says_by_how_much():
    params = read()
    wanted = params.evaluate.model_copy(update={"require": {"stop_rate": 0.9, "loop_rate": 0.1}})
    params = params.model_copy(update={"evaluate": wanted})
    evaluate.gate("sft", params, {"stop_rate": 0.95, "loop_rate": 0.05})
    evaluate.gate("base", params, {"stop_rate": 0.0, "loop_rate": 1.0})
    with pytest.raises(
        Problem, match=r"sft has a stop_rate of 0.5 and evaluate.require.stop_rate asks for at least 0.9"
    ):
        evaluate.gate("sft", params, {"stop_rate": 0.5, "loop_rate": 0.0})
    with pytest.raises(Problem, match=r"loop_rate of 0.3 .* at most 0.1"):
        evaluate.gate("dpo", params, {"stop_rate": 1.0, "loop_rate": 0.3})


def test_perplexity_per_byte_does_not_depend_on_the_tokenizer():
    coarse, fine = ([heldout.Held(-6.0, tokens, size=6)] for tokens in (2, 6))
    a, b = (heldout.text_scores(own, [math.log(0.25)]) for own in (coarse, fine))
    assert a["stop_probability"] == 0.25  # and the stop token is in neither of the others
    assert a["validation_loss"] != b["validation_loss"]
    assert (
        a["byte_perplexity"] == b["byte_perplexity"] == pytest.approx(2.7183, abs=1e-4)
    )  # 6 nats over 6 bytes


def test_divergence_is_from_what_the_training_started_from(inside):
    params = read()
    model = candidate.load("sft", params, None)
    prompts = [model.chat("ما جمع كلمة كتاب؟"), model.chat("اكتب العدد 7 بالحروف.")]
    answers = model.answers(prompts, "test")
    found = heldout.divergence(model, prompts, answers)

    total = tokens = 0
    for prompt, answer in zip(prompts, answers):
        ids = torch.tensor([[*model.tokenizer(prompt)["input_ids"], *answer.tokens]])
        start = ids.shape[1] - len(answer.tokens) - 1
        with torch.no_grad():
            ours = torch.distributions.Categorical(logits=model.model(ids).logits[0, start:])
            with model.model.disable_adapter():
                base = torch.distributions.Categorical(logits=model.model(ids).logits[0, start:])
        kl = torch.distributions.kl_divergence(ours, base)
        total, tokens = total + kl.sum().item(), tokens + len(kl)
    assert found == pytest.approx(total / tokens, abs=1e-3)
    assert found > 0.01

    same = candidate.load(
        "sft", params, Path("models/sft")
    )  # as dpo is compared with sft, before it has moved
    assert heldout.divergence(same, prompts, answers) == 0


@pytest.fixture(scope="module")
def asked(workspace: Workspace, tmp_path_factory) -> Workspace:
    """sft evaluated on a benchmark of every kind."""
    project = workspace.copy(tmp_path_factory.mktemp("asked") / "project")
    exam = [
        {
            "سؤال": f"ما ناتج {i} + {i}؟",
            "أ": str(2 * i),
            "ب": str(2 * i + 1),
            "ج": str(2 * i + 2),
            "مادة": "حساب",
        }
        for i in range(6)
    ]
    facts = [
        {"q": "ما عاصمة مصر؟", "a": ["القاهرة", "مدينة القاهرة"]},
        {"q": "ما عاصمة العراق؟", "a": ["بغداد"]},
    ]
    for name, rows in (("exam", [one | {"صحيح": "أ"} for one in exam]), ("facts", facts)):
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
        (project.path / f"data/own/{name}.jsonl").write_text(text, encoding="utf-8")
    project.set({
        "allow_builtin": True,
        "mixtures.demo.benchmarks.exam": {
            "path": "data/own/exam.jsonl",
            "columns": {"question": "سؤال", "choices": ["أ", "ب", "ج"], "answer": "صحيح", "subject": "مادة"},
        },
        "mixtures.demo.benchmarks.facts": {"path": "data/own/facts.jsonl",
            "columns": {"question": "q", "answer": "a"}},
        "evaluate.rotate": True,
    })  # fmt: skip
    for command in (["fetch", "benchmarks"], ["evaluate", "sft"]):
        project.run(sys.executable, "-m", f"stages.{command[0]}", command[1])
    return project


def test_every_item_has_its_prediction(asked):
    table = parquet.read_table(asked.path / "data/predictions/sft.parquet")
    assert table.schema == benchmarks.SCHEMA
    rows = table.to_pylist()
    keys = [(one["benchmark"], one["id"], one["rotation"]) for one in rows]
    assert len(set(keys)) == len(keys)
    exam = [one for one in rows if one["benchmark"] == "exam"]
    assert len(exam) == 6 * 3
    assert all(
        one["reference"] == str(2 * int(one["id"].split(":")[1])) for one in exam
    )  # whatever the rotation
    assert {one["benchmark"] for one in rows} >= {
        "exam",
        "facts",
        "facts_f1",
        "skills",
        "skills_choice",
        "preference",
        "held-out",
    }


def test_the_report_says_how_it_was_asked_and_with_what_error(asked):
    found = json.loads((asked.path / "metrics/tables/sft.json").read_text(encoding="utf-8"))
    exam = next(one for one in found["protocol"] if one["benchmark"] == "exam")
    assert (exam["style"], exam["language"], exam["shots"], exam["equals"]) == ("lm-eval", "English", 0, None)
    assert exam["template_sha256"]
    for entry in found["scores"] + found["slices"]:
        assert entry["ci_low"] <= entry["value"] <= entry["ci_high"]
        assert entry["n"] > 0
    metrics = json.loads((asked.path / "metrics/sft.json").read_text(encoding="utf-8"))
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert next(iter(metrics)) == "skills"
    shown = {"exam", "facts", "facts_f1", "skills", "skills_sentence", "skills_right_sentence"}
    assert set(metrics) == shown | {"preference", "validation_loss", "stop_rate"}
    measures = {row["measure"]: row["value"] for row in found["measures"]}
    assert metrics.items() <= measures.items()
    assert {"skills_choice", "byte_perplexity", "place_bias", "divergence"} <= set(measures)


def test_a_requirement_of_something_unknown_is_refused_at_once(asked):
    asked.set({"evaluate.require": {"speling": 1.0}})
    result = asked.run(sys.executable, "-m", "stages.evaluate", "sft", check=False)
    asked.set({"evaluate.require": {}})
    assert "evaluate.require is 'speling': it must be one of" in result.stderr


def test_items_that_training_rows_hold_are_found_in_the_reports(tmp_path):
    kept = [{"reason": "leak_kept", "detail": "exam\texam:1"}, {"reason": "leak", "detail": "exam exam:2"}]
    parquet.write_table(pa.Table.from_pylist(kept), tmp_path / "instructions.parquet")
    assert scores.leaked_items([tmp_path / "instructions.parquet"]) == {("exam", "exam:1")}
