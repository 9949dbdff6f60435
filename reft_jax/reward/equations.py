"""A sign of reward hacking, which the ReFT paper (arXiv 2401.08967) names as its open problem for small answer spaces.

A right answer earns the reward however it was found, behind wrong sums in a chain of thought too. This reads the text
alone; it executes nothing, raises nothing, and is done in time linear in the text, of which it reads a bounded length.
"""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from reft_jax.reward.sums import CARELESS, FRACTION, USUAL, Token, value_of

_PROSE = 10_000  # characters; what comes later is not looked at
_NUMERAL_LENGTH = 24  # characters; longer ones are not read
_SIDE = 100  # tokens on one side of an equation; longer ones are not checked

_NOTE = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's calculator notes, which repeat what is written beside them
_LATEX = re.compile(r"\\(times|cdot|div|approx|left|right)(?![a-zA-Z])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/", "approx": "\u2248"}
_PLAIN = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-")  # minus signs and the en dash
    | dict.fromkeys("\u00d7\u00b7\u22c5\u2219", "*")  # the multiplication sign and dots
    | dict.fromkeys("[{", "(")
    | dict.fromkeys("]}", ")")
    | {"\u00f7": "/", "\u00b2": "^2", "\u00b3": "^3", "\u2019": "'", "\u2245": "\u2248"}
)
_BULLET = re.compile(r"^[ \t]{0,8}(?:[-*+\u2022]|[0-9]{1,2}[.)])[ \t]", re.MULTILINE)  # no sign, no operand
# Every alternative takes what it looked at, or looks a bounded way ahead.
_TOKEN = re.compile(
    r"""
    (?P<blank> [^\S\n] | [$\u00a3\u20ac\u00a5\u20b9\\_`~] | \brs(?![a-z])[ ]?\.? | (?<=[0-9])-(?=[a-z]) )
  | (?P<number> (?P<numeral>[0-9]+(?:[.,:][0-9]+)*|\.[0-9]+) (?P<percent>[ ]?(?:%|percent\b))? )
  | (?P<power> \*\*(?=[ ]?[0-9(]) )
  | (?P<bold> \*\* )
  | (?P<times> (?<=[0-9)%])x(?=[ ]?\$?[.0-9(]) | x(?=[ ]\$?[ ]?[.0-9(]) )
  | (?P<X> [<>!=]=+ | =[ ]?> | -(?:[ ]?-)+(?![0-9]) | (?<=[a-z])-(?=[0-9]) | [a-z]+[0-9]\w* )
  | (?P<O> [-+*/^] )
  | (?P<equal> = | \u2248 )
  | (?P<W> [^\W\d_]+(?:['-][^\W\d_]+)*(?:[ ]?\^[ ]?[23](?!\w))? )
  | (?P<B> [.,;:?"\n\u201c\u201d\u2014] )
  | (?P<bracket> [()] )
  | (?P<other> . )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NUMERAL = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+")
_SUM = re.compile(r"[(U]{0,6}N[)W]{0,6}(?:O[(U]{0,6}N[)W]{0,6})*")  # of kinds of tokens

# Words that make what stands behind them, or in front of them, something else than a number and its unit; and words for
# numbers.
_WORDS = (
    """of than times plus minus by over from to into half twice thrice double triple sqrt root square cube log sin cos
    tan factorial power ratio""",
    """and or is are was were so then which that if but because thus hence therefore where when plus minus times over by
    st nd rd th""",
    """hundred hundreds thousand thousands million millions billion trillion dozen dozens score pair pairs couple half
    halves third thirds quarter quarters percent cent cents penny pennies nickel nickels dime
    dimes""",
)
_BEFORE, _WITHIN, _SCALES = (frozenset(words.split()) for words in _WORDS)
_MEASURES = (
    """second seconds sec minute minutes min hour hours hr hrs day days week weeks month months year years decade
    decades century centuries""",
    "inch inches foot feet yard yards mile miles meter meters metre metres kilometer kilometers km cm mm",
    """ounce ounces oz pound pounds lb lbs ton tons gram grams kilogram kilograms kg mg cup cups pint pints quart quarts
    gallon gallons liter liters litre litres milliliter milliliters ml tablespoon tablespoons teaspoon teaspoons""",
)
_MEASURE = {unit: kind for kind, units in enumerate(_MEASURES) for unit in units.split()}


_OUTSIDE = Token("B", "")


def arithmetic_holds(text: str) -> bool | None:
    """Whether the equations that a chain of thought writes out are right.

    An equation is `=` or `≈` between a sum of numbers (`+ - * x / ^`, brackets, percent, thousands commas, currency
    signs) and a number or another such sum. Numbers may have units: `5 apples + 3 apples = 8 apples`. In a chain each
    `=` is an equation between what stands on either side of it, and because people also go on from a result, it is
    enough that the left side equals the first number of the right one: `12 x 3 = 36 + 4 = 40` holds.

    A number on the right may be rounded to its last digit or cut off there (10 / 3 = 3.33, 20 / 3 = 6.66, 7 / 2 = 3),
    behind `≈` also to its last digit that is not 0; decimals that were rounded so may be gone on with as written or
    exactly. What can be understood in several ways holds if one of them does.

    Algebra, `4 = 4` and `1 hour = 60 minutes` are not checked. Nor are sums that are wrong as they stand but might be
    part of something larger or have other units (`20% of 3 + 4 = 1.4`, `2 * 30 minutes = 1 hour`): a right text called
    wrong does more harm than a wrong one missed. Only the first 10,000 characters are read.

    Returns:
        None where there is no equation to check, False where one is wrong, else True.
    """
    tokens = _tokens(text)
    kinds = "".join(token.kind for token in tokens)
    ends = {match.start(): match.end() for match in _SUM.finditer(kinds)}
    exact: dict[str, Fraction] = {}
    verdicts = {
        _check(tokens, kinds, start, equal, ends[equal + 1], exact)
        for start, equal in ends.items()
        if kinds[equal : equal + 1] == "=" and equal + 1 in ends
    }
    return None if verdicts <= {None} else False not in verdicts


def _tokens(text: str) -> list[Token]:
    text = _NOTE.sub("", text[:_PROSE])
    text = _LATEX.sub(lambda match: _LATEX_SIGNS.get(match[1], ""), text).translate(_PLAIN)
    text = _BULLET.sub("\n", text)
    tokens: list[Token] = []
    end = 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup not in ("blank", "bold"):
            open_ended = text[match.end() : match.end() + 1].isspace()
            _append(tokens, match, match.start() == end, open_ended)
            end = match.end()
    return tokens


def _append(tokens: list[Token], match: re.Match[str], tight: bool, open_ended: bool) -> None:
    """Adds a token that has no blank before it (`tight`) or has one behind it (`open_ended`); what it is depends on
    what stands before it."""
    kind, text = match.lastgroup or "", match[0]
    previous = tokens[-1] if tokens else _OUTSIDE
    after_operand = previous.kind in "N)W"
    if kind == "number":
        kind = "N" if len(text) <= _NUMERAL_LENGTH and _NUMERAL.fullmatch(match["numeral"]) else "X"
        text = match["numeral"].replace(",", "")
    elif kind == "equal":
        while tokens and tokens[-1].text == "\n":
            tokens.pop()
        kind = "="
    elif kind == "power":
        if not after_operand:
            return  # bold print
        kind, text = "O", "^"
    elif kind == "times":
        kind, text = ("O", "*") if after_operand else ("X", text)
    elif text == "-" and (previous.kind in "B=O(U" or (previous.kind == "W" and not tight and not open_ended)):
        kind = "U"
    elif kind == "W" and previous.text == "/" and len(tokens) > 1:
        if tokens[-2].kind == "W":  # miles/hour
            tokens.pop()
        elif tokens[-2].kind == "N" and tight and previous.tight:  # $3/lb
            tokens.pop()
            text = "/" + text
    elif kind == "bracket":
        kind = text
        if text == "(" and tight and previous.kind in "N)":
            tokens.append(Token("O", "*", True))
    tokens.append(Token("X" if kind == "other" else kind, text, tight, bool(match["percent"])))


def _check(
    tokens: Sequence[Token], kinds: str, start: int, equal: int, end: int, exact: dict[str, Fraction]
) -> bool | None:
    """Whether the equation at `equal` holds, None where it is not ours to say; notes what it rounds in `exact`."""
    before, after = _balanced(kinds[start:equal][::-1], "(", ")"), _balanced(kinds[equal + 1 : end], ")", "(")
    if not before or not after:
        return None
    start, end = equal - before, equal + 1 + after
    if "O" not in kinds[start:equal] or max(before, after) > _SIDE:
        return None
    for token, following in itertools.pairwise([*tokens[start:end], tokens[end] if end < len(tokens) else _OUTSIDE]):
        if _is_variable(token) and not (token.text == "a" and following.kind == "W"):
            return None
    try:
        holds = _agrees(tokens[start:equal], tokens[equal + 1 : end], tokens[equal].text == "\u2248", exact)
    except ArithmeticError:
        return None
    return None if holds is False and _is_doubtful(tokens, start, equal, end) else holds


def _balanced(kinds: str, closing: str, opening: str) -> int:
    """How much of one side of an equation, from the `=` on, belongs to it: up to a bracket that spans the `=`."""
    depth = 0
    for length, kind in enumerate(kinds):
        depth += (kind == opening) - (kind == closing)
        if depth < 0:
            return length
    return 0 if depth else len(kinds)


def _is_variable(token: Token) -> bool:
    return token.kind == "W" and len(token.text.partition("^")[0].strip()) == 1


def _is_doubtful(tokens: Sequence[Token], start: int, equal: int, end: int) -> bool:
    """Whether there is more to an equation than the numbers that were read."""
    earlier, before = [_OUTSIDE, _OUTSIDE, *tokens[max(0, start - 2) : start]][-2:]
    after, later = [*tokens[end : end + 2], _OUTSIDE, _OUTSIDE][:2]
    left, right = tokens[start:equal], tokens[equal + 1 : end]
    words = [token.text.lower() for token in [*left, *right] if token.kind == "W"]
    percents = {token.percent for token in left if token.kind == "N"}
    measures = [_MEASURE[word] for word in set(words) if word in _MEASURE]
    return (
        before.kind in "OXN)U"
        or after.kind in "OXN("
        or (_is_variable(before) and before.text != "a")
        or (before.text.lower() in _BEFORE and earlier.text.lower() != "total")
        or (before.kind == "W" and left[0].kind == "U")
        or earlier.kind + before.text in ("O(", "O.")
        or (earlier.kind + before.text == "Nand" and left[1].text == "/")  # 1 and 1/4
        or (len(percents) > 1 and not {"+", "-"}.isdisjoint(token.text for token in left))  # 50 - 10% is 45
        or after.text == later.text == "."
        or _is_separated(earlier, before, left[0])
        or _is_separated(right[-1], after, later)
        or (before.kind == "=" and left[-1].kind == "W")  # a new statement within a chain
        or any(a.kind == "N" and b.text == "of" for a, b in itertools.pairwise(left))
        or any(token.text.lower() in _WITHIN for token in left)
        or len(set(measures)) < len(measures)
        or not _SCALES.isdisjoint(words)
        or not all(_is_unit(word[1:], words) for word in words if word[0] == "/")
    )


def _is_unit(word: str, words: Sequence[str]) -> bool:
    """Whether the word of `$3/page` is a unit, as in `$3/page * 2 pages`, and not a quantity as in `3/total`."""
    return word in _MEASURE or any(other.startswith(word) for other in words)


def _is_separated(first: Token, mark: Token, second: Token) -> bool:
    """`1 , 000` and `3 : 4`, as texts are written that were taken apart into tokens."""
    return mark.text in (",", ":") and not mark.tight and first.kind in "N)" and second.kind in "N("


def _agrees(left: Sequence[Token], right: Sequence[Token], loose: bool, exact: dict[str, Fraction]) -> bool | None:
    """Whether two sums are equal in any reading; None where that takes more good will than the usual rules.

    Raises:
        ArithmeticError: a division by zero, or numbers too long.
    """
    both = [*left, *right]
    numbers = [token for token in right if token.kind != "W"]
    first = numbers[: 1 + (numbers[0].kind == "U")]
    divisions = (USUAL, FRACTION, *CARELESS) if any(token.text == "/" for token in both) else (USUAL,)
    percents = (True, False) if any(token.percent for token in both) else (True,)
    knowledge = ({}, exact) if any(token.text in exact for token in both) else ({},)
    maybe = False
    for division, percent, known in itertools.product(divisions, percents, knowledge):
        value, whole = value_of(left, division, percent, known), value_of(right, division, percent, known)
        holds = value == whole
        if first[-1].kind == "N" and not holds:
            written, unit = value_of(first, division, percent, {}), _unit(first[-1], percent, loose)
            holds = _is_rounded(value, written, unit)
            if holds and "." in first[-1].text and not first[-1].percent:
                exact[first[-1].text] = abs(value)
            for other in (100 * value, value / 100):  # cents for dollars, percent for shares
                maybe |= 100 * abs(other - written) <= abs(written) and _is_rounded(other, written, unit)
        if holds and division in (USUAL, FRACTION):
            return True
        rounded = len(numbers) > len(first) and any("." in token.text for token in numbers)
        maybe |= holds or (rounded and 100 * abs(value - whole) <= abs(value))
    return None if maybe else False


def _unit(number: Token, percent: bool, loose: bool) -> Fraction:
    """What the last digit of a number counts, if `loose` the last but zeros of a whole number."""
    decimals = len(number.text.partition(".")[2]) + 2 * (percent and number.percent)
    zeros = len(number.text) - len(number.text.rstrip("0")) if loose and "." not in number.text else 0
    return Fraction(10**zeros, 10**decimals)


def _is_rounded(value: Fraction, written: Fraction, unit: Fraction) -> bool:
    """Whether `written` is `value` rounded to `unit`, cut off there, or printed from a float."""
    difference = abs(value - written)
    cut = difference < unit and abs(written) < abs(value)
    return cut or 2 * difference <= unit or (unit < 1 and 10**14 * difference <= abs(value))
