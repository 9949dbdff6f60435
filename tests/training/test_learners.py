"""Which rows each optimizer step learns from, how many steps there are, and a critic that learns before the policy."""

import functools
import json
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import Config, OptimizerConfig, RlConfig, SftConfig
from reft_jax.data.batches import epoch_order, step_indices
from reft_jax.parallel.processes import STOPPED
from reft_jax.problem import Problem
from reft_jax.reward.verdicts import Verdict
from reft_jax.training import reinforcement
from reft_jax.training.completion import Completion
from reft_jax.training.learners import minibatches
from reft_jax.training.reinforcement import biased_critic
from reft_jax.training.startup import plan_stages
from tests.runs import assert_same_bits, complete, repeatable, restore, steps

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 8))  # rows of a minibatch, minibatches of a whole iteration


@given(SIZES, st.data(), st.integers(0, 1000))
def test_a_pass_has_every_completion_once_in_as_few_and_as_equal_steps_as_can_be(sizes, data, epoch):
    size, count = sizes
    completions = data.draw(st.integers(1, size * count))
    parts = minibatches(RlConfig(minibatch_size=size, microbatch_size=size), 3, epoch, completions)
    assert all(part.shape == (size,) and part.dtype == np.int32 for part in parts)
    learned = [part[part < completions] for part in parts]
    assert sorted(np.concatenate(learned).tolist()) == list(range(completions))
    assert all(max(part, default=0) < size * count for part in parts), "filler is a row that there is"
    assert (len(parts) - 1) * size < completions <= len(parts) * size
    counts = [len(rows) for rows in learned]
    assert max(counts) - min(counts) <= 1


def test_a_whole_iteration_is_cut_as_it_always_was():
    parts = minibatches(RlConfig(minibatch_size=8, microbatch_size=8), 7, 11, 32)
    np.testing.assert_array_equal(parts, epoch_order(7, 11, 32).reshape(4, 8))


def test_the_last_iteration_of_an_epoch_makes_one_step_of_28_questions():
    """The example of the fault: 256 questions in minibatches of 32, and 28 in the last iteration."""
    (part,) = minibatches(RlConfig(minibatch_size=32, microbatch_size=32), 0, 0, 28)
    assert sorted(part.tolist()) == [*range(28), *[28] * 4]


