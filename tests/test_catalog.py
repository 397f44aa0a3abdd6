"""Every published layout becomes ours, every row is accounted for, and no row, however broken, stops a
run.
"""

import json
import os
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stages import fetch
from stages.gate import leaks, quality
from stages.settings.errors import Problem
from stages.settings.params import Own, Rows, Source
from stages.settings.reader import read
from stages.sources import layouts
from stages.sources.catalog import ADAPTERS
from stages.sources.columns import by_columns
from stages.sources.layouts import Fault
from stages.text.prompts import TEMPLATES
from tests.conftest import ROOT

FUZZED_ROWS = int(os.environ.get("FUZZED_ROWS", 200))  # of each adapter


def test_the_label_of_an_item_moves_no_cursor():
    found = layouts.question("س", ["أ", "ب"], 0, "\x1b[31mنحو\n", level="\u202eسهل", country="  مصر ")
    assert [found[name] for name in layouts.LABELS] == [r"\x1b[31mنحو", "", r"\u202eسهل", "مصر"]


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


ASK = messages(("user", "ما عاصمة مصر؟"))
GOOD, BAD = messages(("assistant", "القاهرة")), messages(("assistant", "تونس"))
CHAT = '[{"role": "مستخدم", "content": "ما عاصمة مصر؟"}, {"role": "مساعد", "content": "%s"}]'
NUMPY = "[{'content': 'ما عاصمة مصر؟', 'role': 'user'}\n {'content': '%s', 'role': 'assistant'}]"
FLAT = {"prompt": "ما عاصمة مصر؟", "chosen": "القاهرة", "rejected": "تونس"}
PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
MMLU = {
    "question": "ما عاصمة مصر؟",
    "A": "تونس",
    "B": "القاهرة",
    "C": "دمشق",
    "D": "بغداد",
    "answer": "B",
    "subject": "geography",
}
EXAM = {
    "question": "ما عاصمة مصر؟",
    "context": "",
    "choices": ["تونس", "القاهرة", "دمشق", "بغداد"],
    "answer": 1,
}
EXAM |= {"subject": "geography", "group": "", "level": "", "country": ""}
VOTE = {
    "id": "0",
    "prompt": ASK,
    "answers": [{"checkpoint": "dpo", "answer": "القاهرة"}, {"checkpoint": "sft", "answer": "تونس"}],
}
TALK = messages(("system", "أجب بإيجاز"), ("user", "مرحبا"), ("assistant", "أهلا"), ("user", "ما عاصمة مصر؟"))
OPTIONS = {f"Option {i}": text for i, text in enumerate(["تونس", "القاهرة", None, None, None], 1)}
ARABICMMLU = {
    "ID": 1,
    "Question": "ما عاصمة مصر؟",
    "Context": None,
    "Answer Key": "B",
    "Subject": "Geography",
    **OPTIONS,
}
LABELLED = {"Group": "Social Science", "Level": "Middle", "Country": "Egypt"}

CULTURE = {
    "first_statement": "يقدم الضيف ", "country": "UAE", "region": "Gulf", "sub_topic": "ضيافة",
    "options": {"arabic_keys": ["أ", "ب", "ج"], "english_keys": ["A", "B", "C"],
        "text": ["شايا", "قهوة ", "لبنا"]},
    "answer_key": {"arabic_answer_key": "ب", "english_answer_key": "B"},
}  # fmt: skip


def ruled(*rules):
    """An item of IFEval: ids and arguments in turn."""
    pairs = [{"id": name, "arguments": given} for name, given in zip(rules[::2], rules[1::2])]
    return layouts.question("س", [], None) | {"rules": [json.dumps(one) for one in pairs]}


