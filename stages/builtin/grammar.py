"""Arabic number and noun grammar for the built-in skills: small, rule-based, tested against known sentences.

Everything is undiacritised Modern Standard Arabic in the nominative. `num2words` is not used: its Arabic is
wrong for 11 of 1..9999 (200 → "مئتا", 2000 → "ألفا").
"""

from dataclasses import dataclass

# Counting forms: 3–10 take the gender opposite to the noun's, so the masculine noun has the form with ة.
MASCULINE = ["", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة", "عشرة"]
FEMININE = ["", "واحدة", "اثنتان", "ثلاث", "أربع", "خمس", "ست", "سبع", "ثمان", "تسع", "عشر"]
TENS = ["", "", "عشرون", "ثلاثون", "أربعون", "خمسون", "ستون", "سبعون", "ثمانون", "تسعون"]
HUNDREDS = ["", "مئة", "مئتان", "ثلاثمئة", "أربعمئة", "خمسمئة", "ستمئة", "سبعمئة", "ثمانمئة", "تسعمئة"]


@dataclass(frozen=True)
class Noun:
    """A countable noun: its singular, its (broken or sound) plural, and adjectives (masculine) that suit it.

    The gender is read off the ending.
    """

    singular: str
    plural: str
    qualities: tuple[str, ...] = ()

    @property
    def feminine(self) -> bool:
        return self.singular.endswith("ة")

    @property
    def accusative(self) -> str:
        """The singular after 11–99: كتابا, سيارة."""
        return self.singular if self.feminine else self.singular + "ا"


def _below_hundred(n: int, feminine: bool) -> str:
    units = FEMININE if feminine else MASCULINE
    if n <= 10:
        return units[n]
    if n < 20:
        ten = "عشرة" if feminine else "عشر"
        unit = {
            1: "إحدى" if feminine else "أحد",
            2: "اثنتا" if feminine else "اثنا",
            8: "ثماني" if feminine else "ثمانية",
        }
        return f"{unit.get(n - 10, units[n - 10])} {ten}"
    ten, unit = divmod(n, 10)
    if unit == 0:
        return TENS[ten]
    return f"{'إحدى' if feminine and unit == 1 else units[unit]} و{TENS[ten]}"


def _thousands(n: int) -> str:
    """n thousand: the word ألف is itself a counted masculine noun."""
    if n == 1:
        return "ألف"
    if n == 2:
        return "ألفان"
    return f"{_below_hundred(n, feminine=False)} {'آلاف' if n <= 10 else 'ألفا'}"


def number_words(n: int, feminine: bool = False) -> str:
    """Spell 0 ≤ n ≤ 99,999 in the nominative counting form, e.g. 125 → مئة وخمسة وعشرون.

    `feminine` gives the form that counts a feminine noun (خمس عشرة). Raises ValueError outside the range.
    """
    if not 0 <= n <= 99_999:
        raise ValueError(f"number_words spells 0 to 99,999, not {n}")
    if n == 0:
        return "صفر"
    thousands, rest = divmod(n, 1000)
    hundreds, rest = divmod(rest, 100)
    parts = [
        _thousands(thousands) if thousands else "",
        HUNDREDS[hundreds],
        _below_hundred(rest, feminine) if rest else "",
    ]
    return " و".join(part for part in parts if part)


def counted(n: int, noun: Noun) -> str:
    """n of a noun with the agreement of Arabic numerals, 1 ≤ n ≤ 9,999.

    1–2 have no numeral word of their own (كتاب واحد, كتابان); 3–10 are followed by the plural and take the
    opposite gender; 11–99 by the accusative singular; round hundreds and thousands by the singular, and 200
    and 2,000 lose their ن.
    """
    if n == 1:
        return f"{noun.singular} {'واحدة' if noun.feminine else 'واحد'}"
    if n == 2:
        return dual(noun.singular)
    high, low = n - n % 100, n % 100
    if low in (1, 2):  # مئة كتاب وكتابان
        return f"{counted(high, noun)} و{noun.singular if low == 1 else dual(noun.singular)}"
    if low == 0:
        words = number_words(high)
        return f"{words[:-1] if words.endswith(('مئتان', 'ألفان')) else words} {noun.singular}"
    numeral = _below_hundred(low, noun.feminine)
    if low == 8 and noun.feminine:
        numeral = "ثماني"  # before its noun; alone it is ثمان
    phrase = f"{numeral} {noun.plural if low <= 10 else noun.accusative}"
    return f"{number_words(high)} و{phrase}" if high else phrase


def dual(word: str) -> str:
    """The nominative dual: كتاب → كتابان, سيارة → سيارتان."""
    return word[:-1] + "تان" if word.endswith("ة") else word + "ان"


def feminine(word: str) -> str:
    """مهندس → مهندسة."""
    return word + "ة"


def sound_plural(word: str) -> str:
    """The nominative sound plural: مهندس → مهندسون, مهندسة → مهندسات."""
    return word[:-1] + "ات" if word.endswith("ة") else word + "ون"


def definite(word: str) -> str:
    return "ال" + word


def agree(adjective: str, noun: str) -> str:
    """The masculine singular adjective in the noun's gender."""
    return feminine(adjective) if noun.endswith("ة") else adjective


def possessive(noun: str) -> str:
    """The suffix that stands for a noun: its."""
    return "ها" if noun.endswith("ة") else "ه"


# Pronoun → (prefix, suffix) of a sound form-I verb. Undiacritised, so the stem is the same in both tenses.
PAST = {
    "أنا": ("", "ت"),
    "نحن": ("", "نا"),
    "هي": ("", "ت"),
    "هم": ("", "وا"),
    "هن": ("", "ن"),
    "أنتم": ("", "تم"),
    "أنتن": ("", "تن"),
}
PRESENT = {
    "أنا": ("أ", ""), "نحن": ("ن", ""), "هو": ("ي", ""), "هي": ("ت", ""), "هم": ("ي", "ون"), "هن": ("ي", "ن"),
    "أنتم": ("ت", "ون"), "أنتن": ("ت", "ن"), "هما": ("ي", "ان"),
}  # fmt: skip


def conjugate(verb: str, pronoun: str, present: bool) -> str:
    """A sound form-I verb (given as its 3rd masculine singular past) with a pronoun: كتب, هم → كتبوا or
    يكتبون.
    """
    prefix, suffix = (PRESENT if present else PAST)[pronoun]
    return prefix + verb + suffix


# What can be said of what: nouns of one kind (singular/plural), and the adjectives that suit all of them.
KINDS = {
    "people": (
        "ولد/أولاد رجل/رجال طالب/طلاب ضيف/ضيوف طفل/أطفال",
        "طويل قصير لطيف ذكي نشيط مهذب صادق كريم شجاع مخلص محبوب متعاون",
    ),
    "animals": (
        "حصان/أحصنة كلب/كلاب طائر/طيور أسد/أسود دجاجة/دجاجات بقرة/بقرات فراشة/فراشات",
        "كبير صغير جميل رائع غريب نادر عجيب مميز سريع",
    ),
    "plants and stones": (
        "شجرة/أشجار زهرة/زهور نخلة/نخلات تفاحة/تفاحات برتقالة/برتقالات حجر/أحجار ورقة/أوراق",
        "كبير صغير جميل رائع غريب نادر عجيب مميز",
    ),
    "nature": (
        "جبل/جبال نهر/أنهار حقل/حقول بستان/بساتين نجم/نجوم كوكب/كواكب جزيرة/جزر"
        " بحيرة/بحيرات حديقة/حدائق قلعة/قلاع",
        "كبير صغير جميل رائع غريب عجيب مشهور معروف قريب بعيد مميز",
    ),
    "places": (
        "بيت/بيوت شارع/شوارع مسجد/مساجد متحف/متاحف مطعم/مطاعم فندق/فنادق مصنع/مصانع قصر/قصور مطار/مطارات"
        " مدرسة/مدارس مدينة/مدن جامعة/جامعات مكتبة/مكتبات شركة/شركات",
        "جديد قديم كبير صغير جميل رائع مشهور معروف قريب بعيد حديث مميز",
    ),
    "furniture": (
        "باب/أبواب مكتب/مكاتب غرفة/غرف طاولة/طاولات نافذة/نوافذ",
        "جديد قديم كبير صغير جميل رائع غريب بسيط حديث مميز",
    ),
    "vehicles": (
        "قارب/قوارب قطار/قطارات سيارة/سيارات طائرة/طائرات سفينة/سفن دراجة/دراجات",
        "جديد قديم كبير صغير جميل رائع غريب حديث سريع مميز خفيف",
    ),
    "objects": (
        "كتاب/كتب قلم/أقلام مفتاح/مفاتيح دفتر/دفاتر ثوب/أثواب قميص/قمصان معطف/معاطف حزام/أحزمة طبق/أطباق"
        " كوب/أكواب صحن/صحون هاتف/هواتف جهاز/أجهزة سيف/سيوف صندوق/صناديق خاتم/خواتم صورة/صور"
        " جريدة/جرائد مجلة/مجلات ملعقة/ملاعق لوحة/لوحات خريطة/خرائط حقيبة/حقائب لعبة/ألعاب",
        "جديد قديم كبير صغير جميل رائع غريب بسيط ثمين نادر عجيب مميز",
    ),
    "words": (
        "درس/دروس رقم/أرقام فصل/فصول سؤال/أسئلة جواب/أجوبة خبر/أخبار قصة/قصص رسالة/رسائل لغة/لغات كلمة/كلمات"
        " أغنية/أغنيات",
        "جديد قديم جميل رائع غريب بسيط مهم مشهور معروف عجيب مميز",
    ),
    "times": ("شهر/أشهر ساعة/ساعات دقيقة/دقائق", "جميل رائع طويل قصير مهم غريب عجيب مميز صعب ممتع"),
}
NOUNS = [
    Noun(*forms.split("/"), tuple(qualities.split()))
    for nouns, qualities in KINDS.values()
    for forms in nouns.split()
]

# People whose masculine plural is sound (ون), with adjectives of the same kind.
PEOPLE = """معلم مهندس مبرمج مترجم محاسب ممرض مصور موظف مدرب لاعب باحث مزارع مخرج ممثل مذيع مراسل محرر مصمم
مؤلف مسافر
متطوع مشرف مفتش مرشد نجار خباز طباخ خياط صياد فلاح رسام حداد سباح مراقب مساعد محقق متدرب مستشار""".split()
VIRTUES = "ماهر مجتهد مخلص نشيط صادق مبدع متميز مشهور محترم متفوق ناجح متعاون مثابر منظم موهوب متواضع".split()

# Sound form-I verbs; none ends in ت or ن, whose suffixes would merge with the stem (سكن + نا → سكنا).
VERBS = """كتب درس لعب شرب فتح سمع ذهب خرج دخل جلس ركض طبخ رسم حمل قطع زرع حصد صنع غسل نظر عمل فهم حفظ شكر
ضحك صعد نزل رجع
لبس كسر جمع طرق عرف نجح بحث ربح حضر ترك قفز سبح هرب صبر عبر لمس نشر نقل رفع دفع عزف صرخ حلم ركب كنس مسح نسج
نصح نقش""".split()
