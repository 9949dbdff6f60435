"""Real word problems as programs of one expression: what `benchmarks.real` and `benchmarks.dip` train on.

SVAMP's annotated programs are written as one expression, and so are GSM8K's solutions, by their calculator notes
(`<<48/2=24>>`). A question of GSM8K is then asked again with other numbers, which the expression gets too, so that its
answer is known: a model that has read nothing learns from these what questions and expressions are.

Files are those that anybody can download, see `SOURCES`; what cannot be used is counted by reason.
"""

import ast
import collections
import dataclasses
import json
import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reft_jax.config import SourceConfig
from reft_jax.data.readers import question_key, read_problems, split_dev
from reft_jax.files import replacing, write_whole
from reft_jax.problem import Problem

HEADER = "def solution():\n return"
"""What every program begins with; one token."""

HELD_OUT, DEV = 0.2, 0.1
"""Shares of SVAMP's annotated questions, drawn by a hash of the question."""

TRAIN = 1280
"""Of the others so many are trained on, drawn by chance: whole batches of 256."""

VOCABULARY = 2048
PROMPT, RESPONSE = 53, 14
"""Longest prompt and program in tokens, header and end token included; longer ones are left out of all but the official
test set."""
PRETRAINING_PROMPT, PRETRAINING_RESPONSE = 80, 28
VERSIONS = 4
"""How often a question of GSM8K is asked with other numbers."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORDS = re.compile(r"\d*\.\d+|\d+|[a-z]+|[^\sa-z\d]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NOTE = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})
_OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNITS = {0.01, 0.25, 0.5, *range(1, 13), 24.0, 30.0, 52.0, 60.0, 100.0, 365.0}
"""Numbers that a solution may know without being told: halves, days of a week, minutes of an hour, per cent."""

_LIKELY_UNITS = {"1", "2", "100"}
"""Numbers of a question that mostly stay as they are, since they are often units (`100 %`, `each 1`)."""

_REFERENCE = "the folder data/ of github.com/lqtrung1998/mwp_ReFT"
SOURCES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "svamp": (("svamp_python_sdp.json",), _REFERENCE),
    "official": (("svamp_test_set.json",), _REFERENCE),
    "gsm8k": (
        ("gsm8k_train.jsonl", "train.jsonl", "main/train-00000-of-00001.parquet", "train-00000-of-00001.parquet"),
        "grade_school_math/data/train.jsonl of github.com/openai/grade-school-math, or by `hf download openai/gsm8k "
        "main/train-00000-of-00001.parquet --repo-type dataset --local-dir DIR`",
    ),
}
"""Files of a data folder, by what they hold: the names that they may have, and where they are from."""


def find_files(folder: Path, sources: Sequence[str] = tuple(SOURCES)) -> dict[str, Path]:
    """The files of some `SOURCES` in a folder.

    Raises:
        FileNotFoundError: naming those that are not there, and where to download them.
    """
    found: dict[str, Path] = {}
    missing = []
    for source in sources:
        names, origin = SOURCES[source]
        paths = [folder / name for name in names if (folder / name).is_file()]
        if paths:
            found[source] = paths[0]
        else:
            missing.append(f"  {' or '.join(names)}: {origin}")
    if missing:
        listed = "\n".join(missing)
        raise FileNotFoundError(f"{folder} (--data, or REFT_DATA) lacks files; download them there:\n{listed}")
    return found


def normalise(question: str) -> str:
    """A question in lower case, its words, numbers and signs apart, without commas in numbers; ASCII alone."""
    text = _THOUSANDS.sub("", question.lower().translate(_QUOTES)).encode("ascii", "ignore").decode()
    return " ".join(number(word) if word[-1].isdigit() else word for word in _WORDS.findall(text))


def number(text: str) -> str:
    """A number as it is written everywhere: `5.0` and `05` are 5, `.50` is 0.5.

    Raises:
        ValueError: it takes an exponent, or is none.
    """
    value = float(text)
    written = str(int(value)) if value == int(value) else repr(value)
    if "e" in written or len(written) > 12:
        raise ValueError("a number is too long")
    return written


def written(tree: ast.expr) -> str:
    """An expression as text, with a blank between all its parts: `( 41 - 5 ) * 3`."""
    return " ".join(re.findall(r"\d+(?:\.\d+)?|//|\S", ast.unparse(tree)))


def value(tree: ast.expr, *, positive: bool = False) -> float:
    """What an expression comes to, as Python computes it.

    Args:
        tree: of numbers and `_OPERATORS`.
        positive: whether all that is computed on the way must be above 0, as counts and prices are.

    Raises:
        ValueError: it has other parts, divides by 0, or is not positive.
    """
    match tree:
        case ast.Constant(value=int() | float() as constant):
            return constant
        case ast.BinOp() if type(tree.op) in _OPERATORS:
            left, right = value(tree.left, positive=positive), value(tree.right, positive=positive)
            if not right and not isinstance(tree.op, ast.Add | ast.Sub | ast.Mult):
                raise ValueError("it divides by 0")
            result = _OPERATORS[type(tree.op)](left, right)
            if positive and result <= 0:
                raise ValueError("it is not above 0")
            return result
    raise ValueError("it is no arithmetic")


class _Numbers(ast.NodeTransformer):
    """Puts something in the place of every number, brackets and signs being left as they are."""

    def __init__(self, replace: Callable[[str], ast.expr]) -> None:
        self._replace = replace

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError("it has a constant that is no number")
        return self._replace(number(str(node.value)))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        if isinstance(node.op, ast.UAdd):
            return self.visit(node.operand)
        raise ValueError("it has a sign")


class _Inlined(ast.NodeTransformer):
    """Puts expressions in the place of names, and what is rounded in the place of the rounding."""

    def __init__(self, known: Mapping[str, ast.expr]) -> None:
        self._known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self._known:
            raise ValueError("it calls or names what is not assigned")
        return self._known[node.id]

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(func=ast.Name(id="int" | "float" | "round"), args=[argument], keywords=[]):
                return self.visit(argument)
        raise ValueError("it calls a function")


def leaf(text: str) -> ast.expr:
    """A number as an expression."""
    return ast.Constant(float(text) if "." in text else int(text))


def from_program(program: str) -> ast.expr:
    """A `solution()` of assignments as the one expression that it returns.

    Raises:
        ValueError: it has other statements, or parts that are no arithmetic.
    """
    match ast.parse(program).body:
        case [ast.FunctionDef(body=body)]:
            pass
        case _:
            raise ValueError("it is no function")
    known: dict[str, ast.expr] = {}
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):  # the docstring
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                known[name] = _Inlined(dict(known)).visit(expression)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=expression) if name in known:
                known[name] = ast.BinOp(known[name], op, _Inlined(dict(known)).visit(expression))
            case ast.Return(value=ast.expr() as expression):
                return _Numbers(leaf).visit(_copied(_Inlined(known).visit(expression)))
            case _:
                raise ValueError("it has other statements than assignments")
    raise ValueError("it returns nothing")


def from_notes(question: str, solution: str) -> ast.expr:
    """GSM8K's calculator notes as the one expression that the last of them is.

    A number of a note is one of the question, the result of an earlier note, or a unit. Which of these it is must be
    plain, lest another number in the question change the wrong one: a row where a number may be both is no use.

    Args:
        question: normalised.
        solution: with its notes.

    Raises:
        ValueError: there are no notes, or it is not plain where a number comes from.
    """
    asked = set(_NUMBER.findall(question))
    results: dict[str, ast.expr] = {}
    last: ast.expr | None = None

    def place(text: str) -> ast.expr:
        if text in results:
            if text in asked:
                raise ValueError("a number may be the question's or a result")
            return results[text]
        if text in asked or float(text) in _UNITS:
            return leaf(text)
        if (per_cent := number(str(round(100 * float(text), 6)))) in asked:
            return ast.BinOp(leaf(per_cent), ast.Div(), leaf("100"))
        raise ValueError("a number comes from nowhere")

    for expression, result in _NOTE.findall(solution.replace(",", "")):
        try:
            tree = ast.parse(expression.strip(), mode="eval").body
            text = number(result)
        except (SyntaxError, ValueError):
            raise ValueError("a note is no arithmetic") from None
        last = _Numbers(place).visit(tree)
        if text in results and written(results[text]) != written(last):
            raise ValueError("two results are the same number")
        results[text] = last
    if last is None:
        raise ValueError("it has no notes")
    return last


def _copied(tree: ast.expr) -> ast.expr:
    """The same expression without parts that stand in it twice, which a transformer would change twice."""
    return ast.parse(ast.unparse(tree), mode="eval").body


def with_other_numbers(question: str, tree: ast.expr, draw: random.Random) -> tuple[str, ast.expr]:
    """The question with other numbers of as many digits, and its expression with the same.

    Raises:
        ValueError: what was drawn gives two numbers the same place, or something on the way is not above 0.
    """
    asked = list(dict.fromkeys(_NUMBER.findall(question)))
    stays = lambda text: text in _LIKELY_UNITS and draw.random() < 0.7
    drawn = {text: text if stays(text) else _drawn_like(text, draw) for text in asked}
    if len(set(drawn.values())) < len(drawn):
        raise ValueError("two numbers became one")
    changed = _Numbers(lambda text: leaf(drawn.get(text, text))).visit(_copied(tree))
    value(changed, positive=True)
    return _NUMBER.sub(lambda found: drawn[found[0]], question), changed


def _drawn_like(text: str, draw: random.Random) -> str:
    """A number of as many digits before and behind the point; one digit alone is 2 or more."""
    whole, point, rest = text.partition(".")
    first = 10 ** (len(whole) - 1) if len(whole) > 1 else 0 if point else 2
    new = str(draw.randint(first, 10 ** len(whole) - 1))
    return new + point + "".join(draw.choice("123456789") for _ in rest)


Used = tuple[list[Problem], collections.Counter[str]]
"""What can be used, and the others' reasons."""


