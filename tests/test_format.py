"""From raw rows to prompts: text policy, templates, and an account of every row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer

from stages import base
from stages import format as formatting
from stages.gate import account, defects, duplicates, leaks, quality
from stages.settings.errors import Problem
from stages.settings.reader import read
from stages.sources import layouts
from stages.text import shingles
from stages.text.arabic import arabic_share, normalise, words
from stages.text.prompts import TEMPLATES
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﻣﺮﺣﺒﺎ", "مرحبا"),  # presentation forms
        ("ﷺ", "صلى الله عليه وسلم"),
        ("قا\u0644\ufe70", "قال\u064b"),  # a vowel sign in presentation form stands on no blank
        ("ا\u0653 و\u0654", "آ ؤ"),  # letters apart from their hamza or madda
        ("مـــرحبا", "مرحبا"),  # tatweel
        (
            "\ufeffمر\u200bحبا\u200f\u00ad",
            "مرحبا",
        ),  # zero-width and bidi controls, soft hyphen, byte order mark
        ("می\u200cخواهم", "ميخواهم"),  # Persian look-alikes
        (
            "\U0001f468\u200d\U0001f469 أ\u200dب",
            "\U0001f468\u200d\U0001f469 أب",
        ),  # a joiner stays inside an emoji alone
        ("سطر\r\nسطر\rسطر", "سطر\nسطر\nسطر"),
        ("  كلمة   كلمة\t \n كلمة ", "كلمة كلمة\n كلمة"),
        ("قائمة:\n  - بند\n\tx = 1", "قائمة:\n  - بند\n\tx = 1"),  # indentation is structure
        ("مَدْرَسَةٌ ٣", "مَدْرَسَةٌ ٣"),  # kept unless asked for
        ("إلى أن ى ة", "إلى أن ى ة"),  # spelling is never touched
        ("m² ½ x\u00a0y", "m² ½ x y"),  # NFKC is for Arabic presentation forms alone
        ("بـَـسْـمِ اللـــه", "بَسْمِ الله"),
        *((text, text) for text in ("المادة 4ـ1", "18 ـ 185", "1445 هـ", "القاهرةـالجيزة", "اكتب ـــــ هنا")),
        ("النبيﷺيصلي باﷲ", "النبي صلى الله عليه وسلم يصلي بالله"),
        ("الی حتی علی فی والتی", "الى حتى على في والتي"),  # a final ی is ى or ي
        ("الغنی کریم ھنا", "الغنی كريم هنا"),  # or nobody knows
        *((text, text) for text in ("یہ کتاب بہت اچھی ہے", "این کتاب خوبی است", "```\nإذا  x = 1\n```")),
        *((text, text) for text in ("الاسم\tالعمر", "ألا ليت الشباب   يعود يوما", "| أ   | ب |", "x  = 1")),
        (
            "ھذا کتاب في شرح أبيات من شعر الفرس القدماء ونقلها إلى العربية بأسلوب جميل:\nاین کتاب خوبی است",
            "هذا كتاب في شرح أبيات من شعر الفرس القدماء ونقلها إلى العربية بأسلوب جميل:\nاین کتاب خوبی است",
        ),  # line by line
    ],
)
def test_text_is_cleaned_without_changing_its_spelling(raw, clean):
    assert normalise(raw) == clean
    assert normalise(clean) == clean


def test_tashkeel_digits_and_lookalikes_follow_the_policy():
    assert normalise("مَدْرَسَةٌ ٣ ۴", tashkeel="strip", digits="western") == "مدرسة 3 4"
    assert normalise("قُرۡءَانٞ", tashkeel="strip") == "قرءان"  # Qur'anic signs
    assert normalise("آمن", tashkeel="strip") == "آمن"
    assert normalise("کتاب", lookalikes="keep") == "کتاب"
    assert normalise("مـرحبا", tatweel="keep") == "مـرحبا"
    assert normalise("٣٫١٤ ١٬٠٠٠ ۲٫۵", digits="western") == "3.14 1,000 2.5"


def test_arabic_share_counts_letters_alone():
    assert arabic_share("مرحبا، 123!") == 1.0
    assert arabic_share("مرحبا Hello") == 0.5
    assert arabic_share("مَرْحَبًا Hello") == 0.5
    assert arabic_share("12") == 1.0
    assert arabic_share("العربية۔") == 7 / 8
    assert arabic_share("قال گلوب: مرحبا") == 1.0  # a name
    assert arabic_share("یہ کتاب بہت اچھی ہے") == arabic_share("این کتاب خوبی است") == 0
    assert arabic_share("مرحبا ہے") == 5 / 7


def test_words_are_compared_without_what_does_not_change_them():
    assert words("قَالَ: «إلى المدرسةِ»،\n\n ٣+4") == ["قال", "الي", "المدرسه", "\n", "3", "+", "4", "\n"]
    assert words("3 - 4") != words("3 + 4")
    assert words("س ≥ 5") != words("س ≤ 5")
    assert words("المادة 4ـ1") == ["الماده", "4", "1", "\n"]


CHAT = [
    {"role": "user", "content": "س"},
    {"role": "assistant", "content": "ج"},
    {"role": "user", "content": "ص"},
]


def test_chatml():
    template = TEMPLATES["chatml"]
    prompt = (
        "<|im_start|>user\nس<|im_end|>\n<|im_start|>assistant\nج<|im_end|>\n"
        "<|im_start|>user\nص<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(CHAT) == prompt
    assert template.render(CHAT, system="أجب") == "<|im_start|>system\nأجب<|im_end|>\n" + prompt
    assert template.complete("ع") == "ع<|im_end|>"


def test_the_arabic_template():
    template = TEMPLATES["arabic"]
    assert template.render(CHAT[:1]) == "### التعليمات:\nس\n\n### الإجابة:\n"
    assert (
        template.render(CHAT)
        == "### التعليمات:\nس\n\n### الإجابة:\nج<|endoftext|>\n### التعليمات:\nص\n\n### الإجابة:\n"
    )
    assert template.render(CHAT[:1], system="أجب") == "أجب\n\n### التعليمات:\nس\n\n### الإجابة:\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_starts_on_a_token_boundary_and_stops_with_one_token(name):
    """Else the prompt seen in training is not the prompt seen in use."""
    template, tokenizer = TEMPLATES[name], Tokenizer.from_file(str(ROOT / "models/nano/tokenizer.json"))
    prompt = template.render(CHAT[:1])
    for answer in ("خمسة عشر", "15", "«اقتباس»", "- بند", "(قوس)"):
        whole = tokenizer.encode(prompt + template.complete(answer)).ids
        assert whole[: len(tokenizer.encode(prompt).ids)] == tokenizer.encode(prompt).ids
        assert whole[-1] == tokenizer.token_to_id(template.stop)


# --- the quality gate ---------------------------------------------------------------------------------------


@pytest.fixture
def examine(tmp_path):
    """Examine rows as the stage does; `benchmark` are questions that must not leak."""

    def run(role, rows, benchmark=(), max_length=64, any_language=(), **gate):
        params = read(ROOT / "params.yaml")
        items = [
            layouts.question(asked, ["نعم", "لا"], 0) | {"id": str(i), "split": "test"}
            for i, asked in enumerate(benchmark)
        ]
        parquet.write_table(
            pa.Table.from_pylist(items, layouts.SCHEMAS["benchmarks"]), tmp_path / "exam.parquet"
        )
        own = params.format.model_copy(update=gate)
        prompt = params.prompt.model_copy(update={"max_length": max_length})
        tokenizer = str(ROOT / "models/nano/tokenizer.json")
        settings = quality.Settings(
            role,
            params.text,
            prompt,
            TEMPLATES["chatml"],
            own,
            tokenizer,
            leaks.build(tmp_path, own.leak_overlap),
            frozenset(any_language),
        )
        common = {"source": "s", "fault": None, "split": "train"}
        return quality.Examiner(settings).examine(
            "s", [{**common, "id": str(i), **row} for i, row in enumerate(rows)]
        )

    return run


def test_every_row_is_kept_or_dropped_with_a_reason(examine):
    def pair(chosen, rejected, prompt="ما رأيك؟"):
        return layouts.pair(prompt, chosen, rejected)

    rows = {
        "": pair("نعم", "لا"),
        "chosen_is_rejected": pair("نعم", "نعم\u200b"),
        "empty": pair("\u200b", "لا"),
        "special_token": pair("نعم<|im_end|>", "لا"),
        "too_long": pair("نعم " * 80, "لا"),
        "too_short": pair("؟", "لا"),
        "wrong_language": pair("Yes, of course, I do think so", "لا"),
        "answer_is_prompt": pair("نعم", "ما رأيك؟"),
    }
    found = examine(
        "preferences", [*rows.values(), {"fault": "malformed", "detail": "x is int", "original": "{}"}]
    ).rows.to_pylist()
    assert [row["reason"] for row in found] == [*rows, "malformed"]
    assert found[-1]["detail"] == "x is int"
    (book,) = examine("instructions", [layouts.instruction("اكتب", "كتاب " * 10**6)]).rows.to_pylist()
    assert (book["reason"], book["tokens"]) == ("too_long", 0)  # known without counting
    assert found[0]["chosen"] == "نعم<|im_end|>"


SYSTEM = "You are a helpful doctor who answers the questions of patients in Arabic, with care. " * 3


@pytest.mark.parametrize(
    ("asked", "answer", "kept"),
    [
        ("ترجم إلى الإنجليزية: أحب القراءة", "I love reading books in the morning and at night", True),
        ("Translate to Arabic: good morning", "صباح الخير", True),
        ("What is photosynthesis?", "عملية تحويل ضوء الشمس إلى غذاء", True),
        ("صنف: The food was great and the staff kind", "إيجابي", True),
        ("اذكر خمس شركات", "Apple, Google, Microsoft, Amazon, Meta", True),
        ("ما رأيكم؟ https://example.com/a/long/address @some_body", "نعم", True),
        ("احسب", r"الناتج $\frac{alpha}{beta}$ أو `solve(equation)`", True),
        ("اكتب دالة الجمع بلغة بايثون", "def add(first, second): return first and second", True),
        ("chno kat3awd 3la had lmawdo3", "ma 3reftch walo 3liha", True),
        ("Say it as people of Rabat would: I have not seen him", "ana machoftoch lyoma", True),
        ("ya khouya wach nta hna", "Yes, I am here, my brother", True),
        ("The tall boy has gone home", "راح البيت", True),
        ("film zwin bezaf", "إيجابي", True),
        ("ما رأيك؟", "Yes, of course, I do think so", False),
        ("ما رأيك في الفندق؟", "Très bien, le personnel est gentil", False),
        ("من الرئيس؟", "Это хороший вопрос", False),
        ("What is the capital of France?", "Paris is the capital", False),
        ("Training of Transformer and Mamba models", "تدريب نماذج Transformer وMamba", True),
        ("Say in Arabic: the boy drank", "chrab lwld", True),
        ("Say in Arabic: the boy drank", "the boy drank", False),
        ("Say in Arabic: the boy drank", "I cannot translate this for you", False),
        ("Traduis en arabe algérien : la vérité est dans la ville", "Rahi la vérité fe la ville", True),
        ("What is 7 plus 5?", "12", False),
        ("Which letter is the first one here?", "أ", False),
        ("Men who win the match go on to wash", "They march home and have had a bath", False),
        ("Rangi ya nyumba ya mwalimu ni ipi?", "Mwalimu ana nyumba ya rangi ya kijani", False),
        ("Ina yaron ya tafi?", "Yaron ya tafi gida, ya ci abinci, ya sha ruwa", False),
        ("فرانس کا دارالحکومت کیا ہے؟", "فرانس کا دارالحکومت پیرس ہے۔", False),
        ("پایتخت ایران کجاست؟", "تهران پایتخت ایران است", False),
        ("این خانه از آن کیست؟", "خانه مال پدر من است", False),  # without its letters
        ("این خانه از آن کیست؟", "لمن هذا البيت؟", True),
    ],
)
def test_the_language_of_a_row_is_that_of_its_question_and_answer(examine, asked, answer, kept):
    (row,) = examine(
        "instructions", [layouts.instruction(asked, answer, SYSTEM)], max_length=512
    ).rows.to_pylist()
    assert row["reason"] == ("" if kept else "wrong_language")
    assert kept or row["detail"].endswith("of its letters are Arabic")


def test_a_dataset_may_be_in_any_language(examine):
    row = layouts.instruction("What is the capital of France?", "Paris")
    (found,) = examine("instructions", [row], any_language={"s"}).rows.to_pylist()
    assert found["reason"] == ""


def test_a_single_vote_has_one_answer_and_its_label_tells_it_from_others(examine):
    good, bad = (layouts.turn("assistant", answer) for answer in ("نعم", "لا"))
    asked = layouts.turn("user", "ما رأيك؟")
    votes = [
        (good, bad),
        (bad, good),
        (good, []),
        ([], good),
        ([], bad),
        ([], []),
        (layouts.turn("assistant", " "), bad),
    ]
    found = examine(
        "preferences",
        [{"prompt": asked, "chosen": chosen, "rejected": rejected} for chosen, rejected in votes],
    )
    rows = found.rows.to_pylist()
    assert [row["reason"] for row in rows] == ["", "", "", "", "", "empty", "empty"]
    assert [(row["chosen"], row["rejected"]) for row in rows[2:4]] == [
        ("نعم<|im_end|>", ""),
        ("", "نعم<|im_end|>"),
    ]
    assert len(set(found.exact[:5])) == 5
    assert (
        found.unordered[0]
        == found.unordered[1]
        != found.unordered[2]
        == found.unordered[3]
        != found.unordered[4]
    )
    assert all(row["tokens"] > 0 for row in rows[:5])


def test_a_letter_a_number_and_yes_or_no_are_answers(examine):
    answers = {
        "٧": "",
        "ب": "",
        "(هـ)": "",
        "C.": "",
        "١٢": "",
        "نعم": "",
        "لا": "",
        "صح": "",
        "هيا": "too_short",
    }
    rows = [layouts.instruction(f"سؤال {place} له جواب قصير", answer) for place, answer in enumerate(answers)]
    found = examine("instructions", rows, min_answer=5).rows["reason"].to_pylist()
    assert dict(zip(answers, found)) == answers
    (mark,) = examine("instructions", [layouts.instruction("ما رأيك؟", "-")]).rows["reason"].to_pylist()
    assert mark == "too_short"


def test_tokens_saved_by_cleaning_are_measured_with_the_models_tokenizer(examine):
    tokenizer = Tokenizer.from_file(str(ROOT / "models/nano/tokenizer.json"))
    dirty, clean = "مـــا عـدد\u200f القارات؟", "ما عدد القارات؟"
    (row,) = examine("instructions", [layouts.instruction(dirty, "سبع")]).rows.to_pylist()
    assert row["saved"] == len(tokenizer.encode(dirty).ids) - len(tokenizer.encode(clean).ids) > 0


QUESTION = "ما هي عاصمة الدولة التي تقع بين نهري دجلة والفرات في غرب آسيا"


@pytest.mark.parametrize(
    ("prompt", "leaks_it"),
    [
        (QUESTION + "؟", True),
        (
            "أجب: " + QUESTION.replace("أ", "ا") + "\nأ) بغداد",
            True,
        ),  # inside a longer prompt, spelled otherwise
        ("مَا هِيَ " + QUESTION[6:], True),
        ("ما هي عاصمة الدولة التي تقع على ضفاف نهر النيل في شمال إفريقيا؟", False),
        ("اكتب العدد الآتي تسعمئة", True),
        ("اكتب العدد الآتي تسعمئة وثمانية", False),  # a short question must end where the prompt does
    ],
)
def test_a_benchmark_question_in_a_training_row_is_found(examine, prompt, leaks_it):
    rows = [layouts.instruction(prompt, "بغداد هي")]
    benchmark = [QUESTION + "؟", "اكتب العدد الآتي تسعمئة؟"]
    (row,) = examine("instructions", rows, benchmark).rows.to_pylist()
    assert (row["reason"] == "leak") == bool(row["leak"]) == leaks_it
    (flagged,) = examine("instructions", rows, benchmark, leaks="flag").rows.to_pylist()
    assert flagged["reason"] == ""
    assert bool(flagged["leak"]) == leaks_it
    (held_out,) = examine("instructions", [rows[0] | {"split": "validation"}], benchmark).rows.to_pylist()
    assert not held_out["leak"]  # nobody trains on it


def test_a_question_that_says_little_counts_with_its_answer(tmp_path):
    rows = [{"question": "أيهما صحيح؟", "choices": ["بغداد عاصمة العراق", "لا"], "answer": 0}] * 2
    assert leaks.item_words(rows)[0] == words("أيهما صحيح؟") + words("بغداد عاصمة العراق")


VAGUE, CHOICES = "أي العبارات الآتية صحيح؟", ["بغداد عاصمة العراق", "دمشق عاصمة لبنان", "كل ما سبق"]


@pytest.mark.parametrize(
    "printed",
    [
        "\n".join([VAGUE, *(f"{label} {choice}" for label, choice in zip(labels, CHOICES))])
        for labels in (
            ("أ)", "ب)", "ج)"),
            ("A.", "B.", "C."),
            ("(أ)", "(ب)", "(ج)"),
            ("1-", "2-", "3-"),
            ("-",) * 3,
            ("",) * 3,
        )
    ]
    + [
        f"{VAGUE} أ- {CHOICES[0]} ب- {CHOICES[1]} ج- {CHOICES[2]}",
        f"{VAGUE} ({'، '.join(CHOICES)})",
        "\n".join([VAGUE, *CHOICES[::-1]]),
        f"{VAGUE} أ- {CHOICES[1]} ب- {CHOICES[2]} ج- {CHOICES[0]}",
        "\n".join(["اختر:", VAGUE, *(f"ب. {choice}" for choice in CHOICES)]),
    ],
)
def test_a_copied_exam_question_is_found_though_its_choices_stand_before_the_answer(tmp_path, printed):
    rows = [
        layouts.question(VAGUE, own, 0) | {"id": str(i), "source": "exam", "split": "test", "fault": None}
        for i, own in enumerate([CHOICES, ["غيرها", "وغيرها", "ولا شيء من هذا كله"]])
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "exam.parquet")
    guard = leaks.Guard(leaks.build(tmp_path, 0.8))
    assert guard.find_listed(["لا شيء هنا", printed]) == {1: "exam\t0"}
    other = (
        printed.replace("لبنان", "الأردن").replace("العراق", "اليمن").replace("كل ما سبق", "لا شيء مما سبق")
    )
    assert guard.find_listed([other, VAGUE]) == {}


@pytest.mark.parametrize("extent", ["", " كله غدا"])
def test_a_brief_question_is_found_with_its_choices_on_one_line(tmp_path, extent):
    """Nearly every run of its words must be there, and the one up to the end of its line is not."""
    brief = f"متى سيتحرك منحنى الطلب على العمال إلى اليمين{extent}؟"
    rows = [
        layouts.question(brief, CHOICES, 0) | {"id": "0", "source": "exam", "split": "test", "fault": None}
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "exam.parquet")
    guard = leaks.Guard(leaks.build(tmp_path, 0.8))
    printed = f"{brief} أ) {CHOICES[1]} ب) {CHOICES[0]} ج) {CHOICES[2]}"
    assert guard.find_listed([printed, printed.replace("منحنى الطلب", "خط العرض")]) == {0: "exam\t0"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("س ≥ 5", "س ≤ 5", False),
        ("√2", "2", False),
        ("عِلْمٌ", "عَلَمٌ", False),
        ("3.5", "3,5", False),
        ("5!", "5", False),
        ("مدرسة", "مدرسه", False),
        ("😀", "😡", False),
        ("جواب،  آخر.", "«جواب» آخر", True),
        ("٣", "3", True),
        ("مـــرحبا\u200f", "مرحبا", True),
    ],
)
def test_answers_are_compared_more_strictly_than_prompts(examine, one, other, same):
    rows = [layouts.instruction("سُؤال مُشترك؟", one), layouts.instruction("سؤال مشترك", other)]
    found = examine("instructions", rows)
    assert found.prompts[0] == found.prompts[1]
    assert (found.exact[0] == found.exact[1]) == same


TASK = "أنت طبيب خبير يجيب عن أسئلة المرضى " + " ".join(f"تعليمة{i}" for i in range(60))


def misread(text, encoding):
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        *(
            (misread("مرحبا بكم، «نعم» – كيف؟", name), "مرحبا بكم، «نعم» – كيف؟")
            for name in ("cp1256", "cp1252")
        ),
        ("قال: " + misread("السلام عليكم", "cp1256"), "قال: السلام عليكم"),
        (misread("قريت à l'école", "cp1252"), "قريت à l'école"),
        (misread("chrit télé jdida", "cp1252"), "chrit télé jdida"),
        ("قال &quot;نعم&quot; &amp; &#1604;&#1575;", 'قال "نعم" & لا'),
        *(
            (text, text)
            for text in ("في HTML تكتب &quot;", "`&amp;`", "س &lt; ص", "نفط، غاز", "عکس خوبی", "AT&T;", "SÃO")
        ),
    ],
)
def test_what_was_misread_is_repaired(raw, clean):
    text, found = defects.repaired(raw)
    assert (text, bool(found)) == (clean, raw != clean)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("هذه إجابة طويلة لم تكتمل لأن...", ["cut_off"]),
        ("كنموذج لغوي لا رأي لي", ["refusal"]),
        ("I'm sorry, but that is not possible", ["refusal"]),
        ("جمييييييل", ["stretched"]),
        ("نص \ue001 و\ufffd", ["private_use", "replacement_character"]),
        ("هذه إجابة طويلة تامة المعنى.", []),
    ],
)
def test_defects_are_counted_and_dropped_where_asked(examine, answer, found):
    row = layouts.instruction("ما قولك في هذا السؤال الطويل من الأسئلة؟", answer)
    (kept,) = examine("instructions", [row]).rows.to_pylist()
    assert (kept["reason"], kept["defects"]) == ("", found)
    (lost,) = examine(
        "instructions", [row], drop=["cut_off", "refusal", "stretched", "private_use"]
    ).rows.to_pylist()
    assert lost["reason"] == (found[0] if found else "")


# --- duplicates ---------------------------------------------------------------------------------------------


def test_near_duplicates_are_found_and_nothing_else():
    rng = np.random.default_rng(3)
    vocabulary = [f"كلمة{i}" for i in range(5000)]
    texts = [rng.choice(vocabulary, 40).tolist() for _ in range(400)]
    for i in range(200, 300):
        texts[i] = list(texts[i - 200])
        texts[i][int(rng.integers(40))] = "غيرها"  # Jaccard of word pairs: 37/41 = 0.90
    for i in range(300, 350):
        texts[i] = texts[i - 300][:20] + texts[i][20:]  # 19/59 = 0.32
    hashes, owners = shingles.hash_words(texts)
    signature = duplicates.signatures(hashes, owners, len(texts))
    keys = duplicates.band_keys(signature, duplicates.band_rows(0.8))
    twins = duplicates.near_twins(keys, signature, np.ones(len(texts), bool), 0.8)
    found = twins[200:300]
    assert (found == np.arange(100)).mean() > 0.95
    assert set(np.delete(twins, np.arange(200, 300))) == {-1}
    alone = duplicates.near_twins(keys, signature, np.arange(400) >= 200, 0.8)
    assert set(alone) == {-1}  # a row that is out already has no twins


def test_signatures_estimate_the_jaccard_similarity():
    left, right = list("abcdefghijklmnopqrst"), list("abcdefghijklmnopqrsz")  # 18 shared of 20 word pairs
    signature = duplicates.signatures(*shingles.hash_words([left, right]), 2)
    assert (signature[0] == signature[1]).mean() == pytest.approx(18 / 20, abs=0.1)


PASSAGE = " ".join(f"كلمة{i}" for i in range(60)) + "."
CHANGED = PASSAGE.replace("كلمة30", "غيرها")
ANSWER = " ".join(f"جواب{i}" for i in range(40))


@pytest.mark.parametrize(
    ("asked", "other", "answers", "others", "near"),
    [
        (PASSAGE, CHANGED, ["نعم"], ["نعم"], True),
        (PASSAGE, CHANGED, ["نعم"], ["لا"], False),
        (PASSAGE, PASSAGE, ["س ≥ 5"], ["س ≤ 5"], False),
        (f"{PASSAGE}\nمن؟", f"{PASSAGE}\nأين؟", ["القاهرة"], ["القاهرة"], False),  # another question
        (f"{PASSAGE} من؟", f"{PASSAGE} أين؟", ["القاهرة"], ["القاهرة"], False),
        (f"{PASSAGE} من الكاتب؟", f"{PASSAGE} متى كتب؟", [ANSWER], [ANSWER], False),
        (f"{PASSAGE} من الكاتب؟", f"{PASSAGE} من الكاتب إذن؟", [ANSWER], [ANSWER], True),
        (f"{PASSAGE} من الكاتب؟", f"{CHANGED} من الكاتب؟", [ANSWER], [ANSWER], True),
        (PASSAGE, f"أجب:\n{PASSAGE}", [ANSWER], [ANSWER], True),
        ("اشرح", "اشرح؟", [ANSWER], [ANSWER + " أيضا"], True),
        ("ما الزكاة؟", "ما الصيام؟", [ANSWER], [ANSWER + " أيضا"], False),
        (PASSAGE, PASSAGE, [ANSWER], [ANSWER.replace("جواب", "رد")], False),  # another answer
        (PASSAGE, PASSAGE, [ANSWER, "نعم"], [ANSWER + " أيضا", "نعم"], True),  # pairs
        (PASSAGE, PASSAGE, [ANSWER, "نعم"], [ANSWER + " أيضا", "لا"], False),
        (PASSAGE, PASSAGE, [ANSWER, ""], ["", ANSWER], False),  # a good answer, and a bad one
    ],
)
def test_near_duplicates_have_near_answers_to_near_questions(asked, other, answers, others, near):
    one, two = duplicates.Exchange(asked, tuple(answers)), duplicates.Exchange(other, tuple(others))
    assert duplicates.are_near(one, two, 0.8) == duplicates.are_near(two, one, 0.8) == near


def test_exact_twins_point_to_the_first_row_that_counts():
    keys = np.array([5, 7, 5, 5, 7], np.uint64)
    assert duplicates.exact_twins(keys, np.array([False, True, True, True, True])).tolist() == [
        -1,
        -1,
        -1,
        2,
        1,
    ]


def test_what_is_claimed_as_often_as_its_opposite_is_out():
    claims, subjects = (
        np.array([1, 2, 1, 3, 4, 5, 6, 5], np.uint64),
        np.array([7, 7, 7, 8, 8, 9, 9, 9], np.uint64),
    )
    alive = np.array([True] * 6 + [False, True])
    assert duplicates.outvoted(claims, subjects, alive).tolist() == [
        False,
        True,
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert not duplicates.outvoted(claims, subjects, ~alive).any()


def test_runs_of_words_stay_inside_their_text():
    hashes, owners = shingles.hash_words([["a", "b"], ["c"], ["a", "b", "c"]])
    runs, texts = shingles.ngrams(hashes, owners, 2)
    assert texts.tolist() == [0, 2, 2]
    assert runs[0] == runs[1] != runs[2]


# --- the stage ----------------------------------------------------------------------------------------------


def test_a_prompt_is_always_on_the_same_side():
    keys = [quality.key([f"سؤال{i}"], []) for i in range(2000)]
    sides = [quality.split_of(key, 0.1) for key in keys]
    assert sides == [quality.split_of(key, 0.1) for key in keys]
    assert 0.08 < sides.count("validation") / 2000 < 0.12


def test_questions_on_one_passage_stay_on_one_side(examine):
    text, between = " ".join(f"كلمة{i}" for i in range(25)), ["\n\n", " "]  # or all on one line
    passages = [f"{i // 5} {text}{between[i < 200]}ما رقم {i}؟" for i in range(400)]
    rows = [layouts.instruction(f"{TASK}\n\n{passage}", "جواب") for passage in passages]
    rows += [layouts.instruction(f"{TASK}\nما رقم {i}؟", f"{i}") for i in range(600)]
    rows = [row | {"split": None} for row in rows]
    sides = examine("instructions", rows, max_length=2048, validation=0.2).rows["split"].to_pylist()
    assert all(len(set(sides[start : start + 5])) == 1 for start in range(0, 400, 5))
    assert 0.1 < sides[:400].count("validation") / 400 < 0.3
    assert 0.1 < sides[400:].count("validation") / 600 < 0.3  # one wording is no passage


def test_of_lines_of_one_length_the_first_is_the_passage():  # a set's order differs by process
    numbers = [range(start, start + 20) for start in range(100, 130)]
    first, later = ([" ".join(f"{letter}{i}" for i in own) for own in numbers] for letter in "بت")
    assert quality.passages(["\n".join(lines) for lines in zip(first, later)]) == quality.passages(first)


def sources(folder, role, **tables):
    """data/raw of a role, from rows by dataset."""
    raw = folder / "data/raw" / role
    raw.mkdir(parents=True)
    for name, rows in tables.items():
        rows = [{"source": name, "id": f"{name}:{i}", **row} for i, row in enumerate(rows)]
        parquet.write_table(
            pa.Table.from_pylist(rows, layouts.SCHEMAS[role]), raw / f"{name}.parquet", row_group_size=40
        )
    (raw / "sources.json").write_text(
        json.dumps({name: {"published": len(rows)} for name, rows in tables.items()})
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with two datasets that share rows and prompts, in several row groups."""
    (tmp_path / "models").mkdir()
    for part in ("stages", "params.yaml", "dvc.yaml", "models/nano"):
        (tmp_path / part).symlink_to(ROOT / part)
    monkeypatch.chdir(tmp_path)
    base.main()
    long = " ".join(f"كلمة{i}" for i in range(30))
    first = [layouts.instruction(f"سؤال رقم {i}", f"جواب {i}") for i in range(100)]
    second = [
        layouts.instruction(f"سُؤال رقم {i}،", f"جواب {i}.") for i in range(50)
    ]  # the same but for marks
    second += [layouts.instruction(long, long + " نهاية"), layouts.instruction(long, long + " أخرى")]
    second += [
        layouts.instruction("سؤال رقم 7", "جواب آخر") | {"split": "validation"},
        {"fault": "malformed", "detail": "d", "original": "o"},
    ]
    sources(tmp_path, "instructions", first=first, second=second)
    exam = [layouts.question("سؤال رقم 9", ["جواب 9", "لا"], 0) | {"split": "test"}]
    sources(tmp_path, "benchmarks", exam=exam)
    return tmp_path


