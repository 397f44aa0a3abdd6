"""Benchmarks whose answers are checked by rules or judged, from a hub's files to the leaderboard's row."""

import json
import re
import sys

import pytest
from pyarrow import parquet

from stages.evaluation import benchmarks
from stages.judge.instructions import check
from stages.model.generation import Answer
from stages.settings.reader import read
from stages.text.prompts import TEMPLATES
from tests.conftest import ROOT, Workspace
from tests.fake_hub import tiny_hub
from tests.fake_judge import FakeJudge
from tools import scores as shown

NEW = ["mmlu-ht", "madinahqa", "aratrust", "arabculture", "arabic-ifeval", "alrage"]


class Talker:
    """A candidate that says one thing to every prompt."""

    def __init__(self, said: str):
        self.said, self.asked, self.limits = said, [], []

    def chat(self, question: str) -> str:
        return question

    def answers(self, prompts, title, stops=None, limit=None):
        self.asked += prompts
        self.limits.append(limit)
        return [Answer(self.said, (1, 2, 3), True) for _ in prompts]


class Judge:
    def __init__(self):
        self.record = {"kind": "chat"}

    def scores(self, answers, title):
        self.given = answers
        return [0.4, None][: len(answers)]


def item(number: int, **more) -> dict:
    known = {
        "id": f"set:{number}",
        "question": f"س{number}",
        "context": "",
        "references": None,
        "rules": None,
    }
    return known | dict.fromkeys(("subject", "group", "level", "country"), "") | {"fault": None} | more


def test_rules_give_ifevals_four_scores():
    rules = [
        json.dumps({"id": name, "arguments": given})
        for name, given in (("punctuation:no_comma", {}), ("startend:quotation", {}))
    ]
    talker = Talker("«نعم»\nشكرا")
    unknown = json.dumps({"id": "keywords:rhyme", "arguments": {}})
    rows = benchmarks.ask_open(talker, "arabic-ifeval", [item(0, rules=rules), item(1, rules=[unknown])])
    assert check("س0", rules, talker.said) == ([True, False], [True, True])
    scored = [(row["benchmark"], row["id"], row["subject"], row["score"]) for row in rows[:-1]]
    assert scored == [
        ("arabic-ifeval", "set:0", "", 0.0),
        ("arabic-ifeval_loose", "set:0", "", 1.0),
        ("arabic-ifeval_instructions", "set:0.1", "punctuation:no_comma", 1.0),
        ("arabic-ifeval_instructions", "set:0.2", "startend:quotation", 0.0),
        ("arabic-ifeval_instructions_loose", "set:0.1", "punctuation:no_comma", 1.0),
        ("arabic-ifeval_instructions_loose", "set:0.2", "startend:quotation", 1.0),
    ]
    assert [row.get("tokens") for row in rows] == [
        3,
        None,
        None,
        None,
        None,
        None,
        3,
    ]  # lengths count answers
    assert {row["cluster"] for row in rows if "_instructions" in row["benchmark"]} == {"set:0"}
    assert talker.limits == [1280]
    rows = list(map(benchmarks.complete, rows))
    assert (rows[-1]["fault"], rows[-1]["score"]) == ("unsupported_instruction", None)
    (said,) = benchmarks.notes(rows, None)
    assert said == "1 items ask for what no rule checks; set:1: no rule checks keywords:rhyme"


def test_a_judged_benchmark_has_the_judges_score_and_no_other():
    talker, judge = Talker("أبيض"), Judge()
    items = [item(i, context="نص", references=["أبيض"]) for i in range(2)]
    rows = benchmarks.ask_open(talker, "alrage", items, judge)
    assert [(row["benchmark"], row["score"], row["tokens"], row["reference"]) for row in rows] == [
        ("alrage", 0.4, 3, "أبيض"), ("alrage", None, 3, "أبيض")
    ]  # fmt: skip
    assert talker.limits == [200]
    assert judge.given[0].question.endswith("السؤال:\nس0\n\nالسياقات المقترحة:\nنص\n")
    assert benchmarks.notes(list(map(benchmarks.complete, rows)), judge) == [
        "alrage: 1 of 2 answers have no score: the judge gave no verdict"
    ]
    alone = list(map(benchmarks.complete, benchmarks.ask_open(talker, "alrage", items)))
    assert [row["score"] for row in alone] == [None, None]
    assert benchmarks.notes(alone, None) == [
        "alrage: 2 of 2 answers have no score: name a judge in evaluate.judge"
    ]


