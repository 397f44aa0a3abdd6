"""Is an answer one of the right ones? Exact match and F1 as SQuAD has them (arXiv 1606.05250), in Arabic.

Words are compared without tashkeel, punctuation, variants of spelling and the article. Scores are 0..1.
"""

from collections import Counter

from stages.text import arabic


def exact_match(answer: str, references: list[str]) -> float:
    """1 where the answer is one of the references, as `essence` compares them; else 0."""
    return float(essence(answer) in map(essence, references))


def f1(answer: str, references: list[str]) -> float:
    """The best overlap with a reference: harmonic mean of precision and recall of words."""
    return max((overlap(essence(answer), essence(reference)) for reference in references), default=0.0)


def overlap(found: list[str], wanted: list[str]) -> float:
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else float(found == wanted)


def essence(text: str) -> list[str]:
    """A text's words without tashkeel, punctuation, variants of spelling and the article: SQuAD drops "the",
    Arabic joins its ال.
    """
    spoken = [word for word in arabic.words(text) if word != arabic.LINE_END]
    return [word[2:] if word.startswith("ال") and len(word) > 4 else word for word in spoken]
