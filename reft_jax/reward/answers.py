"""Reading answers and comparing them with the gold: the middle of the reward, pure functions of strings and numbers.

There are two sets of rules. `lenient` reads what a person would read. `reference` is the public ReFT code to the
letter, oddities included, for comparisons with the paper: `1,234` is no answer, `nan` is one, and a multiple-choice
problem always has one, a crashed program's being "none".
"""

import itertools
import math
import re
import unicodedata

from reft_jax.config import Rules
from reft_jax.problem import AnswerKind
from reft_jax.reward.numerals import read_number
from reft_jax.reward.typesetting import PLUS, plain, unescaped, unstruck

_LETTER = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?"
    r"(?:i(?:['\u2019]d|['\u2019]ll|\s+would|\s+will)?\s+(?:think|believe|say|choose|pick|select|guess|go\s+with)\s+(?:that\s+)?)?"
    r"(?:it(?:['\u2019]s|\s+is|\s+must\s+be|\s+has\s+to\s+be)\s+)?(?:(?:definitely|clearly|certainly|surely|obviously|probably)\s+)?"
    r"(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?[^\w\s~¬!≠]*([a-e])"
    r"(?P<rest>[^\w\s+#*^=-]*|\s*(?:[)\]}(]|[.:](?![a-z])).*|[,;]\s.*|\s+(?:because|since|as|which|is|for)\b.*"
    r"|\s+[-—]\s+(?![a-j]\b(?!\s+\w))[^=]+)"
)
_OPTION = re.compile(
    r"\s*(?:[)\]}]|\.(?=\s)|:(?!\s*(?:wrong|incorrect|untrue|impossible)\b))\W*(?!\W*(?:is|was|are)\b)(?=\w)"
)  # before the text of an option, No
_CORRECTED = re.compile(  # behind the text of an option, another letter
    r"\b(?:wait|hmm+|w?h?oops|sorry|mean|no|maybe|actually|rather|correction|should\s+be|(?:it|one|answer)(?:['\u2019]s|\s+is))\b\W*(?:(?:it(?:['\u2019]s|\s+is)|option)\s+)?"
    r"(?:\W*)[a-j]\b(?!\s+\w)|\b[a-j]\s+is\s+(?:right|correct|true|the\s+(?:(?:right|correct|best)\s+)?(?:answer|choice|option|one))\b"
)
_BOTH_NUMBERED = re.compile(r"\s+is\s+\W*[0-9].*\b[a-j]\s*(?:is|=|:)\s*\W*[0-9]")  # A is 5, B is 6
_ANOTHER_LETTER = re.compile(
    r"\W*(?:(?:and|or|nor|is|as\s+well\s+as|alternatively)\b\W*|[.,;/&]\W*)[a-j]\b(?=\W*(?:$|[,/]|and\b|or\b))"
)
_DENIED = re.compile(  # of a letter that it is the answer, at the beginning of what follows it
    r"\W*(?:(?:which|that)\s+)?(?:(?:is|was|are)\b\W*)?(?:(?:one|of|the|also|clearly|probably|definitely|just|a)\s+)*"
    r"(?:not\b(?!\W*(?:[a-j]\b|option|[0-9]))|too\s+\w|(?:wrong|incorrect|false|untrue|impossible)\b)"
    r"|\W*(?:(?:or|but)\s+)?(?:no(?!\s+doubt)|wait|hmm+|sorry|i\s+mean|rather(?!\s+than)|alternatively|maybe|actually)\b"
    r"|.*\b[a-j]\s+is\s+(?:right|correct|true|the\s+(?:(?:right|correct|best)\s+)?(?:answer|choice|option|one))\b"
)
_REASON = re.compile(r"\b(?:because|since|as|which|so|but|not|than)\b")
_LABEL = re.compile(  # of another option: `c)`, and `c.` or `c:` behind what is no word
    r"(?:^|[\s(,;/])[a-j]\s*\)|(?:^|[^a-z\s]|\b(?:and|or|nor)\b)\s*[a-j][.:](?![^\s])"
)
_DISPLAYED = re.compile(r"\$\$(.*?)(?:\$\$|$)|\\\[(.*?)(?:\\\]|$)|```[^\n]*\n(.*?)(?:```|$)", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LAST_BOX = re.compile(r".*(\\(?:boxed|fbox)\s*\{)", re.DOTALL)
_BOXES = ("\\boxed{", "\\fbox{")
_DISPLAY = re.compile(r"\$\$|\\\[|```")
_BLANKS = re.compile(r"\s+")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HEDGED = re.compile(
    r"\s*(?:(?:about|around|nearly|almost|over|under|(?:more|less) than)\b|~)"
    r"|.*(?:[≈≃≅±约約]|左右|[0-9](?:\.\.\.|…)|[0-9]-?ish\b|\bca\.|\b(?:approx\w*|roughly|circa|up to|at (?:least|most)"
    r"|more or less|or so|maybe|perhaps|possibly|probably|likely|presumably|estimated?"
    r"|nearly|almost|just about|environ|etwa|ungefähr|aproximadamente|cerca de|около|примерно)\b)",
    re.IGNORECASE | re.DOTALL,
)
_BEFORE_BOX = re.compile(  # what makes a box a part, a limit or one that is denied
    r"""(?:
      [0-9]\.?                                                     # 2\boxed{9}, 0.\boxed{9}
      |(?<![a-z])[a-z]                                             # x\boxed{9}
      |(?:[0-9)}\]]|(?<![a-z])[a-z])\s?(?:-|(?<!\*)\*)\s?           # x - \boxed{9}, but not: - \boxed{9}
      |[/^+<>≤≥≠±]\s?
      |\\(?:not\s?=?|neq?|[lg]e?q?(?:slant)?|[lg]t|pm|mp|cdot|times|div|pi|log(?:_\{?\w\}?)?|ln|sin|cos|tan)\s?
      |(?:\\[dtc]?frac\s?(?:\{[^{}]*\})?|\\sqrt(?:\[[^]]*\])?|[\^_])\s?\{[^{}]*  # 10^{\boxed{9}}
      |\b(?:(?:not|never|isn['\u2019]t)(?:\sexactly)?|no|(?:cannot|can['\u2019]t|not)\sbe|(?:more|less|fewer|greater)\sthan
      |half(?:\sof)?|twice|double|triple)[ }]*
    )(?:\$|\\\()?$""",
    re.IGNORECASE | re.VERBOSE,
)
_BEHIND_BOX = re.compile(
    r"""[.,(]?[0-9]|_[0-9{]
    |(?![hgms])[a-z](?![a-z])                                     # \boxed{9}x, but not: \boxed{9}m
    |\s?(?:[/^+](?!\s?\{?\s?\\circ)|\*\*?[0-9(]|\*\s[0-9(\\]|\*\s?[a-z](?![a-z])|\\(?:cdot|times|div|pi|sqrt|frac)(?![a-z]))
    |\W*(?:(?:(?:but|which|that|this|it)\s){0,2}(?:is|was|are)\s(?:not|wrong|incorrect|false)|isn['\u2019]t)\b
    |\s(?:squared|cubed|factorial|and\sa\shalf|[0-9]+/[0-9])
    |\W*(?:which\s)?(?:can(?:not|['\u2019]t)\sbe|(?:(?:but|oh)\s)?(?:wait|hold\son|w?h?oops))\b|\s?\((?:wrong|incorrect)\b|\.\sNo\b""",
    re.IGNORECASE | re.VERBOSE,
)
_BOTH_BOXES = re.compile(  # with a word or two between, and whose number the second is: \boxed{3} hours and \boxed{20}
    r"\}(?:\s|\$|\\\)|\\quad)*(?:(?:\w+(?:\s\w+){0,2}\s?)?(?:[,:;&]|,?\s?\b(?:and|or|to)\b)|\([a-z]\))?(?:\s|\$|\\\()*"
    r"(?:(?!answer|total|result)\w+\s?[=:]\s?)?(?:\$|\\\()?\s?$",
    re.IGNORECASE,
)
_BESIDE_A_BOX = 100  # characters that are looked at
_AS_LATEX = str.maketrans({"°": r"^\circ", "·": r"\cdot ", "∞": r"\infty ", "\u222a": r"\cup ", "²": "^2", "³": "^3"})
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*(?:[0-9]|\{-?[0-9]\}))?")
_UNTRUE = re.compile(r"\b(?:not|wrong|incorrect|false|excluded|wait)\b|n['\u2019]t\b", re.IGNORECASE)
_LONGEST = 2000  # characters of a line that can still be an answer with what a person says around it
_QUOTES, _STOPS = " \t\r\n\f\v\"'*`.,;:«»\u3002", "!?"  # around a text that is an answer, and at its end
_BEFORE_TEXT = re.compile(rf"(?:(?!\.[0-9])[{re.escape(_QUOTES)}])+")  # but a decimal point
_LEFT, _RIGHT = "\ue000\ue001"  # braces that are written, while those that typeset are taken out
_SET = re.compile(r"(?<![\^_\w}\\])\{([^{}\\]*)\}")
_CURLY = str.maketrans(f"\u2018\u2019\u201c\u201d{_LEFT}{_RIGHT}", "''\"\"{}", PLUS)
_MATHEMATICS = re.compile(r"\$+([^$]+)\$+[.\s]*")
_BESIDE_A_MARK = re.compile(r"\s*([^\w\s])\s*")

