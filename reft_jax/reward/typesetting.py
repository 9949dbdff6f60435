"""What typesets an answer, LaTeX, markup and other scripts' characters, and plain text in place of it."""

import html
import math
import re
import unicodedata

from reft_jax.reward import words

# Typesetting, each pattern with what stands for it; `plain` applies them in this order.
_MINUS = dict.fromkeys("\u2010\u2011\u2212\u2012\u2013\ufe63\uff0d", "-")
_FULL_WIDTH = {"\uff08": " (", "\uff1f": "? "}
_ARABIC = {"\u066b": ".", "\u066c": ",", "\u066a": "%"}  # decimal and thousands separators, and percent
_DEGREES = {"°": " degrees ", "\u2103": " degrees C", "\u2109": " degrees F"}
_CHARACTERS = str.maketrans(_MINUS | _FULL_WIDTH | _ARABIC | _DEGREES)
ENDS = "\u3002\uff01"
"""Ends of sentences that stay as they are: as ASCII they may be a decimal point and a factorial."""

_VULGAR = re.compile(r"(?<=[\u00bc-\u00be\u2150-\u215e])(?=[\d.])")
_SUPERSCRIPTS, _SUBSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "₀₁₂₃₄₅₆₇₈₉"
_SCRIPT = re.compile(f"(?P<up>[{_SUPERSCRIPTS}]+)(?:\u2044(?P<below>[{_SUBSCRIPTS}]+))?|[{_SUBSCRIPTS}]+")
_PIECE = r"(?:\{\s*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\}|([0-9]))"
_FRACTION = re.compile(rf"(-\s*)?\\[dtc]?frac\s*{_PIECE}\s*{_PIECE}")
PLUS = "\u2064"
"""Before the fraction of a mixed number in LaTeX: `3 125/1000` may be a grouped number over another."""

_SQUARE = r"[1-9][0-9]{0,2}(?:,[0-9]{3}){1,4}|[0-9]{1,15}"
_ROOT = re.compile(  # a number beside it is none of its digits: √16 000, 1 √100
    rf"(?<![\w)}}])(?<![0-9}}] )\s*(?:\\sqrt|√)\s*"
    rf"(?:[{{(]\s*({_SQUARE})\s*[}})]|([0-9]{{1,15}}))(?!\s+[0-9]|[0-9]|[.,][0-9])"
)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it|tt)|operatorname|mbox|boldsymbol|bm|underline|f?box(?:ed)?)"
    r"\s*\{([^{}]*)\}"
)
_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[^\S\n]+", " "),
        (r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:displaystyle|big|Big)(?![A-Za-z])", " "),
        (r" ?\\(?:left|right)(?![A-Za-z]) ?", ""),
        (r"\\[()\[\]]|\$\$", " "),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;: ]|\\(?:quad|qquad|thinspace)(?![A-Za-z])|(?<=[0-9])~(?=\S)|(?<=[\s\w{}])~(?=[A-Za-z\\{])", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\not\s*=|\\neq?(?![A-Za-z])", "≠"),
        (r"\\leq?(?:slant)?(?![A-Za-z])", "≤"),
        (r"\\geq?(?:slant)?(?![A-Za-z])", "≥"),
        (r"(?<=[0-9n])\s*\^\s*\{?(?:\\(?:text|mathrm|rm)\b\s*\{?)?\s*(st|nd|rd|th)\s*\}{0,2}(?![A-Za-z])", r"\1"),
        (r"\bRs\.\s*(?=[0-9])", "₹"),
        (rf"(?<=[0-9])-(?=(?:{'|'.join(words.SCALES)})\b)", " "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", " degrees "),
        (r"([_^])\s*\{\s*(-?[0-9]+)\s*\}(?=[0-9.])", r"\1\2 "),
        (r"([_^])\s*\{\s*(-?[0-9]+)\s*\}", r"\1\2"),
        (r"<<[^<>]*>>(?=\s*[-$£€]*[0-9.])", ""),  # a calculator's note, 3*6=<<3*6=18>>18
        (r"(?<=[0-9)])!(?==)", "! "),  # 5!=120
        (r"\bo['\u2019]clock\b", "oclock"),
        (r"\b([ap])\s?\.\s?m\b", r"\1m"),
    )
]
_ROWS = (  # of aligned equations: one that goes on with that before it, and one of its own
    (re.compile(r"(?:\\\\\s*)?&\s*=|=\s*&"), "="),
    (re.compile(r"\\\\(?=\s*\\end\{)"), " "),
    (re.compile(r"\\\\"), "; "),
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_STRUCK = re.compile(r"<(del|s|strike)>.*?</\1\s*>|~~(?=\S)[^~]+~~", re.IGNORECASE)
_TAG = re.compile(r"<[A-Za-z][A-Za-z0-9_-]+>|</[A-Za-z][A-Za-z0-9_-]*>")  # <b> may be a letter
_PAIR = re.compile(r"<([A-Za-z])>([^<>]*)</\1>")
_ANGLES = re.compile(r"<([^<>A-Za-z]+)>|`+")
_MARKUP = re.compile(r"(?<!\w)(\*{1,3}|_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)|^\*{2,}|\*{2,}$")
# Of mathematics, not of money: no blank inside, no digit behind.
_DOLLARS = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\\n]|\\.)*?)(?<![\s\\])\$(?![0-9$])")
_CLOSING_DOLLAR = re.compile(  # of $18$, but not of R$ 30
    "".join(rf"(?<!\b{name})" for name in sorted(words.DOLLARS_OF)) + r"(?<=\S)\$(?=[\s.,;:!?)%]|$)"
    r"|(?<=\S)\$(?=[\s.,;:!?)%](?!\s*[0-9])|$)"
)
_BRACES = re.compile(r"(?<![\^_\w}])\{(?![^{}]*[0-9]\s*,\s*[0-9])([^{}]*)\}")  # {3,400} may be a set


