"""Signs of a broken model, in the answers it gives: they do not stop, repeat themselves, drift into another
language or say nothing.

Rates and shares are 0..1, over all answers.
"""

import re
from collections import Counter
from collections.abc import Iterable
from statistics import fmean, median

from stages.judge.reference import exact_match as exact_match
from stages.judge.reference import f1 as f1
from stages.model.generation import Answer
from stages.text import arabic
from stages.text.prompts import TEMPLATES

LATIN = re.compile("[A-Za-z\u00c0-\u024f]+")
CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")
# What a chat template writes between turns and an answer should not.
MARKUP = re.compile(
    "|".join(
        re.escape(mark.strip())
        for template in TEMPLATES.values()
        for mark in (template.user, template.assistant)
    )
)
LONGEST_LOOP, TIMES = 32, 3  # tokens of a loop at most, and how often it must come in a row


def health(answers: list[Answer], references: list[str]) -> dict[str, float]:
    """Of greedy answers to held-out prompts, beside the answers that stand in the data."""
    from sacrebleu.metrics import CHRF

    texts = [answer.text for answer in answers]
    ratios = [len(text) / max(len(reference), 1) for text, reference in zip(texts, references)]
    shares = {
        "stop_rate": fmean(answer.stopped for answer in answers),
        "loop_rate": fmean(loops(answer.tokens) for answer in answers),
        "repetition": fmean(answer.repetition for answer in answers),
        "distinct_2": distinct(texts, 2),
        "empty_rate": fmean(not text.strip() for text in texts),
        "markup_rate": fmean(bool(MARKUP.search(text)) for text in texts),
        "arabic_share": fmean(map(arabic.arabic_share, texts)),
        "latin_share": fmean(share(LATIN, text) for text in texts),
        "cjk_share": fmean(share(CJK, text) for text in texts),
        "length_ratio": median(ratios),
        # chrF (Popović 2015), 0..100: unrelated Arabic texts already reach about 19
        "chrf": CHRF().corpus_score(texts, [references]).score,
    }
    return {name: round(value, 4) for name, value in shares.items()}


def loops(tokens: tuple[int, ...]) -> bool:
    """Whether an answer ends in a piece of text that it has said TIMES times in a row."""
    return any(
        len(tokens) >= TIMES * size
        and all(tokens[-i] == tokens[-i - size] for i in range(1, (TIMES - 1) * size + 1))
        for size in range(1, LONGEST_LOOP + 1)
    )


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words among all of them (Li et al. 2016, arXiv 1510.03055); 1 where there are
    none.
    """
    grams = Counter(
        tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)
    )
    return len(grams) / grams.total() if grams else 1.0


def share(script: re.Pattern, text: str) -> float:
    """Of the letters in a text, those of a script."""
    letters = sum(map(len, arabic.LETTERS.findall(text)))
    return sum(map(len, script.findall(text))) / letters if letters else 0.0
