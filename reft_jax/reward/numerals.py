"""A number as people, models and data files write it: in a sentence, with a unit, in LaTeX, in other scripts' digits.

One grammar for completions and gold answers. What is not understood as a whole is no number: a reader that picks the
digits out of `2\\pi`, `2x` or `--7` is one that a policy learns to exploit.
"""

import dataclasses
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence

from reft_jax.reward import words
from reft_jax.reward.typesetting import ENDS, PLUS, plain

# Where an answer ends and what is said of it begins.
_STOP = rf"(?<=[^\s.])\.(?=\s)|(?<=\S)\?(?=\s[^0-9]*$)|(?<=[^\s0-9)])!(?=\s)|[{ENDS}]"
_SENTENCE = re.compile(
    rf"{_STOP}"
    r"|\s\((?!\s*[-+0-9.]*\s*[a-z]\s*[-+*/^)]|[^)]*\)[^=]*=|mod\b)"
)
_THEY = r"(?:the|that|this|these|it|he|she|they|we)"
_REASON = re.compile(
    r"(?:[,;]\s*|\s+)(?:(?:because|since|where|when|if|given|namely|which(?!\s+(?:gives|means|implies|makes|leads"
    r"|(?:is|was)(?:n['\u2019]t|\s+(?:not|wrong|incorrect|false|impossible))|do(?:es)?(?:n['\u2019]t|\s+not))))\b"
    rf"|i\.e\.|e\.g\.|(?<=[,;] )that\sis\b|(?<=[,;] )as\s+[0-9]|as\s+(?:{_THEY}|so)\b"
    r"|(?:rounded\s+|correct\s+)?to\s+(?:the\s+nearest|(?:\w+\s+)?(?:decimal|significant))\b)",
    re.IGNORECASE,
)
_STATED = re.compile(r"[^A-Za-z]*[0-9]|[^=]*=[^=]*[0-9]")
_NEXT_CLAUSE = re.compile(
    rf"(?:,\s*|\s+)(?:so|but|(?:and|as)\s+(?:so|{_THEY}))\b|;(?![^\n]*[0-9])|\s-\s(?=(?:{_THEY}|so|as|and|but|you|all)\b)",
    re.IGNORECASE,
)
_REJECTED = re.compile(  # one other number, or two, and that it is not meant: 18, not 20
    r"(?:(?:[,;]\s*|\s+)(?:rather\s+than|instead\s+of|as\s+opposed\s+to)|[,;]\s*(?:(?:and|but)\s+)?not|\s+(?:and|but)\s+not"
    r"|(?<=[0-9])\s+not)\s+(?:the\s+)?[^\w\s]?[0-9][0-9.,/]*(?:\s*n?or\s+[^\w\s]?[0-9][0-9.,/]*)?(?!.*\bbut\b)[^0-9]*$",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(  # before a second number: 5 (or 6), 5 but also 6, 5 resp. 6, 5 remainder 6
    r"\((?:\s*\w+)?\s*or\b|\b(?:also|alternatively|alternately|maybe|perhaps|possibly|otherwise|else|resp|respectively"
    r"|remainder|rem|(?:could|might|may)\s+be)\b|\brest\W*$",
    re.IGNORECASE,
)
_ELSE = re.compile(r"\b(?:else|otherwise)\b\W*(?:\w+\W+){0,2}?[0-9]", re.IGNORECASE)
_WRONG = r"(?:wrong|incorrect|false|untrue|impossible|not\s+(?:right|correct|true|possible|it))\b"
_TAKEN_BACK = re.compile(  # of a number, before the next one: 5 (wrong), 5, wait no, 5 can't be
    rf"[(,;:]\s*(?:but\s+)?(?:(?:which|that|this|it)(?:['\u2019]s|\s+(?:is|was))?\s+)?(?:\w+ly\s+)?{_WRONG}(?!\s+\w)"
    r"|\b(?:wait|hmm+)\W+no\b|[,;:.?!(-]\s*(?:oh,?\s+)?no(?:\W+wait\b|\s*[,.!;)]|\s*$)|[,;.?!(-]\s*wait\b"
    rf"|\b(?:that|this|it|which)(?:['\u2019]s|\s+(?:is|was))\s+(?:\w+ly\s+)?{_WRONG}"
    r"|\b(?:can|could|must|should|would)(?:n['\u2019]t|['\u2019]t|not|\s+not)\s+be"
    r"\s*(?:right|correct|true|it|possible|(?:the\s+)?(?:\w+\s+)?answer)?\s*(?:[.,;!)]|$)"
    r"|[,;.:?!(-]\s*(?:(?:but|oh),?\s+)?(?:wait|hold\s+on|hmm+|w?h?oops|my\s+(?:mistake|bad|error)"
    r"|(?:scratch|strike|ignore|disregard)\s+that)\b|\bi\s+mis\w+"
    r"|\(\s*negative\b|\bcontradicts\b|\ba\s+contradiction\b|\bnot\s+what\s+(?:is|was|we(?:['\u2019]?re)?)\b"
    r"|\b(?:that|this|it|which)\s+(?:does|do|did)(?:n['\u2019]t|\s+not)\s+(?:\w+\s+)?"
    r"(?:seem|look|sound|add\s+up|make\s+(?:any\s+)?sense)\b"
    r"|\b(?:seems?|looks?|sounds?)\s+(?:\w+\s+)?(?:too|low|high|large|small|off|wrong|odd|strange|unlikely|incorrect)\b"
    r"|\b(?:(?:i|we)\s+(?:\w+\s+)?made|there(?:['\u2019]s|\s+(?:is|was)))\s+an?\s+(?:\w+\s+)?(?:mistake|error)\b"
    r"|\bre-?(?:check|calculat|comput|consider|evaluat|examin|think|do(?!\w))",
    re.IGNORECASE,
)
_RESTATED = re.compile(  # before another number in a later sentence: 18. The answer is 20, 18 (correction: 20)
    r"\b(?:answer|result)\b[^0-9.=]{0,30}?(?:\b(?:is|be)\b|[:=])"
    r"|(?:\b(?:should\s+(?:be|have\s+been)|actually|in\s+fact|instead|rather|correction|correcting|edit|sorry"
    r"|alternatively|on\s+second\s+thoughts?)|(?:^|[.;?!(])\s*or)\b(?:\W+(?:maybe|perhaps|it|that|this|is|was|s)\b)*"
    r"(?=[^\w.]*(?:\w+\s*=[^\w.]*)?[0-9])",
    re.IGNORECASE,
)
_NONE_BEFORE = re.compile(  # wrong: 5, none, 5, N/A 5
    r"\W*(?:none|n/a|nil|nothing|unknown|undefined|(?:not\s+|in|un)(?:correct|right|true|known|sure)|wrong|false"
    r"|no\s+(?:answer|solution)s?)(?:\s+answer)?(?![^\W\d_]|/)\W*[0-9]"
    r"|\W*(?:(?:there|this|that|it|i)(?:['\u2019][sm]|\s+(?:is|am))\s+)?(?:none|impossible|no\s+answer"
    r"|(?:not\s+(?:yet\s+)?|un|in)(?:clear|known|sure|certain|given|determin\w+|specified|decided)"
    r"|(?:not\s+enough|insufficient)\s+\w+|no\s+way\s+to\s+\w+"
    r"|(?:(?:i|we)\s+)?(?:can(?:not|['\u2019]t|\s+not)|to)\s+(?:be\s+)?(?:determine|know|find|found|compute|tell|say)[dn]?(?:\s+it)?)"
    r"\s*[.,;:\u2014-]",
    re.IGNORECASE,
)
_ABBREVIATED = re.compile(r"\b(resp|rem)\.", re.IGNORECASE)
_ENTITY = re.compile(r"&#?\w+;")  # one that stands for no character, or was escaped twice
_NUMERAL = re.compile(r"[0-9](?:[0-9.,/]*[0-9])?")
_EQUALS = re.compile(r"(?<![<>!/=])=+(?![<>/=])|(?<=[\w)])\s*≈")
_SEVERAL = re.compile(r"[,;]|\b(?:and|or|for|with|at|when|if|where|while)\b", re.IGNORECASE)  # x = 5, y = 6
_IMPLIES = re.compile(r"[=-]>|[⇒→]")
_NO_STATEMENT = re.compile(  # before an equals sign: a number of its own, an equation to be solved, a denial
    r"[0-9].*\b(?:at|when|if|where|for|with|while|by|so|because|since|taking|using)\b"
    r"|(?:[0-9]|(?<![\w)])-|[0-9]\s*/\s*|\|)[a-cknx-z]\|?\s*$|\b[a-z]\s*(?:\^|\*\*)\s*\S+\s*$|[<>≤≥≠]|!="
    r"|\b(?:undefined|no solutions?|not|never|cannot|except|all real numbers)\b"
    r"|\b(?:twice|half|double|triple|times|than|plus|minus|of)\s+(?:the|a|that|this)\s+(?:\w+\s+)?number\s*$"
    r"|\bnumber\s*(?:[-+*/]|(?:plus|minus|times|divided|multiplied|squared|cubed|increased|decreased)\b)",
    re.IGNORECASE,
)
_SOLVED = re.compile(  # between an equation and its solution: 2x = 10, so x = 5
    r"=[^=]*?(?:[,;]\s*|\s)(?:so|thus|hence|therefore|giv(?:es|ing)|yields?|yielding|means|implies|i\.e\.)\b,?",
    re.IGNORECASE,
)
_WITH_A_UNIT = re.compile(r"\W*[0-9][0-9.,/ ]*[^\W\d_]")

# What a line is made of. Blanks may group digits in threes; `1e5` is one number, `1e` a number and a word.
_TOKEN = re.compile(
    r"""
    (?P<number>
      (?:[0-9]+\.(?=[eE][+-]?[0-9])
        |(?:[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?:\ [0-9]{3})+)(?![0-9])|[0-9]+)(?:\.[0-9]+)?
        |(?<![0-9])\.[0-9]+)
      (?:[eE][+-]?[0-9]+)?)
    |(?P<word>(?:[^\W\d_]|[\u064b-\u0652\u0900-\u0dff\u0e00-\u0e7f])+)
    |(?P<mark>\*\*|\S)
    """,
    re.VERBOSE,
)
_TIMES = {"x", "X", "*", "\u00d7", "\u00b7"}  # the multiplication sign and the middle dot
_BRACKETS = {"(": ")", "[": "]"}
_OPENING = set(":([\"'\u201c\u201e\u2018\u2019«.,!?;#~≈→")
_AROUND = set("%)]\"'\u201c\u201d\u2019»✓✔✅") | words.CURRENCIES
_NO_CENTS = (("/", "-"), (",", "-"), (".", "-"))  # ₹150/-, 150,- €
_PAUSES = set(",.;:!?…—") | set(ENDS)
_OPERATORS = set("+*/^=<>|&_~@\u00d7·÷±∓√∞≤≥≠≈→")
_DENIED = re.compile(
    r"\b(?:not|t|never|cannot)(?: \w+){0,2} (?:answer|right|correct|true|possible|valid|solution|it|exactly|quite)\b"
    r"|\b(?:is|are|was|be)(?: \w+)? (?:wrong|incorrect|false|impossible)\b"
    r"|\b(?:at (?:the )?(?:very )?(?:least|most|minimum|maximum|best|worst)"
    r"|and (?:up|above|over|below|under|beyond)|onwards?)$"
    r"|^(?:\w+ )?(?:max|minimum|maximum|tops)$"
)
_OF_VARIABLES = set("+-*/^!%√\u00d7·÷") | {"**"}
_PREFIX = 12  # tokens of signs, currencies and brackets before a number that can be meant


@dataclasses.dataclass(frozen=True)
class _Token:
    """A number, a word or a mark, and whether it follows the one before without a blank."""

    kind: str
    text: str
    glued: bool

    @property
    def lower(self) -> str:
        return self.text.lower()


_END = _Token("end", "", glued=False)


def read_number(line: str) -> int | float | None:
    """The one number that a line states: of its first sentence, else of all of it, each after its last `=`.

    Integers keep every digit. A percentage is its number, `18%` is 18, and so is a numeral with a base, `1010_2` is
    1010, as gold answers of MATH have it.

    Returns:
        None where there are several numbers, none, one that is not finite, or something that is not understood.
    """
    line = plain(line)
    if _is_taken_back(line) or _ENTITY.search(line):
        return None
    sentence, *rest = _SENTENCE.split(line, maxsplit=1)
    if re.match(r"[0-9]+\. [0-9]", line) and _only_number(rest[0]) is not None:  # 1. 5
        return None
    for text in (sentence, line):
        for clause in _clauses(text):
            if (number := _only_number(clause)) is not None:
                return None if text is sentence and _is_restated(number, "".join(rest)) else number
    return None


def _is_restated(number: float, behind: str) -> bool:
    """Whether later sentences say that the answer is another number."""
    others = (_only_number(clause) for said in _RESTATED.split(behind)[1:] for clause in _clauses(said))
    return any(other not in (None, number) for other in others)


def _clauses(text: str) -> Iterator[str]:
    """What may state the number of a sentence: that after its last `=`, and of this what stands before its reasons.

    Reasons are left out first where an equation or a number is what they are given for: `x = 5, where y = 2`.
    """
    stated = _REASON.split(text.lstrip(), maxsplit=1)[0]
    *sides, text = _EQUALS.split(stated if _STATED.match(stated) else text)
    left = _EQUALS.split(_IMPLIES.split("=".join(sides))[-1], maxsplit=1)[0]
    if sides and _is_to_be_solved(left, text):
        ends = [solved.end() for solved in _SOLVED.finditer("=".join(sides))]
        if not ends:
            return
        sides = _EQUALS.split("=".join(sides)[ends[-1] :])
        left = sides[0]
    if not any(map(_SEVERAL.search, sides[1:])) and not _NO_STATEMENT.search(left):
        for end in (None, _REJECTED, _NEXT_CLAUSE, _REASON):
            yield end.split(text.lstrip(), maxsplit=1)[0] if end else text


def _is_taken_back(line: str) -> bool:
    """Whether a line says of the first number that it states that it is wrong or may be another, or before it so."""
    if _NONE_BEFORE.match(line):
        return True
    line = _ABBREVIATED.sub(r"\1", line)
    sentence = _EQUALS.split(re.split(_STOP, line, maxsplit=1)[0])[-1]
    if not (first := _NUMERAL.search(sentence)):
        return False
    behind = sentence[first.end() :]
    following = _NUMERAL.search(behind)
    near = behind[: following.start()] if following else line[line.rfind(sentence) + first.end() :]
    said = _REASON.split(near, maxsplit=1)[0]
    alternative = following is not None and (_ALTERNATIVE.search(said) or _ELSE.search(behind))
    return bool(alternative or _TAKEN_BACK.search(said))


def _is_to_be_solved(left: str, right: str) -> bool:
    """Whether the left side of an equation is an expression in a variable: `x/3`, `2x`, `|x|`, not `x` or `f(x)`."""
    tokens = _tokens(left)
    variables = {i for i in range(len(tokens)) if _is_unknown(tokens, i, right)}
    absolute = sum(token.text == "|" for token in tokens) % 2 == 0
    for i in variables:
        before, behind = i - 1, i + 1
        while _at(tokens, before).text in ("(", "[", "{"):
            before -= 1
        while _at(tokens, behind).text in (")", "]", "}", "_"):
            behind += 1 + (tokens[behind].text == "_")
        near, far = _at(tokens, before), _at(tokens, behind)
        multiplied = near.kind == "number" and _at(tokens, before - 1).text != "_" and far.text not in _PAUSES
        if (
            len(tokens[i].text) > 1
            or i - 1 in variables
            or (multiplied and (far.kind != "word" or behind in variables))
            or (near.text in _OF_VARIABLES - {"!", "%"} and not _is_hyphen(tokens, before))
            or (far.text in _OF_VARIABLES and not _is_hyphen(tokens, behind) and (far.text != "!" or far.glued))
            or (absolute and "|" in (near.text, far.text))
            or far.lower in words.INFIX
            or (near.lower in words.INFIX and _at(tokens, before - 1).kind == "number")
            or _is_argument(tokens, i)
        ):
            return True
    return False


def _is_argument(tokens: Sequence[_Token], i: int) -> bool:
    """Whether a function's name, or `half of`, stands before a variable, with only mathematics between."""
    share = _at(tokens, i + 1).text not in ("'", "\u2019")  # 20% of x, 1/5 of x; but 20% of A's money
    for token, behind in reversed(list(itertools.pairwise(tokens[: i + 1]))):
        if token.lower in words.OF_VARIABLES:
            return True
        if share and behind.lower == "of" and (token.kind == "number" or token.lower in words.SHARES):
            return True
        if token.text in _PAUSES or (token.kind == "word" and token.text not in ("of", "the", "base")):
            return False
    return False


def _is_unknown(tokens: Sequence[_Token], i: int, right: str) -> bool:
    """Whether a word is a variable: no article, function's name, times (`3 x 4`) or unit (`5 m`, `m/s`, `2m = 9 m`)."""
    token, before, after = tokens[i], _at(tokens, i - 1), _at(tokens, i + 1)
    text = token.text
    if token.kind != "word" or (len(text) > 1 and text not in words.VARIABLES):
        return False
    if text > "\u03ff" or before.text in ("'", "\u2019") or (after.text == "(" and after.glued):
        return False
    if text in "aAI" and (after.kind == "number" or len(after.text) > 1):
        return False
    if text in "xX" and before is not _END and (after.kind == "number" or after.text in {"(", *words.CURRENCIES}):
        return not (before.kind == "number" or before.text in (")", "%") or len(before.text) > 2)
    if text in words.UNITS:
        if before.kind == "number":
            return token.glued and not _WITH_A_UNIT.match(right)
        over = _at(tokens, i - 2)
        if before.text == "/" and (over.kind == "word" or _at(tokens, i - 3).text in words.CURRENCIES):
            return over.kind == "word" and over.text not in words.UNITS and len(over.text) < 3
        if after.text == "/" and _at(tokens, i + 2).text in words.UNITS:
            return len(before.text) < 2 and before.text != "("
    return True


def _is_hyphen(tokens: Sequence[_Token], i: int) -> bool:
    """Whether a minus sign is a hyphen, of T-shirts or plan-B, or the dash of a list's item."""
    if tokens[i].text != "-":
        return False
    joined = any(_at(tokens, j).kind == "word" and len(_at(tokens, j).text) > 1 for j in (i - 1, i + 1))
    glued = tokens[i].glued and _at(tokens, i + 1).glued
    return (joined and glued) or (i == 0 and not _at(tokens, 1).glued)


def _tokens(text: str) -> list[_Token]:
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        tokens.append(_Token(str(match.lastgroup), match[0], match.start() == end and end > 0))
        end = match.end()
    return tokens


def _only_number(text: str) -> int | float | None:
    """The number of `text`, where nothing in it makes it another or none."""
    if set(text) & set("\\{}"):
        return None
    tokens = _tokens(text)
    first = next((i for i, token in enumerate(tokens) if token.kind == "number"), None)
    if first is None or first - (begin := _begin(tokens, first)) > _PREFIX:
        return None
    try:
        number, last, currency = _quantity(tokens, begin)
        if not math.isfinite(number):
            return None
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    return number if _may_precede(tokens, begin) and _may_follow(tokens, last, currency) else None


def _at(tokens: Sequence[_Token], i: int) -> _Token:
    return tokens[i] if 0 <= i < len(tokens) else _END


def _begin(tokens: Sequence[_Token], first: int) -> int:
    """Where the signs and currencies before a number begin, and the brackets behind these."""
    leads = lambda token: token.text in words.CURRENCIES or token.text in ("-", "+") or token.lower in words.MINUS
    i = first
    while leads(_at(tokens, i - 1)) or (_at(tokens, i - 1).text in _BRACKETS and leads(_at(tokens, i - 2))):
        i -= 1
        if tokens[i].text == "$" and tokens[i].glued and _at(tokens, i - 1).text in words.DOLLARS_OF:
            i -= 1
    return i


def _quantity(tokens: Sequence[_Token], i: int) -> tuple[int | float, int, bool]:
    """The value of what `_begin` found to begin at token i, where it ends, and whether there is a currency.

    Raises:
        OverflowError, ValueError, ZeroDivisionError: it has none.
    """
    signs, currency = "", False
    while tokens[i].kind != "number" and tokens[i].text not in _BRACKETS:
        sign = "-" if tokens[i].lower in words.MINUS else tokens[i].text
        signs, currency = (signs + sign, currency) if sign in ("-", "+") else (signs, True)
        i += 1
    if len(signs) > 1:
        raise ValueError("two signs")
    if closing := _BRACKETS.get(tokens[i].text):
        number, end, _ = _quantity(tokens, i + 1)
        if _at(tokens, end).text != closing:
            raise ValueError("more than a number in a bracket")
        end += 1
    else:
        number, end = _expression(tokens, i)
        while scale := _scale(tokens, end, currency):
            number, end = number * scale, end + 1
    return (-number if signs == "-" else number), end, currency


def _expression(tokens: Sequence[_Token], i: int) -> tuple[int | float, int]:
    """The value of the expression whose first number is token i, and where it ends; raises as `_quantity`."""
    number = _numeral(tokens[i])
    in_latex = _at(tokens, i + 1).text == PLUS
    one, two, three = (_at(tokens, i + in_latex + k) for k in (1, 2, 3))
    if one.kind == "number" and (in_latex or not one.glued) and two.text == "/" and three.kind == "number":  # 3 1/2
        if isinstance(number, float) or not _is_proper(one.text, three):
            raise ValueError("no mixed number")
        return number + _numeral(one) / _numeral(three), i + in_latex + 4
    if one.text == "/" and two.kind == "number":
        whole, _, above = tokens[i].text.rpartition(" ")
        if whole and " " not in whole and _is_proper(above, two):  # 1 200/2000
            raise ValueError("a mixed number, or a grouped one")
        return number / _numeral(two), i + 3
    if one.text in _TIMES and two.text == "10" and three.text in ("^", "**"):
        power, end = _power(tokens, i + 4)
        return number * (10**power if power >= 0 else 10.0**power), end
    if one.text in ("^", "**"):
        power, end = _power(tokens, i + 2)
        return number**power, end
    if one.text == "_" and two.kind == "number":  # a base
        base = int(two.text)
        if two.text.startswith("0") or base > 36 or not all(int(digit) < base for digit in str(number)):
            raise ValueError("not the digits of this base")
        return number, i + 3
    return number, i + 1


def _is_proper(above: str, below: _Token) -> bool:
    """Whether a fraction is one that a mixed number may have."""
    return not above.startswith("0") and _numeral(_Token("number", above, glued=False)) < _numeral(below)


def _numeral(token: _Token) -> int | float:
    digits = token.text.replace(",", "").replace(" ", "")
    return int(digits) if digits.isdigit() else float(digits)


def _power(tokens: Sequence[_Token], i: int) -> tuple[int, int]:
    """The whole exponent, in brackets or not, that begins at token i, and where it ends."""
    brackets = _at(tokens, i).text == "("
    i += brackets
    sign = -1 if _at(tokens, i).text == "-" else 1
    i += _at(tokens, i).text in ("-", "+")
    power = sign * int(_at(tokens, i).text)
    if abs(power) > 400 or (brackets and _at(tokens, i + 1).text != ")"):
        raise ValueError("no exponent of a number that is finite")
    return power, i + 1 + brackets


def _scale(tokens: Sequence[_Token], i: int, currency: bool) -> int | None:
    """What the word that is token i multiplies a number by; None for other words."""
    token = _at(tokens, i)
    table = (words.MONEY_SCALES if currency else words.GLUED_SCALES) if token.glued or currency else {}
    return words.SCALES.get(token.lower.removesuffix("s")) or table.get(token.text)


def _may_precede(tokens: Sequence[_Token], begin: int) -> bool:
    """Whether what stands before token `begin`, a number's first, leaves it a number of its own."""
    token, before, number = _at(tokens, begin - 1), _at(tokens, begin - 2), tokens[begin]
    signed = number.text in ("-", "+")
    if signed and number.glued and token.text == ":":  # Answer:- 18
        return False
    if number.lower in words.MINUS:
        return token is _END or token.text in _OPENING or token.lower in words.BEFORE_MINUS
    if token.text in words.MONTHS or (token.text == "." and before.text in words.MONTHS):
        return False
    if token.kind == "word":
        apart = not number.glued and not (signed and not _at(tokens, begin + 1).glued)  # is -5, but not n - 5
        return apart and not _is_variable(token, before) and _leaves(tokens[:begin])
    if token.text == ")":
        return not number.glued and not signed  # (C) 5
    if token.text in _BRACKETS:
        rest = _without_spelled(tokens[: begin - 1], number)
        if len(rest) < begin - 1:  # eighteen (18)
            return _leaves(rest)
        if "," in tokens[begin + signed].text and _at(tokens, begin + signed + 1).text in ("", *_BRACKETS.values()):
            return False  # (3,400) may be a pair
        if before.kind == "word" and (token.glued or _is_variable(before, _at(tokens, begin - 3))):
            return False  # sin(30), x (3)
        return _leaves(rest)
    if token.text in (".", ","):
        return not number.glued
    return token is _END or (token.text in _OPENING and _leaves(tokens[:begin]))


def _leaves(tokens: Sequence[_Token]) -> bool:
    """Whether the phrase that a number ends, `the square root of` or `cannot be`, leaves it as it is."""
    rest = _phrase(tokens)
    near = set(rest[-2:])
    if rest[-2:] == ["up", "to"] and (len(rest) == 2 or rest[-3] in words.VERBS | _PAUSES):  # but: adds up to 18
        return False
    if rest and rest[-1] in words.EXTREMES and "at" in rest[-4:-1]:  # at the very least 18
        return False
    of_number = words.NUMBERS | {"one"} if near & words.RATIOS_BEFORE else frozenset()  # one of the 18
    multiplied = words.MULTIPLIERS if near & words.COMPARED else frozenset()
    if near & words.BOUNDS and rest[-1] in words.BOUNDS:
        return False
    while rest and rest[-1] in words.CONNECTIVES:
        rest.pop()
    last = rest[-1] if rest else ""
    foreign = last[:1].isalpha() and not unicodedata.name(last[0], "").startswith("LATIN")
    if foreign and not last.endswith(words.STATING):
        return False
    if last in words.CHANGING or last.removesuffix("s") in words.SCALES or "no" in rest[-2:]:
        return False
    for i in reversed(range(len(rest))):
        word, before = rest[i], rest[max(i - 1, 0) : i]
        if word in words.DENIALS | multiplied or set(word) & words.DENYING:
            return False
        nouns = set(rest[i + 1 :]) - words.RATIOS_BEFORE
        if word in of_number and len(nouns) < 2 and before != ["the"]:  # the two meet in 18 hours
            return False
        if word in words.VERBS:
            reach = 3 if word == "be" or before == ["to"] else 1  # cannot possibly be, unlikely to have
            denied = words.DENIALS.intersection(rest[max(i - reach, 0) : i])
            return not denied and "no" not in rest[max(i - 2, 0) : i]
        if word in _PAUSES:
            return True
    return True


def _phrase(tokens: Sequence[_Token]) -> list[str]:
    """The words and pauses of tokens; a `t` is that of can't, not that of t-shirts."""
    found = []
    for i, token in enumerate(tokens):
        denies = token.lower != "t" or _at(tokens, i - 1).text in ("'", "\u2019")
        if token.text in _PAUSES or (token.kind == "word" and denies):
            found.append(token.lower)
    return found


def _is_variable(word: _Token, before: _Token) -> bool:
    """Whether a word that stands before a number is what it is multiplied by: in `x 18`, but not in `it's 18`."""
    text, lower = word.text, word.lower
    if len(text) == 1:
        short = word.glued and before.text in ("'", "\u2019")
        return lower != text.upper() and lower not in words.ONE_LETTER and not short
    looks_like_one = len(text) < 4 and text.isascii() and not _has_vowel(lower)
    return lower in words.VARIABLES or (looks_like_one and text not in words.UNITS | words.DOLLARS_OF)


def _without_spelled(tokens: Sequence[_Token], number: _Token) -> Sequence[_Token]:
    """`tokens` without the words at their end that spell the whole number that follows them: eighteen (18)."""
    digits = number.text.replace(",", "").replace(" ", "")
    wanted = _spelled(int(digits)) if digits.isdigit() and len(digits) < 16 else []
    end = len(tokens)
    while wanted and end:
        word = tokens[end - 1]
        if word.lower == wanted[-1] or (word.lower == "a" and wanted == ["one"]):
            wanted.pop()
        elif word.lower != "and" and word.text != "-":
            return tokens
        end -= 1
    return tokens if wanted else tokens[:end]


def _spelled(number: int) -> list[str]:
    """A whole number in words, without `and`: one, hundred, twenty, three."""
    for scale in ("trillion", "billion", "million", "thousand", "hundred"):
        above, below = divmod(number, words.SCALES[scale])
        if above:
            return [*_spelled(above), scale, *(_spelled(below) if below else [])]
    if number < 20:
        return [words.BELOW_TWENTY[number]]
    return [words.TENS[number // 10], *(_spelled(number % 10) if number % 10 else [])]


def _may_follow(tokens: Sequence[_Token], end: int, currency: bool) -> bool:
    """Whether what stands behind a number leaves it as it is: a unit, a mark or prose, no variable and no operator."""
    i = end
    while _at(tokens, i).text in _AROUND:
        i += 1
    if (_at(tokens, i).text, _at(tokens, i + 1).text) in _NO_CENTS and tokens[i + 1].glued:
        behind = _at(tokens, i + 2)
        if currency or behind.text in words.CURRENCIES or behind.lower == "rupees":
            i += 2 + (behind.text in words.CURRENCIES)
    token, after = _at(tokens, i), _at(tokens, i + 1)
    if token.text == "-":
        if not token.glued or not after.glued or not _is_joined(after):  # a 5-day trip
            return False
        i += 1
    elif token.text == "/":
        if after.kind != "word" or not _names(dataclasses.replace(after, glued=True), currency=False):  # 5 / day
            return False
        i += 1
    elif token.kind == "word":
        ordinal = i == end and _is_ordinal(tokens, i)
        if (ordinal and words.MONTHS & {after.text, _at(tokens, i + 2).text}) or not (
            ordinal or _names(token, currency)
        ):
            return False  # 5th of May
    elif token is not _END and (token.text not in _PAUSES or (token.text == "!" and i == end and token.glued)):
        return False
    return _is_prose(tokens[i:])


def _names(word: _Token, currency: bool) -> bool:
    """Whether the word behind a number can say of what it is; it is no variable, function or other number."""
    text, lower = word.text, word.lower
    if text in words.MONTHS:
        return False
    if text in words.UNITS or (len(text) > 1 and lower in words.UNITS) or text in words.CURRENCIES:
        return not (currency and text == "mm")  # millions, or millimetres
    if lower in words.FUNCTIONS_BEHIND | words.FRACTIONS | words.NUMBERS | words.OTHER_SCALES | {"one"}:
        return False
    if lower.startswith(words.OTHER_SCALES_BEGIN) or any(part in text for part in words.OTHER_SCALES_HOLD):
        return False
    if not text.isascii():
        return not "\u0370" <= text[0] <= "\u03ff" and (len(text) > 1 or text >= "\u2e80")
    if word.glued:
        return len(text) > 4 and _has_vowel(lower)
    if len(text) == 3:
        return (_has_vowel(lower) and lower not in words.VARIABLES) or (text[:2].isupper() and text[2] == "s")  # TVs
    return len(text) > 3 or lower in words.SHORT_WORDS


def _has_vowel(text: str) -> bool:
    return not set("aeiouy").isdisjoint(text)


def _is_joined(word: _Token) -> bool:
    """Whether a word may be joined to a number by a hyphen."""
    return word.kind == "word" and len(word.text) > 1 and _names(dataclasses.replace(word, glued=False), currency=False)


def _is_ordinal(tokens: Sequence[_Token], i: int) -> bool:
    """Whether token i makes the whole number before it 1st, 2nd, 3rd, 4th or so."""
    number, word = tokens[i - 1].text, tokens[i].lower
    ending = {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th") if number[-2:-1] != "1" else "th"
    return word == ending and number.replace(",", "").isdigit() and _at(tokens, i - 2).text not in ("/", "^", "_")


def _is_prose(tokens: Sequence[_Token]) -> bool:
    """Whether tokens behind a number, of which the first is known to fit, have no other number and no mathematics."""
    i = 0
    while i < len(tokens):
        token, before, after = tokens[i], _at(tokens, i - 1), _at(tokens, i + 1)
        if token.kind == "number":
            return False
        if token.kind == "word":
            abbreviated = before.text == "." and i > 1  # sq. m
            before = tokens[i - 2] if abbreviated else before
            powered = _past_power(tokens, i) > i or (len(before.text) > 1 and token.text in words.LENGTHS)
            unit = before.text in words.UNITS and powered  # m s^-1, kg m/s
            if i and not unit and not _may_come_later(token, before, last=after is _END, near=i == 1):
                return False
            i = _past_power(tokens, i)
        elif token.text == "-":
            if not (token.glued and after.glued and after.kind == "word"):
                return False
        elif token.text in _OPERATORS and not (token.text == "/" and before is not _END and after.kind == "word"):
            units = token.text in ("*", "·") and {before.text, after.text} <= words.UNITS
            if not units:
                return False
        i += 1
    if tokens and (behind := words.RATIOS.get(tokens[0].lower)):  # 3 in ten, 5 to the third
        near = {token.lower for token in (tokens[-1:] if behind == "last" else tokens[1:4])}
        if near & (words.NUMBERS | words.FRACTIONS | {"one", "power"}):
            return False
    return not _DENIED.search(" ".join(token.lower for token in tokens if token.kind == "word"))


def _may_come_later(word: _Token, before: _Token, last: bool, near: bool) -> bool:
    """Whether a word further behind a number is neither another number, in words, nor a variable."""
    lower, of = word.lower, before.lower
    if (
        lower in ("plus", "minus")
        or (lower in words.NUMBERS and near and of not in words.RATIOS)
        or (lower in words.NUMBERS | {"one"} and of in words.TO_NUMBERS)
    ):
        return False  # 5 dollars fifty, 5 dollars and fifty cents; but 5 dollars for two days
    if lower.startswith(words.OTHER_SCALES_BEGIN) or lower in words.OTHER_SCALES_HOLD:  # 5 с половиной, 5개 이상
        return False
    if (lower.removesuffix("s") in words.SCALES and of != "per") or (lower in ("a", "an") and of == "and"):
        return False
    if lower in words.FRACTIONS and of in ("a", "an", "and", "one"):
        return False
    if len(lower) > 1 or not lower.isascii() or of in words.BEFORE_UNITS:
        return True
    return not last if lower == "a" else word.text.isupper() and of not in ("times", "of", "over", "by", "to", "for")


def _past_power(tokens: Sequence[_Token], i: int) -> int:
    """The last token of the unit that begins with the word that is token i: of `m^2`, `s^-1` and `cm3` the number."""
    if tokens[i].text not in words.POWERED:
        return i
    if tokens[i].text in words.LENGTHS and _at(tokens, i + 1).text in ("2", "3") and tokens[i + 1].glued:
        return i + 1
    end = i + 2 + (_at(tokens, i + 2).text == "-")
    return end if _at(tokens, i + 1).text in ("^", "**") and _at(tokens, end).text in ("1", "2", "3", "4") else i
