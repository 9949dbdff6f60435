"""What is said of a text before Python's parser reads it: whether it may, and what a set of texts is likely to be.

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


def may_be_parsed(program: str) -> bool:
    """Whether Python's parser reads a text in little time and stack and without a warning: a plain, short program."""
    return len(program) <= _LENGTH and sum(map(program.count, "([{")) <= _BRACKETS and _ODD.search(program) is None


def likely_cot(texts: Sequence[str]) -> CotKind:
    """What chains of thought are, by their look: programs where more than half of them define `solution`."""
    programs = sum("def solution" in text for text in texts)
    return "program" if 2 * programs > len(texts) else "text"
