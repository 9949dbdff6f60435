"""Which questions an iteration learns from: beside slow loops, and in runs that are killed."""

import dataclasses
import itertools
import os
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reft_jax.algorithms.rollout import Rollout
from reft_jax.config import CollapseConfig, Config, GenerationConfig, RlConfig
from reft_jax.config.validation import validate
from reft_jax.data.batches import Sequences, choice_keys, epoch_order, in_order, step_indices, steps_per_epoch
from reft_jax.data.encoding import Prompt
from reft_jax.parallel.processes import STOPPED
from reft_jax.problem import Problem
from reft_jax.reward.verdicts import Verdict
from reft_jax.training import drawing, reinforcement
from reft_jax.training.completion import Completion
from reft_jax.training.drawing import choose, draw_iteration, pass_rates, with_results
from reft_jax.training.state import PhaseClock, RunProgress, Stage, order_seed
from tests.runs import assert_same_bits, complete, end, read, repeatable, restore, start, steps, wait_for_step

# In order


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 30))
def test_one_draw_an_iteration_takes_the_questions_that_it_always_took(n, batch, number):
    config = RlConfig(rollout_batch_size=batch)
    size = drawing.planned(config, n, number)
    asked = drawing._asked_in_order(config, n, number)
    rows, behind = in_order(7, asked, size, n)
    np.testing.assert_array_equal(rows, step_indices(7, number, n, batch))
    assert behind == drawing._asked_in_order(config, n, number + 1)
    assert steps_per_epoch(n, batch) * batch >= n


@settings(max_examples=30)
@given(st.integers(1, 9), st.data())
def test_draws_follow_each_other_through_all_epochs(n, data):
    """Beside a walk over the orders, one after the other, that passes over what the draw has."""
    stream = [row for epoch in range(40) for row in epoch_order(3, epoch, n).tolist()]
    start = 0
    for count in data.draw(st.lists(st.integers(1, n), min_size=1, max_size=8)):
        wanted, place = [], start
        while len(wanted) < count:
            wanted += [stream[place]] if stream[place] not in wanted else []
            place += 1
        rows, start = in_order(3, start, count, n)
        assert (rows.tolist(), start) == (wanted, place)


# By pass rates


def test_questions_are_drawn_without_replacement_in_proportion_to_p_times_one_less_p():
    rates = np.array([[0.0, 0.0], [1.0, 8.0], [6.0, 8.0], [0.0, 20.0]])
    p = np.array([1 / 2, 2 / 10, 7 / 10, 1 / 22])
    np.testing.assert_allclose(pass_rates(rates), p)
    w = p * (1 - p)
    expected = {(i, j): w[i] / w.sum() * w[j] / (w.sum() - w[i]) for i, j in itertools.permutations(range(4), 2)}
    count = 6000
    found = Counter(tuple(choose(rates, seed=1, step=i, count=2, mastered=1.0).tolist()) for i in range(count))
    observed = [found[pair] for pair in expected]
    assert stats.chisquare(observed, count * np.array(list(expected.values()))).pvalue > 1e-3
    assert sum(observed) == count


def test_mastered_questions_are_taken_where_the_others_are_too_few_the_least_mastered_first():
    rates = np.array([[9.0, 9.0], [0.0, 9.0], [20.0, 20.0], [4.0, 9.0]])  # p 10/11, 1/11, 21/22, 5/11
    for step in range(20):
        chosen = choose(rates, seed=0, step=step, count=4, mastered=0.9).tolist()
        assert sorted(chosen[:2]) == [1, 3]
        assert chosen[2:] == [0, 2]
        assert set(choose(rates, seed=0, step=step, count=2, mastered=0.9).tolist()) == {1, 3}
    assert any(choose(rates, seed=0, step=step, count=1, mastered=1.0)[0] == 0 for step in range(200))
    again = choose(rates, seed=0, step=3, count=4, mastered=0.9)
    np.testing.assert_array_equal(again, choose(rates, seed=0, step=3, count=4, mastered=0.9))


