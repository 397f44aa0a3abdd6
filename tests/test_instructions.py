"""IFEval's rules in Arabic: what is counted, strictly and loosely, and what no rule checks."""

import json

import pytest

from stages.judge import instructions
from stages.judge.instructions import RULES, Unsupported, follows, sentences, words


def kept(name: str, answer: str, **arguments) -> bool:
    return follows({"id": name, "arguments": arguments}, "سؤال", answer)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("كَتَبَ الوَلَدُ الدَّرْسَ", 3),  # \w knows no tashkeel
        ("كتـــاب جميل", 2),
        ("عام ١٩٥٢ م", 3),
        ("السَّلامُ، عليكم!", 2),
        ("a_b c-d", 3),
        ("", 0),
        ("؟ ، ؛", 0),
    ],
)
def test_words(text, count):
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("ما هذا؟ هذا كتاب. رائع!", 3),
        ("نعم؟! لا… ربما۔ حسنا", 4),
        ("قال: «نعم.» ثم مضى.", 2),
        ("بلغ 3.5 كيلومتر و٣.٥ متر.", 1),
        ("زار د. أحمد مصر. ثم عاد.", 2),
        ("1. تفاح\n2. موز\n٣. تمر", 1),
        ("ولد عام 1990. مات شابا.", 2),
        ("بلا علامة", 1),
        ("؟!", 0),
        ("", 0),
    ],
)
def test_sentences(text, count):
    assert sentences(text) == count


HELD = [
    ("keywords:existence", {"keywords": ["كتاب", "١٠"]}, "قرأتُ الكِتَابَ في 10 أيام", "قرأت رواية في 10 أيام"),
    ("keywords:list_existence", {"keywords": ["أنت", "أنتما"], "mode": "all"}, "أنتَ وأنتُما", "أنت"),
    ("keywords:list_existence", {"keywords": ["بحر", "نهر"], "mode": "any"}, "النهر", "جبل"),
    ("keywords:frequency", {"keyword": "جذور", "frequency": 2, "relation": "at least"},
        "جُذور وجذورها", "جذور"),
    ("keywords:frequency", {"keyword": "جذور", "frequency": 2, "relation": "less than"}, "جذور", "جذور جذور"),
    ("keywords:forbidden_words", {"forbidden_words": ["الخسارة"]}, "الربح", "هذه الخَسَارة."),
    ("keywords:letter_frequency", {"letter": "ل", "let_frequency": 3, "let_relation": "at least"},
        "لَيْلٌ طويل", "ليل"),
    ("keywords:letter_frequency", {"letter": "هـ", "let_frequency": 2, "let_relation": "less than"},
        "هـنا", "ههنا"),
    ("keywords:letter_frequency", {"letter": "N", "let_frequency": 2, "let_relation": "at least"}, "nN", "n"),
    ("keywords:letter_list_freq", {"letters": ["د", "ر"], "frequency": 2, "relation": "at least",
        "position": "end"}, "بلدٌ، بحرُ سماء", "بلد سماء درس"),
    ("keywords:letter_list_freq", {"letters": ["ث", "ذ"], "frequency": 2, "relation": "at least",
        "position": "start"}, "الثقافة ذهب", "الكتاب ذهب"),
    ("keywords:letter_list_freq", {"letters": ["ظ"], "frequency": 1, "relation": "less than",
        "position": "any"}, "كتاب", "نظيف"),
    ("language:response_language", {"language": "ar"}, "مرحبا hi", "hello يا"),
    ("language:response_language", {"language": "en"}, "Hello, 12", "مرحبا hi"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "كَتَبَ أحمد درسا", "كَتَبَ"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
        "من أنت؟ أنا هنا", "من أنت"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "أ\n***\nب", "أ\n***\n***\nب"),
    ("length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "مجلس الضيافة"},
        "أهلا\n\n«مَجلس الضيافة» كبير", "أهلا\n\nمجلس كبير"),
    ("length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "الشيخ"},
        "أهلا\n\nالشيخ، قال", "الشيخ\n\nأهلا"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[الاسم] و[العنوان]", "[الاسم]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "نعم\nP. P.S: شكرا", "نعم P.S. شكرا"),
    ("detectable_content:postscript", {"postscript_marker": "ملاحظة:"}, "نعم\nمُلاحظة: شكرا", "نعم"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* أ\n- ب", "* أ\n* ب\n- ج"),
    ("detectable_format:constrained_response", {}, "إجابتي هي نعم.", "نعم"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*أ* و*ب*", "*أ* ** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "القسم", "num_sections": 2},
        "القِسم ١\nأ\nالقسم 2\nب", "القسم ١\nأ"),
    ("detectable_format:json_format", {}, '```json\n{"اسم": "علي"}\n```', "{اسم: علي}"),
    ("detectable_format:title", {}, "<<قصة>>\nكان", "<<>>\nكان"),
    ("detectable_format:tashkeel", {"tashkeel_name": "Kasratan", "count": 2}, "كتابٍ وقلمٍ", "كتابٍ"),
    ("combination:two_responses", {}, "أ\n******\nب", "أ\n******\nأ"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "اكتب قصة "}, "اكتب قصة\nكان", "كان"),
    ("startend:end_checker", {"end_phrase": "هل هناك شيء آخر؟"},
        "«نعم. هل هناك شيءٌ آخر؟»", "هل هناك شيء آخر؟ لا"),
    ("startend:quotation", {}, "«نعم»", "«نعم\""),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA and UN-HABITAT", "NASA and Un"),
    ("change_case:english_capital", {}, "YES, 2", "Yes"),
    ("change_case:english_lowercase", {}, "yes", "نعم"),
    ("punctuation:no_comma", {}, "نعم؛ لا", "نعم، لا"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), HELD)
def test_a_rule_is_kept_or_broken(name, arguments, good, bad):
    assert (kept(name, good, **arguments), kept(name, bad, **arguments)) == (True, False)
    assert not kept(name, " \n", **arguments)  # an empty answer keeps to nothing


def test_every_rule_is_tested():
    assert {name for name, *_ in HELD} == set(RULES)


def test_loose_forgives_a_first_line_a_last_line_and_asterisks():
    rules = [
        json.dumps({"id": name, "arguments": given})
        for name, given in (
            ("startend:quotation", {}),
            ("keywords:forbidden_words", {"forbidden_words": ["بالتأكيد"]}),
            ("punctuation:no_comma", {}),
        )
    ]
    answer = 'بالتأكيد إليك الجواب:\n**"نعم هذا هو"**\nأهلا، بك'
    assert instructions.check("س", rules, answer) == ([False, False, False], [True, True, True])
    assert instructions.check("س", rules, "«نعم»") == ([True] * 3, [True] * 3)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("keywords:rhyme", {}, "no rule checks keywords:rhyme"),
        ("language:response_language", {"language": "fr"}, "'fr'"),
        ("keywords:letter_frequency", {"letter": "الألف", "let_frequency": 3, "let_relation": "less than"},
            "no single letter"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "'about'"),
        ("length_constraints:number_words", {"relation": "at least"}, "num_words"),
        ("punctuation:no_comma", {"number": 3}, "number"),
        ("detectable_format:tashkeel", {"tashkeel_name": "Madda", "count": 1}, "madda"),
    ],
)  # fmt: skip
def test_what_no_rule_checks_is_said(name, arguments, said):
    with pytest.raises(Unsupported, match=said):
        kept(name, "جواب", **arguments)