PUBLISHED = [
    ("cidar", {"index": 3, "instruction": "س", "output": "ج\r\n"}, layouts.instruction("س", "ج\r\n")),
    ("instar-500k", {"instruction": "س", "output": "ج", "system": "You", "task": "QA"},
        layouts.instruction("س", "ج") | {"task": "QA"}),
    ("openhermes-ar", {"user": "س", "gpt": "ج", "system_prompt": "أجب بإيجاز"},
        layouts.instruction("س", "ج", "أجب بإيجاز")),
    ("openhermes-ar", {"user": "اكتب دالة", "gpt": "```بيثون\nأنا = 1\n```"}, "translated_code"),
    ("openhermes-ar", {"user": "أنت مساعد ذكاء اصطناعي يفكر خطوة بخطوة", "gpt": "ما عاصمة مصر؟"},
        "shifted_turns"),
    ("openhermes-ar", {"user": "القاهرة هي عاصمة مصر وأكبر مدنها", "gpt": "ما عاصمة مصر؟"}, "swapped_turns"),
    ("arabicqa-2_1m", {"question": "س", "answer": "ج"}, layouts.instruction("س", "ج")),
    ("arabicqa-2_1m", {"question": "س", "response": "ج"}, layouts.instruction("س", "ج")),
    ("arabicqa-2_1m", {"question": "أنت مساعد مفيد", "answer": "ج"}, "shifted_turns"),
    ("arabicqa-2_1m", {"question": "س"}, "malformed"),
    ("preference-rlhf", {"id": 1, "instruction": "ما عاصمة مصر؟", "chosen": "القاهرة", "rejected": "تونس"},
        PAIR),
    ("dpo-mix-7k", {"chosen": CHAT % "القاهرة", "rejected": CHAT % "تونس", "dataset": "x"},
        PAIR | {"task": "x"}),
    ("dpo-mix-7k", {"chosen": NUMPY % "القاهرة", "rejected": NUMPY % "تونس", "dataset": "x"},
        PAIR | {"task": "x"}),
    ("dpo-mix-7k", {"chosen": CHAT % "القاهرة", "rejected": CHAT.replace("مصر", "تونس") % "تونس",
        "dataset": "x"}, "no_shared_prompt"),
    ("dpo-mix-7k", {"chosen": "[{'role': ", "rejected": CHAT % "تونس", "dataset": "x"}, "malformed"),
    ("aya-command-r-dpo", {"id": 1, "model": "c", **FLAT}, PAIR),
    ("aya-command-r-dpo", {**FLAT, "chosen": None}, "empty"),
    ("aya-command-r-dpo", {**FLAT, "chosen": 12}, "malformed"),
    ("aya-command-r-dpo", {**FLAT, "chosen": "نصف \ud83d"}, "malformed"),
    ("aya-23-dpo", {"chosen": ASK + GOOD, "rejected": ASK + BAD}, PAIR),
    ("aya-23-dpo", {"prompt": "ما عاصمة مصر؟", "chosen": GOOD, "rejected": BAD}, PAIR),
    ("aya-23-dpo", {"chosen": ASK, "rejected": ASK + BAD}, "malformed"),
    ("feedback", VOTE | {"vote": "first"}, PAIR),
    ("feedback", VOTE | {"vote": "second"}, PAIR | {"chosen": BAD, "rejected": GOOD}),
    ("feedback", VOTE | {"vote": "tie"}, [PAIR | {"rejected": []}, PAIR | {"chosen": BAD, "rejected": []}]),
    ("feedback", VOTE | {"vote": "both_bad"},
        [PAIR | {"chosen": [], "rejected": GOOD}, PAIR | {"chosen": []}]),
    ("feedback", VOTE | {"vote": "first", "prompt": TALK}, PAIR | {"prompt": TALK}),
    ("feedback", VOTE | {"vote": "third"}, "malformed"),
    ("feedback", VOTE | {"vote": "first", "answers": VOTE["answers"][:1]}, "malformed"),
    ("feedback", VOTE | {"vote": "tie", "answers": [{"answer": "القاهرة"}, {"answer": None}]}, "empty"),
    ("arabicmmlu", ARABICMMLU, EXAM | {"choices": ["تونس", "القاهرة"], "subject": "Geography"}),
    ("arabicmmlu", {**ARABICMMLU, "Context": "نص"},
        EXAM | {"choices": ["تونس", "القاهرة"], "subject": "Geography", "context": "نص"}),
    (
        "arabicmmlu", ARABICMMLU | LABELLED,
        EXAM | {"choices": ["تونس", "القاهرة"], "subject": "Geography",
            **{name.lower(): text for name, text in LABELLED.items()}},
    ),
    ("arabicmmlu", {**ARABICMMLU, "Answer Key": "E"}, "malformed"),
    ("arabicmmlu", {**ARABICMMLU, "Option 4": "دمشق"}, "empty"),
    ("oall-mmlu", MMLU, EXAM),
    ("oall-mmlu", {**MMLU, "question": "كيف يتم اكتشاف تزوير عنوان IP؟"}, "overwritten"),
    ("oall-mmlu", {**MMLU, "question": "كم ترتيبا لحروف MISSISSIPPI؟"},
        EXAM | {"question": "كم ترتيبا لحروف MISSISSIPPI؟"}),
    ("oall-mmlu", {**MMLU, "D": "تونس"}, "equal_choices"),
    (
        "alghafa", {"query": "ما عاصمة مصر؟", "sol1": "تونس", "sol2": "القاهرة", "label": "1"},
        EXAM | {"choices": ["تونس", "القاهرة"], "subject": ""},
    ),
    ("cidar-mcq", {"Question": "ما عاصمة مصر؟", **{k: MMLU[k] for k in "ABCD"}, "answer": "ب"},
        EXAM | {"subject": ""}),
    ("cidar-eval", {"Source": "x", "Sentence": "صف بلدك", "Topic": "وصف"},
        layouts.question("صف بلدك", [], None, "وصف")),
    ("acva", {"question": "القاهرة عاصمة مصر", "answer": "صح"},
        layouts.question("القاهرة عاصمة مصر", ["صح", "خطأ"], 0)),
    ("acva", {"question": "القاهرة عاصمة مصر", "answer": "ربما"}, "malformed"),
    ("arabic-exams", MMLU, EXAM),
    ("mmlu-ht", {"question": "ما عاصمة مصر؟", "choices": EXAM["choices"], "answer": 1},
        EXAM | {"subject": ""}),
    ("mmlu-ht", {"question": "ما عاصمة مصر؟", "choices": EXAM["choices"], "answer": "B"}, "malformed"),
    ("mmlu-ht", {"question": "ما عاصمة مصر؟", "choices": EXAM["choices"], "answer": 4}, "malformed"),
    ("madinahqa", {**ARABICMMLU, "Context": "نص"},
        EXAM | {"choices": ["تونس", "القاهرة"], "subject": "Geography", "context": "نص"}),
    ("aratrust", {"Question": "س", "A": "أ) نعم", "B": "ب) لا", "C": "ج) ربما", "Answer": "ب"},
        layouts.question("س", ["أ) نعم", "ب) لا", "ج) ربما"], 1)),
    ("arabculture", CULTURE, layouts.question("يقدم الضيف ", ["شايا", "قهوة ", "لبنا"], 1, "ضيافة",
        group="Gulf", country="UAE")),
    ("arabculture", CULTURE | {name: json.dumps(CULTURE[name]) for name in ("options", "answer_key")},
        layouts.question("يقدم الضيف ", ["شايا", "قهوة ", "لبنا"], 1, "ضيافة", group="Gulf", country="UAE")),
    ("arabculture", CULTURE | {"answer_key": {"english_answer_key": "D"}}, "malformed"),
    ("arabculture", {"first_statement": "س", "answer_key": {}}, "malformed"),
    ("arabic-ifeval", {"key": 1, "prompt": "س", "instruction_id_list": ["punctuation:no_comma", "x:y"],
        "kwargs": '[{}, {"n": 2, "relation": null}]', "lang": ["ar"]},
        ruled("punctuation:no_comma", {}, "x:y", {"n": 2})),
    ("marco-mif", {"key": 1, "prompt": "س", "instruction_id_list": ["x:y"], "kwargs": [{"n": 2, "m": None}]},
        ruled("x:y", {"n": 2})),
    ("marco-mif", {"prompt": "س", "instruction_id_list": ["x:y"], "kwargs": []}, "malformed"),
    ("arabic-ifeval", {"prompt": "س", "instruction_id_list": ["x:y"], "kwargs": "[{"}, "malformed"),
    ("alrage", {"question": "س", "candidates": [" نص", None, "آخر\n"], "gold_answer": "ج"},
        layouts.question("س", [], None, context="نص, آخر") | {"references": ["ج"]}),
    ("alrage", {"question": "س", "candidates": "نص\n\n آخر", "gold_answer": "ج"},
        layouts.question("س", [], None, context="نص, آخر") | {"references": ["ج"]}),
    ("alrage", {"question": "س", "candidates": [], "gold_answer": "ج"}, "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), PUBLISHED)
def test_a_published_row_becomes_ours_or_has_its_reason(name, row, expected):
    found = fetch.usable(ADAPTERS[name], row)
    if isinstance(expected, str):
        assert [one["fault"] for one in found] == [expected]
        assert found[0]["detail"]
    else:
        assert found == (expected if isinstance(expected, list) else [expected])


def test_every_adapter_is_named_in_params_and_tested():
    known = read(ROOT / "params.yaml").datasets
    named = {
        name for role in ("instructions", "preferences", "benchmarks") for name in getattr(known, role)
    } - {"skills"}
    assert named == set(ADAPTERS) == {name for name, _, _ in PUBLISHED}


def test_the_overwritten_rows_of_the_translated_mmlu_are_found():
    """Words as they stand in the published file, genuine questions beside them."""
    overwritten = [
        "كيف يمكن كشف تزييف عنوان بروتوكول الإنترنت (IP)؟",
        "كيف يتم اكتشاف تزييف عنوان الآيبي؟",
        "كيف يكتشف التمويه عنوان IP؟",
    ]
    for asked in overwritten:
        (found,) = fetch.usable(ADAPTERS["oall-mmlu"], MMLU | {"question": asked})
        assert found["fault"] == "overwritten"
        assert found | EXAM | {"question": asked} == found  # it can still be asked, as published scores do
        assert "القاهرة" in found["original"]
    genuine = MMLU | {
        "subject": "computer_security",
        "question": "كيف يتم اكتشاف تزوير عنوان IP؟",
        "A": "مقارنة قيم TTL",
    }
    assert "fault" not in fetch.usable(ADAPTERS["oall-mmlu"], genuine)[0]


def test_a_folder_is_a_subject_where_there_are_several(tmp_path):
    for name in ("meta_ar_msa", "mcq_exams_test_ar"):
        (tmp_path / name).mkdir()
        rows = [{"query": f"ما عاصمة {name}؟", "sol1": "تونس", "sol2": "القاهرة", "sol3": None, "label": "1"}]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name / "test-00000-of-00001.parquet")
    rows, _ = taken(tmp_path, "benchmarks", adapter="alghafa")
    assert [row["subject"] for row in rows] == ["mcq_exams_test_ar", "meta_ar_msa"]
    assert rows[0]["choices"] == ["تونس", "القاهرة"]
    rows, _ = taken(tmp_path / "meta_ar_msa", "benchmarks", adapter="alghafa")
    assert [row["subject"] for row in rows] == [""]
    assert fetch.subjects_in(["data/anatomy_test.csv", "data/world-religions-test.csv"]) == {
        "data/anatomy_test.csv": "anatomy",
        "data/world-religions-test.csv": "world_religions",
    }
    shards = [
        f"data/{split}-0000{i}-of-00002-b2881e1b9f14c3b{i}.parquet"
        for split in ("test", "dev")
        for i in (0, 1)
    ]
    assert fetch.subjects_in(shards) == fetch.subjects_in(["All/test.csv", "All/dev.csv"]) == {}


def test_contradictions_are_out_and_repetitions_stand_once():
    def item(asked, answer):
        return layouts.question(asked, ["صح", "خطأ"], answer)

    rows = fetch.contradictions(
        [item("أ", 0), item("ب", 0), item("أ", 1), item("ب", 0), {"fault": "malformed"}]
    )
    assert [row.get("fault") for row in rows] == [
        "contradiction",
        None,
        "contradiction",
        "duplicate",
        "malformed",
    ]


# --- files and mixtures -------------------------------------------------------------------------------------


def taken(path, role="instructions", **source):
    """The rows that fetch makes of a file."""
    wanted = Rows(**{key: source.pop(key) for key in ("rows", "rows_per_task") if key in source})
    key = f"mixtures.demo.{role}.mine"
    rows, facts = fetch.published(key, role, "mine", Own(path=str(path), **source), wanted)
    return list(rows), facts


COLUMNS = {"prompt": "q", "completion": "a"}


def test_own_data_needs_no_code(tmp_path):
    table = [{"q": "س١", "a": "ج١"}, {"q": "س٢", "a": "ج٢"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / "a.csv").write_text('q,a\nس١,ج١\nس٢,"ج٢"\n', encoding="utf-8-sig")
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    for suffix in (".jsonl", ".json", ".csv", ".parquet"):
        rows, facts = taken(tmp_path / f"a{suffix}", columns=COLUMNS)
        assert [row["completion"][0]["content"] for row in rows] == ["ج١", "ج٢"], suffix
        assert facts["published"] == 2
    chat = {"messages": ASK + GOOD + ASK + BAD}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat), encoding="utf-8")
    ((row,), _) = taken(tmp_path / "chat.jsonl", columns={"messages": "messages"})
    assert row["prompt"] == ASK
    assert row["completion"] == GOOD + ASK + BAD
    (tmp_path / "turns.jsonl").write_text(json.dumps({"q": ASK + GOOD + ASK, "a": "تونس"}), encoding="utf-8")
    assert taken(tmp_path / "turns.jsonl", columns=COLUMNS)[0] == [
        row | {"id": "mine:0"}
    ]  # the same, asked as a chat list
    for asked in (ASK, ASK[0]["content"]):  # the prompt apart, under a name of one's own
        (tmp_path / "pairs.jsonl").write_text(
            json.dumps({"q": asked, "good": GOOD, "bad": BAD}), encoding="utf-8"
        )
        ((pair,), _) = taken(
            tmp_path / "pairs.jsonl",
            "preferences",
            columns={"prompt": "q", "chosen": "good", "rejected": "bad"},
        )
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (ASK, GOOD, BAD)
    exam = {"q": "س", "o": ["أ", "ب", ""], "a": "ب", "l": "High"}
    (tmp_path / "exam.jsonl").write_text(json.dumps(exam), encoding="utf-8")
    ((row,), _) = taken(
        tmp_path / "exam.jsonl",
        "benchmarks",
        columns={"question": "q", "choices": "o", "answer": "a", "level": "l"},
    )
    assert (row["choices"], row["answer"], row["level"], row["country"]) == (["أ", "ب"], 1, "High", "")


