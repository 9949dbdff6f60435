"""Reading answers and comparing them with the gold: the middle of the reward, pure functions of strings and numbers.

There are two sets of rules. `lenient` reads what a person would read. `reference` is the public ReFT code to the
letter, oddities included, for comparisons with the paper: `1,234` is no answer, `nan` is one, and a multiple-choice
problem always has one, a crashed program's being "none".
"""

import math
import re

from reft_jax.config import Rules
from reft_jax.problem import AnswerKind

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_TIMES = "[x*\u00d7\u00b7]"  # with the multiplication sign and the middle dot
_NUMBER = re.compile(
    rf"""
    (?<![0-9.,])
    (?P<sign>(?<![0-9A-Za-z)])-\s*)?            # a sign, not the hyphen of B-5 nor the operator of n-5
    (?:[$£€¥₹]\s*(?P<inner_sign>-)?)?           # -$5 and $-5
    (?:(?P<whole>[0-9]+)\s+(?=[0-9]+/[0-9]))?   # 3 1/2
    (?P<number>{_DECIMAL})
    (?:\s*/\s*(?P<denominator>{_DECIMAL})
      |[eE](?P<exponent>[+-]?[0-9]+)
      |\s*{_TIMES}\s*10\s*(?:\^|\*\*)\s*\{{?\(?(?P<power>[+-]?[0-9]+)\)?\}}?)?
    (?:\s*-?(?P<scale>thousand|million|billion|trillion)\b)?
    (?![0-9]|[.,][0-9])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])(?<![0-9.][eE])\^?[23](?![0-9])")  # m^2 and cm3, not 1e3
_NEXT_SENTENCE = re.compile(r"(?<=\S)[.!?](?=\s)|\s\(")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-") | dict.fromkeys("\u00a0\u202f\u2009", " "))
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?[^\w\s]*([a-e])(?:[^\w\s]*|\s*[).:\]].*)"
)


def parse_gold(answer: str, kind: AnswerKind) -> int | float | str:
    """The gold answer of a problem as a value to compare with.

    Args:
        answer: a numeral, thousands commas allowed, or a letter from a to e in any case, quoted or not.
        kind: `number` or `choice`.

    Raises:
        ValueError: `answer` is neither; the message holds it and what was expected.
    """
    if kind == "choice":
        letter = _plain_letter(answer)
        if letter not in set("abcde"):
            raise ValueError(f"gold answer {answer!r} is not one letter from a to e, as multiple choice needs")
        return letter
    try:
        number = _number(answer.replace(",", "").strip())
    except ValueError:
        number = None
    if number is None:
        raise ValueError(f"gold answer {answer!r} is not a finite number")
    return number


def likely_answer_kind(gold: str) -> AnswerKind:
    """How a gold answer is compared where nothing else says it: one letter, quoted or not, is that of a choice."""
    letter = _plain_letter(gold)
    return "choice" if len(letter) == 1 and letter.isalpha() else "number"


def extract_answer(completion: str, kind: AnswerKind, answer_trigger: str, rules: Rules) -> str | int | float | None:
    """The answer that a chain of thought in prose ends with: what follows its last `answer_trigger`.

    Without the trigger, `reference` reads the whole text and `lenient` finds no answer: nothing was concluded.

    Args:
        completion: the chain of thought.
        kind: `number` or `choice`.
        answer_trigger: the template's string before the answer; `lenient` ignores the blanks around it.
        rules: `lenient` or `reference`.

    Returns:
        A number, a lower-case letter (in `reference` any text), or None where there is no answer.
    """
    if rules == "reference":
        text = (completion.split(answer_trigger)[-1] if answer_trigger else completion).strip()
        return _plain_letter(text) if kind == "choice" else _float_or_none(text)
    _, found, text = (
        completion.rpartition(answer_trigger.strip()) if answer_trigger.strip() else ("", "all", completion)
    )
    return _read(text, kind) if found else None


def normalise_result(value: str | int | float | None, kind: AnswerKind, rules: Rules) -> str | int | float | None:
    """The answer that a program's result stands for; None is a program without one, failed ones included.

    In `reference`, a choice is the result's text whatever it is, hence "none" for None.
    """
    if rules == "reference":
        if kind == "choice":
            return _plain_letter(str(value))
        return value if isinstance(value, float) else None
    if isinstance(value, str):
        return _read(value, kind)
    return value if kind == "number" and value is not None and math.isfinite(value) else None


def is_correct(
    value: str | int | float | None,
    gold: str | int | float,
    tolerance: float,
    relative_tolerance: float = 0.0,
    exact_integers: bool = True,
) -> bool:
    """Whether `value` is the gold answer: the same letter, or |value - gold| <= max(tolerance, relative * |gold|).

    Integers are compared as such, so that no digit is lost beyond 2^53. With no `relative_tolerance` this is the
    reference's comparison.

    Args:
        value: as `extract_answer` and `normalise_result` make it.
        gold: as `parse_gold` makes it.
        tolerance: absolute.
        relative_tolerance: as a share of the gold answer.
        exact_integers: the relative tolerance is not for gold answers that are whole numbers.
    """
    if isinstance(value, str) or isinstance(gold, str) or value is None:
        return value == gold
    whole = isinstance(gold, int) or gold.is_integer()
    relative = 0.0 if exact_integers and whole else relative_tolerance
    return abs(value - gold) <= max(tolerance, relative * abs(gold))


def _read(text: str, kind: AnswerKind) -> str | int | float | None:
    """What a person reads in the first line of `text`."""
    line = text.strip().partition("\n")[0].strip()
    return _read_letter(line) if kind == "choice" else _read_number(line)


def _read_letter(line: str) -> str | None:
    """`B`, `(b)`, `b ) 38` and `option b` are b; an article at the start of a sentence is not a letter."""
    match = _LETTER.fullmatch(line.lower())
    return match[1] if match else None


def _read_number(line: str) -> int | float | None:
    """The one number of the first sentence, else of the line, each after its last `=`; None where there are several."""
    line = _UNIT_POWER.sub("", line.translate(_MINUS))
    for text in (_NEXT_SENTENCE.split(line)[0], line):
        text = text.rpartition("=")[2]
        matches = list(_NUMBER.finditer(text))
        if len(matches) == 1 and not re.search("[0-9]", text[: matches[0].start()] + text[matches[0].end() :]):
            return _value(matches[0])
    return None


def _value(match: re.Match[str]) -> int | float | None:
    """The number that `_NUMBER` matched; None where it is not finite."""
    number = _number(match["number"].replace(",", ""))
    if number is None:
        return None
    if match["denominator"]:
        denominator = float(match["denominator"].replace(",", ""))
        number = number / denominator if denominator else math.nan
    if match["whole"]:
        number += float(match["whole"])
    if power := match["exponent"] or match["power"]:
        try:
            number *= 10.0 ** int(power)
        except (OverflowError, ValueError):  # ValueError: thousands of digits
            return None
    if match["scale"]:
        number *= _SCALES[match["scale"].lower()]
    if match["sign"] or match["inner_sign"]:
        number = -number
    return number if math.isfinite(number) else None


def _number(text: str) -> int | float | None:
    """A numeral as an int where it is written as one, else as a float; None where that is not finite.

    Raises:
        ValueError: it is not a numeral.
    """
    number = float(text)
    if not math.isfinite(number):
        return None
    return int(text) if text.lstrip("+-").isdigit() else number


def _plain_letter(text: str) -> str:
    """The reference's reading of a multiple-choice answer."""
    return text.lower().replace('"', "").replace("'", "").strip()


def _float_or_none(text: str) -> float | None:
    """The reference's reading of a number: whatever `float` takes, `nan` and `inf` included."""
    try:
        return float(text)
    except ValueError:
        return None