def test_keys_are_uniform_and_no_order():
    keys = choice_keys(5, 2, 4000)
    assert stats.kstest(keys, "uniform").pvalue > 1e-3
    assert 0 < keys.min() < keys.max() < 1
    assert np.any(np.argsort(keys, kind="stable") != epoch_order(5, 2, 4000)), "a stream of its own"


def test_results_count_less_each_time_that_a_question_is_asked():
    table, slow = np.zeros((3, 2)), {row: [] for row in range(3)}
    for rows, right in ([[0, 2], [[1, 1], [0, 1]]], [[2], [[1, 1]]], [[2, 0], [[0, 0], [1, 0]]]):
        table = with_results(table, np.array(rows), np.array(right, bool), 0.5)
        for row, each in zip(rows, right):
            slow[row].append(each)
    for row, visits in slow.items():
        weights = [0.5**age for age in reversed(range(len(visits)))]
        assert table[row].tolist() == [
            sum(w * sum(visit) for w, visit in zip(weights, visits)),
            sum(w * len(visit) for w, visit in zip(weights, visits)),
        ]


# A whole iteration, beside a loop over single groups

QUESTIONS, SAMPLES, BATCH = 11, 3, 4


class Stand:
    """Stands in for a sampler: the reward of a sample is a function of question, draw and sample."""

    def __init__(self, config: Config) -> None:
        self.config, self.model = config, SimpleNamespace(ids=SimpleNamespace(pad=0))
        lengths = np.random.default_rng(0).integers(2, 9, QUESTIONS)
        self.prompts = {"train": [Prompt(i, np.full(n, i + 1, np.int32)) for i, n in enumerate(lengths)]}
        self.problems = [Problem(id=str(i), question="q", answer="1") for i in range(QUESTIONS)]

    def sampling_params(self, params):
        return params

    def rollout(self, params, prompts, number, how, samples):
        self.number = number
        count = len(prompts.problem)
        filler = prompts.problem < 0
        lengths = np.where(filler, 0, 1 + prompts.sample).astype(np.int32)
        responses = np.where(np.arange(5) < lengths[:, None], 50 + number, 0).astype(np.int32)
        tokens = np.pad(prompts.tokens, ((0, 0), (0, 5)))
        for row in range(count):
            tokens[row, prompts.lengths[row] : prompts.lengths[row] + lengths[row]] = 50 + number
        log_probs = np.where(np.arange(5) < lengths[:, None], -0.5 * number, 0.0)
        return Rollout(Sequences(tokens, prompts.lengths, responses, lengths), log_probs, np.ones(count, bool))

    def judge(self, rollout, split, rows):
        drawn = np.random.default_rng(self.number)
        table = drawn.random((QUESTIONS, SAMPLES)) < np.linspace(0, 1, QUESTIONS)[:, None]
        asked = [int(row) for row in rows if row >= 0]
        said = []
        for place, row in enumerate(asked):
            right = bool(table[row, place % SAMPLES])
            verdict = Verdict(float(right), "correct" if right else "wrong", 1.0)
            text = f"{self.number} {row} {place % SAMPLES}"
            said.append(Completion(self.problems[row], text, verdict, verdict.reward, tokens=1, ended=True))
        return said


