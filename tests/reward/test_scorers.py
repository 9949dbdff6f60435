"""Tasks of reasoning-gym: scored in a worker as outside of one, and what an answer that is executed can do there."""

import json
import os
import subprocess
import sys

import pytest

from reft_jax.config import RewardConfig
from reft_jax.problem import Problem, TaskItem
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult
from reft_jax.reward.scorers import borne_out, items
from reft_jax.reward.verdicts import Verdict, verdicts_of

EXECUTING = (
    *("countdown", "puzzle24", "simple_integration", "polynomial_multiplication"),  # by sympy's parse_expr
    *("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"),  # by eval
)
TASKS = (
    *EXECUTING,
    *("base_conversion", "chain_sum", "fraction_simplification", "gcd", "graph_color", "knights_knaves"),
    *("letter_counting", "mini_sudoku", "number_sorting", "propositional_logic", "rotate_matrix", "tower_of_hanoi"),
)
WRONG = ("42", "no idea", "[['1', '2']]", "x**2/2 + C", "Oracle")
# Makes one item of each task, and scores in this process, which nothing contains: honest answers only.
OUTSIDE = """
import base64, json, pickle, sys
import reasoning_gym

rows, sys.stdout = sys.stdout, sys.stderr  # some scorers print
tasks, wrong = json.loads(sys.argv[1])
for name in tasks:
    dataset = reasoning_gym.create_dataset(name, seed=7, size=1)
    entry = dataset[0]
    gold = entry["answer"] or "none"
    answers = [gold, gold[:-1] or "0", *wrong]
    scores = [float(dataset.score_answer(answer, entry)) for answer in answers]
    print(json.dumps([name, base64.b64encode(pickle.dumps(entry)).decode(), answers, scores]), file=rows)
"""
# An answer writes the line about itself into the pipe to its worker.
FORGER = """
import os
for descriptor in range(3, 99):
    try:
        os.write(descriptor, b'["ok", 1.0, ""]\\n')
    except OSError:
        pass
"""
FORBIDDEN = (
    "__import__('os').system('id')",
    f"exec({FORGER!r})",
    "().__class__.__base__.__subclasses__()",
    "open('/etc/passwd').read()",
    "print('x' * 10**8)",
    "(lambda: 1)()",
    "sum(map(eval, ['1']))",
)


def hostile(task):
    """All to one task of each kind, two to the others, each being a process."""
    return FORBIDDEN if task in ("countdown", "string_insertion") else FORBIDDEN[:2]


ENDLESS, MEMORY = "9**9**9**9", "['x' * 10**11, '1']"