def test_an_interrupt_while_the_workers_start_is_one_line(project):
    command = [sys.executable, "-m", "stages.format", "instructions"]
    for _ in range(5):  # on a loaded machine it may be done before it is looked at
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and len(children.read_text().split()) < 2:  # the first tracks resources
            time.sleep(0.01)
        time.sleep(0.3)  # all are started, and import
        if process.poll() is None:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert process.communicate(timeout=60)[1] == "error: interrupted: the same command does it again\n"
    assert process.returncode == 130


def test_the_account_of_a_mixture_adds_up(project):
    formatting.main("instructions")
    report = json.loads((project / "data/reports/instructions.json").read_text(encoding="utf-8"))
    dropped = parquet.read_table(project / "data/reports/instructions.parquet").to_pylist()
    train, validation = (
        parquet.read_table(project / f"data/formatted/instructions/{name}.parquet")
        for name in ("train", "validation")
    )
    assert report["rows"] == 154 == len(train) + len(validation) + len(dropped)
    assert (report["train"], report["validation"]) == (len(train), len(validation))
    assert report["dropped"] == dict(Counter(row["reason"] for row in dropped))
    assert report["dropped"] == {"duplicate": 49, "leak": 2, "malformed": 1, "near_duplicate": 1}
    for source in report["sources"].values():
        assert (
            source["rows"]
            == source["published"]
            == source["train"] + source["validation"] + sum(source["dropped"].values())
        )
    twin = next(row for row in dropped if row["id"] == "second:3")
    assert (twin["reason"], twin["detail"]) == ("duplicate", "of first:3")
    assert next(row for row in dropped if row["reason"] == "near_duplicate")["detail"] == "of second:50"
    assert report["leaks"]["exam"] == {"items": 1, "unchecked": 0, "leaked_items": 1, "rows": 2}
    assert not set(train["prompt"].to_pylist()) & set(validation["prompt"].to_pylist())
    assert "second:52" in validation["id"].to_pylist()
    assert "first:7" in validation["id"].to_pylist()  # another source holds its prompt out


