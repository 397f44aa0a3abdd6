"""How items are asked: byte for byte as the field's harnesses do, from the published columns through our
layout to the request.
"""

from argparse import Namespace
from contextlib import chdir
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from ruamel.yaml import YAML

from stages import fetch
from stages.evaluation import protocols
from stages.settings.errors import Problem
from stages.settings.files import write_json
from stages.sources import layouts
from stages.sources.catalog import ADAPTERS
from stages.text import judging
from tools import harness

CITIES = ["تونس", "القاهرة", "دمشق ", "بغداد", "الرياض"]


def arabicmmlu(asked, key, count, context=None, level="High", country="Egypt"):
    options = {f"Option {i}": CITIES[i - 1] if i <= count else None for i in range(1, 6)}
    labels = {"Group": "Social Science", "Subject": "Geography", "Level": level, "Country": country}
    return {"ID": 1, **labels, "Question": asked, "Context": context, "Answer Key": key, **options}


def lettered(asked, answer):
    return {
        "question": asked,
        **dict(zip("ABCD", CITIES)),
        "answer": answer,
        "subject": "high_school_geography",
    }


def alghafa(asked, label, count):
    return {"query": asked, **{f"sol{i}": CITIES[i - 1] for i in range(1, count + 1)}, "label": label}


EXAMPLES = {
    "arabicmmlu": [
        arabicmmlu("ما عاصمة تونس؟", "A", 2, country=None),
        arabicmmlu("ما عاصمة العراق؟ ", "D", 4),
        arabicmmlu("س", "B", 5, "نص"),
    ],
    "oall-mmlu": [lettered("ما عاصمة تونس؟", "A"), lettered("ما عاصمة سوريا؟", "C"), lettered("س ", "D")],
    "alghafa": [alghafa("ما عاصمة تونس؟", "0", 4), alghafa("ما عاصمة سوريا؟", "2", 4), alghafa("س ", "3", 4)],
    "acva": [
        {"question": question, "answer": answer}
        for question, answer in ((" تونس دولة", "صح"), ("أ", "خطأ"), ("ب ", "صح"))
    ],
}
EXAMPLES["arabic-exams"] = EXAMPLES["oall-mmlu"]
ITEMS = {
    "arabicmmlu": [
        arabicmmlu("ما عاصمة السعودية؟", "E", 5),
        arabicmmlu("ما عاصمة مصر؟\nاختر ", "B", 2, " النص {{الأول}}\n"),
        arabicmmlu("س", "A", 4, "", None, None), arabicmmlu("س", "C", 3, level="Prof"),
        arabicmmlu("س", "D", 4, level="Univ"),
    ],
    "oall-mmlu": [lettered(" ما عاصمة مصر؟\n", "B"), lettered("{{ query }} {% raw %}", "D")],
    "alghafa": [alghafa("نص\nطويل. ما عاصمة مصر؟", "1", 4), alghafa("س", "0", 4)],
    "acva": [{"question": "القاهرة عاصمة مصر ", "answer": "صح"}, {"question": "ج", "answer": "خطأ"}],
}  # fmt: skip
ITEMS["arabic-exams"] = ITEMS["oall-mmlu"]
PACKAGED = {
    "arabicmmlu": "arabicmmlu/arabicmmlu_geography_high_school.yaml",
    "oall-mmlu": "arabic_leaderboard_complete/arabic_leaderboard_arabic_mmlu/"
    "arabic_leaderboard_arabic_mmlu_high_school_geography.yaml",
    "alghafa": "arabic_leaderboard_complete/arabic_leaderboard_alghafa/"
    "arabic_leaderboard_alghafa_meta_ar_msa.yaml",
    "acva": "arabic_leaderboard_complete/arabic_leaderboard_avca/arabic_leaderboard_acva_Algeria.yaml",
    "arabic-exams": "arabic_leaderboard_complete/arabic_leaderboard_arabic_exams/arabic_exams.yaml",
}


def canonical(benchmark, rows, split="test"):
    """Published rows in our layout."""
    ours = [one for row in rows for one in fetch.usable(ADAPTERS[benchmark], row)]
    labelled = [
        row | {"id": f"{benchmark}:{split}{i}", "split": split, "source": benchmark}
        for i, row in enumerate(ours)
    ]
    return pa.Table.from_pylist(labelled, layouts.SCHEMAS["benchmarks"]).to_pylist()


