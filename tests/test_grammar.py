"""The generator's Arabic against sentences known to be right."""

import pytest

from stages.builtin.grammar import (
    NOUNS,
    PEOPLE,
    VERBS,
    VIRTUES,
    Noun,
    agree,
    conjugate,
    counted,
    dual,
    number_words,
    sound_plural,
)

BOOK, CAR, GIRL_STUDENT = Noun("كتاب", "كتب"), Noun("سيارة", "سيارات"), Noun("طالبة", "طالبات")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "صفر"), (1, "واحد"), (2, "اثنان"), (8, "ثمانية"), (10, "عشرة"), (11, "أحد عشر"), (12, "اثنا عشر"),
        (13, "ثلاثة عشر"),
        (20, "عشرون"), (21, "واحد وعشرون"), (99, "تسعة وتسعون"), (100, "مئة"), (101, "مئة وواحد"),
        (111, "مئة وأحد عشر"),
        (200, "مئتان"), (300, "ثلاثمئة"),
        (825, "ثمانمئة وخمسة وعشرون"), (1000, "ألف"), (2000, "ألفان"), (2002, "ألفان واثنان"),
        (3000, "ثلاثة آلاف"), (11000, "أحد عشر ألفا"), (1999, "ألف وتسعمئة وتسعة وتسعون"),
        (9999, "تسعة آلاف وتسعمئة وتسعة وتسعون"),
    ],
)  # fmt: skip
def test_numbers_in_words(number, words):
    assert number_words(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "واحدة"), (3, "ثلاث"), (8, "ثمان"), (11, "إحدى عشرة"), (12, "اثنتا عشرة"), (15, "خمس عشرة"),
        (18, "ثماني عشرة"),
     (21, "إحدى وعشرون"), (22, "اثنتان وعشرون"), (28, "ثمان وعشرون"), (103, "مئة وثلاث")],
)  # fmt: skip
def test_feminine_counting_forms(number, words):
    assert number_words(number, feminine=True) == words


@pytest.mark.parametrize(
    ("number", "noun", "phrase"),
    [
        (1, BOOK, "كتاب واحد"), (1, CAR, "سيارة واحدة"), (2, BOOK, "كتابان"), (2, CAR, "سيارتان"),
        (3, BOOK, "ثلاثة كتب"), (3, CAR, "ثلاث سيارات"), (8, BOOK, "ثمانية كتب"),
        (8, GIRL_STUDENT, "ثماني طالبات"),
        (10, BOOK, "عشرة كتب"), (10, CAR, "عشر سيارات"),
        (11, BOOK, "أحد عشر كتابا"), (11, CAR, "إحدى عشرة سيارة"), (12, CAR, "اثنتا عشرة سيارة"),
        (18, CAR, "ثماني عشرة سيارة"),
        (20, BOOK, "عشرون كتابا"),
        (25, BOOK, "خمسة وعشرون كتابا"), (25, CAR, "خمس وعشرون سيارة"), (28, CAR, "ثمان وعشرون سيارة"),
        (100, BOOK, "مئة كتاب"), (200, CAR, "مئتا سيارة"), (300, BOOK, "ثلاثمئة كتاب"),
        (1000, CAR, "ألف سيارة"), (2000, BOOK, "ألفا كتاب"),
        (102, BOOK, "مئة كتاب وكتابان"), (103, CAR, "مئة وثلاث سيارات"),
        (115, BOOK, "مئة وخمسة عشر كتابا"), (3000, BOOK, "ثلاثة آلاف كتاب"),
    ],
)  # fmt: skip
def test_a_number_agrees_with_what_it_counts(number, noun, phrase):
    assert counted(number, noun) == phrase


def test_every_number_has_its_own_words():
    assert len({number_words(n) for n in range(10_000)}) == 10_000
    with pytest.raises(ValueError, match="99,999"):
        number_words(100_000)


def test_word_forms():
    assert (dual("كتاب"), dual("سيارة")) == ("كتابان", "سيارتان")
    assert (sound_plural("مهندس"), sound_plural("مهندسة")) == ("مهندسون", "مهندسات")
    assert (agree("جديد", "سيارة"), agree("جديد", "كتاب")) == ("جديدة", "جديد")
    past = {
        "أنا": "كتبت",
        "نحن": "كتبنا",
        "هي": "كتبت",
        "هم": "كتبوا",
        "هن": "كتبن",
        "أنتم": "كتبتم",
        "أنتن": "كتبتن",
    }
    assert {pronoun: conjugate("كتب", pronoun, present=False) for pronoun in past} == past
    present = {"أنا": "أكتب", "نحن": "نكتب", "هو": "يكتب", "هي": "تكتب", "هم": "يكتبون", "هن": "يكتبن",
        "أنتم": "تكتبون", "أنتن": "تكتبن",
               "هما": "يكتبان"}  # fmt: skip
    assert {pronoun: conjugate("كتب", pronoun, present=True) for pronoun in present} == present


def test_the_lexicon_has_only_words_that_the_rules_hold_for():
    singulars = [noun.singular for noun in NOUNS]
    assert len(set(singulars)) == len(singulars)
    assert not [
        word for word in singulars if word.endswith(("ء", "ى", "ا", "ي"))
    ]  # their dual or accusative is irregular
    assert not [verb for verb in VERBS if len(verb) != 3 or verb[-1] in "تن" or set(verb) & set("اويىءأؤئ")]
    qualities = [word for noun in NOUNS for word in noun.qualities]
    assert all(noun.qualities for noun in NOUNS)
    assert not [word for word in qualities + VIRTUES + PEOPLE if word.endswith(("ة", "ى", "ء"))]
