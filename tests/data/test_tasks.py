"""Items of reasoning-gym's tasks: functions of their number, whatever the process that asks for them."""

import pytest

from reft_jax.config import RewardConfig, SourceConfig
from reft_jax.data.readers import read_problems
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import verdicts_of


@pytest.mark.ci
def test_items_are_functions_of_their_number(monkeypatch):
    """Of a task whose questions go by the order of a set."""
    pytest.importorskip("reasoning_gym")
    found = []
    for seed, hashes in ((3, "1"), (4, "2")):
        monkeypatch.setenv("PYTHONHASHSEED", hashes)
        source = SourceConfig(
            kind="reasoning_gym", name="ransom_note", config={"max_note_length": 6}, seed=seed, limit=5
        )
        found.append(read_problems(source, answer="number"))
    a, b = found
    assert [problem.id for problem in a] == [f"ransom_note_{number}" for number in range(3, 8)]
    assert len({problem.question for problem in (*a, b[-1])}) == 6
    assert a[1:] == b[:-1]
    assert {(problem.answer_kind, problem.cot) for problem in a} == {("scored", None)}
    with ProgramRunner(1, 2.0, 256) as runner:
        texts = [problem.answer for problem in a]
        judged = verdicts_of(a, texts, cot="text", answer_trigger="", config=RewardConfig(), runner=runner)
    assert [verdict.outcome for verdict in judged] == ["correct"] * 5


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("countdwn", {}, r"cannot make `name: countdwn`: .* did you mean countdown"),
        ("gcd", {"numbers": 3}, r"with `config: .*no parameter numbers; .* min_numbers"),
        ("gcd", {"min_numbers": 9}, r"`config: .* max_numbers must be"),
    ],
)
def test_what_a_task_has_not_is_named(name, config, words):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=words):
        read_problems(SourceConfig(kind="reasoning_gym", name=name, config=config, limit=2))


@pytest.mark.ci
def test_a_mixture_of_tasks_is_a_task():
    pytest.importorskip("reasoning_gym")
    parts = [{"name": name, "weight": 1.0, "config": {}} for name in ("gcd", "string_insertion")]
    source = SourceConfig(kind="reasoning_gym", name="composite", config={"datasets": parts}, limit=8)
    problems = read_problems(source)
    assert {"Find the GCD" in problem.question or "Greatest" in problem.question for problem in problems} == {
        True,
        False,
    }
    with ProgramRunner(1, 2.0, 256) as runner:
        texts = [problem.answer for problem in problems]
        judged = verdicts_of(problems, texts, cot="text", answer_trigger="", config=RewardConfig(), runner=runner)
    assert [verdict.outcome for verdict in judged] == ["correct"] * 8


def test_the_package_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'reft_jax\[gym\]'"):
        read_problems(SourceConfig(kind="reasoning_gym", name="gcd", limit=2))
