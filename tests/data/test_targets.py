"""Every gold target of the real data sets, in both kinds of chain of thought, is read back as its gold answer.

`targets_not_read.json` has those that are not, by id, with what they gave instead. A change of it is a change of what a
model is rewarded for: look at the rows before you write the new list.

The reference's own train sets are at hand for SVAMP only. The others' stand-ins: GSM8K's prose, and its programs in
Wolfram's syntax, with `;` and `^` replaced; MathQA's validation split; MathQA's scripts of its task "gain", with
what they print made the result, whose answers are numbers.
"""

import ast
import functools
import json
import re
import textwrap
from pathlib import Path

import pytest

from reft_jax.config import RewardConfig, SourceConfig, TemplateConfig
from reft_jax.data.audit.texts import wrong_chains
from reft_jax.data.readers import read_problems
from reft_jax.problem import Problem
from reft_jax.reward.pool import ProgramRunner
from tests.tiers import few

NOT_READ = json.loads(Path(__file__).with_name("targets_not_read.json").read_text(encoding="utf-8"))


def source(kind, folder: Path, name: str) -> list[Problem]:
    return read_problems(SourceConfig(kind=kind, path=f"{folder}/{name}"))


def wolfram(folder: Path, name: str) -> list[Problem]:
    """The programs of a file in Wolfram's language that are Python after two replacements."""
    problems = []
    for row in json.loads((folder / name).read_text(encoding="utf-8")):
        lines = [line.strip() for line in re.split(r"[;\n]", row["answer_cot"].replace("^", "**")) if line.strip()]
        body = [*lines, f"return {lines[-1].partition('=')[0].strip()}"]
        program = "def solution():\n" + textwrap.indent("\n".join(body), "    ")
        try:
            ast.parse(program)
        except SyntaxError:
            continue
        if "[" not in program:
            problems.append(Problem(row["item_id"], row["question"], row["answer_value"], "number", program))
    return problems


def gain(folder: Path, name: str) -> list[Problem]:
    """The scripts of `mathqa_gain_*.jsonl` as programs."""
    problems = []
    for i, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        (script,), (answer,) = row["Output Program"], row["Output Answer"]
        assert script.endswith("\nprint(answer)")
        program = "def solution():\n" + textwrap.indent(script.replace("print(answer)", "return answer"), "    ")
        problems.append(Problem(f"gain_{i}", row["Input"], answer, "number", program))
    return problems


SETS = {
    "svamp_python_sdp.json": ("program", 3043, functools.partial(source, "reft_json")),
    "svamp_nl.json": ("text", 3076, functools.partial(source, "reft_json")),
    "gsm8k_wolfram_ndp.json": ("program", 7121, wolfram),
    "gsm8k_train.jsonl": ("text", 7473, functools.partial(source, "gsm8k")),
    "gsm8k_test.jsonl": ("text", 1319, functools.partial(source, "gsm8k")),
    "mathqa_dev.json": ("text", 4475, functools.partial(source, "mathqa")),
    "mathqa_gain_train.jsonl": ("program", 3655, gain),
    "mathqa_gain_dev.jsonl": ("program", 505, gain),
}


@pytest.fixture(scope="module")
def runner():
    with ProgramRunner(workers=2, timeout=10.0, memory=1024) as pool:
        yield pool


IN_CI = ["svamp_python_sdp.json", "gsm8k_test.jsonl", "mathqa_dev.json", "mathqa_gain_dev.jsonl"]


@pytest.mark.parametrize("name", few(SETS, [], ci=IN_CI))
def test_gold_targets_are_read_back(real_data, name: str, runner) -> None:
    cot, rows, read = SETS[name]
    problems = read(real_data, name)
    assert len(problems) == rows
    found = wrong_chains(problems, cot, TemplateConfig(), RewardConfig(), runner)
    # Without the message of an exception, which is Python's and changes with it.
    wrong = {identity: re.match(r"gold \S+, \w+(: \w+)?", what)[0] for identity, what in found}
    assert wrong == NOT_READ.get(name, {})

    # The reference ends a program at its first blank line and reads all else that these targets hold alike.
    reference = dict(wrong_chains(problems, cot, TemplateConfig(), RewardConfig(rules="reference"), runner))
    cut = {p.id for p in problems if cot == "program" and re.search(r"\n[^\S\n]*\n", p.cot or "")}
    assert set(reference) == set(wrong) | cut


def test_the_list_is_of_these_sets() -> None:
    assert set(NOT_READ) <= set(SETS)
    assert all(NOT_READ.values())
