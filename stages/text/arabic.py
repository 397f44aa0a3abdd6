"""Arabic text: the normalisation policy, and the words that comparisons are made of."""

import re
import unicodedata

from stages.text.letters import ARABIC, LOOKALIKES, SCRIPT, TASHKEEL, arabic_letters, foreign_words

# Zero-width and bidi controls, the soft hyphen, the byte order mark: unseen, and every one costs tokens.
INVISIBLE = "\u00ad\u061c\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
REMOVED = {
    "keep": re.compile(f"[{INVISIBLE}]+"),
    "strip": re.compile(f"[{INVISIBLE}{TASHKEEL}]+"),
}
TATWEEL = "\u0640"
# It stretches the join of two letters (a word ends at ة and ى). Elsewhere it is a dash, a gap to fill in, or
# part of a sign, as in هـ.
STRETCH = re.compile(f"(?<=[{ARABIC}])(?<![ةى])[{TASHKEEL}]*{TATWEEL}[{TATWEEL}{TASHKEEL}]*(?=[{ARABIC}])")
# A zero-width joiner stays where it joins: a family emoji is several people.
STRAY_JOINER = re.compile(
    "(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d|\u200d(?![\u2600-\u27bf\U0001f000-\U0001faff])"
)
# Letters by their position in a word, ligatures, and letters written apart from their hamza or madda.
COMPATIBLE = re.compile("[\ufb50-\ufdff\ufe70-\ufefc]|[\u0627\u0648\u064a\u06c1\u06d2\u06d5][\u0653-\u0655]")
# Words and phrases in one sign, where they touch another word; ﷲ is a word that others join.
PHRASE = "[\ufdf0\ufdf1\ufdf3-\ufdfd]"
SIGN = re.compile("[\ufdf0-\ufdfd]")
TOUCHING = re.compile(rf"(?<=\w)(?={PHRASE})|(?<={PHRASE})(?=\w)")
EASTERN_DIGIT = re.compile("[٠-٩۰-۹]")
SEPARATOR = re.compile(r"(?<=\d)[٫٬](?=\d)")  # of decimals, and of thousands
LETTERS = re.compile(r"[^\W\d_]+")
LATIN = re.compile("[A-Za-z\u00c0-\u024f]+")
URDU_STOP = "\u06d4"


def normalise(
    text: str,
    *,
    tashkeel: str = "keep",
    tatweel: str = "strip",
    digits: str = "keep",
    lookalikes: str = "arabic",
) -> str:
    """Clean Arabic text without changing its spelling.

    Presentation forms become letters (NFKC of those alone: ﻣﺮﺣﺒﺎ → مرحبا), invisible controls go, line ends
    become \\n and runs of blanks between words one blank; indentation, code, tables and the gap between the
    halves of a verse stay. alef, ya and ta marbuta are never touched. `tashkeel`: "keep" or "strip";
    `tatweel`: "strip" (between letters) or "keep"; `digits`: "keep" or "western" (٣ → 3); `lookalikes`:
    "arabic" (Persian ی ک ھ → ي ك ه, in Arabic text) or "keep".
    """
    text = REMOVED[tashkeel].sub("", _composed(text))
    if tatweel == "strip":
        text = _unstretched(text)
    if "\u200d" in text:
        text = STRAY_JOINER.sub("", text)
    if lookalikes == "arabic":
        text = arabic_letters(text)
    if digits == "western":
        text = SEPARATOR.sub(lambda match: "." if match.group() == "٫" else ",", _western(text))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return TRAILING.sub("", _spaced(text)).strip()


def _composed(text: str) -> str:
    if SIGN.search(text):
        text = TOUCHING.sub(" ", text).replace("ا\ufdf2", "الله")  # باﷲ
    return COMPATIBLE.sub(_letters, text)


def _letters(match: re.Match) -> str:
    composed = unicodedata.normalize("NFKC", match.group())
    # A vowel sign in presentation form stands on a blank or a tatweel of its own.
    return composed.strip(f" {TATWEEL}") if composed[0] in (" ", TATWEEL) else composed


def _unstretched(text: str) -> str:
    if TATWEEL not in text:
        return text
    return STRETCH.sub(lambda match: match.group().replace(TATWEEL, ""), text)