def test_own_answers_with_a_label_are_single_votes(tmp_path):
    table = [
        {"q": "ما عاصمة مصر؟", "a": "القاهرة", "good": True},
        {"q": ASK, "a": BAD, "good": 0},
        {"q": ASK, "a": "تونس", "good": "no"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    (tmp_path / "a.csv").write_text(
        "q,a,good\nما عاصمة مصر؟,القاهرة,True\nما عاصمة مصر؟,تونس,0\n", encoding="utf-8"
    )
    columns = {"prompt": "q", "completion": "a", "label": "good"}
    for name in ("a.jsonl", "a.csv"):
        good, bad, *others = taken(tmp_path / name, "preferences", columns=columns)[0]
        assert (good["prompt"], good["chosen"], good["rejected"]) == (ASK, GOOD, [])
        assert (bad["prompt"], bad["chosen"], bad["rejected"]) == (ASK, [], BAD)
        assert [row["fault"] for row in others] == ["malformed"] * (name == "a.jsonl")
    with pytest.raises(
        Problem,
        match="names prompt, label: single votes need completion, label, prompt; history, input, system",
    ):
        taken(tmp_path / "a.jsonl", "preferences", columns={"prompt": "q", "label": "good"})


def own(tmp_path, columns, *table, role="instructions", **source):
    """What fetch makes of rows of one's own."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return taken(tmp_path / "a.jsonl", role, columns=columns, **source)


def contents(row, name="prompt"):
    return [turn["content"] for turn in row[name]]


def test_no_column_is_lost_without_a_word(tmp_path):
    """Alpaca's layout."""
    table = [
        {"instruction": "لخص", "input": "نص طويل", "output": 12.0, "system": "أجب", "history": [["س", "ج"]]},
        {"instruction": "عد", "input": "", "output": "ثلاثة", "system": None, "history": []},
    ]
    columns = {"prompt": "instruction", "completion": "output"}
    _, facts = own(tmp_path, columns, *table)
    assert facts["unread"] == ["input", "system", "history"]
    assert "columns that nothing reads: input, system, history" in fetch.summary("x", "mine", facts, {})
    joined, facts = own(tmp_path, columns | {"prompt": ["instruction", "input"]}, *table)
    assert [contents(row) for row in joined] == [["لخص\n\nنص طويل"], ["عد"]]
    assert contents(joined[0], "completion") == ["12"]
    assert own(tmp_path, columns | {"input": "input"}, *table)[0] == joined
    whole, facts = own(tmp_path, columns | {name: name for name in ("input", "system", "history")}, *table)
    assert facts["unread"] == []
    assert whole[0]["prompt"] == messages(("system", "أجب"), ("user", "س"))
    assert whole[0]["completion"] == messages(
        ("assistant", "ج"), ("user", "لخص\n\nنص طويل"), ("assistant", "12")
    )
    assert whole[1]["prompt"] == messages(("user", "عد"))
    for name in ("system", "task"):
        with pytest.raises(
            Problem, match=rf"mine.columns.{name} is 'النظام': there is no such column, but instr"
        ):
            own(tmp_path, columns | {name: "النظام"}, *table)
    pair = {"q": "ما عاصمة مصر؟", "good": "القاهرة", "bad": "تونس", "s": "أجب بإيجاز"}
    ((row,), _) = own(
        tmp_path,
        {"prompt": "q", "chosen": "good", "rejected": "bad", "system": "s"},
        pair,
        role="preferences",
    )
    assert row["prompt"] == messages(("system", "أجب بإيجاز")) + ASK


def test_an_empty_system_turn_is_no_system_turn(tmp_path):
    for nothing in (None, "", " "):
        chat = [{"role": "system", "content": nothing}, *ASK, *GOOD]
        ((row,), _) = own(tmp_path, {"messages": "m", "system": "s"}, {"m": chat, "s": nothing})
        assert row["prompt"] == ASK
    ((row,), _) = own(tmp_path, {"messages": "m", "system": "s"}, {"m": ASK + GOOD, "s": "أجب"})
    assert row["prompt"] == messages(("system", "أجب")) + ASK


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([("user", "س"), ("assistant", "ج"), ("user", ""), ("assistant", "ن")], 2),
        ([("user", "س"), ("assistant", "ج"), ("user", "شكرا"), ("assistant", None)], 2),
        ([("assistant", "أهلا"), ("user", "س"), ("assistant", " "), ("user", "ص"), ("assistant", "ج")], 5),
        ([("user", "س"), ("ipython", "3"), ("assistant", "ج")], 3),
    ],
)
def test_a_conversation_goes_until_its_first_empty_turn(turns, kept):
    adapter = by_columns("own", "instructions", {"messages": "m"}, None)
    row = adapter.convert({"m": [{"role": role, "content": content} for role, content in turns]})
    assert len(row["prompt"] + row["completion"]) == kept
    assert row.get("detail", "") == ("" if kept == len(turns) else "turns from an empty one on are left out")