def test_what_rows_share_makes_no_near_duplicates(project):
    shutil.rmtree(project / "data/raw/instructions")
    ask = layouts.instruction
    makers = {
        "one_system_turn": lambda i: ask(f"ما علاج المرض {i}؟", f"دواء {i}", TASK),
        "one_wording": lambda i: ask(f"{TASK}: ما علاج المرض {i}؟", "راجع طبيبك"),
        "five_on_a_passage": lambda i: ask(f"{PASSAGE} {i // 5}\nمن رقم {i}؟", f"اسم {i % 3}"),
        "twins": lambda i: ask(f"سؤال {i // 2}", f"{ANSWER} {i // 2}" + " أيضا" * (i % 2)),
    }
    sources(project, "instructions", **{name: [make(i) for i in range(60)] for name, make in makers.items()})
    formatting.main("instructions")
    report = json.loads((project / "data/reports/instructions.json").read_text(encoding="utf-8"))
    lost = {name: one["dropped"].get("near_duplicate", 0) for name, one in report["sources"].items()}
    assert lost == dict.fromkeys(makers, 0) | {"twins": 30}


def test_a_dataset_may_keep_its_near_duplicates(project):
    shutil.rmtree(project / "data/raw/instructions")
    rows = [layouts.instruction(PASSAGE, ANSWER), layouts.instruction(PASSAGE, ANSWER + " أيضا")]
    rows.append(layouts.instruction("سؤال آخر", "جواب"))
    sources(
        project, "instructions", kept=rows, gated=[layouts.instruction(PASSAGE, ANSWER + " آخر"), *rows[:1]]
    )
    path = project / "data/raw/instructions/sources.json"
    path.write_text(json.dumps({"kept": {"published": 3, "near_duplicates": 1}, "gated": {"published": 2}}))
    formatting.main("instructions")
    report = json.loads((project / "data/reports/instructions.json").read_text(encoding="utf-8"))
    assert report["sources"]["kept"]["dropped"] == {}
    assert report["sources"]["gated"]["repeats"] == {"duplicate": {"kept": 1}, "near_duplicate": {"kept": 1}}