def _converted(problems: Iterable[Problem], convert: Callable[[Problem], tuple[str, ast.expr]]) -> Used:
    """Problems with one expression each that gives their answer; a question that was there before is left out."""
    used: dict[str, Problem] = {}
    left: collections.Counter[str] = collections.Counter()
    for problem in problems:
        try:
            question, tree = convert(problem)
            if question_key(question) in used:
                raise ValueError("its question was there before")
            if abs(value(tree) - float(problem.answer)) > 1e-2:
                raise ValueError("it does not give the answer")
            text = written(tree)
            if "e" in text:
                raise ValueError("a number is too long")
        except ValueError as error:
            left[str(error)] += 1
        else:
            used[question_key(question)] = Problem(problem.id, question, problem.answer, cot=f"{HEADER} {text}")
    return list(used.values()), left


def svamp(path: Path) -> Used:
    """SVAMP's annotated questions."""
    problems = read_problems(SourceConfig(kind="reft_json", path=str(path)))
    return _converted(problems, lambda p: (normalise(p.question), from_program(p.cot or "")))


def gsm8k(path: Path) -> Used:
    """GSM8K's training questions."""

    def convert(problem: Problem) -> tuple[str, ast.expr]:
        question = normalise(problem.question)
        return question, from_notes(question, problem.columns["answer"])

    return _converted(read_problems(SourceConfig(kind="gsm8k", path=str(path))), convert)


