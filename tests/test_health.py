"""A broken model shows in its answers: each sign on an answer that has it and on one that has not."""

import pytest

from stages.evaluation.health import exact_match, f1, health, loops
from stages.model.generation import Answer
from stages.text.prompts import IM_START

GOOD = "الجواب هو القاهرة، وهي عاصمة مصر."


def answer(text: str, tokens: tuple[int, ...] = tuple(range(9)), stopped: bool = True) -> Answer:
    return Answer(text, tokens, stopped)


def test_a_healthy_model_has_no_sign():
    found = health([answer(GOOD)] * 4, [GOOD] * 4)
    assert found["stop_rate"] == found["arabic_share"] == found["length_ratio"] == 1
    assert found["chrf"] == pytest.approx(100)
    assert not any(
        found[name]
        for name in ("loop_rate", "repetition", "empty_rate", "markup_rate", "latin_share", "cjk_share")
    )


@pytest.mark.parametrize(
    ("sign", "broken"),
    [
        ("stop_rate", answer(GOOD, stopped=False)),
        ("loop_rate", answer("نعم " * 20, (1, 2, 3) * 10)),
        ("repetition", answer("نعم " * 20, (1, 2, 3) * 10)),
        ("distinct_2", answer("نعم " * 20)),
        ("empty_rate", answer(" \n", ())),
        ("markup_rate", answer(f"{GOOD}\n{IM_START}user\nما")),
        ("arabic_share", answer("The capital is Cairo.")),
        ("latin_share", answer("The capital is Cairo.")),
        ("cjk_share", answer("العاصمة 是开罗")),
        ("length_ratio", answer(GOOD * 10)),
        ("chrf", answer("فففف")),
    ],
)
def test_every_fault_shows_in_its_sign(sign, broken):
    well, ill = health([answer(GOOD)] * 3, [GOOD] * 3)[sign], health([broken] * 3, [GOOD] * 3)[sign]
    assert abs(ill - well) > 0.2, (well, ill)


def test_a_loop_is_found_whatever_its_length_and_a_list_is_none():
    assert loops((9, 9, 9))
    assert loops((7, *range(30), *range(30), *range(30)))
    assert not loops((1, 2, 1, 2, 3))  # it has gone on to something else
    assert not loops((1, 5, 2, 5, 3, 5))


def test_right_answers_match_whatever_their_spelling():
    assert exact_match("الإسكندريّة.", ["اسكندرية"]) == 1
    assert exact_match("١٩٥٢", ["1952"]) == 1
    assert exact_match("القاهرة والجيزة", ["القاهرة", "الجيزة"]) == 0
    assert exact_match("", ["القاهرة"]) == 0


def test_f1_counts_shared_words_against_the_best_reference():
    assert f1("عاصمة مصر القاهرة", ["القاهرة", "بغداد"]) == pytest.approx(2 * 1 / (3 + 1))
    assert f1("قاهرة", ["القاهرة"]) == 1
    assert f1("بغداد بغداد", ["بغداد"]) == pytest.approx(2 * 1 / 3)  # a repeated word counts once
    assert f1("", [""]) == 1
    assert f1("دمشق", ["القاهرة"]) == 0
