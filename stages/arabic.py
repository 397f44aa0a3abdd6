"""Arabic text: the normalisation policy and script statistics."""

import re
import unicodedata

TATWEEL = "\u0640"
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
TASHKEEL = "".join(map(chr, range(0x064B, 0x0653))) + "\u0670"
ARABIC_INDIC = str.maketrans("٠١٢٣٤٥٦٧٨٩", "0123456789")
PRESENTATION_FORMS = re.compile("[\ufb50-\ufdff\ufe70-\ufefc]+")
ARABIC_LETTER = re.compile("[\u0621-\u063a\u0641-\u064a\u0671-\u06d3]")


def normalise(text: str, *, tashkeel: str = "keep", digits: str = "keep") -> str:
    """Clean Arabic text without changing its spelling.

    Presentation forms become letters (NFKC of those alone), tatweel and invisible controls go, line ends become \\n and
    runs of blanks one blank. `tashkeel` is "keep" or "strip"; `digits` is "keep" or "western" (٣ → 3).
    """
    text = PRESENTATION_FORMS.sub(lambda m: unicodedata.normalize("NFKC", m.group()), text)
    text = text.translate(dict.fromkeys(map(ord, TATWEEL + INVISIBLE)))
    if tashkeel == "strip":
        text = text.translate(dict.fromkeys(map(ord, TASHKEEL)))
    if digits == "western":
        text = text.translate(ARABIC_INDIC)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n ?", "\n", text).strip()


def arabic_share(text: str) -> float:
    """Share of the letters in `text` that are Arabic, 0..1; 1 for a text without letters (a bare number is no foreign text)."""
    letters = sum(char.isalpha() for char in text)
    return len(ARABIC_LETTER.findall(text)) / letters if letters else 1.0
