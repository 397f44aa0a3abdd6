"""From raw rows to prompts: text policy, templates, and an account of every row."""

import pytest
from tokenizers import Tokenizer

from stages import format as formatting
from stages.arabic import arabic_share, normalise
from stages.prompts import TEMPLATES
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﻣﺮﺣﺒﺎ", "مرحبا"),  # presentation forms
        ("مـــرحبا", "مرحبا"),  # tatweel
        ("مر\u200bحبا\u200f", "مرحبا"),  # zero-width and bidi controls
        ("سطر\r\nسطر\rسطر", "سطر\nسطر\nسطر"),
        ("  كلمة   كلمة\t \n كلمة ", "كلمة كلمة\nكلمة"),
        ("مَدْرَسَةٌ ٣", "مَدْرَسَةٌ ٣"),  # kept unless asked for
        ("إلى أن ى ة", "إلى أن ى ة"),  # spelling is never touched
        ("m² ½", "m² ½"),  # NFKC is for Arabic presentation forms alone
    ],
)
def test_text_is_cleaned_without_changing_its_spelling(raw, clean):
    assert normalise(raw) == clean


def test_tashkeel_and_digits_follow_the_policy():
    assert normalise("مَدْرَسَةٌ ٣", tashkeel="strip", digits="western") == "مدرسة 3"


def test_arabic_share_counts_letters_alone():
    assert arabic_share("مرحبا، 123!") == 1.0
    assert arabic_share("مرحبا Hello") == 0.5
    assert arabic_share("12") == 1.0


CHAT = [{"role": "user", "content": "س"}, {"role": "assistant", "content": "ج"}, {"role": "user", "content": "ص"}]


def test_chatml():
    template = TEMPLATES["chatml"]
    prompt = "<|im_start|>user\nس<|im_end|>\n<|im_start|>assistant\nج<|im_end|>\n<|im_start|>user\nص<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(CHAT) == prompt
    assert template.render(CHAT, system="أجب") == "<|im_start|>system\nأجب<|im_end|>\n" + prompt
    assert template.complete("ع") == "ع<|im_end|>"


def test_the_arabic_template():
    template = TEMPLATES["arabic"]
    assert template.render(CHAT[:1]) == "### التعليمات:\nس\n\n### الإجابة:\n"
    assert template.render(CHAT) == "### التعليمات:\nس\n\n### الإجابة:\nج<|endoftext|>\n### التعليمات:\nص\n\n### الإجابة:\n"
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


def row(prompt="سؤال", **answers):
    return {"prompt": prompt, **answers, "contents": [prompt, *answers.values()], "split": "train"}


def test_every_row_is_kept_or_dropped_with_a_reason():
    tokenizer = Tokenizer.from_file(str(ROOT / "models/nano/tokenizer.json"))
    rows = [
        row(chosen="نعم", rejected="لا"),
        row(chosen="نعم", rejected="لا"),
        row(chosen="نعم", rejected="نعم"),
        row(chosen="", rejected="لا"),
        row(chosen="نعم<|im_end|>", rejected="لا"),
        row(chosen="نعم " * 40, rejected="لا"),
    ]
    checked = list(formatting.check("preferences", iter(rows), tokenizer, max_length=32))
    assert [reason for _, reason in checked] == ["", "duplicate", "chosen_is_rejected", "empty", "special_token", "too_long"]
    report = formatting.report(checked, {"train": [checked[0][0]], "validation": []})
    assert report["rows"] == report["train"] + report["validation"] + sum(report["dropped"].values())


def test_a_prompt_is_always_on_the_same_side():
    turns = [[{"role": "user", "content": f"سؤال {i}"}] for i in range(2000)]
    sides = [formatting.split_of(turn, 0.1) for turn in turns]
    assert sides == [formatting.split_of(turn, 0.1) for turn in turns]
    assert 0.08 < sides.count("validation") / 2000 < 0.12