def test_the_turns_of_real_conversations_are_read(tmp_path):
    call = {"function": {"name": "طقس", "arguments": {"مدينة": "القاهرة"}}}
    chat = [
        {"role": "developer", "content": "أجب بإيجاز"},
        {"role": "bot", "content": "أهلا"},
        {"role": "user", "content": [{"type": "text", "text": "ما"}, {"type": "text", "text": "الطقس؟"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "حار"},
        {"role": "tool", "content": "جاف"},
        {"from": "gpt", "value": "حار وجاف"},
        {"role": "user", "content": "شكرا"},
    ]
    ((row,), _) = own(tmp_path, {"messages": "m"}, {"m": chat})
    written = '<tool_call>\n{"name": "طقس", "arguments": {"مدينة": "القاهرة"}}\n</tool_call>'
    told = "<tool_response>\n{}\n</tool_response>"
    assert row["prompt"] == messages(("system", "أجب بإيجاز"), ("assistant", "أهلا"), ("user", "ما\nالطقس؟"))
    assert row["completion"] == messages(
        ("assistant", f"{written}\n{written}"), ("user", f"{told.format('حار')}\n{told.format('جاف')}"),
        ("assistant", "حار وجاف"),
    )  # fmt: skip
    assert row["detail"] == "turns after the last answer are left out"
    facts = {"taken": 1, "published": 1, "notes": {row["detail"]: 1}}
    said = fetch.summary("instructions", "mine", facts, {})
    assert said.endswith("\n       1 rows: turns after the last answer are left out")
    for turn in ({"role": "طبيب", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]}):
        rows, _ = own(tmp_path, {"messages": "m"}, {"m": [turn, *ASK, *GOOD]}, {"m": ASK + GOOD})
        assert rows[0]["fault"] == "malformed"
        assert turn["role"] in rows[0]["detail"] or "image_url" in rows[0]["detail"]  # Arabic as Arabic


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "chosen": "القاهرة", "rejected": "تونس"},
        {"prompt": "ما عاصمة مصر؟", "chosen": GOOD[0], "rejected": BAD[0]},
        {"prompt": [{"from": "human", "value": "ما عاصمة مصر؟"}],
            "chosen": {"from": "gpt", "value": "القاهرة"}, "rejected": {"from": "gpt", "value": "تونس"}},
        {"prompt": None, "chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"prompt": "ما عاصمة مصر؟", "chosen": str(ASK + GOOD), "rejected": str(BAD)},
        {"prompt": json.dumps(ASK), "chosen": json.dumps(GOOD), "rejected": "تونس"},
        {"prompt": ASK[0], "chosen": ASK + GOOD + ASK, "rejected": BAD},
    ],
)  # fmt: skip
def test_pairs_come_as_text_turns_or_chats(tmp_path, row):
    columns = {name: name for name in row}
    ((found,), _) = own(tmp_path, columns, row, role="preferences")
    assert {name: found[name] for name in PAIR} == PAIR
    columns.pop("prompt")
    if row["prompt"] is None:
        ((found,), _) = own(tmp_path, columns, row, role="preferences")
        assert {name: found[name] for name in PAIR} == PAIR


