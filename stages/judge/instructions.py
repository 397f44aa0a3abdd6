"""Rules that an answer must keep to, checked by counting: IFEval (arXiv 2311.07911) in Arabic.

The instructions and their arguments are those of the published sets (inceptionai/Arabic_IFEval,
AIDC-AI/Marco-Bench-MIF). What IFEval's own checks read for English reads Arabic here:

- Words, keywords and letters are compared without tashkeel, tatweel and unseen characters, ٣ as 3. Python's
  \\w knows no tashkeel: IFEval would count كَتَبَ as three words.
- Sentences end in . ! ? ؟ ۔ …, too; not behind a single letter (د. أحمد), within a number or behind one
  that begins a line (a list). ، is a comma, «» and “” are quotation marks.
- A letter may be Arabic. IFEval's check asks for a random Latin one instead.
- A language is told by its letters, so only Arabic and English can be asked for. IFEval takes langdetect,
  whose answer on short texts depends on a random draw.

Strict takes the answer as it is. Loose is IFEval's: one of eight readings will do, without the first line,
the last, both, and each without asterisks.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from stages.text import arabic

SENTENCE_END = re.compile(r"[.!?؟۔…]+[\"'”»)\]]*(?=\s|$)")
NOT_AN_END = re.compile(r"(?:(?:^|\s|\()[^\W\d_]|^\s*\d+)\.$")  # of a line: د. أحمد, and 1. in a list
QUOTES = {'"': '"', "“": "”", "„": "“”", "«": "»"}
YES_NO_MAYBE = ("إجابتي هي نعم", "إجابتي هي لا", "إجابتي هي ربما")
CONSTRAINED = (*YES_NO_MAYBE, "My answer is yes.", "My answer is no.", "My answer is maybe.")
TASHKEEL = {
    "fathatan": "\u064b", "dammatan": "\u064c", "kasratan": "\u064d", "fatha": "\u064e", "damma": "\u064f",
    "kasra": "\u0650", "shadda": "\u0651", "sukun": "\u0652",
}  # fmt: skip


class Unsupported(Exception):
    """An instruction that no rule here checks, or whose arguments it does not understand."""


def check(prompt: str, rules: list[str], answer: str) -> tuple[list[bool], list[bool]]:
    """Whether an answer keeps to each of its rules, strictly and loosely.

    rules: each {"id", "arguments"} as JSON, as stages/sources/catalog.py writes them. Raises Unsupported.
    """
    strict, loose = [], []
    for rule in map(json.loads, rules):
        strict.append(follows(rule, prompt, answer))
        loose.append(strict[-1] or any(follows(rule, prompt, reading) for reading in readings(answer)))
    return strict, loose


def follows(rule: dict[str, Any], prompt: str, answer: str) -> bool:
    """Whether an answer keeps to one rule; an empty answer keeps to none. Raises Unsupported."""
    if rule["id"] not in RULES:
        raise Unsupported(f"no rule checks {rule['id']}")
    try:
        kept = RULES[rule["id"]](answer, prompt=prompt, **rule["arguments"])
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise Unsupported(f"{rule['id']}: {error}") from None
    return bool(answer.strip()) and kept


def readings(answer: str) -> list[str]:
    """The seven other readings that IFEval's loose score allows."""
    lines = answer.split("\n")
    parts = ["\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1])]
    return [answer.replace("*", ""), *parts, *(part.replace("*", "") for part in parts)]


# --- what is counted ----------------------------------------------------------------------------------------


def bare(text: str) -> str:
    """A text as its words are compared: without tashkeel, tatweel and unseen characters, digits 0–9."""
    return arabic.normalise(text, tashkeel="strip", digits="western").replace(arabic.TATWEEL, "")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", bare(text))


def sentences(text: str) -> int:
    """How many sentences a text has; what stands behind the last end counts where it holds a word."""
    count, start = 0, 0
    for end in SENTENCE_END.finditer(text):
        line = text[text.rfind("\n", 0, end.end()) + 1 : end.end()]
        if not NOT_AN_END.search(line) and re.search(r"\w", text[start : end.end()]):
            count, start = count + 1, end.end()
    return count + bool(re.search(r"\w", text[start:]))


def compared(count: int, relation: str, wanted: int) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation is {relation!r}, neither 'at least' nor 'less than'")
    return count >= wanted if relation == "at least" else count < wanted


def occurrences(keyword: str, text: str) -> int:
    """How often a keyword stands in a text, also within a word, as in IFEval: Arabic joins و, ب and ال."""
    if not bare(keyword):
        raise ValueError("an empty keyword")
    return len(re.findall(re.escape(bare(keyword)), bare(text), re.IGNORECASE))


def one_letter(letter: str) -> str:
    """Raises ValueError for what is no single character (a letter's name, say)."""
    found = bare(letter)  # هـ is ه with a tatweel
    if len(found) != 1:
        raise ValueError(f"{letter!r} is no single letter")
    return found.lower()


# --- the rules: each gets the answer, its prompt, and the published arguments -------------------------------


def existence(answer: str, *, prompt: str, keywords: list[str]) -> bool:
    return all(occurrences(keyword, answer) for keyword in keywords)


def list_existence(answer: str, *, prompt: str, keywords: list[str], mode: str = "all") -> bool:
    kinds = {"all": all, "any": any, "none": lambda found: not any(found)}
    return kinds[mode](occurrences(keyword, answer) for keyword in keywords)


def frequency(answer: str, *, prompt: str, keyword: str, frequency: int, relation: str) -> bool:
    return compared(occurrences(keyword, answer), relation, frequency)


def forbidden_words(answer: str, *, prompt: str, forbidden_words: list[str]) -> bool:
    text = bare(answer)
    return not any(
        re.search(rf"\b{re.escape(bare(word))}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(answer: str, *, prompt: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compared(bare(answer).lower().count(one_letter(letter)), let_relation, let_frequency)


def letter_list(
    answer: str, *, prompt: str, letters: list[str], frequency: int, relation: str, position: str
) -> bool:
    """Words that begin with, end in or hold one of the letters; the article may stand before the first."""
    wanted = set(map(one_letter, letters))
    places = {
        "start": lambda word: bool({word[0], word.removeprefix("ال")[:1]} & wanted),
        "end": lambda word: word[-1] in wanted,
        "any": lambda word: bool(set(word) & wanted),
    }
    return compared(sum(places[position](word.lower()) for word in words(answer)), relation, frequency)


def tashkeel(answer: str, *, prompt: str, tashkeel_name: str, count: int) -> bool:
    """Exactly so many of one mark, as the authors of Arabic IFEval count."""
    return answer.count(TASHKEEL[tashkeel_name.strip().lower()]) == count


def response_language(answer: str, *, prompt: str, language: str) -> bool:
    """More than half of the letters; a text without letters is of any language."""
    share = arabic.arabic_share(answer)
    if language == "ar":
        return share > 0.5
    if language == "en":
        letters = "".join(arabic.LETTERS.findall(answer))
        return not letters or sum(map(str.isascii, letters)) / len(letters) > 0.5
    raise ValueError(f"language is {language!r}: letters tell only ar and en")


def number_words(answer: str, *, prompt: str, num_words: int, relation: str) -> bool:
    return compared(len(words(answer)), relation, num_words)


def number_sentences(answer: str, *, prompt: str, num_sentences: int, relation: str) -> bool:
    return compared(sentences(answer), relation, num_sentences)


def number_paragraphs(answer: str, *, prompt: str, num_paragraphs: int) -> bool:
    """Parted by ***; an empty one may stand only before the first and behind the last."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(
    answer: str, *, prompt: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Parted by empty lines. The word may be several, as some of the published ones are."""
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > count:
        return False
    found = words(parts[int(nth_paragraph) - 1].lower())
    wanted = words(first_word.lower())
    return count == num_paragraphs and found[: len(wanted)] == wanted


def number_placeholders(answer: str, *, prompt: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def postscript(answer: str, *, prompt: str, postscript_marker: str) -> bool:
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = known.get(postscript_marker.strip(), re.escape(bare(postscript_marker).lower()))
    return bool(re.search(pattern, bare(answer).lower()))


def number_bullets(answer: str, *, prompt: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE)) == num_bullets


def constrained_response(answer: str, *, prompt: str) -> bool:
    return any(bare(one) in bare(answer) for one in CONSTRAINED)


def number_highlights(answer: str, *, prompt: str, num_highlights: int) -> bool:
    found = re.findall(r"\*[^\n\*]*\*", answer) + re.findall(r"\*\*[^\n\*]*\*\*", answer)
    return sum(bool(one.strip("*").strip()) for one in found) >= num_highlights


def multiple_sections(answer: str, *, prompt: str, section_spliter: str, num_sections: int) -> bool:
    mark = re.escape(bare(section_spliter))
    return len(re.split(rf"\s?{mark}\s?\d+\s?", bare(answer))) - 1 >= num_sections


def json_format(answer: str, *, prompt: str) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(answer: str, *, prompt: str) -> bool:
    found = re.findall(r"<<[^\n]+>>|«[^\n]+?»", answer)
    return any(one.strip("<>«» ") for one in found)


def two_responses(answer: str, *, prompt: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    kept = [part for part in parts if part]
    return all(parts[1:-1]) and len(kept) == 2 and kept[0] != kept[1]


def repeat_prompt(answer: str, *, prompt: str, prompt_to_repeat: str) -> bool:
    if not prompt_to_repeat.strip():
        raise ValueError("an empty prompt_to_repeat")
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(answer: str, *, prompt: str, end_phrase: str) -> bool:
    marks = '"«»“”'
    return bare(answer).strip(marks).lower().endswith(bare(end_phrase).strip(marks).lower())


def quotation(answer: str, *, prompt: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[-1] in QUOTES.get(text[0], ())


def capital_word_frequency(
    answer: str, *, prompt: str, capital_frequency: int, capital_relation: str
) -> bool:
    found = [word for word in re.findall(r"\w+(?:[-'’]\w+)*", answer) if word.isupper()]
    return compared(len(found), capital_relation, capital_frequency)


def english_capital(answer: str, *, prompt: str) -> bool:
    return answer.isupper() and response_language(answer, prompt=prompt, language="en")


def english_lowercase(answer: str, *, prompt: str) -> bool:
    return answer.islower() and response_language(answer, prompt=prompt, language="en")


def no_comma(answer: str, *, prompt: str) -> bool:
    return not re.search("[,،]", answer)


RULES: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:list_existence": list_existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "keywords:letter_list_freq": letter_list,
    "language:response_language": response_language,
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlights,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "detectable_format:tashkeel": tashkeel,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
