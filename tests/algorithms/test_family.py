"""Each published method's overlay, one update long, against its formula written out: loops, full logits, own numbers.

The numbers of a method (clip ranges, weights, shifts) stand here as its paper has them and are not read off the config.
Rewards are what the overlay gives to right, wrong and unreadable answers. Rows are those of `test_updates`: questions
have two samples, the last question is filler, and two responses are as long as they may be.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.algorithms import ppo
from reft_jax.algorithms.train_state import init_state
from reft_jax.config import RlConfig, load_config
from reft_jax.config.files import SHIPPED
from reft_jax.models.policy import Policy, Scores
from reft_jax.parallel.sharding import to_global, to_host
from tests.algorithms.test_updates import (
    LENGTHS,
    MASK,
    MODEL,
    OPTIMIZER,
    PROMPT,
    PROMPT_LENGTHS,
    RESPONSE,
    ROWS,
    TEMPERATURE,
    B,
    assert_trees_close,
    chosen,
    full_log_softmax,
    host_params,
    make_rollout,
    make_rows,
)
from tests.devices import mesh
from tests.tiers import few

pytestmark = pytest.mark.compiles

OUTCOMES = ["correct", "wrong", "no_answer", "no_answer", "wrong", "correct"]
RIGHT = np.array([outcome == "correct" for outcome in OUTCOMES] + [False, False])
ASKED = range(6)
CUT = {0, 4}
"""Rows whose response was cut at the longest."""
BUFFER, KL = 3, 0.01


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Advantages of a response, of all rewards r: the pair of row i is (i, its neighbour)


def mean(r, i):
    return (r[i] + r[i ^ 1]) / 2


def grpo(r, i):
    return (r[i] - mean(r, i)) / (abs(r[i] - r[i ^ 1]) / np.sqrt(2) + 1e-4)


def whitened(r, i):
    tokens = np.repeat(r[:6], LENGTHS[:6])
    return (r[i] - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)


# Surrogates of one response: log-probs new and old, advantages, [its tokens]


def clip(low, high=None, c=None):
    def loss(new, old, advantage):
        ratio = jnp.exp(new - old)
        terms = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + (high or low)) * advantage)
        return jnp.where(advantage < 0, jnp.minimum(terms, -c * advantage), terms) if c else terms

    return loss


def gspo(new, old, advantage):
    s = jnp.exp(jnp.mean(new - old))
    return jnp.broadcast_to(-jnp.minimum(s * advantage, jnp.clip(s, 1 - 3e-4, 1 + 4e-4) * advantage), new.shape)


def likelihood(weight):
    return lambda new, old, advantage: -jax.lax.stop_gradient(weight(new - old, advantage)) * advantage * new


cispo = likelihood(lambda log_ratio, advantage: jnp.minimum(jnp.exp(log_ratio), 5.0))
topr = likelihood(
    lambda log_ratio, advantage: jnp.where(advantage < 0, jnp.minimum(jnp.exp(jnp.sum(log_ratio)), 1.0), 1.0)
)


class Method(NamedTuple):
    """A method as its paper has it."""

    loss: Callable[..., Any] = clip(0.2)
    advantage: Callable[..., Any] | None = None
    """Of a response; None is GAE."""
    average: str = "responses"
    kept: Callable[[np.ndarray, int], bool] = lambda r, i: True
    kl: float = 0.0
    samples: int = 2
    penalised: bool = False
    decay: Callable[[int], float] = lambda length: 0.95
    value_decay: float | None = None
    separate: bool = False
    detached: bool = False
    nll: float = 0.0
    entropy: float = 0.0
    weighted: bool = False


PPO: dict[str, Any] = {"samples": 1, "kl": KL}
METHODS = {
    "dr_grpo": Method(clip(0.2), lambda r, i: r[i] - mean(r, i), "constant"),
    "dapo": Method(
        clip(0.2, 0.28), grpo, "tokens", lambda r, i: r[i] != r[i ^ 1] and i not in CUT, penalised=True
    ),
    "gspo": Method(gspo, grpo),
    "cispo": Method(cispo, grpo, "tokens"),
    "maxrl": Method(clip(0.2), lambda r, i: (r[i] - mean(r, i)) / mean(r, i) if mean(r, i) else 0.0),
    "reinforce": Method(clip(0.2), lambda r, i: r[i], **PPO),
    "reinforce_plus_plus": Method(clip(0.2), whitened, **PPO),
    "raft_plus_plus": Method(clip(0.2), lambda r, i: float(r[i] == 1)),
    "reinforce_rej": Method(clip(0.2), lambda r, i: r[i], kept=lambda r, i: r[i] != r[i ^ 1]),
    "w_reinforce": Method(clip(0.2), lambda r, i: 0.1 if r[i] == 1 else -1.0),
    "topr": Method(topr, lambda r, i: r[i], "constant"),
    "asymre": Method(likelihood(lambda *_: 1.0), lambda r, i: r[i] - mean(r, i) + 0.1, "constant"),
    "dual_clip": Method(clip(0.2, c=3.0), **PPO),
    "sampler_weights": Method(weighted=True, **PPO),
    "entropy_floor": Method(entropy=0.005, **PPO),
    "vc_ppo": Method(value_decay=1.0, separate=True, **PPO),
    "vapo": Method(
        clip(0.2, 0.28), average="tokens", decay=lambda length: max(0.95, 1 - 1 / (0.05 * length)), value_decay=1.0,
        separate=True, nll=0.1,
    ),
    "detached_critic": Method(detached=True, **PPO),
    "steady": Method(clip(0.2), lambda r, i: r[i], samples=1),
}  # fmt: skip


def shipped(name: str) -> Any:
    """The method's overlay over the paper's run of CodeLlama on GSM8K."""
    files = ("paper/gsm8k_pcot_codellama_7b.yaml", f"overlays/{name}.yaml")
    return load_config([*(f"--config={SHIPPED / file}" for file in files), "--run_dir=r"])


def small(name: str) -> tuple[Any, Any]:
    """(its settings of reinforcement in the sizes here, its rewards)."""
    config, method = shipped(name), METHODS[name]
    assert min(config.rl.samples_per_question, 2) == method.samples
    sizes = {"rollout_batch_size": B // method.samples, "samples_per_question": method.samples}
    sizes |= {"minibatch_size": B, "microbatch_size": B // 2, "optimizer": OPTIMIZER}
    if config.rl.overlong_buffer:
        sizes["overlong_buffer"] = BUFFER
    if config.rl.entropy_floor:
        assert config.rl.entropy_floor == 0.2
        sizes["entropy_floor"] = 100.0  # here all entropies are above 2
    return dataclasses.replace(config.rl, **sizes), config.reward


def rewards_of(name: str) -> np.ndarray:
    _, reward = small(name)
    return np.array([*(getattr(reward, outcome) for outcome in OUTCOMES), 0.0, 0.0])


def rollout_of() -> Any:
    """The rollout of `test_updates` by a sampler that was further off."""
    noise = np.random.default_rng(6).uniform(-0.5, 1.5, (B, RESPONSE))
    return make_rollout().replace(log_probs=make_rollout().log_probs - np.where(MASK, noise, 0))


def params_of(name: str, noise: float = 0.0) -> dict[str, Any]:
    method, params = METHODS[name], host_params(9 if noise else 0, noise)
    if method.advantage:
        return {"decoder": params["decoder"]}
    return {**params, "critic": host_params(5, 0.1)["decoder"]} if method.separate else params


def place(host: Any, abstract: Any) -> Any:
    return to_global(host, jax.tree.map(lambda x: x.sharding, abstract))


def stepped(name: str, shape: tuple[int, int] = (1, 1), **settings: Any):
    """(experience, its metrics, the metrics of one update by a policy that has moved on), on the host."""
    return moved(name, shape, **settings)[:3]


@functools.cache
def moved(name: str, shape: tuple[int, int] = (1, 1), **settings: Any):
    """As `stepped`, and the parameters after the update."""
    config, _ = small(name)
    config = dataclasses.replace(config, **settings)
    sizes = {"temperature": TEMPERATURE, "prompt": PROMPT, "response": RESPONSE}
    where = mesh(*shape)
    score, args = ppo.build_experience(MODEL, config, where, **sizes)
    reference = {"decoder": host_params(7, 0.1)["decoder"]} if config.scores_reference else None
    host = (params_of(name), reference, rollout_of(), rewards_of(name), RIGHT)
    experience, metrics = score(*place(host, args))
    step, args = ppo.build_update(MODEL, config, where, **sizes, total_steps=8, critic_steps=8)
    params = place(params_of(name, 0.05), args[0].params)
    state, updated = step(init_state(params, ppo.make_optimizers(config, 8, 8), where), experience, ROWS)
    return to_host((experience, metrics, updated, state.params))


def states_of(params: dict[str, Any], method: Method):
    """[B, T] values by the method's critic, whose gradient does not reach the body where it is detached."""
    if method.separate:
        return full_log_softmax({**params, "decoder": params["critic"]}, make_rows(), TEMPERATURE)[1]
    if not method.detached:
        return full_log_softmax(params, make_rows(), TEMPERATURE)[1]
    hidden = Policy(MODEL).apply({"params": params}, make_rows().tokens, method="hidden")
    head = params["value_head"]
    return jax.lax.stop_gradient(hidden) @ head["kernel"][:, 0] + head["bias"][0]