_EXPECTED: dict[AnswerKind, str] = {
    "number": r"a finite number in a form that is read, such as 18, 1,234.5, $18, 18%, 3/4 or \frac{3}{4}",
    "choice": "one letter from a to e, as multiple choice needs",
    "latex": "an expression on one line with balanced braces",
    "text": "a text on one line",
    "scored": "a text",
    "none": "left out",
}


def parse_gold(answer: str, kind: AnswerKind) -> int | float | str:
    """The gold answer of a problem as a value to compare with, read as a completion's answer is; it must be exact.

    Args:
        answer: as published, on one line or in displayed mathematics.
        kind: `number`, `choice` (a letter from a to e), `latex` or `text`; of `scored` and `none` it is any text.

    Raises:
        ValueError: `answer` cannot be read as that kind; the message holds it and what was expected.
    """
    text = answer.strip()
    if kind in ("scored", "none"):
        return text
    if not text:
        raise ValueError(f"gold answer {answer!r} is not {_EXPECTED[kind]}: it is empty")
    several = "\n" in text and not _DISPLAYED.match(text)
    value = None if several or (kind == "number" and _HEDGED.match(unstruck(unescaped(text)))) else _read(text, kind)
    if value is None:
        raise ValueError(f"gold answer {answer!r} is not {_EXPECTED[kind]}")
    return value