@pytest.mark.parametrize("label", [True, 1, 1.0, "1.0", "chosen", "True"])
def test_a_good_answer_is_called_so_in_many_ways(tmp_path, label):
    columns = {"prompt": "q", "completion": "a", "label": "l"}
    ((row,), _) = own(tmp_path, columns, {"q": ASK, "a": "القاهرة", "l": label}, role="preferences")
    assert (row["chosen"], row["rejected"]) == (GOOD, [])


# --- the answers of one's own benchmark ---------------------------------------------------------------------

EXAM_COLUMNS = {"question": "q", "choices": "o", "answer": "a"}


def answers(tmp_path, choices, *given, **source):
    """The places that answers to questions with these choices name, or their faults."""
    table = [{"q": f"س{i}", "o": choices, "a": one} for i, one in enumerate(given)]
    rows, _ = own(tmp_path, EXAM_COLUMNS, *table, role="benchmarks", **source)
    return [row.get("answer", row.get("fault")) for row in rows]


def test_answers_are_letters_of_as_many_choices_as_there_are(tmp_path):
    ten = [f"خيار {i}" for i in range(10)]
    for letters in ("ABCDEFGHIJ", "abcdefghij", "أبجدهوزحطي", "أبتثجحخدذر"):
        assert answers(tmp_path, ten, *letters) == list(range(10)), letters
    assert answers(tmp_path, ten[:5], "أ", "(ب)", "ج.", "هـ", "د)", "و") == [0, 1, 2, 4, 3, "malformed"]


