"""Letters of the Arabic script and whose they are: Arabic on other keyboards, and other languages."""

import re

# Vowel signs and the signs of Qur'anic recitation. Madda and hamza above and below (U+0653-0655) are
# spelling.
TASHKEEL = "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
LOOKALIKES = {"ی": "ي", "ک": "ك", "ھ": "ه", "ہ": "ه"}  # of Persian and Urdu keyboards
SCRIPT = "\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06fa-\u06ff\u0750-\u077f\u08a0-\u08c7"
# The alphabet, letters of names and dialects, and those of other keyboards.
ARABIC = "\u0621-\u063a\u0641-\u064a\u0671" + "پچژگڤڥڨڭݣڪ" + "".join(LOOKALIKES)

OTHERS = f"(?![{ARABIC}])[{SCRIPT}]"  # of Urdu, Kurdish, Pashto, Uyghur …: ے ں ٹ ێ ښ ۇ
OWN_LETTER = re.compile(f"[پچژگکی]|{OTHERS}")  # without any, a text is Arabic
OTHER, LOAN, PERSIAN = re.compile(OTHERS), re.compile("[پچژگ]"), re.compile("[یک]")
FREQUENT = set(
    "از را این است برای های که می شود کنید کنم دارد دارند نیست بود بودند باشد هستند خود چه یک نمی اور "
    "کی کا کہ یہ وہ تھا تھی ہوا".split()
)  # in Persian and Urdu, and no words of Arabic
WORD = re.compile(f"[{SCRIPT}{TASHKEEL}]+")
FOREIGN_SHARE = 0.12  # of the words of a text in Persian or Urdu, at least, are such


def foreign_words(text: str) -> list[str]:
    """The words of `text` in Arabic script that are of another language: all, where it is in Persian, Urdu or
    the like; else those in their letters.
    """
    if not OWN_LETTER.search(text):
        return []
    words = WORD.findall(text)
    own = [word for word in words if has_foreign_letters(word)]
    count = len(own) + sum(word in FREQUENT for word in words)
    return words if count > 1 and count >= FOREIGN_SHARE * len(words) else own


def has_foreign_letters(word: str) -> bool:
    """Whether no keyboard writes Arabic so: who types گ for an Arabic word types no ک in it."""
    return bool(OTHER.search(word) or (LOAN.search(word) and PERSIAN.search(word)))


def is_foreign(text: str) -> bool:
    """Whether a text in Arabic script is in another language."""
    return bool(OWN_LETTER.search(text)) and len(foreign_words(text)) == len(WORD.findall(text))


# --- Arabic on other keyboards ------------------------------------------------------------------------------

LOOKALIKE = re.compile(f"[{''.join(LOOKALIKES)}]")
FINAL = re.compile(f"ی[{TASHKEEL}]*$")
# At the end of a word ی is ى or ي. What is written often tells; else it stays as it is.
ALEF = set(
    "ال إل عل حت مت سو بل أخر اخر کبر صغر عظم وسط قصو أقص اقص أدن ادن أعل اعل أول اول مستشف مستو محتو "
    "معن مبن مغز مجر مرس مله مقه مأو ذکر فتو تقو شکو دعو جدو قر رؤ ضح هد صد مد شت مثن مثل موس عیس یحی "
    "مصطف مرتض لیل سلم لبن فوض موسیق حلو نجو سلو مض أت أعط اعط أد انته اشتر تلق تول صل رم سع یسع تسع "
    "یبق تبق یر تر نر یسم تسم یدع تدع یتلق یتول ینس تنس یخش یرض ترض یرو تنته مسم مصف ملتق منتد مست".split()
)
YA = set(
    "ف الذ الت ه ل ب أ ا ک لک أب أخ أم ابن بیت نفس عند مع یعن تعن یأت تأت یمش تمش یجر تجر یؤد تؤد یکف "
    "ینبغ ینته یل تل یعط تعط کرس نب ثان ماض قاض تال حال حوال عال رئیس أساس لکن إن فه وه".split()
)
PREFIXES = [re.compile(prefix) for prefix in ("", "[وف]?[بلک]?ال", "[وفبلک]", "[وف][بلک]")]


def arabic_letters(text: str) -> str:
    """The letters of other keyboards as Arabic ones; text in another language stays as it is, and so does a ی
    at the end of a word that may be ى or ي.
    """
    if not LOOKALIKE.search(text) or is_foreign(text):
        return text
    return "\n".join(line if is_foreign(line) else _on_arabic_keyboard(line) for line in text.split("\n"))


def _on_arabic_keyboard(line: str) -> str:
    if "ی" in line:
        line = WORD.sub(_with_arabic_ya, line)
    return line.replace("ک", "ك").replace("ھ", "ه").replace("ہ", "ه")


def _with_arabic_ya(match: re.Match) -> str:
    word = match.group()
    end = FINAL.search(word)
    if not end:
        return word.replace("ی", "ي")
    stem = word[: end.start()]
    letter = _ya_or_alef(re.sub(f"[{TASHKEEL}]", "", stem), stem[-1:])
    return stem.replace("ی", "ي") + letter + word[end.start() + 1 :]


def _ya_or_alef(stem: str, last: str) -> str:
    if last in ("\u064e", "\u0650"):  # a vowel sign before it tells
        return "ى" if last == "\u064e" else "ي"
    stem = stem.replace("ك", "ک").replace("ي", "ی")
    forms = {stem[match.end() :] for match in (prefix.match(stem) for prefix in PREFIXES) if match}
    alef, ya = bool(forms & ALEF), bool(forms & YA)
    return "ى" if alef > ya else "ي" if ya > alef else "ی"