def plain(text: str) -> str:
    """`text` without what only typesets it: ASCII digits and signs, LaTeX as plain mathematics, no markup."""
    text = _DOLLARS.sub(r" \1 ", unstruck(text))
    if "\\begin{" in text:
        for pattern, replacement in _ROWS:
            text = pattern.sub(replacement, text)
    text = _SCRIPT.sub(_plain_script, _VULGAR.sub(" ", text).translate(_CHARACTERS))
    text = "".join(map(_plain_character, text))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _FRACTION.sub(_plain_fraction, text)
    while (unwrapped := _WRAPPED.sub(r" \1 ", text)) != text:
        text = _FRACTION.sub(_plain_fraction, unwrapped)
    text = _ROOT.sub(_plain_root, text)
    text = _MARKUP.sub(r"\2", _ANGLES.sub(r" \1 ", _TAG.sub(" ", _PAIR.sub(r" \2 ", text))))
    text = _CLOSING_DOLLAR.sub(" ", _BRACES.sub(r" \1 ", text))
    return re.sub(r"[^\S\n]+", " ", text).strip()


def unescaped(text: str) -> str:
    """`text` with HTML's character references as the characters: `&minus;5` and `&#53;` are -5 and 5."""
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def unstruck(text: str) -> str:
    """`text` without what is struck out in HTML or Markdown."""
    return _STRUCK.sub(" ", text)


def _apart(match: re.Match[str]) -> str:
    """A blank where a digit follows, which is no part of what is replaced."""
    return " " if match.string[match.end() : match.end() + 1].isdigit() else ""


def _plain_script(match: re.Match[str]) -> str:
    digits = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789-0123456789")
    if match["below"]:  # of a fraction
        return " " + match[0].replace("\u2044", "/").translate(digits) + _apart(match)
    return ("^" if match["up"] else "_") + match[0].translate(digits) + _apart(match)


def _plain_character(character: str) -> str:
    """Compatibility forms, all scripts' digits and vulgar fractions in ASCII; nothing for what has no width."""
    if character.isascii() or character in ENDS:
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
    point = " " if match.string[match.end() : match.end() + 1] == "." else ""
    mixed = PLUS if match.string[max(match.start() - 2, 0) : match.start()].strip()[-1:].isdigit() else ""
    return f"{sign or ' ' + mixed}{above}/{below}{point or _apart(match)}"


def _plain_root(match: re.Match[str]) -> str:
    return f" {math.sqrt(int((match[1] or match[2]).replace(',', ''))):.17g} "