def test_an_index_may_be_text_and_count_from_one_where_that_is_said(tmp_path):
    four = ["تونس", "القاهرة", "دمشق", "بغداد"]
    for places in ([0, 3, 1], ["0", "3", "1"], ["٠", "٣", "١"], [0.0, 3.0, 1.0], ["0.0", "3.0", "1.0"]):
        assert answers(tmp_path, four, *places) == [0, 3, 1]
    assert answers(tmp_path, four, 0, 4, -1, None, True, "ربما") == [0] + ["malformed"] * 5
    for places in ([1, 4, 2], ["1", "4", "2"]):
        with pytest.raises(
            Problem, match=r"mine: no answer is 0 and some are .* so they count from 1: add `answer_base"
        ):
            answers(tmp_path, four, *places)
        assert answers(tmp_path, four, *places, answer_base=1) == [0, 3, 1]
    assert answers(tmp_path, four, 1, 2, 3) == [1, 2, 3]  # nothing tells that they count from 1
    assert answers(tmp_path, four, 1, 2, 3, 4, answer_base=0) == [1, 2, 3, "malformed"]


def test_choices_that_are_numbers_are_told_from_indices_by_all_rows(tmp_path):
    four = [3, 2, 5, 7]
    assert answers(tmp_path, four, "3", "7", "5") == [0, 3, 2]  # the choices themselves
    assert answers(tmp_path, four, 3, 7, 5) == [0, 3, 2]
    assert answers(tmp_path, four, "0", "1", "2", "3") == [0, 1, 2, 3]  # more are indices than choices
    assert answers(tmp_path, ["3", None, "5", None], "3") == ["empty"]  # a choice in the middle counts
    (tmp_path / "a.csv").write_text("q,A,B,C,a\nس,تونس,القاهرة,,1\nص,أ,ب,ج,2\n", encoding="utf-8")
    columns = {"question": "q", "choices": ["A", "B", "C"], "answer": "a"}
    rows, _ = taken(tmp_path / "a.csv", "benchmarks", columns=columns)
    assert [(len(row["choices"]), row["answer"]) for row in rows] == [(2, 1), (3, 2)]
    arc = {"q": "س", "o": {"text": ["أ", "ب"], "label": ["A", "B"]}, "a": "B"}
    ((row,), _) = own(tmp_path, EXAM_COLUMNS, arc, role="benchmarks")
    assert (row["choices"], row["answer"]) == (["أ", "ب"], 1)


