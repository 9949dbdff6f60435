"""A number as people, models and data files write it: in a sentence, with a unit, in LaTeX, in other scripts' digits.

One grammar for completions and gold answers. What is not understood as a whole is no number: a reader that picks the
digits out of `2\\pi`, `2x` or `--7` is one that a policy learns to exploit.
"""

import dataclasses
import math
import re
import unicodedata

# Typesetting, each pattern with what stands for it; `plain` applies them in this order.
_MINUS = dict.fromkeys("\u2212\u2012\u2013\ufe63\uff0d", "-")
_FULL_WIDTH = {"\uff08": " (", "\u3002": ". ", "\uff01": "! ", "\uff1f": "? "}  # brackets and ends of sentences
_ARABIC = {"\u066b": ".", "\u066c": ","}  # decimal and thousands separators
_CHARACTERS = str.maketrans(_MINUS | _FULL_WIDTH | _ARABIC | {"°": " degrees "})
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "₀₁₂₃₄₅₆₇₈₉"
_SCRIPT = re.compile(f"(?P<up>[{_SUPERSCRIPTS}]+)|[{_SUBSCRIPTS}]+")
_PIECE = r"(?:\{\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\}|([0-9]))"
_FRACTION = re.compile(rf"(-\s*)?\\[dtc]?frac\s*{_PIECE}\s*{_PIECE}")
_ROOT = re.compile(r"(?<![\w)}])\s*(?:\\sqrt|√)\s*(?:[{(]\s*([0-9]{1,15})\s*[})]|([0-9]{1,15}))")
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it|tt)|operatorname|mbox|boldsymbol|bm|underline|f?box(?:ed)?)"
    r"\s*\{([^{}]*)\}"
)
_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])", " "),
        (r"\\[()\[\]]|\$\$", " "),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;: ]|\\(?:quad|qquad|thinspace)(?![A-Za-z])|(?<=[0-9])~(?=\S)", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", " "),
        (r"\bRs\.\s*(?=[0-9])", "₹"),
        (r"(?<=[0-9])-(?=(?:dozen|hundred|thousand|lakh|million|crore|billion|trillion)\b)", " "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", " degrees "),
        (r"([_^])\s*\{\s*(-?[0-9]+)\s*\}", r"\1\2"),
    )
]
_TAG = re.compile(r"<[A-Za-z][A-Za-z0-9_-]+>|</[A-Za-z][A-Za-z0-9_-]*>")  # <b> may be a letter
_ANGLES = re.compile(r"<([^<>A-Za-z]*)>")
_MARKUP = re.compile(r"`+|(?<!\w)(\*{1,3}|_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)|^\*{2,}|\*{2,}$")
_CLOSING_DOLLAR = re.compile(r"(?<=\S)\$(?=[\s.,;:!?)%]|$)")  # of $18$
_BRACES = re.compile(r"(?<![\^_\w}])\{([^{}]*)\}")

_LENGTH = r"(?:[mcdk]?m|in|inch(?:es)?|ft|foot|feet|yd|yards?|mi|miles?)"
_UNIT_POWER = re.compile(rf"(?<=[A-Za-z])\s?\^-?[1-4](?![0-9])|(?<![A-Za-z])({_LENGTH})[23]\b")
_NEXT_SENTENCE = re.compile(r"(?<=\S)[.!?](?=\s)|\s\(")
_NEXT_CLAUSE = re.compile(
    r"(?:,\s*|\s+)(?:because|since|which|so|but|where|namely|(?:and|as)\s+(?:the|that|this|these|so|we|it|he|she|they))\b"
    r"|;|\s-\s(?=[A-Za-z])",
    re.IGNORECASE,
)

# What a line is made of. Blanks may group digits in threes; `1e5` is one number, `1e` a number and a word.
_TOKEN = re.compile(
    r"""
    (?P<number>
      (?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?:\ [0-9]{3})+(?![0-9]|\s*/)|[0-9]+)(?:\.[0-9]+)?
        |(?<![0-9])\.[0-9]+)
      (?:[eE][+-]?[0-9]+)?)
    |(?P<word>[^\W\d_]+)
    |(?P<mark>\*\*|\S)
    """,
    re.VERBOSE,
)
_CURRENCIES = set("$£€¥₹₩₽₱₫¢") | {"USD", "EUR", "GBP", "INR", "CAD", "AUD", "RMB", "CNY", "JPY", "RM", "Rs"}
_DOLLARS_OF = {"US", "HK", "A", "C", "R", "S", "NZ"}
_TIMES = {"x", "*", "\u00d7", "\u00b7"}  # the multiplication sign and the middle dot
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {"lakh": 10**5, "crore": 10**7}
_GLUED_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "bn": 10**9}  # 10k
_MONEY_SCALES = _GLUED_SCALES | {"m": 10**6, "b": 10**9, "B": 10**9}  # $3m and $3 m
_UNITS_OF_ONE_LETTER = set("mghslLdDJWVNCFt")
_PARTS = {"half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths"}
_NO_UNITS = set("xyznijekKMBb") | {"pi", "ab", "xy", "xyz"} | _PARTS - {"quarter", "quarters", "fourth", "fifth"}
_DENIALS = {"not", "never", "t"}  # with the end of isn't
_OPENING = set(":([\"'\u201c\u2018«.,!?;#~≈→")
_CLOSING = set("%,.;:!?)]\"'\u201d\u2019»") | _CURRENCIES


