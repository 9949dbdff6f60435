"""Iterations whose completions are not scored before they are learned from: `rl.old_log_probs`, and one update."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from reft_jax.algorithms import ppo, self_checks
from reft_jax.algorithms.train_state import init_state, make_optimizer
from reft_jax.config import RlConfig
from reft_jax.parallel.sharding import batch_shardings, to_global, to_host
from tests.algorithms.test_updates import (
    LENGTHS,
    MASK,
    MODEL,
    OPTIMIZER,
    PPO,
    PROMPT,
    RESPONSE,
    REWARDS,
    RIGHT,
    ROWS,
    STEPS,
    TEMPERATURE,
    B,
    assert_rows_close,
    assert_trees_close,
    host_params,
    make_rollout,
    numpy_experience,
    on_mesh,
    without_critic,
)
from tests.devices import mesh

REINFORCE = dataclasses.replace(PPO, algorithm="reinforce", kl_coef=0.0)
SAMPLER = dataclasses.replace(REINFORCE, old_log_probs="sampler")
ONCE = dataclasses.replace(REINFORCE, update_epochs=1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def build(which: Any, config: RlConfig, **more: int) -> Any:
    return which(MODEL, config, mesh(), temperature=TEMPERATURE, prompt=PROMPT, response=RESPONSE, **more)


@functools.cache
def iteration(config: RlConfig, count: int = 2):
    """(experience, its metrics, state, metrics of each update) of some updates on all rows."""
    where = mesh()
    score, _ = build(ppo.build_experience, config)
    reference = on_mesh(without_critic(host_params(7, 0.1)), where) if config.scores_reference else None
    given = make_rollout(), REWARDS, RIGHT
    given = to_global(given, batch_shardings(given, where))
    data, scored = score(on_mesh(without_critic(host_params()), where), reference, *given)
    update, _ = build(ppo.build_update, config, total_steps=STEPS)
    params = on_mesh(without_critic(host_params()), where)
    state, metrics = init_state(params, make_optimizer(OPTIMIZER, STEPS), where), []
    for _ in range(count):
        state, new = update(state, data, ROWS)
        metrics.append(to_host(new))
    return to_host(data), to_host(scored), to_host(state), metrics


@pytest.mark.parametrize(
    ("settings", "scored"),
    [
        ({}, True),
        ({"update_epochs": 1}, False),
        ({"update_epochs": 1, "minibatch_size": 4, "microbatch_size": 4}, True),
        ({"update_epochs": 1, "kl_coef": 0.1}, True),
        ({"update_epochs": 1, "track_kl": True}, True),
        ({"update_epochs": 1, "sampler_ratio_cap": 2.0}, True),
        ({"update_epochs": 1, "entropy_floor": 0.1}, True),
        ({"update_epochs": 1, "baseline": "critic"}, True),
        ({"update_epochs": 1, "baseline": "critic", "critic": "detached"}, True),
        ({"update_epochs": 1, "baseline": "critic", "critic": "separate"}, False),
        ({"old_log_probs": "sampler"}, False),
        ({"old_log_probs": "sampler", "kl_coef": 0.1}, False),
        ({"algorithm": "self_training"}, False),
    ],
)
def test_who_asks_for_the_policys_pass(settings, scored):
    assert dataclasses.replace(REINFORCE, **settings).scores_policy == scored


@pytest.mark.compiles
def test_the_sampler_is_the_old_policy():
    """Two updates by hand-made data: an experience as scored, but for log-probs that are the sampler's."""
    data, metrics, state, updates = iteration(SAMPLER)
    assert_rows_close(data.log_probs, [row[:n] for row, n in zip(make_rollout().log_probs, LENGTHS)], 0)
    assert set(metrics) == {"rl/advantage_mean", "rl/right_pushed_down"}
    gap = np.abs(make_rollout().log_probs - iteration(REINFORCE)[0].log_probs)[MASK]
    assert updates[0]["rl/log_ratio_max"] == pytest.approx(gap.max(), rel=1e-9)
    for name, value in (("rl/sampler_gap", gap.mean()), ("rl/sampler_gap_max", gap.max())):
        assert updates[0][name] == pytest.approx(value, rel=1e-9)
        assert iteration(REINFORCE)[1][name] == pytest.approx(value, rel=1e-9), "as where it is scored"
    entropy = np.concatenate(numpy_experience()["entropy"]).mean()
    assert updates[0]["rl/entropy"] == pytest.approx(entropy, rel=1e-9)
    assert updates[1]["rl/sampler_gap"] > 1.5 * gap.mean(), "the second is of a policy that has moved"
    where, (scored, *_) = mesh(), iteration(REINFORCE)
    update, _ = build(ppo.build_update, REINFORCE, total_steps=STEPS)
    params = on_mesh(without_critic(host_params()), where)
    expected = init_state(params, make_optimizer(OPTIMIZER, STEPS), where)
    by_hand = scored.replace(log_probs=make_rollout().log_probs)
    for _ in range(2):
        expected, _ = update(expected, to_global(by_hand, batch_shardings(by_hand, where)), ROWS)
    assert_trees_close(state, to_host(expected), 1e-12)