def sums_back(errors: np.ndarray, decay: float) -> np.ndarray:
    return np.array([sum(decay ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))])


def naive(name: str):
    """(advantages of each row, returns, loss of the parameters), by the method's formula."""
    method, sequences, r = METHODS[name], make_rows(), rewards_of(name)
    table, _ = jax.tree.map(np.asarray, full_log_softmax(params_of(name), sequences, TEMPERATURE))
    reference, _ = full_log_softmax({"decoder": host_params(7, 0.1)["decoder"]}, sequences, TEMPERATURE)
    old = [chosen(table, sequences, i) for i in ASKED]
    k1 = [method.kl * (p - chosen(np.asarray(reference), sequences, i)) for i, p in zip(ASKED, old)]
    state = lambda x, i: x[i, PROMPT_LENGTHS[i] - 1 : PROMPT_LENGTHS[i] + LENGTHS[i] - 1]
    advantages, returns, values = [], [], []
    kept = [i for i in ASKED if method.kept(r, i)]
    if method.penalised:
        r = r - np.array([min(1.0, max(0.0, (n - (RESPONSE - BUFFER)) / BUFFER)) for n in LENGTHS])
    if method.advantage:
        earned = np.append(r[:6] - np.array([sum(k) for k in k1]), [0.0, 0.0])
        advantages = [np.full(LENGTHS[i], method.advantage(earned, i)) for i in ASKED]
    else:
        before = np.asarray(states_of(params_of(name), method))
        for i in ASKED:
            value, reward = state(before, i), -k1[i]
            reward[-1] += r[i]
            errors = reward + np.append(value[1:], 0.0) - value
            advantages.append(sums_back(errors, method.decay(LENGTHS[i])))
            values.append(value)
            target = advantages[i] if method.value_decay is None else sums_back(errors, method.value_decay)
            returns.append(target + value)
        every = np.concatenate(advantages)
        advantages = [(a - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8) for a in advantages]
    if method.weighted:
        sampler = rollout_of().log_probs
        advantages = [a * np.minimum(np.exp(p - sampler[i, : len(p)]), 2.0) for i, a, p in zip(ASKED, advantages, old)]
    tokens = sum(LENGTHS[i] for i in kept)
    share = {
        "responses": lambda terms: jnp.mean(terms) / len(kept),
        "tokens": lambda terms: jnp.sum(terms) / tokens,
        "constant": lambda terms: jnp.sum(terms) / (RESPONSE * len(kept)),
    }[method.average]

    def loss(params):
        table, _ = full_log_softmax(params, sequences, TEMPERATURE)
        now, total = None if method.advantage else states_of(params, method), 0.0
        for i in kept:
            new = chosen(table, sequences, i)
            total += share(method.loss(new, old[i], advantages[i]))
            if now is not None:
                value = state(now, i)
                near = values[i] + jnp.clip(value - values[i], -0.2, 0.2)
                total += 5 * share(0.5 * jnp.maximum((value - returns[i]) ** 2, (near - returns[i]) ** 2))
            total += method.entropy * share(jnp.sum(jnp.exp(state(table, i)) * state(table, i), axis=-1))
            if RIGHT[i]:
                total -= method.nll * jnp.sum(new) / sum(LENGTHS[j] for j in ASKED if RIGHT[j])
        return total

    return advantages, returns, loss