def official(path: Path) -> list[Problem]:
    """SVAMP's test set as the reference has it, which has no programs."""
    problems = read_problems(SourceConfig(kind="reft_json", path=str(path)))
    return [Problem(p.id, normalise(p.question), p.answer) for p in problems]


def expression_of(problem: Problem) -> ast.expr:
    """The expression of a converted problem's program."""
    return ast.parse((problem.cot or "")[len(HEADER) :].strip(), mode="eval").body


def varied(problems: Sequence[Problem], versions: int, seed: int) -> list[Problem]:
    """Each problem with other numbers, up to `versions` times; a function of its arguments."""
    draw, made = random.Random(seed), []
    for version in range(versions):
        for problem in problems:
            for _ in range(5):
                try:
                    question, tree = with_other_numbers(problem.question, expression_of(problem), draw)
                    answer = number(str(round(value(tree), 6)))
                except ValueError:
                    continue
                made.append(Problem(f"{problem.id}_{version}", question, answer, cot=f"{HEADER} {written(tree)}"))
                break
    return made


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer with numbers in groups of two digits and `HEADER` as one token.

    Args:
        texts: ASCII, to learn merges of.
        size: tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d{1,2}| ?[^\s\d]+|\s+"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    ascii_only = sorted(set(map(chr, range(33, 127))) | {"Ġ", "Ċ"})  # what blank and line break are as bytes
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=["<pad>", "<eos>"], initial_alphabet=ascii_only, show_progress=False
    )
    numerals = [blank + text for n in range(100) for blank in ("", " ") for text in {str(n), f"{n:02}"}]
    tokenizer.train_from_iterator([*numerals * 300, *texts], trainer)
    tokenizer.add_tokens([AddedToken(HEADER, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def prompt_of(question: str) -> str:
    """A question as `benchmarks/real.yaml` has it asked, without the header."""
    return f" {question}\n"


def short_enough(problems: Sequence[Problem], tokenizer: Any, prompt: int, response: int) -> list[Problem]:
    """The problems whose prompt, header included, and program, end token included, have at most so many tokens."""
    lengths = lambda texts: [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
    if not problems:
        return []
    prompts, programs = (
        lengths([prompt_of(p.question) for p in problems]),
        lengths([p.cot or "" for p in problems]),
    )
    return [p for p, one, other in zip(problems, prompts, programs) if one <= prompt and other <= response]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote: a folder with the files, and facts for the page."""

    folder: Path
    train: list[Problem]
    facts: Mapping[str, Any]

    @property
    def tokenizer(self) -> Path:
        """Its folder."""
        return self.folder / "tokenizer"

    def annotate(self, seed: int, count: int) -> Path:
        """Writes the training questions of a seed, of which `count` keep their programs; returns the file."""
        drawn = {p.id for p in random.Random(seed).sample(self.train, count)}
        path = self.folder / f"train-{seed}.jsonl"
        write_rows(path, [p if p.id in drawn else dataclasses.replace(p, cot=None) for p in self.train])
        return path


def prepare(data: Path, folder: Path, seed: int = 5) -> Prepared:
    """Makes all that the runs read, of downloaded files alone: tokenizer, pretraining, training, dev and test rows.

    Args:
        data: folder with the files of `SOURCES`.
        folder: to write to; files that are there are written again, to the same bytes.
        seed: of the pretraining's numbers.
    """
    files = find_files(data)
    folder.mkdir(parents=True, exist_ok=True)
    asked, left_svamp = svamp(files["svamp"])
    source, left_gsm8k = gsm8k(files["gsm8k"])
    tests = official(files["official"])
    known = {question_key(problem.question) for problem in tests}
    asked = [problem for problem in asked if question_key(problem.question) not in known]
    rest, held = split_dev(asked, HELD_OUT)
    train, dev = split_dev(rest, HELD_OUT + DEV)
    made = varied(source, VERSIONS, seed)
    tokenizer = train_tokenizer(text for p in [*made, *train] for text in (prompt_of(p.question), (p.cot or "")))
    tokenizer.save_pretrained(folder / "tokenizer")
    made = short_enough(made, tokenizer, PRETRAINING_PROMPT, PRETRAINING_RESPONSE)
    train, dev, held = (short_enough(rows, tokenizer, PROMPT, RESPONSE) for rows in (train, dev, held))
    if len(train) > TRAIN:
        train = random.Random(seed).sample(train, TRAIN)
    tests = [dataclasses.replace(p, id=f"official_{p.id}") for p in tests]
    for name, rows in {"pretrain": made, "dev": dev, "test": [*held, *tests]}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    facts = {
        "svamp_left": dict(left_svamp.most_common()),
        "svamp_used": len(asked),
        "gsm8k_left": dict(left_gsm8k.most_common()),
        "gsm8k_used": len(source),
        "pretrain_questions": len({p.id.rpartition("_")[0] for p in made}),
        "pretrain": len(made),
        "train": len(train),
        "dev": len(dev),
        "held": len(held),
        "official": len(tests),
        "vocabulary": len(tokenizer),
    }
    write_whole(folder / "facts.json", json.dumps(facts, indent=1) + "\n")
    return Prepared(folder, train, facts)


def write_rows(path: Path, problems: Iterable[Problem]) -> None:
    """Writes problems as JSONL, those without a program without the field."""
    with replacing(path) as file:
        for line in _lines(problems):
            file.write(line.encode() + b"\n")


def _lines(problems: Iterable[Problem]) -> Iterator[str]:
    for p in problems:
        cot = {} if p.cot is None else {"cot": p.cot}
        yield json.dumps({"id": p.id, "question": p.question, "answer": p.answer, **cot})