def likely_answer_kind(gold: str) -> AnswerKind:
    """How a gold answer is compared where nothing else says it: one letter, in brackets or not, is that of a choice."""
    letters = [character for character in plain(gold) if character.isalnum()]
    return "choice" if len(letters) == 1 and letters[0].isalpha() else "number"


def extract_answer(completion: str, kind: AnswerKind, answer_trigger: str, rules: Rules) -> str | int | float | None:
    """The answer that a chain of thought in prose ends with: what follows its last `answer_trigger`.

    Without the trigger, `reference` reads the whole text and `lenient` finds no answer: nothing was concluded.

    Args:
        completion: the chain of thought.
        kind: how the answer is compared.
        answer_trigger: the template's string before the answer; `lenient` ignores the blanks around it. One that ends
            in a brace, `\\boxed{`, is closed by the answer's own; after others the answer is a line, or mathematics
            displayed on lines of its own, or a fenced block. One of kind `scored` ends at a blank line.
        rules: `lenient` or `reference`.

    Returns:
        A number, a lower-case letter, an expression or a text, or None where there is no answer. `reference` knows
        numbers and choices, which are any text.
    """
    if rules == "reference":
        text = (completion.split(answer_trigger)[-1] if answer_trigger else completion).strip()
        return _plain_letter(text) if kind == "choice" else _float_or_none(text)
    trigger = answer_trigger.strip()
    head, found, text = completion.rpartition(trigger) if trigger else ("", "all", completion)
    if trigger.endswith("{"):
        if trigger in _BOXES:
            head, found, text = _at_last_box(completion)
        text = _to_brace(text) if kind == "scored" else _of_box(head.rpartition("\n")[2], text)
    return _read(text, kind) if found else None