@pytest.mark.parametrize("count", [1, 2, 10])
def test_of_a_few_rows_one_is_held_out(project, count):
    shutil.rmtree(project / "data/raw/instructions")
    rows = [layouts.instruction(f"ما الكلمة رقم {i}؟", f"جواب {i}") for i in range(count)]
    sources(project, "instructions", few=rows)
    if count == 1:
        with pytest.raises(
            SystemExit, match=r"no validation rows .* \(one prompt came in\): two prompts are the"
        ):
            formatting.main("instructions")
    else:
        formatting.main("instructions")
        report = json.loads((project / "data/reports/instructions.json").read_text(encoding="utf-8"))
        assert (report["train"], report["validation"]) == (count - 1, 1)


def test_too_great_a_loss_stops_the_stage_and_leaves_the_report(project, monkeypatch):
    params = (
        (ROOT / "params.yaml").read_text(encoding="utf-8").replace("max_dropped: 0.5", "max_dropped: 0.1")
    )
    (project / "params.yaml").unlink()
    (project / "params.yaml").write_text(params, encoding="utf-8")
    with pytest.raises(
        SystemExit,
        match=r"max_dropped is 0.1, but 53 of 154 rows .* lost "
        r"\(49 duplicate \(second:0 of first:0\), 2 leak \(first:9 holds",
    ):
        formatting.main("instructions")
    assert not (project / "data/formatted/instructions").exists()
    assert len(parquet.read_table(project / "data/reports/instructions.parquet")) == 53


@pytest.mark.parametrize(
    ("reason", "cure"),
    [("too_long", "raise prompt.max_length"), ("duplicate", "raise format.max_dropped where")],
)
def test_what_took_most_rows_names_its_cure(reason, cure):
    report = {"rows": 10, "dropped": {"empty": 1, reason: 8}, "train": 1, "validation": 0}
    with pytest.raises(Problem, match=f"instructions.parquet; {cure}"):
        formatting.gate("instructions", read(), report, {"empty": "a:0", reason: "a:1"})


def test_lengths_are_counted_to_the_last_row():
    found = account.lengths([np.array([1, 32, 33]), np.array([5000])])
    assert found["histogram"] == {"to_32": 2, "to_64": 1, "longer": 1}
    assert found["total"] == 5066


@pytest.mark.parametrize("module", ["fetch", "format"])
def test_data_stages_never_import_torch(module):
    code = f"import sys, stages.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    usage = subprocess.run(
        [sys.executable, "-m", f"stages.{module}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"usage: python -m stages.{module}" in usage.stdout
