"""Verdicts: rewards and outcomes of whole batches, and the real SVAMP set as an oracle."""

import json
import subprocess
import sys

import pytest

from reft_jax.config import RewardConfig, TemplateConfig
from reft_jax.problem import Problem
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import Verdict, outcome_counts, verdicts_of

TRIGGER = TemplateConfig().answer_trigger
NUMBER = Problem("n_0", "How many?", "1,005")
CHOICE = Problem("c_0", "Which?", "b", "choice")


@pytest.fixture(scope="module")
def runner():
    with ProgramRunner(workers=2, timeout=0.5, memory=256) as pool:
        yield pool


@pytest.fixture(scope="module")
def svamp(real_data):
    def read(name):
        rows = json.loads((real_data / name).read_text())
        return [
            Problem(row["item_id"], row["question"], row["answer_value"], "number", row["answer_cot"]) for row in rows
        ]

    return read


def judge(problem, completions, cot, runner=None, **config):
    problems = [problem] * len(completions)
    return verdicts_of(
        problems, completions, cot=cot, answer_trigger=TRIGGER, config=RewardConfig(**config), runner=runner
    )


def program(body):
    return f'def solution():\n    """How many?"""\n    {body}'


def test_programs_numbers(runner):
    bodies = [
        "return 1005.009",
        "return 1006",
        "return '1,005'",
        "return None",
        "1 / 0",
        "while True: pass",
        "return 'x' * 10**9",
        "return open('/etc/passwd').read()",
    ]
    found = judge(NUMBER, [program(body) for body in bodies], "program", runner)
    assert found == [
        Verdict(1.0, "correct", 1005.009),
        Verdict(0.1, "wrong", 1006.0),
        Verdict(1.0, "correct", 1005.0),
        Verdict(0.0, "no_answer", None),
        Verdict(0.0, "error", None),
        Verdict(0.0, "timeout", None),
        Verdict(0.0, "memory", None),
        Verdict(0.0, "forbidden", None),
    ]
    assert [verdict.detail.partition(":")[0] for verdict in found] == [
        *["", "", ""], "returned a NoneType", "ZeroDivisionError", "more than 0.5 s of CPU time", "MemoryError",
        "PermissionError",
    ]  # fmt: skip
    counts = {"correct": 2, "wrong": 1, "no_answer": 1, "error": 1, "timeout": 1, "memory": 1, "forbidden": 1}
    counts |= {"deadline": 0, "no_gold": 0}
    assert outcome_counts(found) == counts
    assert outcome_counts([]) == dict.fromkeys(counts, 0)


def test_without_a_gold_answer_nothing_is_right_and_programs_still_fail(runner):
    free, pays = Problem("f_0", "How many?", "", "none"), {"correct": 0.5, "wrong": 0.5, "no_answer": 0.5}
    bodies = ["return 5", "return ''", "1 / 0"]
    found = judge(free, [program(body) for body in bodies], "program", runner, **pays)
    assert found == [Verdict(0.5, outcome, None) for outcome in ("no_gold", "no_gold", "error")]
    texts = [f"1 + 1 = 3{TRIGGER}5", f"so{TRIGGER}", "5"]
    for rules in ("lenient", "reference"):
        assert judge(free, texts, "text", rules=rules, **pays) == [Verdict(0.5, "no_gold", None)] * 3


def test_reference_pays_a_crashed_multiple_choice_program(runner):
    completions = [program("return 'B'"), program("return 'c'"), program("return 1 / 0"), program("return 5")]
    assert judge(CHOICE, completions, "program", runner, rules="reference") == [
        Verdict(1.0, "correct", "b", suspicious=True),  # a letter that nothing was computed for
        Verdict(0.1, "wrong", "c", suspicious=True),
        Verdict(0.1, "error", "none", suspicious=False),
        Verdict(0.1, "wrong", "5.0", suspicious=True),
    ]
    lenient = judge(CHOICE, completions, "program", runner)
    assert [(v.reward, v.outcome) for v in lenient] == [
        (1.0, "correct"),
        (0.1, "wrong"),
        (0.0, "error"),
        (0.0, "no_answer"),
    ]


def test_text_under_both_rules():
    texts = [f"so{TRIGGER}1,005 apples.", f"so{TRIGGER}1005.0", f"so{TRIGGER}1004", "1005", f"so{TRIGGER}inf"]
    lenient = judge(NUMBER, texts, "text")
    assert [v.outcome for v in lenient] == ["correct", "correct", "wrong", "no_answer", "no_answer"]
    reference = judge(NUMBER, texts, "text", rules="reference")
    assert [v.outcome for v in reference] == ["no_answer", "correct", "wrong", "correct", "wrong"]
    assert judge(CHOICE, ["no idea"], "text", rules="reference") == [Verdict(0.1, "wrong", "no idea")]
    assert judge(CHOICE, ["no idea"], "text") == [Verdict(0.0, "no_answer", None)]


def test_right_answers_after_wrong_equations_are_suspect():
    texts = [f"{working}{TRIGGER}1005" for working in ("5 * 201 = 1005", "5 * 200 = 1005", "of course")]
    found = judge(NUMBER, [*texts, f"5 * 200 = 1005{TRIGGER}1004"], "text")
    assert [v.suspicious for v in found] == [False, True, None, False]
    assert [v.reward for v in found] == [1.0, 1.0, 1.0, 0.1], "a sign, not a verdict"