def test_lines_that_cannot_be_read_are_counted_in_their_place(tmp_path):
    good = json.dumps({"q": "س", "a": "ج\u2028د"}, ensure_ascii=False).encode()
    lines = [
        good,
        b'{"q": "',
        b"[1, 2]",
        b'{"q": "\xff", "a": "x"}',
        b"[" * 100_000,
        b'{"q": "\\ud800", "a": "x"}',
        b"",
        good,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows, facts = taken(tmp_path / "a.jsonl", columns=COLUMNS)
    assert [row.get("fault") for row in rows] == [None, *["malformed"] * 5, None]
    assert facts["published"] == 7
    assert rows[6]["id"] == "mine:6"
    (tmp_path / "a.csv").write_text("q,a\nس,ج\nس,ج,د\nس\n" + f"{'س' * 200_000},ج\n", encoding="utf-8")
    rows, _ = taken(tmp_path / "a.csv", columns=COLUMNS)
    assert [row.get("fault") for row in rows] == [None, "malformed", "empty", None]


def test_a_cap_takes_a_fixed_sample_that_stays_as_the_data_grows(tmp_path):
    def write(count):
        rows = [{"q": f"س{i}", "a": "ج", "t": "نادر" if i % 10 == 0 else "كثير"} for i in range(count)]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    write(1000)
    ids = [row["id"] for row in taken(tmp_path / "a.parquet", columns=COLUMNS, rows=100)[0]]
    assert len(ids) == 100
    assert ids == [row["id"] for row in taken(tmp_path / "a.parquet", columns=COLUMNS, rows=100)[0]]
    assert [int(one.split(":")[1]) for one in ids] == sorted(int(one.split(":")[1]) for one in ids)
    rows, _ = taken(tmp_path / "a.parquet", columns=COLUMNS | {"task": "t"}, rows_per_task=30)
    assert sorted(row["task"] for row in rows) == ["كثير"] * 30 + ["نادر"] * 30
    write(1100)
    grown = {row["id"] for row in taken(tmp_path / "a.parquet", columns=COLUMNS, rows=100)[0]}
    assert len(grown & set(ids)) > 80
    with pytest.raises(
        Problem, match=r"mixtures.demo.instructions.mine.rows_per_task: this dataset has no tasks"
    ):
        taken(tmp_path / "a.parquet", columns=COLUMNS, rows_per_task=30)


def test_a_wrong_layout_is_a_problem_that_names_the_columns(tmp_path, monkeypatch):
    with pytest.raises(
        Problem,
        match=r"mixtures.demo.instructions.mine.columns names q: instructions need completion, prompt",
    ):
        taken(tmp_path / "a.jsonl", columns={"q": "q"})
    with pytest.raises(
        Problem,
        match=r"mixtures.demo.instructions.mine.adapter is 'arabicmmlu': "
        r"for instructions it must be one of cidar",
    ):
        taken(tmp_path / "a.jsonl", adapter="arabicmmlu")
    with pytest.raises(
        Problem,
        match=r"mixtures.demo.instructions.mine: no table file \(parquet, arrow, jsonl, .*\) at .*nowhere",
    ):
        taken(tmp_path / "nowhere", columns=COLUMNS)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(Problem, match=r"a.parquet cannot be read as parquet"):
        taken(tmp_path / "a.parquet", columns=COLUMNS)


def test_leftovers_of_earlier_uploads_are_not_read():
    names = [
        "README.md",
        "a/test-00000.parquet",
        "a/train-00000.parquet",
        "a/validation-00000.parquet",
        ".git/x.parquet",
    ]
    assert fetch.table_files(names, ADAPTERS["alghafa"].files) == [
        "a/test-00000.parquet",
        "a/validation-00000.parquet",
    ]
    assert fetch.table_files(["data/a.csv", "data/a.parquet"], ("data/*",)) == ["data/a.parquet"]
    assert fetch.table_files(["moved/a.csv"], ("data/*",)) == ["moved/a.csv"]


# --- fuzzing ------------------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from([
        None, "", " ", "A", "B", "0", "صح", "سؤال عربي؟", "جواب", "\ud800", "x" * 100_000, "\x00", "```",
        "[]", "[{", "{1}", "(" * 5000,
        CHAT % "ج", NUMPY % "ج", "<|im_end|>", "أنت مساعد", -1, 0, 3, 10**30, 1.5, float("nan"), float("inf"),
        True, b"\xff",
        [], [None], [[[]]], {}, {"text": ["ج"]}, {"text": None}, {"text": ["س", "ج"]},
        [["س", "ج"]], ASK, ASK + GOOD, GOOD, [{"role": "user"}], [{"role": 1, "content": 2}],
        [{"role": "tool", "content": [{"text": 3}]}, {"from": "gpt", "tool_calls": [{"name": "ط"}, None]}],
        ["أ", "ب"], ["A", None], [1, 2.0], "['أ', 'ب']", "٢", 10**400, str(ASK + GOOD),
        [{"role": "user", "content": "\udfff"}, {"role": "assistant", "content": "x"}],
    ]),
    st.text(max_size=20),
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3),
        max_leaves=5),
)  # fmt: skip


