"""Arabic text: the normalisation policy, and the words that comparisons are made of."""

import re
import unicodedata

# Zero-width and bidi controls, the soft hyphen, the byte order mark: unseen, and every one costs tokens.
INVISIBLE = "\u00ad\u061c\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
TATWEEL = "\u0640"
# Vowel signs and the signs of Qur'anic recitation. Madda and hamza above and below (U+0653-0655) are
# spelling.
TASHKEEL = "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
REMOVED = {
    "keep": re.compile(f"[{INVISIBLE}{TATWEEL}]+"),
    "strip": re.compile(f"[{INVISIBLE}{TATWEEL}{TASHKEEL}]+"),
}
# A zero-width joiner stays where it joins: a family emoji is several people.
STRAY_JOINER = re.compile(
    "(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d|\u200d(?![\u2600-\u27bf\U0001f000-\U0001faff])"
)
# Letters by their position in a word, ligatures, and letters written apart from their hamza or madda.
COMPATIBLE = re.compile("[\ufb50-\ufdff\ufe70-\ufefc]|[\u0627\u0648\u064a\u06c1\u06d2\u06d5][\u0653-\u0655]")
LOOKALIKES = {"ی": "ي", "ک": "ك", "ھ": "ه", "ہ": "ه"}  # of Persian and Urdu keyboards
EASTERN_DIGIT = re.compile("[٠-٩۰-۹]")
ARABIC_LETTERS = re.compile(
    "[\u0620-\u063f\u0641-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\u08a0-\u08c7]+"
)
LETTERS = re.compile(r"[^\W\d_]+")


def normalise(text: str, *, tashkeel: str = "keep", digits: str = "keep", lookalikes: str = "arabic") -> str:
    """Clean Arabic text without changing its spelling.

    Presentation forms become letters (NFKC of those alone: ﻣﺮﺣﺒﺎ → مرحبا), tatweel and invisible controls go,
    line ends become \\n and runs of blanks inside a line one blank; the indentation of a line stays. alef, ya
    and ta marbuta are never touched. `tashkeel`: "keep" or "strip"; `digits`: "keep" or "western" (٣ → 3);
    `lookalikes`: "arabic" (Persian ی ک ھ → ي ك ه) or "keep".
    """
    text = REMOVED[tashkeel].sub("", COMPATIBLE.sub(_composed, text))
    if "\u200d" in text:
        text = STRAY_JOINER.sub("", text)
    if lookalikes == "arabic":
        text = _replaced(text, LOOKALIKES)
    if digits == "western":
        text = _western(text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(
        r"(?<=\S)(?:[^\S\n ][^\S\n]*| [^\S\n]+)", " ", text
    )  # one blank between words; a line's indentation stays
    return re.sub(r"[^\S\n]+(?=\n|$)", "", text).strip()


def _composed(match: re.Match) -> str:
    composed = unicodedata.normalize("NFKC", match.group())
    # A vowel sign in presentation form stands on a blank or a tatweel of its own.
    return composed.strip(" \u0640") if "\ufe70" <= match.group() <= "\ufe7f" else composed


def _replaced(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():  # several times faster than str.translate, which looks every character up
        text = text.replace(old, new)
    return text


def _western(text: str) -> str:
    return EASTERN_DIGIT.sub(lambda match: str(unicodedata.digit(match.group())), text)


def arabic_share(text: str) -> float:
    """Share of the letters in `text` that are Arabic, 0..1; 1 for a text without letters (a bare number is no
    foreign text).
    """
    letters = sum(map(len, LETTERS.findall(text)))
    return sum(map(len, ARABIC_LETTERS.findall(text))) / letters if letters else 1.0


# --- words, for comparisons ---------------------------------------------------------------------------------

VARIANTS = {"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه", "ؤ": "و", "ئ": "ي", **LOOKALIKES}
UNSPOKEN = re.compile(f"[{INVISIBLE}\u200d{TATWEEL}{TASHKEEL}\u0653-\u0655]+")
LINE_END = "\n"
WORD = re.compile(
    rf"[^\W_]+|[-+*/=<>%^×÷]|{LINE_END}(?!\s*{LINE_END})"
)  # a sign of arithmetic tells two questions apart, a comma does not


def words(text: str) -> list[str]:
    """The words of a text as two texts are compared: without tashkeel, punctuation, case, and the usual
    variants of spelling.

    Lines end in LINE_END, the last one too.
    """
    text = UNSPOKEN.sub("", COMPATIBLE.sub(_composed, text))
    return WORD.findall(_western(_replaced(text, VARIANTS)).casefold().strip() + LINE_END)