@pytest.fixture(scope="module")
def outside():
    pytest.importorskip("reasoning_gym")
    made = subprocess.run(
        [sys.executable, "-c", OUTSIDE, json.dumps([TASKS, WRONG])],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    rows = map(json.loads, made.stdout.splitlines())
    return {name: (TaskItem(name, "{}", entry), answers, scores) for name, entry, answers, scores in rows}


@pytest.fixture(scope="module")
def inside(outside):
    """Results by task and answer, of honest answers and of hostile ones between them."""
    pairs = [(item, answer) for item, answers, _ in outside.values() for answer in answers]
    pairs += [(outside[name][0], answer) for name in EXECUTING for answer in hostile(name)]
    pairs += [(outside["n_queens"][0], answer) for answer in (ENDLESS, MEMORY)]
    pairs.append((outside["countdown"][0], ENDLESS))
    with ProgramRunner(workers=1, timeout=0.7, memory=512) as runner:
        found = runner.scores(pairs)
        assert runner.replaced == 0
        assert len([pool for pool in runner._pools.values() if pool]) == 1
    return {(item.name, answer): result for (item, answer), result in zip(pairs, found)}


@pytest.mark.ci
def test_honest_answers_are_scored_as_outside_of_a_worker(outside, inside):
    assert len(outside) >= 20
    expected = {
        (name, answer): ProgramResult("ok", score, "")
        for name, (_, answers, scores) in outside.items()
        for answer, score in zip(answers, scores)
    }
    assert {key: inside[key] for key in expected} == expected
    told = [result.value for result in expected.values()]
    assert told.count(1.0) >= 18  # all tasks but those without a gold answer
    assert told.count(0.0) >= 18


@pytest.mark.ci
@pytest.mark.parametrize("answer", FORBIDDEN)
def test_an_answer_is_not_run_and_cannot_write_its_own_score(inside, answer):
    found = {name: inside[name, answer] for name in EXECUTING if answer in hostile(name)}
    assert len(found) >= 2
    assert {result.outcome for result in found.values()} == {"forbidden"}, found
    assert all("the answer is code" in result.detail for result in found.values())


@pytest.mark.ci
def test_what_an_answer_may_compute_is_limited(inside):
    assert [inside[name, ENDLESS].outcome for name in ("countdown", "n_queens")] == ["timeout"] * 2
    # The scorer takes a MemoryError, as any other, for a wrong answer.
    assert inside["n_queens", MEMORY] == ProgramResult("ok", 0.0, "")


NOT_FINITE = ("nan", "-nan", "NaN", "nanj", "nan+nanj", "n a n", "nan + 3i", "(nan, 2)", "inf", "-Infinity", "[inf]")


@pytest.mark.parametrize("answer", NOT_FINITE)
def test_an_answer_that_is_not_finite_is_not_right_unless_it_is_the_gold_answer(answer):
    assert borne_out(1.0, answer, {"answer": "8.0 + 3.0i"}) == 0.0
    assert borne_out(1.0, answer, {"answer": answer}) == 1.0


@pytest.mark.parametrize("answer", ["8 + 3i", "banana", "info", "a nan", "1e3", "Nan is right", "infant"])
def test_other_full_scores_stand(answer):
    assert borne_out(1.0, answer, {"answer": "8.0 + 3.0i", "metadata": {}}) == 1.0


@pytest.mark.parametrize(
    ("answer", "score"), [("0", 1 / 8), ("0.2", 3 / 8), ("0.234375", 1.0), ("15/64", 1.0), ("0.2344", 1.0)]
)
def test_a_coin_flips_first_digits_are_not_right(answer, score):
    item = {"answer": "0.234375", "metadata": {"source_dataset": "coin_flip"}}
    assert borne_out(1.0, answer, item) == score
    assert borne_out(0.25, answer, item) == 0.25


@pytest.mark.ci
def test_a_worker_bears_scores_out():
    pytest.importorskip("reasoning_gym")
    made = {name: next(items(name, {}, 3, 1)) for name in ("complex_arithmetic", "coin_flip")}
    asked = [("complex_arithmetic", answer) for answer in ("nan", "nan+3j", made["complex_arithmetic"]["answer"])]
    asked += [("coin_flip", answer) for answer in ("0", made["coin_flip"]["answer"])]
    with ProgramRunner(workers=1, timeout=2.0, memory=512) as runner:
        found = runner.scores([(TaskItem(name, "{}", made[name]["entry"]), answer) for name, answer in asked])
    assert [result.value == 1 for result in found] == [False, False, True, False, True], found


class FixedRunner(ProgramRunner):
    """Knows what an answer gets, and starts no worker."""

    def __init__(self, results):
        super().__init__(1, 1.0, 64)
        self.results, self.asked = results, []

    def scores(self, answers):
        self.asked += answers
        return [self.results[answer] for _, answer in answers]


def judge(completions, runner, problem=None, **more):
    problem = problem or Problem("p", "q", "", "scored", item=TaskItem("grid", "{}", ""))
    given = {"cot": "text", "answer_trigger": "\nAnswer: ", "config": RewardConfig(), **more}
    return verdicts_of([problem] * len(completions), completions, runner=runner, **given)


def test_only_a_full_score_is_right_and_others_are_told():
    fixed = {
        "a B\nc d": ProgramResult("ok", 1.0, ""),
        "half": ProgramResult("ok", 0.5, ""),
        "int": ProgramResult("ok", 1, ""),
        "nan": ProgramResult("ok", None, "returned nan"),
        "slow": ProgramResult("timeout", None, "more than 1 s"),
        "crash": ProgramResult("error", None, "KeyError"),
    }
    runner = FixedRunner(fixed)
    texts = ["Answer: " + answer for answer in fixed] + ["I do not know", "Answer: \n"]
    assert judge(texts, runner, config=RewardConfig(correct=2.0, wrong=0.5, no_answer=-1.0)) == [
        Verdict(2.0, "correct", "a B\nc d", None, 1.0),
        Verdict(0.5, "wrong", "half", None, 0.5),
        Verdict(2.0, "correct", "int", None, 1.0),
        Verdict(0.5, "wrong", "nan", None, None),
        Verdict(-1.0, "timeout", None, None, None),
        Verdict(-1.0, "error", None, None, None),
        *[Verdict(-1.0, "no_answer", None, None, None)] * 2,
    ]
    assert [answer for _, answer in runner.asked] == list(fixed)


def test_problems_with_and_without_a_task_are_judged_together():
    task = Problem("t", "q", "", "scored", item=TaskItem("grid", "{}", ""))
    problems = [Problem("n", "q", "7"), task, Problem("m", "q", "8")]
    found = verdicts_of(
        problems, ["Answer: 7", "Answer: 7", "Answer: 7"], cot="text", answer_trigger="Answer: ", config=RewardConfig(),
        runner=FixedRunner({"7": ProgramResult("ok", 0.25, "")}),
    )  # fmt: skip
    assert [(verdict.outcome, verdict.score) for verdict in found] == [
        ("correct", None),
        ("wrong", 0.25),
        ("wrong", None),
    ]


@pytest.mark.parametrize("value", ["[[1, 2]]", 7, 7.5])
def test_what_a_program_returns_is_an_answer_too(value):
    runner = FixedRunner({str(value): ProgramResult("ok", 1.0, "")})
    with runner:
        (verdict,) = judge([f"def solution():\n    return {value!r}"], runner, cot="program")
    assert (verdict.outcome, verdict.value) == ("correct", str(value))


def test_a_task_needs_its_item_and_a_worker():
    with pytest.raises(ValueError, match="answers of kind scored need a ProgramRunner"):
        judge(["Answer: 7"], None)
    with pytest.raises(ValueError, match=r"problem s_1: .* source of kind reasoning_gym"):
        judge(["Answer: 7"], FixedRunner({}), Problem("s_1", "q", "7", "scored"))