BESIDE = {"system": "s", "history": "h.text"}
OWN = {
    "own text": ("instructions", BESIDE | {"prompt": ["p", "i"], "completion": "a"}),
    "own chats": ("instructions", {"messages": "m", "system": "s"}),
    "own documents": ("instructions", {"text": ["p", "a"]}),
    "own pairs": ("preferences", BESIDE | {"prompt": "p", "input": "i", "chosen": "a", "rejected": "b"}),
    "own votes": ("preferences", BESIDE | {"prompt": "p", "completion": "a", "label": "l"}),
    "own exams": ("benchmarks", {"question": "p", "choices": "o", "answer": "a", "level": "l"}),
    "own options": (
        "benchmarks",
        {"question": "p", "choices": ["i", "o", "b"], "answer": "a", "context": "m"},
    ),
    "own questions": ("benchmarks", {"question": ["p", "i"], "answer": "a"}),
}
FUZZED = ADAPTERS | {name: by_columns("x", role, names, 0) for name, (role, names) in OWN.items()}


def fuzzed(name):
    """Rows with the adapter's columns, any of them missing or holding anything."""
    columns = sorted({column for known, row, _ in PUBLISHED if known == name for column in row})
    columns = columns or ["p", "i", "a", "b", "m", "s", "h", "l", "o"]
    return st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(columns, CELLS)), min_size=25, max_size=25
    )


@pytest.fixture(scope="module")
def examiners():
    params = read(ROOT / "params.yaml")
    index = leaks.build(ROOT / "nowhere", 0.8)
    tokenizer = str(ROOT / "models/nano/tokenizer.json")
    return {
        role: quality.Examiner(
            quality.Settings(
                role, params.text, params.prompt, TEMPLATES["chatml"], params.format, tokenizer, index
            )
        )
        for role in quality.ANSWERS
    }


@pytest.mark.parametrize("name", FUZZED)
def test_no_row_however_broken_stops_a_run_or_gets_lost(name, examiners):
    adapter = FUZZED[name]

    @settings(
        max_examples=FUZZED_ROWS // 25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(fuzzed(name))
    def run(rows):
        known = replace(adapter, convert=adapter.learn(rows)) if adapter.learn else adapter
        ours = [
            one | {"source": name, "id": str(i), "split": None}
            for i, row in enumerate(rows) for one in fetch.usable(known, row)
        ]  # fmt: skip
        if adapter.role == "benchmarks":
            ours = list(fetch.contradictions(ours))
        raw = pa.Table.from_pylist(ours, layouts.SCHEMAS[adapter.role])  # what is written can be read
        raw.validate(full=True)
        assert set(raw["id"].to_pylist()) == {str(i) for i in range(len(rows))}
        if adapter.role in examiners:
            found = examiners[adapter.role].examine(name, raw.to_pylist()).rows
            found.validate(full=True)
            assert len(found) == len(raw)
            assert all(row["reason"] or row["prompt"] or row.get("pieces") for row in found.to_pylist())

    run()


@pytest.mark.parametrize("name", OWN)
def test_half_a_character_in_any_column_is_a_fault(name):
    whole = {"p": "س", "i": "ص", "b": "ض", "s": "ط"} | {"a": "ج", "l": "1", "o": "ج", "m": ASK + GOOD}
    whole |= {"o": ["ج", "د"]} if name == "own exams" else {"m": "س"} if name == "own options" else {}
    assert "fault" not in fetch.usable(FUZZED[name], whole)[0]
    columns = {one for given in FUZZED[name].named.values() for one in given} - {"h.text", "l", "m"}
    for column in columns:
        half = ["ج", "\ud83d"] if column == "o" and name == "own exams" else "\ud83d"
        assert fetch.usable(FUZZED[name], whole | {column: half})[0]["fault"] == "malformed", column


def test_faults_have_a_reason_and_a_detail():
    for value in (None, 1, "\ud800"):
        with pytest.raises(Fault) as raised:
            layouts.text({"a": value}, "a")
        assert len(raised.value.args) == 2


def test_a_source_is_checked():
    with pytest.raises(ValueError, match="needs `columns`"):
        Source(path="x.jsonl")
    with pytest.raises(ValueError, match="and not both"):
        Source(path="x.jsonl", columns=COLUMNS, adapter="cidar")
