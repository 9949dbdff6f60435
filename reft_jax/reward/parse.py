"""What is said of a text before Python's parser reads it: where the program is, whether it may be parsed, and what a
set of texts is likely to be.

Completions are trusted in nothing, and the parser runs in the process that trains: deep nesting can end a process, and
what it warns of goes by that process's settings.
"""

import ast
import re
import textwrap
from collections.abc import Sequence

from reft_jax.config import CotKind

# With these bounds the parser needs less than 512 KB of the C stack and at worst about 0.1 s.
_LENGTH = 4000  # characters
_BRACKETS = 40  # of the opening kinds, in the whole text
# Backslashes and numbers run into a keyword (hexadecimal ones end in letters) make the parser warn, and what a warning
# does is up to this process's settings. So are long integers; the lowest limit that can be set is 640 digits.
_ODD = re.compile(r"\\|0[xX]|[\d.][jJ]?(?:and|else|for|i[fns]|not|or)|[\d_]{300}")

_DEFINITION = re.compile(r"^[ \t]*def[ \t]+solution\b", re.MULTILINE)
# Three backticks or more, or tildes, at the beginning of a line, or backticks at its end, behind prose or code.
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^\n`~]*$|(?<![`\n])`{3,}[\w{}.+-]*[ \t]*$", re.MULTILINE)
_CLOSES = re.compile(r"\s*[`~]+\s*")
_HEADER = re.compile(  # of a program, with nothing behind it
    r"\s*def[ \t]+solution\b[^\n]*:[ \t]*\n(?:([ \t]*)(\"{3}|'{3}).*?\2\"*\s*)?", re.DOTALL
)
_RETURN = re.compile(r"^[ \t]+return\b", re.MULTILINE)
_UNINDENTED = re.compile(r"^[^\s#)\]}].*$", re.MULTILINE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")  # as the parser counts them
_CONTINUES = {"else", "elif", "except", "finally"}
_DEFINING = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign)
_DOCSTRING = re.compile(
    r'^([ \t]*def[ \t]+solution\(\)[^\n]*:[ \t]*\n)[ \t]*"""(.*?)("{3,})[ \t]*$\n?', re.MULTILINE | re.DOTALL
)


def program_of(completion: str) -> str:
    r"""The program in what a chat model wrote, for `lenient` rules; a text without fences is one as it is.

    With fences (see `_FENCE`) it is the last fenced block that defines `solution`, or, where none does, what stands
    before the first fence: the forced header and its continuation, which may be a fenced block itself. Prose around it
    is left out, and prose behind the program. So is the docstring of `solution` where it is the question of a header
    that is no Python: one with a backslash (`\x`, `\u`), with three quotation marks, or with one at its end.
    """
    completion = completion.removeprefix("\ufeff")
    if (fences := list(_FENCE.finditer(completion))) and not _is_python(completion):
        completion = _fenced(completion, fences)
    docstring = _DOCSTRING.search(completion)
    if docstring and ("\\" in docstring[2] or '"""' in docstring[2] or docstring[3] != '"""'):
        completion = completion[: docstring.end(1)] + completion[docstring.end() :]
    return _without_prose(completion)


def _fenced(completion: str, fences: Sequence[re.Match[str]]) -> str:
    edges = [0, *(edge for fence in fences for edge in fence.span()), len(completion)]
    parts = [completion[start:end] for start, end in zip(edges[::2], edges[1::2])]
    begun = _DEFINITION.search(parts[0]) is not None
    if begun and (header := _HEADER.fullmatch(parts[0])) and not any(map(_DEFINITION.search, parts[1:])):
        return parts[0].rstrip() + "\n" + textwrap.indent(textwrap.dedent(parts[1]).strip("\n"), header[1] or "    ")
    closes = begun and _CLOSES.fullmatch(fences[0][0])  # one that names a language opens a block
    inside = [textwrap.dedent(part) for part in parts[0 if closes else 1 :: 2] if _DEFINITION.search(part)]
    return [completion, *parts[: int(begun)], *inside][-1].strip("\n")


def _without_prose(program: str) -> str:
    """`program` up to the first line of prose behind `solution`, where it is no Python with that, and is without."""
    definition = _DEFINITION.search(program)
    if definition is None or len(program) > _LENGTH:
        return program
    if _is_python(program):
        return _without_words(program)
    for line in _UNINDENTED.finditer(program, definition.end()):
        if not _may_begin_code(line[0]):
            code = program[: line.start()]
            return code if _RETURN.search(code, definition.end()) and _is_python(code) else program
    return program


def _may_begin_code(line: str) -> bool:
    """Whether an unindented line may be Python: a statement, or the head of one that goes on below."""
    begins_block = _is_python(line.rstrip() + "\n    pass")
    return line.split()[0].rstrip(":") in _CONTINUES or begins_block or _is_python(line)


def _without_words(program: str) -> str:
    """A program up to what behind `solution` computes nothing and is Python by chance: `Answer is 18`, `Done`."""
    statements = ast.parse(program.replace("\\", "$")).body
    computing = (i for i in reversed(range(len(statements))) if isinstance(statements[i], _DEFINING))
    behind = statements[next(computing, -1) + 1 :]
    words = next((statement for statement in behind if _is_idle(statement)), None)
    return program if words is None else "".join(_LINE.findall(program)[: words.lineno - 1])


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement only names things: an expression that calls nothing, or an annotation."""
    if isinstance(statement, ast.Expr):
        return not any(isinstance(node, ast.Call | ast.NamedExpr) for node in ast.walk(statement))
    return isinstance(statement, ast.AnnAssign) and statement.value is None


def _is_python(text: str) -> bool:
    """Whether a text parses; of backslashes it is enough that they stand in strings."""
    text = text.replace("\\", "$")
    try:
        return may_be_parsed(text) and ast.parse(text) is not None
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError):
        return False


def may_be_parsed(program: str) -> bool:
    """Whether Python's parser reads a text in little time and stack and without a warning: a plain, short program."""
    return len(program) <= _LENGTH and sum(map(program.count, "([{")) <= _BRACKETS and _ODD.search(program) is None


def likely_cot(texts: Sequence[str]) -> CotKind:
    """What chains of thought are, by their look: programs where more than half of them define `solution`."""
    programs = sum("def solution" in text for text in texts)
    return "program" if 2 * programs > len(texts) else "text"
