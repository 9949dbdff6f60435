"""The value of a written sum, under each reading of its divisions that a person may have in mind.

Below `equations`, which cuts sums out of a text and compares them.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

_BITS = 1024  # of a numerator or denominator; sums that need more are not computed

# Precedences of `/` that a reader may have in mind, where `+` has 1 and `*` 2: the usual one; 1/2 without blanks as one
# number; and a*b/c*d for (a*b)/(c*d), a+b/c for (a+b)/c, where careful writers put brackets.
USUAL, FRACTION, *CARELESS = 2.0, 3.0, 1.5, 0.5
_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Token(NamedTuple):
    kind: str  # Number, binary Operator, Unary minus, ( ), = or approximately, Word, Break, X for what is not read here
    text: str
    tight: bool = False  # no blank before it
    percent: bool = False


def value_of(tokens: Sequence[Token], division: float, percent: bool, exact: Mapping[str, Fraction]) -> Fraction:
    """The value of a sum whose brackets are balanced, with two stacks.

    Args:
        tokens: the sum, words included.
        division: precedence of `/`, where `+` has 1 and `*` 2; `FRACTION` is 2, but 3 without blanks around.
        percent: 5% is 0.05, else 5.
        exact: what rounded numerals stand for.
    """
    values: list[Fraction] = []
    waiting: list[tuple[str, float]] = []
    tokens = [token for token in tokens if token.kind != "W"]
    for i, token in enumerate(tokens):
        if token.kind == "N":
            number = exact.get(token.text) or Fraction(token.text)
            values.append(number / 100 if percent and token.percent else number)
        elif token.kind == "U":
            waiting.append(("sign", 4))
        elif token.kind == "(":
            waiting.append(("(", 0))
        elif token.kind == ")":
            _apply(values, waiting, 0.1)
            waiting.pop()
        else:
            level = {"+": 1, "-": 1, "*": 2, "^": 5}.get(token.text, min(division, 2))
            if token.text == "/" and division == FRACTION and token.tight and tokens[i + 1].tight:
                level = 3
            _apply(values, waiting, level + 0.1 * (level in (3, 5)))  # these group from the right
            waiting.append((token.text, level))
    _apply(values, waiting, 0)
    return values[0]


def _apply(values: list[Fraction], waiting: list[tuple[str, float]], level: float) -> None:
    """Computes the waiting operators that bind at least as tight as `level`."""
    while waiting and waiting[-1][1] >= level:
        name, second = waiting.pop()[0], values.pop()
        if name == "sign":
            values.append(-second)
            continue
        first = values.pop()
        if name == "^":
            if second.denominator > 1 or abs(second) * _bits(first) > _BITS:
                raise OverflowError
            result = first ** int(second)
        else:
            result = _OPERATORS[name](first, second)
        if _bits(result) > _BITS:
            raise OverflowError
        values.append(result)


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())