def test_rewards_and_tolerance_come_from_config():
    found = judge(
        NUMBER,
        [f"{TRIGGER}{x}" for x in ("1005.4", "1006", "?")],
        "text",
        correct=2.0,
        wrong=-1.0,
        no_answer=-3.0,
        tolerance=0.5,
    )
    assert [v.reward for v in found] == [2.0, -1.0, -3.0]


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="1 problems but 2 completions"):
        verdicts_of([NUMBER], ["", ""], cot="text", answer_trigger=TRIGGER, config=RewardConfig(), runner=None)
    with pytest.raises(ValueError, match="need a ProgramRunner"):
        judge(NUMBER, [program("return 1")], "program")
    with pytest.raises(ValueError, match="problem bad_7: gold answer 'many' is not"):
        judge(Problem("bad_7", "How many?", "many"), [""], "text")


@pytest.mark.parametrize("rules", ["lenient", "reference"])
def test_all_svamp_programs_give_their_gold_answers(svamp, rules):
    problems = svamp("svamp_python_sdp.json")
    assert len(problems) == 3043
    with ProgramRunner(workers=2, timeout=10.0, memory=1024) as runner:
        found = verdicts_of(
            problems,
            [p.cot for p in problems],
            cot="program",
            answer_trigger=TRIGGER,
            config=RewardConfig(rules=rules),
            runner=runner,
        )
    assert outcome_counts(found)["correct"] == 3043


@pytest.mark.parametrize("rules", ["lenient", "reference"])
def test_all_svamp_texts_give_their_gold_answers(svamp, rules):
    problems = svamp("svamp_nl.json")
    assert len(problems) == 3076
    targets = [p.cot.strip() + TRIGGER + p.answer.strip() for p in problems]
    found = verdicts_of(
        problems, targets, cot="text", answer_trigger=TRIGGER, config=RewardConfig(rules=rules), runner=None
    )
    assert outcome_counts(found)["correct"] == 3076


def test_the_answer_between_angle_brackets_is_read_by_lenient_only(svamp):
    """3,067 annotations say `Therefore, the answer is <203>.`: an oracle written by somebody else."""
    problems = [p for p in svamp("svamp_nl.json") if "Therefore, the answer is <" in p.cot]
    assert len(problems) == 3067
    trigger = "Therefore, the answer is "
    texts = [p.cot for p in problems]
    counts = {
        rules: outcome_counts(
            verdicts_of(
                problems, texts, cot="text", answer_trigger=trigger, config=RewardConfig(rules=rules), runner=None
            )
        )
        for rules in ("lenient", "reference")
    }
    assert counts["reference"]["no_answer"] == 3067
    assert counts["lenient"]["correct"] == 3065  # two annotations round: <9> for 8.93 and <69.32%> for 69.4


def test_the_room_needs_neither_jax_nor_numpy():
    script = """
import sys
for name in ["jax", "jaxlib", "flax", "optax", "numpy", "transformers", "torch"]:
    sys.modules[name] = None
from reft_jax.config import RewardConfig
from reft_jax.problem import Problem
from reft_jax.reward import __main__, answers, equations, functions, letters, pool, sandbox, verdicts, worker
texts = ["def solution(): return [5][0]", "def solution(): return sympy.Integer(5)"]
settings = dict(cot="program", answer_trigger="", config=RewardConfig())
with pool.ProgramRunner(1, 1.0, 256) as runner:
    found = verdicts.verdicts_of([Problem("a", "b", "5")] * 2, texts, runner=runner, **settings)
assert [verdict.outcome for verdict in found] == ["correct"] * 2, found
"""
    subprocess.run([sys.executable, "-c", script], check=True)


EQUAL = [(r"\frac{1}{2}", "0.5"), ("x^2+1", "1+x^2"), (r"\sqrt{8}", r"2\sqrt{2}"), ("(1, 2)", "( 1,2 )"), ("q", "q")]
OTHER = [
    (r"\pi", "3.14"),
    ("x^2+1", "x^2-1"),
    ("1", "__import__('os').getpid()"),
    ("1", "\\frac12"),
    ("[1,2]", "(1,2)"),
]


def test_expressions_are_compared_by_math_verify_in_a_worker():
    """With no limit but the worker's: an endless comparison ends the child, and the next ones are right."""
    pytest.importorskip("math_verify")
    pairs = [*EQUAL, *OTHER, ("1", "9^{9^{9^{9}}}"), *EQUAL]
    problems = [Problem(str(i), "q", gold, "latex") for i, (gold, _) in enumerate(pairs)]
    with ProgramRunner(workers=2, timeout=4.0, memory=1024) as runner:
        found = verdicts_of(
            problems, [r"\boxed{" + answer + "}" for _, answer in pairs], cot="text", answer_trigger="",
            config=RewardConfig(), runner=runner,
        )  # fmt: skip
    assert [verdict.outcome for verdict in found] == [
        *["correct"] * len(EQUAL), *["wrong"] * len(OTHER), "timeout", *["correct"] * len(EQUAL),
    ]  # fmt: skip
    assert found[len(EQUAL) + len(OTHER)] == Verdict(0.0, "timeout", None)


def test_expressions_need_a_worker():
    with pytest.raises(ValueError, match="answers of kind latex need a ProgramRunner"):
        judge(Problem("e", "q", "x", "latex"), [TRIGGER + "y"], "text")


def test_texts_are_equal_but_for_typesetting():
    city = Problem("t", "Where?", "New York", "text")
    found = judge(city, [TRIGGER + text for text in ('"new  york".', "**New York**", "York", "")], "text")
    assert [(verdict.outcome, verdict.value) for verdict in found] == [
        ("correct", "new york"), ("correct", "new york"), ("wrong", "york"), ("no_answer", None),
    ]  # fmt: skip