@dataclasses.dataclass(frozen=True)
class _Token:
    """A number, a word or a mark, and whether it follows the one before without a blank."""

    kind: str
    text: str
    glued: bool


_END = _Token("end", "", glued=False)


def read_number(line: str) -> int | float | None:
    """The one number that a line states: of its first sentence, else of all of it, each after its last `=`.

    Integers keep every digit. A percentage is its number, `18%` is 18, and so is a numeral with a base, `1010_2` is
    1010, as gold answers of MATH have it.

    Returns:
        None where there are several numbers, none, one that is not finite, or something that is not understood.
    """
    line = plain(line)
    for text in (_NEXT_SENTENCE.split(line)[0], line):
        *sides, text = text.split("=")
        if any(re.search(r"[,;]|\b(?:and|or)\b", side) for side in sides[1:]):  # x = 5, y = 6
            continue
        for clause in (text, _NEXT_CLAUSE.split(text.lstrip(), maxsplit=1)[0]):
            if (number := _only_number(clause)) is not None:
                return number
    return None


def plain(text: str) -> str:
    """`text` without what only typesets it: ASCII digits and signs, LaTeX as plain mathematics, no markup."""
    text = _SCRIPT.sub(_plain_script, text.translate(_CHARACTERS))
    text = "".join(map(_plain_character, text))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _FRACTION.sub(_plain_fraction, text)
    while (unwrapped := _WRAPPED.sub(r" \1 ", text)) != text:
        text = _FRACTION.sub(_plain_fraction, unwrapped)
    text = _ROOT.sub(lambda match: f" {math.sqrt(int(match[1] or match[2])):.17g} ", text)
    text = _MARKUP.sub(r"\2", _ANGLES.sub(r" \1 ", _TAG.sub(" ", text)))
    text = _CLOSING_DOLLAR.sub(" ", _BRACES.sub(r" \1 ", text))
    return re.sub(r"[^\S\n]+", " ", text).strip()


def _plain_script(match: re.Match[str]) -> str:
    digits = _SUPERSCRIPTS if match["up"] else _SUBSCRIPTS
    return ("^" if match["up"] else "_") + "".join("0123456789-"[digits.index(character)] for character in match[0])


def _plain_character(character: str) -> str:
    """Compatibility forms, all scripts' digits and vulgar fractions in ASCII; nothing for what has no width."""
    if character.isascii():
        return character
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.decimal(character))
        case "Cf":
            return ""
        case "Zs":
            return " "
    compatible = unicodedata.normalize("NFKC", character)
    return " " + compatible.replace("\u2044", "/") if "\u2044" in compatible else compatible


def _plain_fraction(match: re.Match[str]) -> str:
    r"""`\frac{3}{4}` as ` 3/4`, a mixed number behind a 3; two signs, or one below, are left as they are."""
    sign, above, below = match[1] or "", match[2] or match[3], match[4] or match[5]
    if below.startswith("-") or (sign and above.startswith("-")):
        return match[0]
    return f"{sign or ' '}{above}/{below}"


def _only_number(text: str) -> int | float | None:
    """The number of `text`, where nothing in it makes it another or none."""
    if set(text) & set("\\{}"):
        return None
    tokens, end = [], 0
    for match in _TOKEN.finditer(_UNIT_POWER.sub(lambda match: match[1] or "", text)):
        tokens.append(_Token(str(match.lastgroup), match[0], match.start() == end and end > 0))
        end = match.end()
    first = next((i for i, token in enumerate(tokens) if token.kind == "number"), None)
    if first is None:
        return None
    begin, signs, currency = _prefix(tokens, first)
    try:
        number, last = _expression(tokens, first)
        while scale := _scale(tokens, last, currency):
            number, last = number * scale, last + 1
        if not math.isfinite(number):
            return None
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    alone = all(token.kind != "number" for token in tokens[last:])
    if not alone or len(signs) > 1 or not _may_precede(tokens, begin) or not _may_follow(tokens, last):
        return None
    return -number if signs == "-" else number