def requests_of(folder, shots):
    """(prompt, option) pairs that lm-eval builds from the one task file in a folder, a list for each item."""
    tasks = pytest.importorskip("lm_eval.tasks")
    with chdir(folder):
        (task,) = tasks.TaskManager(include_path=".", include_defaults=False).load(["mine"])["tasks"].values()
        task.set_config("num_fewshot", shots)
        task.build_all_requests(limit=None, rank=0, world_size=1)
    found = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance.arguments)
    return list(found.values()), task


# --- lm-eval ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("benchmark", PACKAGED)
def test_requests_equal_those_of_the_packaged_task(benchmark, shots, tmp_path):
    package = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks" / PACKAGED[benchmark]
    for split, rows in (("test", ITEMS[benchmark]), ("examples", EXAMPLES[benchmark])):
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    files = {"test": "test.parquet"} | dict.fromkeys(("dev", "validation"), "examples.parquet")
    table = {"include": str(package), "task": "mine", "dataset_path": "parquet", "dataset_name": None}
    YAML().dump(table | {"dataset_kwargs": {"data_files": files}}, tmp_path / "mine.yaml")
    theirs, task = requests_of(tmp_path, shots)

    items, examples = canonical(benchmark, ITEMS[benchmark]), canonical(benchmark, EXAMPLES[benchmark], "dev")
    ours = [protocols.ask(benchmark, item, "lm-eval", examples[:shots]) for item in items]
    assert [[(one.prompt, option) for option in one.options] for one in ours] == theirs
    for item, request, doc in zip(items, ours, task.test_docs()):
        gold = task.doc_to_target(doc)
        assert gold in (item["answer"], request.answers[item["answer"]])
        even = [
            (-float(length), False) for length in request.lengths
        ]  # by characters all equal, so that the first is picked
        if benchmark != "arabicmmlu":
            assert task.process_results(doc, even)["acc_norm"] == (item["answer"] == 0)
    assert set(task.aggregation()) == ({"acc"} if benchmark == "arabicmmlu" else {"acc", "acc_norm"})


CULTURE = {
    "first_statement": " يقدم الضيف {قهوة}\n", "country": "UAE", "region": "Gulf", "sub_topic": "ضيافة",
    "options": {"arabic_keys": ["أ", "ب", "ج"], "english_keys": ["A", "B", "C"],
        "text": ["شايا ", "قهوة", "لبنا"]},
    "answer_key": {"arabic_answer_key": "ب", "english_answer_key": "B"},
}  # fmt: skip


def test_arab_culture_is_asked_as_its_task_is_when_no_switch_is_set(tmp_path, monkeypatch):
    for switch in ("COUNTRY", "REGION", "ARABIC", "MODEL_NAME"):
        monkeypatch.delenv(switch, raising=False)
    folder = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks/arab_culture"
    parquet.write_table(pa.Table.from_pylist([CULTURE, CULTURE]), tmp_path / "test.parquet")
    table = {"include": str(folder / "arab_culture_uae.yaml"), "task": "mine", "dataset_path": "parquet",
        "dataset_name": None, "dataset_kwargs": {"data_files": {"test": "test.parquet"}}}  # fmt: skip
    YAML().dump(table, tmp_path / "mine.yaml")
    theirs, task = requests_of(tmp_path, 0)
    (item, _) = canonical("arabculture", [CULTURE, CULTURE])
    ours = protocols.ask("arabculture", item, "lm-eval", [])
    assert [(ours.prompt, option) for option in ours.options] == theirs[0]
    assert task.doc_to_target(next(iter(task.test_docs()))) == ours.answers[item["answer"]]
    assert protocols.ask("arabculture", item, "lm-eval", [item]).prompt == f"{ours.prompt}B\n\n{ours.prompt}"


# --- lighteval ----------------------------------------------------------------------------------------------

# The prompts of lighteval 0.13.0: PromptManager().prepare_prompt on the Docs that
# lighteval/tasks/multilingual/tasks/arabic.py makes.
GENERAL = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة:\n\n\n\n"
FOUR = "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب، ج، أو د... إلخ. \n\n\n\n"
SCHOOL = "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح"
DOTS = "أ. تونس\nب. القاهرة\nج. دمشق\nد. بغداد\n"
BRACKETS = " أ) تونس\n\n ب) القاهرة\n\n ج) دمشق\n\n د) بغداد\n"
FIVE = f"ما عاصمة السعودية؟ \n{DOTS}هـ. الرياض\nالإجابة:"
GROUNDED = "بناءً على السياق أدناه، اختر الإجابة الصحيحة للسؤال التالي من قائمة الأجوبة:\n\n\n\n"
THREE = (
    "السؤال التالي هو سؤال متعدد الإختيارات. اختر الإجابة الصحيحة: أ، ب أو ج. \n\n\n\nما حكم الغش؟ \n"
    "أ) جائز\nب) ممنوع \nج) لا أعرف\nالإجابة:"
)
NUMBERS = "0) تونس\n1) القاهرة\n2) دمشق\nالإجابة:"