def normalise_result(value: str | int | float | None, kind: AnswerKind, rules: Rules) -> str | int | float | None:
    """The answer that a program's result stands for; None is a program without one, failed ones included.

    In `reference`, a choice is the result's text whatever it is, hence "none" for None.
    """
    if rules == "reference":
        if kind == "choice":
            return _plain_letter(str(value))
        return value if isinstance(value, float) else None
    if isinstance(value, str) or (kind in ("latex", "text", "scored") and value is not None):
        return _read(str(value), kind)
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
    """What a person reads in the answer that stands at the beginning of `text`."""
    if kind == "scored":
        return _paragraph(text)
    line = _delimited(unescaped(text), kind)
    if len(line) > _LONGEST or "\0" in line:
        return None
    match kind:
        case "number":
            return read_number(line)
        case "choice":
            return _read_letter(line)
        case "latex":
            return _read_expression(line)
        case "text":
            return _plain_text(line) or None
        case "none":
            return None


def _delimited(text: str, kind: AnswerKind) -> str:
    """The answer that `text` begins with: displayed mathematics, a fenced block, or a line; of these the last box."""
    text = text.strip()
    if displayed := _DISPLAYED.match(text):
        line = " ".join("".join(filter(None, displayed.groups())).split())
        beside = text[displayed.end() :].partition("\n")[0]  # $$5$$ $$6$$ is two, $$5$$ is wrong none
        line += beside if kind in ("number", "choice") or _DISPLAY.search(beside) else ""
    else:
        line = text.partition("\n")[0].strip()
    before, box, behind = _at_last_box(line)
    return _of_box(before, behind) if box else line


def _of_box(before: str, behind: str) -> str:
    """What a box between these texts holds; nothing where they deny it, or make it a part or one of several."""
    inside, end = _braced(behind).strip(), _closing_brace(behind)
    rest = "" if end is None else _BLANKS.sub(" ", behind[end + 1 :][:_BESIDE_A_BOX])
    several, before = _BOXED.search(before) is not None, _BLANKS.sub(" ", before[-_BESIDE_A_BOX:])
    if _BEFORE_BOX.search(before) or _BEHIND_BOX.match(rest) or (several and _BOTH_BOXES.search(before)):
        return ""
    return f"-{inside}" if before.endswith("-") else inside


def _paragraph(text: str) -> str | None:
    """The answer as it is written, lines and all, to the next blank line; of a fenced block or a box what is in it."""
    text = text.strip()
    if displayed := _DISPLAYED.match(text):
        text = "".join(filter(None, displayed.groups()))
    elif box := _BOXED.match(text):
        text = _to_brace(text[box.end() :])
    return _BLANK_LINE.split(text.strip(), maxsplit=1)[0].rstrip() or None


def _braced(text: str) -> str:
    """`text` up to the brace that closes the one before it, on one line."""
    return " ".join(_to_brace(text).split())


def _to_brace(text: str) -> str:
    """`text` up to the brace that closes the one before it; its first line where none does."""
    end = _closing_brace(text)
    return text.strip().partition("\n")[0] if end is None else text[:end]