@pytest.mark.parametrize("choice", ["order", "pass_rate"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_iterations_beside_a_loop_over_groups(choice, most):
    rl = RlConfig(
        algorithm="grpo", rollout_batch_size=BATCH, samples_per_question=SAMPLES, max_draws=most,
        question_choice=choice, mastered_rate=0.8,
    )  # fmt: skip
    config = Config(seed=5, rl=rl, generation=GenerationConfig(prompt_buckets=(4, 8)))
    stand, stage = Stand(config), Stage(name="rl", offset=0, epoch=3, schedule=9, stop=9)
    progress, table = RunProgress(), np.zeros((QUESTIONS, 2))
    asked = draws = 0
    seen = Counter()
    for number in range(9):
        clock = PhaseClock()
        drawn = draw_iteration(stand, {}, stage, number, progress, clock)
        size = min(BATCH, QUESTIONS - number % 3 * BATCH)
        groups, first = [], draws
        while draws - first < most and sum(mixed for mixed, *_ in groups) < size:
            if choice == "order":
                rows, asked = in_order(order_seed(config, "rl"), asked, size, QUESTIONS)
            else:
                rows = choose(table, seed=order_seed(config, "rl"), step=draws, count=size, mastered=0.8)
            random = np.random.default_rng(draws)
            right = (random.random((QUESTIONS, SAMPLES)) < np.linspace(0, 1, QUESTIONS)[:, None])[rows]
            groups += [(0 < each.sum() < SAMPLES, draws, int(row)) for row, each in zip(rows, right)]
            table = with_results(table, rows, right, rl.pass_rate_decay)
            draws += 1
        kept = [g for g in groups if g[0]][:size]
        kept += [g for g in groups if not g[0]][: size - len(kept)]
        kept = kept if draws - first > 1 else groups
        expected = [f"{draw} {row} {sample}" for _, draw, row in kept for sample in range(SAMPLES)]
        assert [completion.text for completion in drawn.completions] == expected
        every = [f"{draw} {row} {sample}" for _, draw, row in groups for sample in range(SAMPLES)]
        assert [completion.text for completion in drawn.all_completions] == every
        check_rows(stand, drawn)
        if most > 1:
            assert drawn.metrics["rl/draws"] == draws - first
            assert drawn.metrics["rl/mixed"] == pytest.approx(np.mean([mixed for mixed, *_ in groups]))
        assert ("rl/questions_retired" in drawn.metrics) == (choice == "pass_rate")
        seen[draws - first] += 1
        progress.asked, progress.draws, progress.pass_rates = drawn.asked, drawn.draws, drawn.pass_rates
        assert progress.draws == draws
        np.testing.assert_array_equal(progress.pass_rates or table, table)
        assert set(clock.seconds) == {"rollout", "reward"}
    assert set(seen) == {1} if most == 1 else max(seen) > 1


def check_rows(stand: Stand, drawn: drawing.Drawn) -> None:
    """Each row holds the prompt and the response that its completion tells; the rest is filler."""
    rows, count = drawn.rollout.sequences, len(drawn.completions)
    assert rows.tokens.shape == (BATCH * SAMPLES, drawn.prompts.tokens.shape[1] + 5)
    assert drawn.prompts.tokens.shape[1] in (4, 8)
    for i, completion in enumerate(drawn.completions):
        number, question, sample = map(int, completion.text.split())
        prompt = stand.prompts["train"][question].tokens
        own = [*prompt.tolist(), *[50 + number] * (1 + sample)]
        assert rows.tokens[i].tolist() == own + [0] * (rows.tokens.shape[1] - len(own))
        assert drawn.prompts.tokens[i, : len(prompt)].tolist() == prompt.tolist()
        assert (drawn.prompts.problem[i], drawn.prompts.sample[i]) == (question, sample)
        assert (rows.prompt_lengths[i], rows.response_lengths[i]) == (len(prompt), 1 + sample)
        assert drawn.rollout.log_probs[i].sum() == pytest.approx(-0.5 * number * (1 + sample))
    assert np.all(drawn.prompts.problem[count:] == -1)
    assert not rows.response_lengths[count:].any()
    assert drawn.rollout.ended.all()


# Refused


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"max_draws": 2}, "rl.max_draws 2 compares the samples of a question"),
        ({"max_draws": 2, "algorithm": "self_training"}, "rl.max_draws is 2: rl.algorithm `self_training`"),
        ({"pass_rate_decay": 0.5}, "rl.pass_rate_decay is 0.5 and rl.question_choice is `order`"),
        ({"mastered_rate": 1.0}, "rl.mastered_rate is 1.0 and rl.question_choice is `order`"),
        ({"question_choice": "pass_rate"}, "rl.collapse.reward_share is 0.5: rewards follow the choice"),
    ],
)
def test_what_makes_no_sense_is_refused(own, message):
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(Config(), rl=RlConfig(**own)))