def _at(tokens: list[_Token], i: int) -> _Token:
    return tokens[i] if 0 <= i < len(tokens) else _END


def _prefix(tokens: list[_Token], first: int) -> tuple[int, str, bool]:
    """Where signs and currency before a number begin, the signs, and whether there is a currency."""
    i, signs, currency = first, "", False
    while (text := _at(tokens, i - 1).text) in _CURRENCIES or text in ("-", "+"):
        if text in ("-", "+"):
            signs += text
        else:
            currency = True
        i -= 1
        if text == "$" and tokens[i].glued and _at(tokens, i - 1).text in _DOLLARS_OF:
            i -= 1
    return i, signs, currency


def _expression(tokens: list[_Token], i: int) -> tuple[int | float, int]:
    """The value of the expression whose first number is token i, and where it ends.

    Raises:
        OverflowError, ValueError, ZeroDivisionError: it has none.
    """
    number = _numeral(tokens[i])
    one, two, three = (_at(tokens, i + k) for k in (1, 2, 3))
    if one.kind == "number" and not one.glued and two.text == "/" and three.kind == "number":  # 3 1/2
        return number + _numeral(one) / _numeral(three), i + 4
    if one.text == "/" and two.kind == "number":
        return number / _numeral(two), i + 3
    if one.text in _TIMES and two.text == "10" and three.text in ("^", "**"):
        power, end = _power(tokens, i + 4)
        return number * (10**power if power >= 0 else 10.0**power), end
    if one.text in ("^", "**"):
        power, end = _power(tokens, i + 2)
        return number**power, end
    if one.text == "_" and two.kind == "number":  # a base
        base = int(two.text)
        if two.text.startswith("0") or not all(int(digit) < base for digit in str(number)):
            raise ValueError("not the digits of this base")
        return number, i + 3
    return number, i + 1


def _numeral(token: _Token) -> int | float:
    digits = token.text.replace(",", "").replace(" ", "")
    return int(digits) if digits.isdigit() else float(digits)


def _power(tokens: list[_Token], i: int) -> tuple[int, int]:
    """The whole exponent, in brackets or not, that begins at token i, and where it ends."""
    brackets = _at(tokens, i).text == "("
    i += brackets
    sign = -1 if _at(tokens, i).text == "-" else 1
    i += _at(tokens, i).text in ("-", "+")
    power = sign * int(_at(tokens, i).text)
    if abs(power) > 400 or (brackets and _at(tokens, i + 1).text != ")"):
        raise ValueError("no exponent of a number that is finite")
    return power, i + 1 + brackets


def _scale(tokens: list[_Token], i: int, currency: bool) -> int | None:
    """What the word that is token i multiplies a number by; None for other words."""
    token = _at(tokens, i)
    table = (_MONEY_SCALES if currency else _GLUED_SCALES) if token.glued or currency else {}
    return _SCALES.get(token.text.lower().removesuffix("s")) or table.get(token.text)


def _may_precede(tokens: list[_Token], begin: int) -> bool:
    """Whether what stands before token `begin`, a number's first, leaves it a number of its own."""
    token, before, number = _at(tokens, begin - 1), _at(tokens, begin - 2), tokens[begin]
    signed = number.text in ("-", "+")
    if token.kind == "word":
        apart = not number.glued and not (signed and not _at(tokens, begin + 1).glued)  # is -5, but not n - 5
        return apart and token.text.lower() not in _DENIALS
    if token.text == ")":
        return not number.glued and not signed  # (C) 5
    if token.text == "(":
        return not (token.glued and before.kind == "word")  # sin(30)
    if token.text in (".", ","):
        return not number.glued
    return token is _END or token.text in _OPENING


def _may_follow(tokens: list[_Token], end: int) -> bool:
    """Whether token `end`, behind a number, leaves it as it is: a unit or a mark, and no variable and no operator."""
    token, after = _at(tokens, end), _at(tokens, end + 1)
    if token.kind == "word":
        if not token.glued and token.text in ("and", "a", "an", "one", "two", "three"):
            return not {t.text for t in tokens[end + 1 : end + 4]} & _PARTS  # 2 and a half
        return _is_unit(token)
    if token.text == "-":
        return token.glued and after.kind == "word" and after.glued  # a 5-day trip
    if token.text == "/":
        return after.kind == "word" and _is_unit(dataclasses.replace(after, glued=True))  # 5 / day
    return token is _END or token.text in _CLOSING


def _is_unit(word: _Token) -> bool:
    text = word.text
    if text in _NO_UNITS or "\u0370" <= text[0] <= "\u03ff" or text[0] in "百千万萬亿億":
        return False
    return len(text) > 1 or not text.isascii() or not word.glued or text in _UNITS_OF_ONE_LETTER