def cities(row):
    return {key: value.strip() if value == "دمشق " else value for key, value in row.items()}


GOLDEN = [
    (
        "arabicmmlu", arabicmmlu("ما عاصمة السعودية؟ ", "E", 5, "نص"),
        [arabicmmlu("ما عاصمة تونس؟", "A", 2), arabicmmlu("ما عاصمة العراق؟", "D", 4)],
        GENERAL + FIVE,
        f"{GENERAL}ما عاصمة تونس؟\nأ. تونس\nب. القاهرة\nالإجابة: أ\n\nما عاصمة العراق؟\n{DOTS}الإجابة: "
        f"د\n\n{FIVE}",
        ["أ", "ب", "ج", "د", "هـ"],
    ),
    (
        "oall-mmlu", lettered(" ما عاصمة مصر؟", "B"),
        [lettered("ما عاصمة تونس؟", "A"), lettered("ما عاصمة سوريا؟", "C")],
        f"{FOUR}ما عاصمة مصر؟\n{DOTS}الإجابة:",
        f"{FOUR}ما عاصمة تونس؟\n{DOTS}الإجابة: أ\n\nما عاصمة سوريا؟\n{DOTS}الإجابة: ج\n\nما عاصمة "
        f"مصر؟\n{DOTS}الإجابة:",
        ["أ", "ب", "ج", "د"],
    ),
    (
        "alghafa", alghafa("ما عاصمة مصر؟", "1", 3), [alghafa("ما عاصمة تونس؟", "0", 3)],
        f"{SCHOOL}\n\n\n\nالسؤال: ما عاصمة مصر؟\n{NUMBERS}",
        f"{SCHOOL}\n\n\n\nالسؤال: ما عاصمة تونس؟\n{NUMBERS} 0\n\nالسؤال: ما عاصمة مصر؟\n{NUMBERS}",
        ["0", "1", "2"],
    ),
    (
        "arabic-exams", lettered("ما عاصمة مصر؟", "B") | {"subject": "world_geography"},
        [lettered("ما عاصمة تونس؟", "A")],
        f"{SCHOOL} حول world geography. \n\n\n\nالسؤال: ما عاصمة مصر؟\n{BRACKETS}\nالإجابة:",
        f"{SCHOOL} حول world geography. \n\n\n\nالسؤال: ما عاصمة تونس؟\n{BRACKETS}\nالإجابة: أ\n\n"
        f"السؤال: ما عاصمة مصر؟\n{BRACKETS}\nالإجابة:",
        ["أ", "ب", "ج", "د"],
    ),
    (
        "acva", {"question": "القاهرة عاصمة مصر ", "answer": "صح"},
        [{"question": " تونس عاصمة مصر", "answer": "خطأ"}],
        "السؤال: القاهرة عاصمة مصر \nالإجابة:",
        "السؤال:  تونس عاصمة مصر\nالإجابة: خطأ\n\nالسؤال: القاهرة عاصمة مصر \nالإجابة:",
        ["صح", "خطأ"],
    ),
    (
        "mmlu-ht", {"question": " ما عاصمة مصر؟ ", "choices": ["تونس", "القاهرة"], "answer": 1},
        [{"question": "ما عاصمة تونس؟", "choices": ["تونس", "القاهرة"], "answer": 0}],
        f"{GENERAL}ما عاصمة مصر؟ \n1. تونس\n2. القاهرة\nالإجابة:",
        f"{GENERAL}ما عاصمة تونس؟\n1. تونس\n2. القاهرة\nالإجابة: 1\n\nما عاصمة مصر؟ \n1. تونس\n2. القاهرة\n"
        "الإجابة:",
        ["1", "2"],
    ),
    (
        "madinahqa", arabicmmlu("ما عاصمة مصر؟", "B", 2, " نص\n"),
        [arabicmmlu("ما عاصمة تونس؟", "A", 2, "نص آخر")],
        f"{GROUNDED}السياق:\n نص\n\nالسؤال:\nما عاصمة مصر؟\nأ. تونس\nب. القاهرة\nالإجابة:",
        f"{GROUNDED}السياق:\nنص آخر\nالسؤال:\nما عاصمة تونس؟\nأ. تونس\nب. القاهرة\nالإجابة: أ\n\n"
        "السياق:\n نص\n\nالسؤال:\nما عاصمة مصر؟\nأ. تونس\nب. القاهرة\nالإجابة:",
        ["أ", "ب"],
    ),
    (
        "aratrust", {"Question": "ما حكم الغش؟ ", "A": "أ) جائز", "B": "ب) ممنوع ", "C": "ج) لا أعرف",
            "Answer": "ب"},
        [],
        THREE,
        THREE,
        ["أ", "ب", "ج"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "row", "examples", "alone", "shown", "options"), GOLDEN)
def test_requests_equal_those_of_lighteval(benchmark, row, examples, alone, shown, options):
    (item,), dev = canonical(benchmark, [cities(row)]), canonical(benchmark, map(cities, examples), "dev")
    for shots, prompt in (([], alone), (dev, shown)):
        request = protocols.ask(benchmark, item, "oall", shots)
        assert request == protocols.Request(prompt, options, "", "characters", apart=True)
        assert request.options == options
    if benchmark == "arabicmmlu":
        assert request.lengths == [1, 1, 1, 1, 2]  # lighteval divides by them: its هـ counts half


def test_answers_from_passages_are_asked_and_judged_as_in_lighteval():
    """prompt_manager's chat turn, Doc.query and judge_template of lighteval 0.13.0's alrage_qa."""
    row = {"question": " ما العاصمة؟", "candidates": ["نص أول ", "نص ثان"], "gold_answer": "القاهرة"}
    (item,) = canonical("alrage", [row])
    how = protocols.OPEN["alrage"]
    asked = "بناءً على السياقات المقترحة التالية، اجب عن السؤال التالي"
    rest = "السؤال:\n ما العاصمة؟\n\nالسياقات المقترحة:\nنص أول, نص ثان"
    assert (how.wording(item), how.judged(item), how.tokens) == (asked + rest, f"{asked}\n\n{rest}\n", 200)
    system, user = judging.score_messages(how.judged(item), "لا أعرف", "القاهرة")
    assert user["content"] == (
        f"السؤال: {asked}\n\n{rest}\n\n\nالإجابة المقدمة: لا أعرف\n\nالإجابة الصحيحة: القاهرة\n\n"
        "أعط تقييماً من 0 إلى 10:\n0-2: إجابة خاطئة تماماً\n3-4: إجابة جزئية مع أخطاء\n5-6: إجابة متوسطة\n"
        "7-8: إجابة جيدة\n9-10: إجابة ممتازة\n\nاكتب رقماً فقط من 0 إلى 10 بدون أي نص إضافي:"
    )
    assert system["content"].startswith("أنت مقيّم محايد خبير باللغة العربية. يجب عليك:\n1. تقييم دقة")


# --- what no harness has ------------------------------------------------------------------------------------


def test_a_users_own_items_are_asked_in_the_general_way():
    def item(choices, **cells):
        return layouts.question("كم؟", choices, 0, **cells) | {"id": "mine:0", "split": "test", "fault": None}

    request = protocols.ask("mine", item(["1", "2"]), "lm-eval", [])
    assert (
        request.prompt
        == "This is a question. Select the correct answer!\n\nQuestion: كم؟\nA. 1\nB. 2\n\nAnswer:"
    )
    assert (request.options, request.normalise, request.apart) == ([" A", " B"], "none", False)
    assert protocols.ask("mine", item(["1", "2"]), "oall", []).prompt == GENERAL + "كم؟\nأ. 1\nب. 2\nالإجابة:"
    # As lighteval 0.13.0 asks MadinahQA.
    context = (
        "بناءً على السياق أدناه، اختر الإجابة الصحيحة للسؤال التالي من قائمة "
        "الأجوبة:\n\n\n\nالسياق:\nنص\nالسؤال:\nكم؟\n"
    )
    assert (
        protocols.ask("mine", item(["1", "2"], context="نص"), "oall", []).prompt
        == context + "أ. 1\nب. 2\nالإجابة:"
    )
    assert protocols.ask("mine", item([str(i) for i in range(26)]), "lm-eval", []).options[-1] == " Z"
    for choices in ([], [str(i) for i in range(27)]):
        with pytest.raises(Problem, match=f"mine:0 has {len(choices)} choices"):
            protocols.ask("mine", item(["1"]) | {"choices": choices}, "lm-eval", [])
    with pytest.raises(Problem, match=r"evaluate.style is 'helm': it must be one of lm-eval, oall"):
        protocols.ask("mine", item(["1"]), "helm", [])


def test_examples_are_the_first_of_the_items_own_task():
    def dev(name, subject="Geography", level="High", **cells):
        return {
            "id": name,
            "split": "dev",
            "fault": None,
            "answer": 0,
            "subject": subject,
            "level": level,
        } | cells

    rows = [
        dev("a", level="Middle"),
        dev("b", fault="overwritten"),
        dev("c", answer=None),
        dev("d"),
        dev("e", "Law"),
        dev("f"),
        dev("g"),
    ]
    rows.append(dev("h", split="test"))
    chosen = protocols.examples_for("arabicmmlu", "oall", rows, 2)
    assert [one["id"] for one in chosen(dev("x"))] == ["d", "f"]
    assert [one["id"] for one in chosen(dev("x", "Law", "Middle"))] == []
    assert [one["id"] for one in protocols.examples_for("mine", "oall", rows, 3)(dev("x", "Law"))] == [
        "a",
        "d",
        "e",
    ]


# --- task files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "shots"), [("lm-eval", 0), ("lm-eval", 3), ("oall", 3)])
def test_the_task_file_makes_the_harness_ask_what_we_ask(style, shots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = canonical("arabicmmlu", ITEMS["arabicmmlu"]) + canonical(
        "arabicmmlu", EXAMPLES["arabicmmlu"], "dev"
    )
    good = rows[0]
    rows += [good | {"id": "arabicmmlu:faulty", "fault": "duplicate"}, good | {"id": "arabicmmlu:leaked"}]
    harness.RAW.mkdir(parents=True)
    parquet.write_table(
        pa.Table.from_pylist(rows, layouts.SCHEMAS["benchmarks"]), harness.RAW / "arabicmmlu.parquet"
    )
    write_json(
        harness.RAW / "sources.json",
        {"skills": {"builtin": "skills"}, "arabicmmlu": {"repo": "MBZUAI/ArabicMMLU"}},
    )
    harness.REPORTS.mkdir()
    report = [("leak_kept", "arabicmmlu\tarabicmmlu:leaked"), ("leak", "holds arabicmmlu arabicmmlu:test0")]
    flagged = [{"reason": reason, "detail": detail} for reason, detail in report]
    parquet.write_table(pa.Table.from_pylist(flagged), harness.REPORTS / "instructions.parquet")

    assert harness.benchmarks() == ["arabicmmlu"]
    asked = Namespace(style=style, shots=shots)
    table = harness.export(tmp_path / "tasks", "arabicmmlu", asked)
    name = harness.task_name("arabicmmlu", asked)
    (tmp_path / f"tasks/{name}.yaml").write_text(
        (tmp_path / f"tasks/{name}.yaml").read_text().replace(f"task: {name}", "task: mine")
    )
    theirs, task = requests_of(tmp_path / "tasks", 0)
    examples = protocols.examples_for("arabicmmlu", style, rows, shots)
    ours = [
        protocols.ask("arabicmmlu", row, style, examples(row)) for row in rows[: len(ITEMS["arabicmmlu"])]
    ]
    assert [[(one.prompt, option) for option in one.options] for one in ours] == theirs
    assert [task.doc_to_target(doc) for doc in task.test_docs()] == [
        row["answer"] for row in rows[: len(ours)]
    ]
    assert table["id"].to_pylist() == [row["id"] for row in rows[: len(ours)]]
    assert any(one.prompt.count("العراق") for one in ours) == (shots > 0)


def test_answers_are_compared_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "PREDICTIONS", tmp_path)
    doc = {"choices": ["نعم", "لا"], "normalise": "characters"}
    sample = {"doc": doc, "filtered_resps": [(-3.3, False), (-3.0, True)]}  # -1.1 and -1.5 a character
    assert (harness.picked(sample), harness.picked(sample | {"doc": doc | {"normalise": "none"}})) == (0, 1)
    rows = [
        ("mine", "a", 0, 1),
        ("mine", "b", 0, 0),
        ("mine", "b", 1, 1),
        ("mine", "faulty", 0, 1),
        ("other", "a", 0, 0),
    ]
    table = pa.Table.from_pylist([dict(zip(("benchmark", "id", "rotation", "picked"), row)) for row in rows])
    parquet.write_table(table, tmp_path / "sft.parquet")
    assert harness.agreement("sft", "mine", {"a": 1, "b": 1}).endswith("sft.parquet on 1 of 2")
    assert harness.agreement("dpo", "mine", {"a": 1}).endswith("dpo.parquet does not tell ours")