@pytest.mark.compiles
def test_the_kl_of_a_reward_is_of_the_samplers_log_probs():
    data, metrics, *_ = iteration(dataclasses.replace(SAMPLER, kl_coef=0.3))
    rows, sampled = numpy_experience(), make_rollout().log_probs
    kl = [sampled[i, :n] - (rows["log_probs"][i] - rows["k1"][i]) for i, n in enumerate(LENGTHS)]
    totals = [reward - 0.3 * each.sum() for reward, each in zip(REWARDS, kl)]
    assert_rows_close(data.advantages, [np.full(n, total) for n, total in zip(LENGTHS, totals)])
    assert metrics["rl/kl_k1"] == pytest.approx(np.concatenate(kl).mean(), rel=1e-9)


@pytest.mark.compiles
def test_the_only_update_of_an_iteration_needs_no_pass_before_it():
    """It does what it does with scored log-probs, at which the ratio is 1."""
    (_, _, expected, scored), (_, metrics, state, updates) = iteration(REINFORCE, 1), iteration(ONCE, 1)
    assert_trees_close(state, expected, 1e-12)
    assert "rl/entropy" not in metrics
    measured = {"rl/entropy", "rl/sampler_gap", "rl/sampler_gap_max"}  # of all rows, which are computed for that
    names = set(updates[0]) - measured - {"throughput/padding_share"}
    assert names == set(scored[0]) - {"throughput/padding_share"}
    for name in names:
        assert updates[0][name] == pytest.approx(scored[0][name], rel=1e-10, abs=1e-12), name
    for name in ("rl/entropy", "rl/sampler_gap", "rl/sampler_gap_max"):
        assert updates[0][name] == pytest.approx(iteration(REINFORCE)[1][name], rel=1e-9), name
    assert iteration(ONCE)[3][1]["rl/log_ratio_max"] == 0, "what is old is what is there, whatever the state"


@pytest.mark.compiles
@pytest.mark.parametrize("config", [SAMPLER, ONCE], ids=["sampler", "once"])
def test_no_pass_is_made(config):
    score, args = build(ppo.build_experience, config)
    assert " dot(" not in score.lower(*args).compile().as_text()
    scored, args = build(ppo.build_experience, REINFORCE)
    assert " dot(" in scored.lower(*args).compile().as_text()


@pytest.mark.compiles
def test_a_gap_is_found_after_the_first_update():
    data, metrics, *_ = iteration(SAMPLER)
    self_checks.check_experience(data, metrics, data, from_reference=False, tolerance=1e-4)
    for config in (SAMPLER, ONCE):
        self_checks.check_first_update(iteration(config)[3][0], tolerance=2e-3)
        with pytest.raises(RuntimeError, match=r"sampler's log-probs differ.*more than rl.check_tolerance \(0.0001\)"):
            self_checks.check_first_update(iteration(config)[3][0], tolerance=1e-4)


@pytest.mark.compiles
def test_padding_is_counted(monkeypatch):
    """Rows of 11, 8, 8, 8, 5, 3 and two of 1 token, two at a time, may have 4, 8 or 11 places."""
    monkeypatch.setattr(ppo, "cut_lengths", lambda padded, shorter: (4, 8, padded))
    tokens = 11 + 8 + 8 + 8 + 5 + 3 + 1 + 1
    for microbatch, places in ((B, B * 11), (4, 4 * 11 + 4 * 8), (2, 2 * (11 + 8 + 8 + 4))):
        _, _, _, updates = iteration.__wrapped__(dataclasses.replace(ONCE, microbatch_size=microbatch))
        assert updates[0]["throughput/padding_share"] == pytest.approx(1 - tokens / places)