def _replaced(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():  # several times faster than str.translate, which looks every character up
        text = text.replace(old, new)
    return text


def _western(text: str) -> str:
    return EASTERN_DIGIT.sub(lambda match: str(unicodedata.digit(match.group())), text)


def arabic_share(text: str) -> float:
    """Share of the letters in `text` that are Arabic, 0..1; 1 for a text without letters (a bare number is no
    foreign text). Persian and Urdu are told apart, by their words, letters and full stop.
    """
    letters = sum(map(len, LETTERS.findall(text))) + text.count(URDU_STOP)
    if not letters:
        return 1.0
    own = sum(len(IN_SCRIPT.sub("", word)) for word in foreign_words(text))
    return (sum(map(len, ARABIC_SCRIPT.findall(text))) - own) / letters


ARABIC_SCRIPT = re.compile(f"[{SCRIPT}]+")
IN_SCRIPT = re.compile(f"[{TASHKEEL}]+")


# --- blanks -------------------------------------------------------------------------------------------------

UNUSUAL_BLANK = re.compile(r"[^\S\n\t ]")
GAP = re.compile(r"(?:\t| (?=[\t ]))(?<=\S.)[\t ]*(?=\S)")
TRAILING = re.compile(r"(?<![^\S\n])[^\S\n]+(?=\n|$)")
FENCE = re.compile(r"\s*(?:```|~~~)")
# Lines whose gaps mean something: indented as code is, of a table, or without any Arabic.
STRUCTURE = re.compile(rf" {{4}}| *\t|\s*\||[^{SCRIPT}]*$")


def _spaced(text: str) -> str:
    """One blank between words, where a wider gap means no more than that."""
    text = UNUSUAL_BLANK.sub(" ", text)
    if not GAP.search(text):
        return text
    lines, in_code = text.split("\n"), False
    for number, line in enumerate(lines):
        in_code ^= bool(FENCE.match(line))
        if not in_code and not STRUCTURE.match(line):
            lines[number] = GAP.sub(_gap, line)
    return "\n".join(lines)


def _gap(match: re.Match) -> str:
    """Tabs and wide gaps divide columns, or the halves of a verse: these three blanks do."""
    gap, line = match.group(), match.string
    halves = line[: match.start()].split(), line[match.end() :].split()
    wide = len(gap) > 3 or (len(gap) == 3 and min(map(len, halves)) > 1)
    return gap if wide or "\t" in gap else " "


def latin_share(text: str) -> float:
    """Share of the letters in `text` that are Latin, 0..1; 0 for a text without letters."""
    letters = sum(map(len, LETTERS.findall(text)))
    return sum(map(len, LATIN.findall(text))) / letters if letters else 0.0


# --- words, for comparisons ---------------------------------------------------------------------------------

VARIANTS = {"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه", "ؤ": "و", "ئ": "ي", **LOOKALIKES}
UNSPOKEN = re.compile(f"[{INVISIBLE}\u200d{TASHKEEL}\u0653-\u0655]+")
LINE_END = "\n"
WORD = re.compile(
    rf"[^\W_]+|[-+*/=<>%^×÷±\u2200-\u22ff]|{LINE_END}(?!\s*{LINE_END})"
)  # a sign of mathematics tells two questions apart, a comma does not


def words(text: str) -> list[str]:
    """The words of a text as two texts are compared: without tashkeel, punctuation, case, and the usual
    variants of spelling.

    Lines end in LINE_END, the last one too.
    """
    text = UNSPOKEN.sub("", _unstretched(_composed(text))).replace(TATWEEL, " ")
    return WORD.findall(_western(_replaced(text, VARIANTS)).casefold().strip() + LINE_END)


NUMBER_OR_SIGN = re.compile(r"\d+(?:[.,٫٬:/-]\d+)*!?|[^\W\d]+|[^\w\s]")
PUNCTUATION = set(".,،؛;:!?؟\"'«»“”‘’…–—")


def exact_words(text: str) -> list[str]:
    """The words and signs of a text as two answers are compared: with tashkeel, spelling, and what stands in
    and between numbers; without the punctuation of prose.
    """
    text = re.sub(f"[{INVISIBLE}]", "", _unstretched(_composed(text)))
    found = NUMBER_OR_SIGN.findall(_western(_replaced(text, LOOKALIKES)).casefold())
    return [token for token in found if token not in PUNCTUATION]