def _closing_brace(text: str) -> int | None:
    depth = 1
    for match in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.start()
    return None


def last_box(text: str) -> str | None:
    """What the last `\\boxed{...}` of a solution holds as its answer, on one line, read as that of a completion is.

    None where there is none, or it does not close; empty where it is a part (`2\\boxed{9}`), one of several, or denied.
    """
    before, box, behind = _at_last_box(text)
    if not box or _closing_brace(behind) is None:
        return None
    return _of_box(before.rpartition("\n")[2], behind)


def _at_last_box(text: str) -> tuple[str, str, str]:
    """What stands before the last box of a text, the beginning of it, and what stands behind; empty without one."""
    box = _LAST_BOX.match(text)
    return (text[: box.start(1)], box[1], text[box.end() :]) if box else ("", "", "")


def _read_letter(line: str) -> str | None:
    """`B`, `(b)`, `b ) 38` and `option b` are b; an article at the start of a sentence is not a letter."""
    match = _LETTER.fullmatch(plain(_without_dollars(line)).lower())
    if match is None or _ANOTHER_LETTER.match(match["rest"]):
        return None
    rest = match["rest"]
    if (option := _OPTION.match(rest)) is not None:
        rest = rest[option.end() :].removeprefix("not ")
        denied = _CORRECTED.search(rest)
    else:
        denied = _DENIED.match(rest) or _BOTH_NUMBERED.match(rest)
    return None if denied or _LABEL.search(_REASON.split(rest, maxsplit=1)[0]) else match[1]


def _plain_text(line: str) -> str:
    """A text without case, typesetting, blanks beside marks, compatibility forms, and the punctuation around it."""
    line = _SET.sub(r"\\{\1\\}", _without_dollars(line)).replace("\\{", _LEFT).replace("\\}", _RIGHT)
    text = unicodedata.normalize("NFKC", plain(line).casefold())
    text = _BESIDE_A_MARK.sub(r"\1", text.translate(_CURLY))
    found = _BEFORE_TEXT.match(text)
    return text[found.end() if found else 0 :].rstrip(_QUOTES + _STOPS)


def _without_dollars(line: str) -> str:
    """`line`, of one that is mathematics as a whole what is between the dollars."""
    mathematics = _MATHEMATICS.fullmatch(line)
    return mathematics[1] if mathematics else line


def _read_expression(line: str) -> str | None:
    """LaTeX without the marks around it; None where its braces are not balanced, or there is nothing.

    math-verify leaves out what is set as text: beside mathematics it may be no denial, and beside a number it is read
    with it, as `5 \\text{ or more}` (none) and `5 \\text{ million}`.
    """
    line = line.removesuffix(".").strip().removeprefix("\\(").removesuffix("\\)").strip("$ ")
    line = line.translate(_AS_LATEX)
    mathematics = _TEXT.sub(" ", line)
    if mathematics != line and any(map(str.isalnum, mathematics)):
        if _UNTRUE.search(" ".join(_TEXT.findall(line))):
            return None
        bare = read_number(mathematics) if mathematics.count("=") < 2 else None  # x=1 \text{ or } x=2
        if bare is not None and (number := read_number(line)) != bare:
            return None if number is None else f"{number}"
    braces = [match[0] for match in _BRACE.finditer(line) if match[0] in "{}"]
    depths = list(itertools.accumulate(1 if brace == "{" else -1 for brace in braces))
    balanced = not depths or (min(depths) >= 0 and depths[-1] == 0)
    return line if line and balanced else None


def _plain_letter(text: str) -> str:
    """The reference's reading of a multiple-choice answer."""
    return text.lower().replace('"', "").replace("'", "").strip()


def _float_or_none(text: str) -> float | None:
    """The reference's reading of a number: whatever `float` takes, `nan` and `inf` included."""
    try:
        return float(text)
    except ValueError:
        return None