@pytest.mark.parametrize("name", few(METHODS, ["dapo", "vapo", "topr"]))
def test_a_method_is_its_formula(name):
    experience, _, updated = stepped(name)
    advantages, returns, loss = naive(name)
    for i in ASKED:
        np.testing.assert_allclose(experience.advantages[i, : LENGTHS[i]], advantages[i], rtol=0, atol=1e-10)
        if returns:
            np.testing.assert_allclose(experience.returns[i, : LENGTHS[i]], returns[i], rtol=0, atol=1e-10)
    value, gradient = jax.value_and_grad(loss)(params_of(name, 0.05))
    norm = np.sqrt(sum(np.sum(np.asarray(g) ** 2) for g in jax.tree.leaves(gradient)))
    assert norm > 1e-3
    assert updated["rl/total_loss"] == pytest.approx(float(value), rel=1e-9)
    assert updated["optimizer/gradient_norm"] == pytest.approx(norm, rel=1e-8)


# Parts that no overlay has together


def mixed(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rewards of each token, mask) of three questions with three responses each, the last question filler."""
    lengths = np.append(draw.integers(1, 5, 6), [0, 0, 0])
    mask = np.arange(4)[None] < lengths[:, None]
    return draw.choice([0.0, 0.1, 1.0, 0.3], (9, 4)) * mask, mask


BASELINES = {
    "none": lambda group, i: 0.0,
    "group_mean": lambda group, i: sum(group) / 3,
    "leave_one_out": lambda group, i: (sum(group) - group[i]) / 2,
}
SCALES = {
    "none": lambda group: 1.0,
    "group_deviation": lambda group: statistics.stdev(group) + 1e-4,
    "group_mean": lambda group: sum(group) / 3,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_beside_every_scale(baseline, scale):
    settings = {"baseline": baseline, "advantage_scale": scale, "baseline_shift": -0.07, "samples_per_question": 3}
    for seed in range(5):
        rewards, mask = mixed(np.random.default_rng(seed))
        got, returns = ppo.estimate_advantages(RlConfig(algorithm="reinforce", **settings), rewards, None, mask)
        assert returns is None
        total = [sum(row) for row in rewards]
        for i in range(6):
            group = total[i // 3 * 3 : i // 3 * 3 + 3]
            divisor = SCALES[scale](group)
            expected = (total[i] - BASELINES[baseline](group, i % 3) + 0.07) / divisor if divisor else 0.0
            np.testing.assert_allclose(got[i], np.where(mask[i], expected, 0), rtol=1e-10, atol=1e-12)
        assert not np.any(got[6:])


def naive_term(surrogate: str, ratio: float, log_prob: float, advantage: float) -> float:
    """Of a token, with ratios from 0.9 to 1.25, and at most 2 in dual clip."""
    bounded = min(max(ratio, 0.9), 1.25)
    weights = {"cispo": bounded, "topr": min(ratio, 1.0) if advantage < 0 else 1.0, "reinforce": 1.0}
    if surrogate in weights:
        return -weights[surrogate] * advantage * log_prob
    loss = max(-ratio * advantage, -bounded * advantage)
    return min(loss, -2 * advantage) if advantage < 0 else loss


@pytest.mark.parametrize("average", ["sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_product"])
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "topr", "reinforce"])
def test_every_surrogate_beside_every_ratio_and_mean(surrogate, ratio, average):
    """Some responses are not learned from, and two have a likelihood of their own."""
    settings: dict[str, Any] = {"dual_clip": 2.0} if surrogate == "clip" else {}
    config = RlConfig(
        algorithm="reinforce", surrogate=surrogate, ratio=ratio, loss_aggregation=average, clip_range=0.1,
        clip_range_high=0.25, kl_coef=0.0, positive_nll_coef=0.3, **settings,
    )  # fmt: skip
    rng, rows = np.random.default_rng(4), make_rows()
    new = -rng.uniform(0.1, 3, (B, RESPONSE))
    old, advantages = new + rng.normal(scale=0.4, size=new.shape), rng.normal(size=new.shape)
    kept, correct = np.arange(B) != 3, np.arange(B) < 2
    experience = ppo.Experience(rows, old, None, advantages, None, None, kept, correct)
    weight = ppo.response_weights(config, rows.response_lengths, RESPONSE, kept)
    scores = Scores(log_probs=new, entropy=np.zeros_like(new), hidden=np.zeros((B, RESPONSE, 1)))
    got, _ = ppo.objective(config, scores, None, experience, weight, ppo.right_weights(experience))
    learned = [i for i in ASKED if kept[i]]
    total = 0.0
    for i in learned:
        n = LENGTHS[i]
        ratios = [math.exp(new[i, t] - old[i, t]) for t in range(n)]
        if ratio != "token":
            product = math.prod(ratios)
            ratios = [product if ratio == "sequence_product" else product ** (1 / n)] * n
        terms = [naive_term(surrogate, ratios[t], new[i, t], advantages[i, t]) for t in range(n)]
        by = {"sequence_mean": n * len(learned), "token_mean": sum(LENGTHS[j] for j in learned)}
        total += sum(terms) / by.get(average, RESPONSE * len(learned))
    total -= 0.3 * sum(new[i, t] for i in (0, 1) for t in range(LENGTHS[i])) / (LENGTHS[0] + LENGTHS[1])
    assert got == pytest.approx(total, rel=1e-10)


@pytest.mark.ci
@pytest.mark.parametrize("name", few(["vapo", "dapo", "topr", "entropy_floor"], ["vapo"], ci=["dapo"]))
def test_a_method_does_not_depend_on_devices(name):
    """Its rows, and what stands for each, are split over four of them, its weights over two."""
    for one, eight in zip(stepped(name)[1:], stepped(name, (4, 2))[1:]):
        assert one.keys() == eight.keys()
        for key, value in one.items():
            assert eight[key] == pytest.approx(float(value), rel=1e-9, abs=1e-12), key


def test_the_methods_are_the_overlays_of_the_index():
    """Every overlay that the page of papers names is tried here, or is one of those that were there before."""
    page = (SHIPPED.parents[1] / "docs" / "paper_index.md").read_text()
    named = {name for name in (path.stem for path in (SHIPPED / "overlays").glob("*.yaml")) if f"/{name}.yaml`" in page}
    assert named == set(METHODS) | {"grpo", "rloo", "no_baseline", "separate_critic", "online_self_training"}


@pytest.mark.ci
def test_the_share_of_what_is_kept_and_what_the_weights_are_worth_are_told():
    assert stepped("reinforce_rej")[1]["rl/kept"] == pytest.approx(4 / 6)
    assert stepped("dapo")[1]["rl/kept"] == pytest.approx(2 / 6)
    experience, metrics, _ = stepped("sampler_weights")
    weights = np.minimum(np.exp(experience.log_probs - rollout_of().log_probs), 2.0)[MASK]
    assert 0 < np.mean(weights == 2) < 1, "the case cuts some"
    assert metrics["rl/sampler_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights.size * np.sum(weights**2)))


LEARNED = {"steady": [0, 5], "raft_plus_plus": [0, 5], "reinforce_rej": [0, 1, 4, 5], "dapo": [1, 5]}
"""Rows that a gradient comes from: right ones, or those of groups that are mixed and were not cut."""


@pytest.mark.ci
@pytest.mark.parametrize("name", few(LEARNED, ["steady"], ci=["reinforce_rej", "dapo"]))
def test_rows_that_no_gradient_comes_from_are_not_computed(name, monkeypatch):
    """One row at a time, two, and three on two devices; with all rows computed the same parameters come out."""
    learned, computed = LEARNED[name], []
    score = ppo.score_responses

    def recorded(policy, params, sequences, *others):
        jax.debug.callback(lambda lengths: computed.extend(lengths), sequences.response_lengths)
        return score(policy, params, sequences, *others)

    monkeypatch.setattr(ppo, "score_responses", recorded)
    _, metrics, updated, params = moved.__wrapped__(name, microbatch_size=1)
    jax.effects_barrier()
    scored, pieces = computed[:B], computed[B:]
    assert sorted(scored) == sorted(LENGTHS)
    assert sorted(pieces) == sorted(LENGTHS[i] for i in learned)
    assert metrics["rl/learned"] == pytest.approx(len(learned) / 6)
    monkeypatch.setattr(ppo, "score_responses", score)
    others = [{"microbatch_size": 2}, {"microbatch_size": B}, {"microbatch_size": 2, "shape": (2, 1)}]
    for other in (moved.__wrapped__(name, **settings) for settings in others):
        for got, expected in zip(other[2:], (updated, params)):
            got, expected = ({**tree, "throughput/padding_share": 0} for tree in (got, expected))
            assert_trees_close(got, expected, 1e-12)
    monkeypatch.setattr(ppo, "learned_rows", lambda *_: None)
    _, metrics, whole, expected = moved.__wrapped__(name, microbatch_size=1)
    assert "rl/learned" not in metrics
    assert_trees_close(params, expected, 1e-12)
    for key in ("rl/policy_loss", "rl/total_loss", "optimizer/gradient_norm"):
        assert updated[key] == pytest.approx(float(whole[key]), rel=1e-12), key
    tokens = [PROMPT_LENGTHS[i] + LENGTHS[i] for i in learned]
    assert updated["throughput/padding_share"] == pytest.approx(1 - np.mean(tokens) / (PROMPT + RESPONSE))


@pytest.mark.parametrize("name", ["reinforce", "vapo", "entropy_floor"])
def test_all_rows_are_learned_from_where_a_term_of_the_loss_takes_them(name):
    config, _ = small(name)
    whole = np.ones((B, RESPONSE), bool)
    rows = functools.partial(ppo.learned_rows, advantages=np.zeros((B, RESPONSE)), mask=whole, kept=None, right=None)
    assert rows(config) is None
    plain = dataclasses.replace(config, algorithm="reinforce", kl_coef=0.0, entropy_floor=0.0)
    assert not np.any(rows(plain))
    assert rows(dataclasses.replace(plain, update_epochs=1)) is None, "what no pass has scored, an update measures"


@pytest.mark.ci
@pytest.mark.parametrize("name", ["topr", "dapo"])
def test_means_of_ratios_are_means_whatever_the_losses_weights_sum_to(name):
    """By the constant length they sum to less than 1, and rows that are left out have none."""
    experience, _, updated = stepped(name)
    table, _ = full_log_softmax(params_of(name, 0.05), make_rows(), TEMPERATURE)
    rows = [1, 5] if name == "dapo" else ASKED
    ratios = [np.exp(chosen(np.asarray(table), make_rows(), i) - experience.log_probs[i, : LENGTHS[i]]) for i in rows]
    assert updated["rl/ratio_mean"] == pytest.approx(np.mean(np.concatenate(ratios)), rel=1e-9)


@pytest.mark.ci
def test_entropy_is_rewarded_only_below_its_floor():
    _, _, rewarded = stepped("entropy_floor")
    _, _, above = stepped("entropy_floor", entropy_floor=0.2)
    _, _, never = stepped("entropy_floor", entropy_floor=0.0)
    assert above == never
    assert rewarded["rl/total_loss"] < above["rl/total_loss"] - 0.005