def test_other_open_questions_are_judged_beside_their_scores():
    items = [item(0, references=["أبيض"]), item(1)]
    rows = benchmarks.ask_open(Talker("أبيض"), "mine", items, Judge())
    assert [(row["benchmark"], row["id"], row.get("score")) for row in rows] == [
        ("mine_f1", "set:0", 1.0), ("mine", "set:0", 1.0), ("mine_judged", "set:0", 0.4),
        ("mine", "set:1", None), ("mine_judged", "set:1", None),
    ]  # fmt: skip


def test_a_base_model_is_asked_own_questions_after_worked_examples_too():
    template = TEMPLATES["chatml"]
    chat = [{"role": "user", "content": "س"}, {"role": "assistant", "content": "ج"}]
    rows = [
        {"prompt": template.render(turns), "completion": template.complete(answer), "tokens": tokens}
        for turns, answer, tokens in (
            ([{"role": "user", "content": "قصير"}], "١", 3),
            ([{"role": "user", "content": "ما لون الثلج؟"}], "أبيض", 5),
            ([*chat, *chat[:1]], "محادثة", 6),
            ([{"role": "system", "content": "أجب"}, {"role": "user", "content": "ما لون الفحم؟"}], "أسود", 7),
            ([{"role": "user", "content": "عدد"}], "سطر\nوسطر", 8),
            ([{"role": "user", "content": "ما لون الدم؟"}], "أحمر", 9),
            ([{"role": "user", "content": "طويل"}], "٢", 30),
        )
    ]
    talker = Talker("أبيض")
    talker.template, talker.line_ends = template, [0]
    examples = benchmarks.worked_examples(talker, rows)
    assert examples == [("ما لون الثلج؟", "أبيض"), ("ما لون الفحم؟", "أسود"), ("ما لون الدم؟", "أحمر")]
    found = benchmarks.ask_worked(talker, "mine", [item(0, references=["أبيض ناصع"]), item(1)], examples)
    assert talker.asked == [
        "سؤال: ما لون الثلج؟\nجواب: أبيض\nسؤال: ما لون الفحم؟\nجواب: أسود\n"
        "سؤال: ما لون الدم؟\nجواب: أحمر\nسؤال: س0\nجواب:"
    ]
    assert [(row["benchmark"], round(row["score"], 2)) for row in found] == [
        ("mine_worked_examples", 0.0), ("mine_worked_examples_f1", 0.67)
    ]  # fmt: skip
    assert benchmarks.ask_worked(talker, "mine", [item(0, references=["١"])], []) == []


def test_the_worked_examples_that_a_benchmark_could_not_give_are_not_recorded(monkeypatch):
    rows = [
        item(i, choices=["أ", "ب"], answer=0, split=split) | {"subject": subject}
        for i, (split, subject) in enumerate(
            [("dev", "نحو"), ("dev", "نحو"), ("test", "نحو"), ("test", "صرف")]
        )
    ]
    monkeypatch.setattr(benchmarks, "load", lambda name, split: (rows[2:], rows))
    settings = read(ROOT / "params.yaml").evaluate.model_copy(update={"shots": 5})
    wording = {
        name: benchmarks.wording(name, settings) for name in ("mine", "arabicmmlu", "skills", "alrage")
    }
    assert [how["shots"] for how in wording.values()] == [2, "0 to 2", 3, 0]
    assert benchmarks.shot_notes(wording, settings) == [
        "mine: evaluate.shots is 5, its dev split holds 2 for a question",
        "arabicmmlu: evaluate.shots is 5, its dev split holds 0 to 2 for a question",
    ]


# --- from a hub to the leaderboard --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(workspace, tmp_path_factory) -> tuple[Workspace, FakeJudge]:
    """A trained project that a hub's benchmarks were asked of, and the judge of its answers."""
    project = workspace.copy(tmp_path_factory.mktemp("asked") / "project")
    (project.path / "data/reports").mkdir(exist_ok=True)
    with (
        tiny_hub((ROOT / "models/nano/tokenizer.json").read_bytes()) as hub,
        FakeJudge(lambda messages: "لا" if "شمس" in messages[1]["content"] else "٨") as judge,
    ):
        judge_settings = {"kind": "chat", "base_url": judge.url, "model": "judge-1", "max_tokens": 8}
        project.set(
            {
                "mixtures.demo.benchmarks": dict.fromkeys(NEW, "all"),
                "allow_builtin": True,
                "evaluate.style": "oall",
                "evaluate.judge": judge_settings,
            }
        )
        project.environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "DVC_ROOT": str(project.path),
            "HF_HOME": str(tmp_path_factory.mktemp("home")), "JUDGE_API_KEY": "sk-test"}  # fmt: skip
        project.run(sys.executable, "-m", "stages.fetch", "benchmarks")
        project.environment.pop("HF_HUB_OFFLINE")
        project.said = project.run(sys.executable, "-m", "stages.evaluate", "base").stdout
        yield project, judge