@given(
    st.integers(1, 60), st.integers(1, 4), st.sampled_from([(4, 1, 4), (6, 2, 3), (8, 1, 2)]), st.integers(1, 3),
    st.integers(0, 9),
)  # fmt: skip
def test_schedules_count_the_steps_that_are_made(questions, epochs, sizes, passes, warmup):
    """By walking through the iterations; the critic makes those of its warm-up alone."""
    batch, samples, minibatch = sizes
    rl = RlConfig(
        epochs=epochs, rollout_batch_size=batch, samples_per_question=samples, minibatch_size=minibatch,
        microbatch_size=minibatch, update_epochs=passes, critic_warmup=warmup,
        critic_optimizer=OptimizerConfig(learning_rate=0.1),
    )  # fmt: skip
    plan = functools.partial(plan_stages, Config(rl=rl, sft=SftConfig(schedule_epochs=0)), pretrain=0, sft=0)
    iterations = epochs * -(-questions // batch)
    if warmup >= iterations:
        with pytest.raises(ValueError, match=f"is {warmup}, and reinforcement has {iterations} iterations: take fewer"):
            plan(rl=questions)
        return
    stage = plan(rl=questions)["rl"]
    assert stage.stop == iterations
    policy = critic = 0
    for number in range(stage.stop):
        completions = samples * len(step_indices(0, number, questions, batch))
        made = passes * len(minibatches(rl, 0, number, completions))
        critic += made
        policy += made if number >= warmup else 0
    assert (stage.schedule, stage.critic_schedule) == (policy, critic)


def completions(*rewards: float) -> list[Completion]:
    problem = Problem(id="p", question="q", answer="1")
    return [Completion(problem, "", Verdict(r, "correct", 1.0), r, tokens=1, ended=True) for r in rewards]


def test_a_biased_critic_is_told_where_it_does_harm():
    metrics = {"rl/value_mean": 0.0, "rl/right_pushed_down": 0.56}
    said = biased_critic(RlConfig(), completions(1.0, 1.0, 0.4), metrics)
    assert said.startswith("warning: values are 0.00 on average and rewards 0.80: ")
    assert "56 % of the tokens of right completions are made less likely" in said
    assert len(said.splitlines()) == 1
    near = {**metrics, "rl/value_mean": 0.7}
    own = OptimizerConfig(learning_rate=0.1)
    harmless = (
        *(RlConfig(whiten_advantages=False), RlConfig(gae_lambda=1.0), RlConfig(algorithm="rloo")),
        RlConfig(critic_warmup=1, critic_optimizer=own),
    )
    assert not biased_critic(RlConfig(), completions(1.0, 1.0, 0.4), near)
    assert not any(biased_critic(config, completions(1.0), metrics) for config in harmless)


@pytest.mark.ci
def test_a_warm_up_leaves_the_policy_and_resumes_exactly(finished, arguments, tmp_path, monkeypatch):
    """Stopped in the warm-up and after it, it ends as the run that was not; an epoch's last iteration is partial."""
    start = {"sft__schedule_epochs": 0, "rl__init_from": finished[0] / "checkpoints" / "warmup", "rl__epochs": 2}
    own = {"rl__critic_warmup": 3, "rl__critic_optimizer__learning_rate": 0.05, "rl__value_start": "mean_reward"}
    own |= {"rl__critic_optimizer__schedule": "linear", "rl__optimizer__schedule": "linear", "rl__save_every": 1}
    cut = {"data__test__kind": "none", "checkpoint__keep_last": 9, "generation__prompt_buckets": "[72]"}
    line = lambda name: arguments(tmp_path / name, **start, **own, **cut)
    complete(line("whole"))
    draw = reinforcement.draw_iteration

    def stopping(sampler, params, stage, number, *others):
        if moments and number == moments[0]:
            del moments[0]
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(sampler, params, stage, number, *others)

    monkeypatch.setattr(reinforcement, "draw_iteration", stopping)
    moments = [2, 4]
    for _ in range(2):
        complete(line("stopped"), code=STOPPED)
    complete(line("stopped"))
    for name in ("metrics", "rollouts", "evaluations"):
        assert repeatable(tmp_path / "whole", name) == repeatable(tmp_path / "stopped", name)
    state = lambda name, step: restore(tmp_path / name / f"checkpoints/resume/{step}/state")
    assert_same_bits(state("whole", 6), state("stopped", 6))
    records = steps(tmp_path / "whole", "rl")
    assert [("rl/policy_loss" in r, "rl/value_loss" in r) for r in records] == [(False, True)] * 3 + [(True, True)] * 3
    before, after = state("whole", 3), state("whole", 4)
    assert_same_bits(before["params"]["decoder"], restore(finished[0] / "checkpoints" / "warmup")["decoder"])
    assert np.any(after["params"]["decoder"]["embed"] != before["params"]["decoder"]["embed"])
    assert (before["step"], after["step"]) == (0, 6)
    counts = {name: [int(x) for x in _counts(after["opt_state"][name])] for name in ("policy", "critic")}
    assert counts == {"policy": [6] * len(counts["policy"]), "critic": [22] * len(counts["critic"])}
    rates = [0.005 * (1 - k / 16) for k in range(12, 16)]  # of the 16 steps of the policy, the last four
    assert records[-1]["optimizer/learning_rate"] == pytest.approx(np.mean(rates))
    rewards = records[0]["reward/mean"]
    assert abs(records[0]["rl/value_mean"] - rewards) < 1e-6
    assert json.loads((tmp_path / "whole/summary.json").read_text())


def _counts(tree):
    """The counters of an optimizer's state."""
    if isinstance(tree, dict):
        return [x for key, value in tree.items() for x in ([value] if key == "count" else _counts(value))]
    return [x for value in tree for x in _counts(value)] if isinstance(tree, list | tuple) else []