def test_a_reward_that_tells_no_right_from_wrong_chooses_nothing():
    rl = RlConfig(question_choice="pass_rate", collapse=CollapseConfig(reward_share=0.0))
    reward = dataclasses.replace(Config().reward, functions={"mine.f": 1.0}, correct=0.0, wrong=0.0)
    with pytest.raises(ValueError, match="no answer is right"):
        validate(dataclasses.replace(Config(), rl=rl, reward=reward))


# Runs

OWN = {
    "rl__algorithm": "grpo",
    "rl__samples_per_question": 2,
    "rl__rollout_batch_size": 18,
    "rl__max_draws": 3,
    "rl__save_every": 2,
    "rl__epochs": 1,
    "data__test__kind": "none",
    "sft__schedule_epochs": 0,
}
CHOICES = {"order": {}, "pass_rate": {"rl__question_choice": "pass_rate", "rl__collapse__reward_share": 0.0}}


@pytest.mark.ci
@pytest.mark.parametrize("choice", CHOICES)
def test_a_killed_run_draws_what_an_uninterrupted_one_draws(choice, finished, arguments, tmp_path, monkeypatch):
    """Killed, and then asked to stop between two draws."""
    own = {**OWN, **CHOICES[choice], "rl__init_from": finished[0] / "checkpoints" / "warmup"}
    line = lambda name: arguments(tmp_path / name, **own)
    complete(line("whole"))
    process = start(line("stopped"))
    wait_for_step(process, tmp_path / "stopped", 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    def stopping(*args):
        if args[0].model.stop.deferred and moments and args[3] == moments[0]:
            del moments[0]
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args)

    draw, moments = reinforcement.draw_iteration, [4]
    monkeypatch.setattr(reinforcement, "draw_iteration", stopping)
    complete(line("stopped"), code=STOPPED)
    complete(line("stopped"))
    for name in ("metrics", "rollouts", "evaluations"):
        assert repeatable(tmp_path / "whole", name) == repeatable(tmp_path / "stopped", name)
    last = max(int(path.name) for path in (tmp_path / "whole/checkpoints/resume").iterdir())
    state = lambda name: restore(tmp_path / name / f"checkpoints/resume/{last}/state")
    assert_same_bits(state("whole"), state("stopped"))
    records = steps(tmp_path / "whole", "rl")
    assert len(records) == last == 6
    assert {record["rl/draws"] for record in records} & {2.0, 3.0}, "more than one draw at times"
    assert all(0 <= record["rl/mixed"] <= 1 for record in records)
    assert ("rl/questions_asked" in records[0]) == (choice == "pass_rate")
    rows = [row for row in read(tmp_path / "whole", "rollouts") if row["step"] == 1]
    assert len({row["id"] for row in rows}) * 2 == len(rows)


@pytest.mark.long
def test_two_processes_draw_the_same(finished, arguments, tmp_path):
    from tests.parallel.test_processes import MESH, launch

    own = {**OWN, **CHOICES["pass_rate"], "rl__init_from": finished[0] / "checkpoints" / "warmup"}
    complete(arguments(tmp_path / "one", **own))
    end(launch(arguments(tmp_path / "two", **own, **MESH)), 0)
    one, two = (read(tmp_path / name, "rollouts") for name in ("one", "two"))
    assert [(r["step"], r["id"]) for r in two][:36] == [(r["step"], r["id"]) for r in one][:36]
    counts = [[r["rl/draws"] for r in steps(tmp_path / name, "rl")][:1] for name in ("one", "two")]
    assert counts[0] == counts[1]
