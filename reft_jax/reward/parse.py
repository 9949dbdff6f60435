"""What is said of a text before Python's parser reads it: where the program is, whether it may be parsed, and what a
set of texts is likely to be.

Completions are trusted in nothing, and the parser runs in the process that trains: deep nesting can end a process, and
what it warns of goes by that process's settings.
"""

import re
from collections.abc import Sequence

from reft_jax.config import CotKind

# With these bounds the parser needs less than 512 KB of the C stack and at worst about 0.1 s.
_LENGTH = 4000  # characters
_BRACKETS = 40  # of the opening kinds, in the whole text
# Backslashes and numbers run into a keyword (hexadecimal ones end in letters) make the parser warn, and what a warning
# does is up to this process's settings. So are long integers; the lowest limit that can be set is 640 digits.
_ODD = re.compile(r"\\|0[xX]|[\d.][jJ]?(?:and|else|for|i[fns]|not|or)|[\d_]{300}")

_DEFINITION = re.compile(r"^[ \t]*def[ \t]+solution\b", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)
_DOCSTRING = re.compile(
    r'^([ \t]*def[ \t]+solution\(\)[^\n]*:[ \t]*\n)[ \t]*"""(.*?)("{3,})[ \t]*$\n?', re.MULTILINE | re.DOTALL
)


def program_of(completion: str) -> str:
    r"""The program in what a chat model wrote, for `lenient` rules; a text without fences is one as it is.

    With fences (three backticks at the beginning of a line) it is the last fenced block that defines `solution`, or,
    where none does, what stands before the first fence: the forced header and its continuation. Prose around it is left
    out. So is the docstring of `solution` where it is the question of a header that is no Python: one with a backslash
    (`\x`, `\u`), with three quotation marks, or with one at its end.
    """
    if fences := list(_FENCE.finditer(completion)):
        completion = _fenced(completion, fences)
    docstring = _DOCSTRING.search(completion)
    if docstring and ("\\" in docstring[2] or '"""' in docstring[2] or docstring[3] != '"""'):
        return completion[: docstring.end(1)] + completion[docstring.end() :]
    return completion


def _fenced(completion: str, fences: Sequence[re.Match[str]]) -> str:
    edges = [0, *(edge for fence in fences for edge in fence.span()), len(completion)]
    parts = [completion[start:end] for start, end in zip(edges[::2], edges[1::2])]
    begun = _DEFINITION.search(parts[0]) is not None
    closes = begun and fences[0][0].strip() == "```"  # one that names a language opens a block
    inside = [part for part in parts[0 if closes else 1 :: 2] if _DEFINITION.search(part)]
    return [completion, *parts[: int(begun)], *inside][-1].strip("\n")


def may_be_parsed(program: str) -> bool:
    """Whether Python's parser reads a text in little time and stack and without a warning: a plain, short program."""
    return len(program) <= _LENGTH and sum(map(program.count, "([{")) <= _BRACKETS and _ODD.search(program) is None


def likely_cot(texts: Sequence[str]) -> CotKind:
    """What chains of thought are, by their look: programs where more than half of them define `solution`."""
    programs = sum("def solution" in text for text in texts)
    return "program" if 2 * programs > len(texts) else "text"