def tables(project: Workspace) -> dict:
    return json.loads((project.path / "metrics/tables/base.json").read_text(encoding="utf-8"))


def test_published_layouts_are_asked_and_scored(asked):
    project, judge = asked
    found = {entry["benchmark"]: entry for entry in tables(project)["scores"]}
    assert set(NEW) <= set(found)
    assert found["alrage"]["value"] == 0.8
    assert len(judge.log) == 6
    assert "judge: judge-1: 6 requests (300 tokens asked, 6 answered)" in project.said
    kinds = ("", "_loose", "_instructions", "_instructions_loose")
    assert [found[f"arabic-ifeval{kind}"]["n"] for kind in kinds] == [6, 6, 12, 12]
    protocol = {one["benchmark"]: one for one in tables(project)["protocol"]}
    assert protocol["aratrust"]["equals"] == "lighteval 0.13.0, aratrust"
    assert protocol["arabic-ifeval"]["max_new_tokens"] == 1280
    assert protocol["alrage"]["judge"] == {"kind": "chat", "model": "judge-1", "max_tokens": 8}
    slices = {(one["benchmark"], one["slice"], one["name"]): one for one in tables(project)["slices"]}
    assert slices["aratrust", "macro", "subject"]["groups"] == 2
    assert slices["arabculture", "country", "UAE"]["n"] == 6
    assert ("mmlu-ht", "macro", "subject") not in slices  # its subjects are of one size here
    rows = parquet.read_table(project.path / "data/predictions/base.parquet").to_pylist()
    assert {row["choices"] for row in rows if row["benchmark"] == "madinahqa"} == {2}


@pytest.mark.slow
def test_the_second_evaluation_asks_the_judge_nothing(asked):
    project, judge = asked
    before, metrics = len(judge.log), (project.path / "metrics/base.json").read_bytes()
    said = project.run(sys.executable, "-m", "stages.evaluate", "base").stdout
    assert len(judge.log) == before
    assert "0 requests (0 tokens asked, 0 answered), 6 verdicts known from before" in said
    assert (project.path / "metrics/base.json").read_bytes() == metrics


def test_the_leaderboards_row_names_what_is_missing(asked, monkeypatch):
    project, _ = asked
    lines = project.run(sys.executable, "-m", "tools.scores", "--leaderboard").stdout.splitlines()
    assert lines[0].split() == ["checkpoint", "Average", *shown.LEADERBOARD]
    name, average, *cells = lines[1].split()
    assert (name, average, cells[:3]) == ("base", "–", ["–", "–", "–"])
    assert all(re.fullmatch(r"\d+\.\d\d", cell) for cell in cells[3:])
    assert cells[5] == "80.00"
    macro = next(
        one for one in tables(project)["slices"] if one["benchmark"] == "aratrust" and one["slice"] == "macro"
    )
    assert cells[4] == f"{100 * macro['value']:.2f}"
    assert [line for line in lines if line.startswith("- ")] == [
        f"- {title} ({name}): not among the mixture's benchmarks: base"
        for title, name in (("AlGhafa", "alghafa"), ("ArabicMMLU", "arabicmmlu"), ("EXAMS", "arabic-exams"))
    ]
    project.run(sys.executable, "-m", "tools.scores")


def whole_row(**other) -> dict:
    scores = [
        {"benchmark": name, "slice": "all", "name": "", "value": 0.5} for name in shown.LEADERBOARD.values()
    ]
    protocol = [
        {"benchmark": name, "style": "oall", "shots": 0, "chat": False} | other
        for name in shown.LEADERBOARD.values()
    ]
    return {"scores": scores, "slices": [], "protocol": protocol}


def test_the_average_is_of_all_seven_asked_alike():
    table = whole_row()
    table["slices"] = [{"benchmark": "arabicmmlu", "slice": "macro", "name": name, "value": value}
        for name, value in (("subject", 0.6), ("subject and level", 0.85))]  # fmt: skip
    line = shown.leaderboard({"sft": table})[1].split()
    assert (line[1], line[3]) == ("55.00", "85.00")
    lines = shown.leaderboard({"sft": whole_row(style="lm-eval", shots=5)})
    assert lines[1].split() == ["sft", *["–"] * 8]
    assert "- AlGhafa (alghafa): evaluate.style is lm-eval, evaluate.shots is 5: sft" in lines
