"""The jitted steps of every algorithm against naive losses on full logits, Adam written out in numpy, and slow loops.

Everything is float64, so that what differs is wrong. Batches have rows of unequal lengths and filler rows.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from reft_jax.algorithms import ppo, self_checks, self_training, sft, train_state
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import abstract_params, init_state, make_optimizer, make_schedule
from reft_jax.config import CollapseConfig, DecoderConfig, ModelConfig, OptimizerConfig, RlConfig, SupervisedConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.policy import Policy, score_responses
from reft_jax.parallel.sharding import batch_shardings, to_global, to_host
from tests.devices import mesh
from tests.tiers import few

pytestmark = pytest.mark.compiles

MODEL = ModelConfig(
    decoder=DecoderConfig(
        vocab_size=21,
        vocab_multiple=8,
        embed_dim=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        rotary_dim=4,
        mlp_dim=24,
        qkv_bias=True,
        tie_embeddings=False,
        initializer_range=0.4,
    ),
    dtype="float64",
    param_dtype="float64",
    logits_chunk=24,
)
B, PROMPT, RESPONSE, VOCAB = 8, 5, 6, 21
PROMPT_LENGTHS = np.array([5, 1, 3, 4, 2, 5, 1, 1], np.int32)
RESPONSE_LENGTHS = np.array([6, 2, 5, 1, 6, 3, 0, 0], np.int32)  # two filler rows
LENGTHS = [int(n) for n in RESPONSE_LENGTHS]
MASK = np.arange(RESPONSE)[None] < RESPONSE_LENGTHS[:, None]
TEMPERATURE, STEPS = 0.9, 8
# Learning rates are exact in float32, in which optax computes schedules; a large epsilon keeps Adam from blowing up
# rounding errors where a gradient is 0.
OPTIMIZER = OptimizerConfig(
    learning_rate=2**-6, lr_warmup_fraction=0.0, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1, max_grad_norm=0.3
)
SFT = SupervisedConfig(batch_size=B, microbatch_size=B, optimizer=OPTIMIZER)
PPO = RlConfig(
    rollout_batch_size=B,
    minibatch_size=B,
    microbatch_size=B,
    optimizer=OPTIMIZER,
    kl_coef=0.3,
    vf_coef=0.7,
    clip_range=0.15,
    value_clip_range=0.1,
    discount=0.97,
    gae_lambda=0.9,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_rows() -> Sequences:
    rng = np.random.default_rng(0)
    tokens, responses = np.zeros((B, PROMPT + RESPONSE), np.int32), np.zeros((B, RESPONSE), np.int32)
    for i, (p, r) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
        if r:
            tokens[i, : p + r] = rng.integers(0, VOCAB, p + r)
            responses[i, :r] = tokens[i, p : p + r]
    return Sequences(tokens, PROMPT_LENGTHS, responses, RESPONSE_LENGTHS)


@functools.cache
def host_params(noise_seed: int = 0, noise: float = 0.0):
    """Random parameters (biases and value head too), the same for every seed but for the noise."""
    shapes = jax.eval_shape(Policy(MODEL).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng, other = np.random.default_rng(1), np.random.default_rng(noise_seed)
    draw = lambda x: 0.4 * rng.normal(size=x.shape) + noise * other.normal(size=x.shape)
    return jax.tree.map(draw, nn.meta.unbox(shapes))


def on_mesh(params: Any, where: Any) -> Any:
    abstract = abstract_params(Policy(MODEL, where), where, value_head=True)
    return to_global(params, {name: jax.tree.map(lambda x: x.sharding, abstract[name]) for name in params})


@jax.jit
def full_log_softmax(params: Any, rows: Sequences, temperature: float):
    """([B, T, V] log-probs of what comes next, [B, T] values), all at once."""
    hidden = Policy(MODEL).apply({"params": params}, rows.tokens, method="hidden")
    logits = hidden @ params["decoder"]["lm_head"][:VOCAB].T / temperature
    values = hidden @ params["value_head"]["kernel"][:, 0] if "value_head" in params else None
    if values is not None:
        values = values + params["value_head"]["bias"][0]
    return jax.nn.log_softmax(logits, axis=-1), values


def chosen(table: Any, rows: Sequences, i: int):
    """Log-probs of row i's response, [its length]."""
    p, r = PROMPT_LENGTHS[i], RESPONSE_LENGTHS[i]
    return table[i, np.arange(p - 1, p + r - 1), rows.tokens[i, p : p + r]]


class Adam:
    """AdamW with clipping by global norm, written out; linear decay to 0 from the first step."""

    def __init__(self, params: Any) -> None:
        self.params, self.t = params, 0
        self.m = self.v = jax.tree.map(np.zeros_like, params)

    def step(self, gradient: Any) -> float:
        """Applies a gradient and returns its norm."""
        c, gradient = OPTIMIZER, jax.tree.map(np.asarray, gradient)
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
        assert norm > c.max_grad_norm, "the case must clip"
        rate = c.learning_rate * (1 - self.t / STEPS)
        self.t += 1
        gradient = jax.tree.map(lambda g: g * c.max_grad_norm / norm, gradient)
        self.m = jax.tree.map(lambda m, g: c.beta1 * m + (1 - c.beta1) * g, self.m, gradient)
        self.v = jax.tree.map(lambda v, g: c.beta2 * v + (1 - c.beta2) * g**2, self.v, gradient)

        def move(path, p, m, v):
            m, v = m / (1 - c.beta1**self.t), v / (1 - c.beta2**self.t)
            name = jax.tree_util.keystr(path)
            decay = 0.0 if "norm" in name or "bias" in name else c.weight_decay
            return p - rate * (m / (np.sqrt(v) + c.eps) + decay * p)

        self.params = jax.tree_util.tree_map_with_path(move, self.params, self.m, self.v)
        return norm


def assert_trees_close(got: Any, expected: Any, tolerance: float) -> None:
    """Every leaf within `tolerance` of the largest entry of the expected one."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected)):
        scale = max(np.abs(y).max(), 1e-30)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# Supervised steps


@functools.cache
def sft_steps(microbatch: int, aggregation: str = "token_mean", shape=(1, 1), count: int = 2):
    """(state, metrics of each step) after some steps on one batch, on the host."""
    where = mesh(*shape)
    config = dataclasses.replace(SFT, microbatch_size=microbatch, loss_aggregation=aggregation)
    step, _ = sft.build_step(MODEL, config, where, total_steps=STEPS, prompt=PROMPT, response=RESPONSE)
    params = {"decoder": host_params()["decoder"]}
    state = init_state(on_mesh(params, where), make_optimizer(OPTIMIZER, STEPS), where)
    batch = to_global(make_rows(), batch_shardings(make_rows(), where))
    metrics = []
    for _ in range(count):
        state, new = step(state, batch)
        metrics.append(to_host(new))
    return to_host(state), metrics


def naive_sft(aggregation: str, microbatches: int):
    """The same two steps with a loss over full logits and Adam in numpy: (Adam, losses, norms)."""
    rows = make_rows()
    groups = (
        [range(k, B, microbatches) for k in range(microbatches)] if aggregation == "microbatch_mean" else [range(B)]
    )

    def loss(params):
        table, _ = full_log_softmax(params, rows, 1.0)
        means = []
        for group in groups:
            tokens = sum(LENGTHS[i] for i in group)
            means.append(-sum(jnp.sum(chosen(table, rows, i)) for i in group) / tokens)
        return sum(means) / len(groups)

    adam, losses, norms = Adam({"decoder": host_params()["decoder"]}), [], []
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    for _ in range(2):
        value, gradient = value_and_gradient(adam.params)
        losses.append(float(value))
        norms.append(adam.step(gradient))
    return adam, losses, norms


def test_sft_equals_adam_on_a_naive_loss():
    state, metrics = sft_steps(B)
    adam, losses, norms = naive_sft("token_mean", 1)
    assert_trees_close(state.params, adam.params, 1e-10)
    assert state.step == 2
    for k in range(2):
        assert metrics[k]["loss"] == pytest.approx(losses[k], rel=1e-12)
        assert metrics[k]["optimizer/gradient_norm"] == pytest.approx(norms[k], rel=1e-10)
        assert metrics[k]["optimizer/learning_rate"] == pytest.approx(OPTIMIZER.learning_rate * (1 - k / STEPS))


def test_sft_microbatches_add_up_to_the_batch():
    """Rows have unequal lengths, and two of the micro-batches are filler; the moments tell gradients by size."""
    (whole, metrics), (parts, own) = sft_steps(B), sft_steps(1)
    assert_trees_close(parts, whole, 1e-12)
    assert_trees_close(own, metrics, 1e-12)


def test_sft_microbatch_average_is_the_mean_of_their_token_means():
    state, metrics = sft_steps(4, "microbatch_mean")
    adam, losses, _ = naive_sft("microbatch_mean", 2)
    assert_trees_close(state.params, adam.params, 1e-10)
    whole, _ = sft_steps(B)
    assert abs(losses[0] - metrics[0]["loss"]) > 1e-3, "the two averages must differ here"
    assert np.abs(whole.params["decoder"]["embed"] - state.params["decoder"]["embed"]).max() > 1e-5


@pytest.mark.long
def test_sft_on_eight_devices_equals_one():
    (one, metrics), (eight, own) = sft_steps(4), sft_steps(4, shape=(4, 2))
    assert_trees_close(eight, one, 1e-9)
    assert_trees_close(own, metrics, 1e-9)


def test_sft_donates_its_state_and_compiles_once():
    where = mesh()
    step, args = sft.build_step(MODEL, SFT, where, total_steps=STEPS, prompt=PROMPT, response=RESPONSE)
    compiled = step.lower(*args).compile()
    params = on_mesh({"decoder": host_params()["decoder"]}, where)
    state = init_state(params, make_optimizer(OPTIMIZER, STEPS), where)
    batch = to_global(make_rows(), batch_shardings(make_rows(), where))
    new, _ = compiled(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, batch)))
    compiled(new, batch)
    narrow = jax.tree.map(lambda x: x[:4], make_rows())
    with pytest.raises(TypeError, match="compiled"):
        compiled(new, to_global(narrow, batch_shardings(narrow, where)))


# Experience


def make_rollout() -> Rollout:
    """A fixed rollout whose sampler was a little off, by at most 1e-3."""
    noise = np.random.default_rng(5).uniform(-1e-3, 1e-3, (B, RESPONSE))
    table, _ = full_log_softmax(host_params(), make_rows(), TEMPERATURE)
    log_probs = np.zeros((B, RESPONSE))
    for i, r in enumerate(RESPONSE_LENGTHS):
        log_probs[i, :r] = chosen(np.asarray(table), make_rows(), i) + noise[i, :r]
    return Rollout(sequences=make_rows(), log_probs=log_probs, ended=RESPONSE_LENGTHS < RESPONSE)


REWARDS = np.array([1.0, 0.1, 0.0, 1.0, 0.1, 0.0, 0.0, 0.0])
RIGHT = REWARDS == 1


@functools.cache
def experience(microbatch: int = B, shape=(1, 1), reference_noise: float = 0.1, **settings: Any):
    """(experience, metrics) on the host."""
    where = mesh(*shape)
    config = dataclasses.replace(PPO, microbatch_size=microbatch, **settings)
    step, _ = ppo.build_experience(MODEL, config, where, temperature=TEMPERATURE, prompt=PROMPT, response=RESPONSE)
    reference = on_mesh({"decoder": host_params(7, reference_noise)["decoder"]}, where)
    given = make_rollout(), REWARDS, RIGHT
    batch = to_global(given, batch_shardings(given, where))
    return to_host(step(on_mesh(host_params(), where), reference if config.scores_reference else None, *batch))


@functools.cache
def numpy_experience(kl_estimator: str = "k1"):
    """Log-probs, values, advantages (not whitened) and returns as lists of rows without padding, with loops."""
    rows = make_rows()
    table, values = jax.tree.map(np.asarray, full_log_softmax(host_params(), rows, TEMPERATURE))
    reference, _ = full_log_softmax({"decoder": host_params(7, 0.1)["decoder"]}, rows, TEMPERATURE)
    out = {"log_probs": [], "values": [], "advantages": [], "returns": [], "k1": [], "entropy": []}
    for i in range(B):
        p, r = PROMPT_LENGTHS[i], LENGTHS[i]
        log_probs = chosen(table, rows, i)
        k1 = log_probs - chosen(np.asarray(reference), rows, i)
        value = values[i, p - 1 : p + r - 1]
        reward = -PPO.kl_coef * (k1 if kl_estimator == "k1" else np.exp(-k1) - 1 + k1)
        if r:
            reward[-1] += REWARDS[i]
        advantages = np.zeros(r)
        for t in range(r):
            for k in range(t, r):
                after = value[k + 1] if k + 1 < r else 0.0
                delta = reward[k] + PPO.discount * after - value[k]
                advantages[t] += (PPO.discount * PPO.gae_lambda) ** (k - t) * delta
        states = table[i, p - 1 : p + r - 1]
        out["log_probs"].append(log_probs)
        out["values"].append(value)
        out["advantages"].append(advantages)
        out["returns"].append(advantages + value)
        out["k1"].append(k1)
        out["entropy"].append(-np.sum(np.exp(states) * states, axis=-1))
    return out


def assert_rows_close(got: np.ndarray, rows: list[np.ndarray], tolerance: float = 1e-11) -> None:
    for i, row in enumerate(rows):
        np.testing.assert_allclose(got[i, : len(row)], row, rtol=0, atol=tolerance)


def test_experience_equals_numpy():
    got, metrics = experience()
    rows = numpy_experience()
    flat = {name: np.concatenate(values) for name, values in rows.items()}
    whitened = lambda x: (x - flat["advantages"].mean()) / np.sqrt(flat["advantages"].var(ddof=1) + 1e-8)
    assert_rows_close(got.log_probs, rows["log_probs"])
    assert_rows_close(got.values, rows["values"])
    assert_rows_close(got.returns, rows["returns"])
    assert_rows_close(got.advantages, [whitened(row) for row in rows["advantages"]])
    assert_rows_close(experience(whiten_advantages=False)[0].advantages, rows["advantages"])
    k1 = flat["k1"]
    explained = lambda r, v: 1 - np.var(r - v) / np.var(r)
    thirds = [
        [np.concatenate([row[[3 * t // len(row) == part for t in range(len(row))]] for row in rows[name] if len(row)])
         for name in ("returns", "values")]
        for part in range(3)
    ]  # fmt: skip
    expected = {
        "rl/kl_k1": k1.mean(),
        "rl/kl_k3": np.mean(np.exp(-k1) - 1 + k1),
        "rl/sequence_kl": k1.sum() / 6,
        "rl/kl_max": np.abs(k1).max(),
        "rl/entropy": flat["entropy"].mean(),
        "rl/explained_variance": explained(flat["returns"], flat["values"]),
        "rl/explained_variance_first": explained(*thirds[0]),
        "rl/explained_variance_middle": explained(*thirds[1]),
        "rl/explained_variance_last": explained(*thirds[2]),
        "rl/right_pushed_down": np.mean(
            np.concatenate([whitened(row) for row, right in zip(rows["advantages"], RIGHT) if right]) < 0
        ),
        "rl/advantage_mean": flat["advantages"].mean(),
        "rl/value_mean": flat["values"].mean(),
        "rl/return_mean": flat["returns"].mean(),
        "rl/sampler_gap": np.abs(make_rollout().log_probs - got.log_probs)[MASK].mean(),
        "rl/sampler_gap_max": np.abs(make_rollout().log_probs - got.log_probs)[MASK].max(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-9), name
    assert 1e-4 < metrics["rl/sampler_gap"] < metrics["rl/sampler_gap_max"] <= 1e-3


def test_the_kl_of_a_reward_may_be_k3_and_one_in_the_loss_is_in_no_reward():
    rows = numpy_experience("k3")
    got, _ = experience(kl_estimator="k3", whiten_advantages=False)
    assert_rows_close(got.advantages, rows["advantages"])
    assert_rows_close(got.returns, rows["returns"])
    assert got.reference is None
    in_loss, _ = experience(kl_in="loss", whiten_advantages=False)
    without, _ = experience(kl_coef=0.0, whiten_advantages=False)
    np.testing.assert_array_equal(in_loss.advantages, without.advantages)
    log_probs, k1 = numpy_experience()["log_probs"], numpy_experience()["k1"]
    assert_rows_close(in_loss.reference, [own - k for own, k in zip(log_probs, k1)])


def test_a_reference_that_nobody_reads_is_not_scored():
    (plain, metrics), (tracked, more) = experience(kl_coef=0.0), experience(kl_coef=0.0, track_kl=True)
    visible = lambda e: [np.where(MASK, x, 0) for x in (e.log_probs, e.values, e.advantages, e.returns)]
    jax.tree.map(np.testing.assert_array_equal, visible(plain), visible(tracked))
    assert set(more) - set(metrics) == {"rl/kl_k1", "rl/kl_k3", "rl/sequence_kl", "rl/kl_max"}
    assert {name: more[name] for name in metrics} == metrics
    bounded = CollapseConfig(max_kl=1.0)
    settings = [{}, {"kl_coef": 0.0}, {"kl_coef": 0.0, "track_kl": True}, {"kl_coef": 0.0, "collapse": bounded}]
    scored = [dataclasses.replace(PPO, **changed) for changed in settings]
    assert [config.scores_reference for config in scored] == [True, False, True, True]

    def flops(config: RlConfig) -> float:
        step, args = ppo.build_experience(MODEL, config, mesh(), temperature=1.0, prompt=PROMPT, response=RESPONSE)
        return step.lower(*args).cost_analysis()["flops"]

    assert flops(scored[1]) < 0.6 * flops(scored[2])


@pytest.mark.ci
@pytest.mark.parametrize("shape", [(1, 1), (2, 1)], ids=["one", "two"])
def test_rows_that_are_cut_to_their_length_give_what_whole_ones_do(shape, monkeypatch):
    """Rows of 11, 8, 8, 8, 5, 3 and two of 1 token, two at a time and four at a time, may have 4, 8 or 11."""
    visible = lambda e: [np.where(MASK, x, 0) for x in (e.log_probs, e.values, e.advantages, e.returns)]
    kinds = ("token_mean", "microbatch_mean")

    def results():
        (data, metrics), at = experience.__wrapped__(2, shape), {"shape": shape}
        updates = ppo_steps.__wrapped__(B, 2, **at), ppo_steps.__wrapped__(4, 4, **at)
        learned = [*updates, *(sft_steps.__wrapped__(2, kind, **at) for kind in kinds)]
        padding = [[each.pop("throughput/padding_share") for each in metrics] for _, metrics in learned]
        return (visible(data), metrics, learned), padding

    (whole, padding), lengths = results(), []

    def recorded(policy, params, sequences, *others):
        jax.debug.callback(functools.partial(lengths.append, sequences.tokens.shape[1]))
        return score_responses(policy, params, sequences, *others)

    for module in (ppo, sft):
        monkeypatch.setattr(module, "cut_lengths", lambda padded, shorter=(): (4, 8, padded))
    if shape == (1, 1):
        monkeypatch.setattr(ppo, "score_responses", recorded)
    cut, less = results()
    jax.effects_barrier()
    assert_trees_close(cut, whole, 1e-12)
    assert np.all(np.array(less) <= np.array(padding))
    assert np.sum(less) < 0.9 * np.sum(padding)
    if shape == (1, 1):
        assert lengths[:8] == [11, 11, 8, 8, 8, 8, 4, 4], "policy and reference, the longest first"
        assert lengths[8:] == [*[11, 8, 8, 4] * 2, 11, 11], "two updates of four micro-batches, and two of one"


def test_rows_may_be_cut_to_half_and_three_quarters_in_whole_sixteens():
    assert [train_state.cut_lengths(n) for n in (1, 92, 127)] == [(1,), (92,), (127,)]
    assert train_state.cut_lengths(128) == (64, 96, 128)
    assert train_state.cut_lengths(700) == (352, 528, 700)
    for longest in range(128, 2000, 7):
        sizes = train_state.cut_lengths(longest)
        assert sizes[-1] == longest
        assert all(size % 16 == 0 for size in sizes[:-1])
    assert train_state.cut_lengths(117, [50, 67]) == (50, 67, 117), "short rows that are known to come"
    assert train_state.cut_lengths(214, [50, 67, 114]) == (67, 112, 176, 214), "four at most, the longest"
    assert train_state.cut_lengths(1000, [450, 900]) == (512, 752, 1000), "what saves little is not compiled"


def test_buckets_of_prompts_are_lengths_that_rows_may_be_cut_to(monkeypatch):
    asked = []
    monkeypatch.setattr(ppo, "cut_lengths", lambda padded, shorter: asked.append((padded, shorter)) or (padded,))
    sizes: dict[str, Any] = {"temperature": TEMPERATURE, "prompt": PROMPT, "response": RESPONSE}
    for build, more in ((ppo.build_experience, {}), (ppo.build_update, {"total_steps": STEPS})):
        asked.clear()
        step, args = build(MODEL, PPO, mesh(), buckets=(2, 4, 5, 9), **sizes, **more)
        jax.eval_shape(step, *args)
        assert asked[-1] == (PROMPT + RESPONSE, (2 + RESPONSE, 4 + RESPONSE))


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({"microbatch": 2}, id="split"),
        pytest.param({"microbatch": 4, "shape": (4, 2)}, id="mesh", marks=pytest.mark.long),  # as test_meshes has it
    ],
)
def test_experience_does_not_depend_on_microbatches_or_devices(kwargs):
    (whole, metrics), (parts, own) = experience(), experience(**kwargs)
    visible = lambda e: [np.where(MASK, x, 0) for x in (e.log_probs, e.values, e.advantages, e.returns)]
    assert_trees_close(visible(parts), visible(whole), 1e-9)
    np.testing.assert_array_equal(parts.sequences.tokens, make_rows().tokens)
    assert_trees_close(own, metrics, 1e-9)


# PPO updates


ROWS = np.array([6, 2, 5, 0, 7, 3, 1, 4], np.int32)  # of a minibatch: any order, filler anywhere
LOSSES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "tokens_kl": {"loss_aggregation": "token_mean", "kl_in": "loss", "kl_estimator": "k3"},
}


@functools.cache
def ppo_steps(minibatch: int = B, microbatch: int = B, shape=(1, 1), noise: float = 0.05, case: str = "recipe"):
    """(state, metrics) after two updates by a policy that has moved from the one that sampled by `noise`."""
    where = mesh(*shape)
    config = dataclasses.replace(PPO, minibatch_size=minibatch, microbatch_size=microbatch, **LOSSES[case])
    step, _ = ppo.build_update(
        MODEL, config, where, temperature=TEMPERATURE, total_steps=STEPS, prompt=PROMPT, response=RESPONSE
    )
    state = init_state(on_mesh(host_params(9, noise), where), make_optimizer(OPTIMIZER, STEPS), where)
    data, _ = experience(**LOSSES[case])
    data = to_global(data, batch_shardings(data, where))
    metrics = []
    for _ in range(2):
        state, new = step(state, data, ROWS[:minibatch])
        metrics.append(to_host(new))
    return to_host(state), metrics


def naive_ppo(rows: np.ndarray, case: str):
    """The same two updates, row by row on full logits, and Adam in numpy: (Adam, metrics, share of clipped terms)."""
    (data, _), sequences, settings = experience(**LOSSES[case]), make_rows(), dataclasses.replace(PPO, **LOSSES[case])
    asked = [i for i in rows if LENGTHS[i]]
    by_tokens = settings.loss_aggregation == "token_mean"
    count = sum(LENGTHS[i] for i in asked) if by_tokens else len(asked)

    def loss(params):
        table, values = full_log_softmax(params, sequences, TEMPERATURE)
        sums = dict.fromkeys(
            ("policy_loss", "value_loss", "kl_loss", "clip_fraction", "ratio_mean", "log_ratio_mean", "value_clipped"),
            0.0,
        )
        largest = 0.0
        for i in asked:
            p, r = PROMPT_LENGTHS[i], LENGTHS[i]
            share = lambda terms: terms.sum() if by_tokens else terms.mean()
            new, old, advantage = chosen(table, sequences, i), data.log_probs[i, :r], data.advantages[i, :r]
            ratio = jnp.exp(new - old)
            clipped = jnp.clip(ratio, 1 - PPO.clip_range, 1 + PPO.clip_range)
            sums["policy_loss"] -= share(jnp.minimum(ratio * advantage, clipped * advantage))
            value, before = values[i, p - 1 : p + r - 1], data.values[i, :r]
            near = before + jnp.clip(value - before, -PPO.value_clip_range, PPO.value_clip_range)
            error, near_error = (value - data.returns[i, :r]) ** 2, (near - data.returns[i, :r]) ** 2
            sums["value_loss"] += share(jnp.maximum(error, near_error)) / 2
            if settings.kl_in == "loss":
                reference = data.reference[i, :r]
                sums["kl_loss"] += share(ratio * (jnp.exp(reference - new) - 1 + new - reference))
            sums["clip_fraction"] += share((clipped != ratio).astype(ratio.dtype))
            sums["ratio_mean"] += share(ratio)
            sums["log_ratio_mean"] += share(jnp.abs(jnp.log(ratio)))
            sums["value_clipped"] += share((near_error > error).astype(ratio.dtype))
            largest = jnp.maximum(largest, jnp.max(jnp.abs(jnp.log(ratio))))
        means = {name: value / count for name, value in sums.items()}
        total = means["policy_loss"] + PPO.vf_coef * means["value_loss"] + PPO.kl_coef * means["kl_loss"]
        return total, {**means, "total_loss": total, "log_ratio_max": largest}

    adam, metrics = Adam(host_params(9, 0.05)), []
    step = jax.jit(jax.grad(loss, has_aux=True))
    for _ in range(2):
        gradient, values = step(adam.params)
        metrics.append({**values, "norm": adam.step(gradient)})
    return adam, metrics


@pytest.mark.parametrize("case", few(LOSSES, ["recipe"]))
def test_ppo_update_equals_adam_on_a_naive_loss(case):
    state, metrics = ppo_steps(4, 4, case=case)
    adam, expected = naive_ppo(ROWS[:4], case)
    assert 0 < expected[0]["clip_fraction"] < 1, "the case must clip some ratios"
    assert 0 < expected[0]["value_clipped"] < 1, "and some values"
    assert_trees_close(state.params, adam.params, 1e-10)
    for k, values in enumerate(expected):
        names = ["policy_loss", "value_loss", "total_loss", "clip_fraction", "ratio_mean", "log_ratio_mean"]
        names += ["log_ratio_max", *(["kl_loss"] if LOSSES[case] else [])]
        for name in names:
            assert metrics[k][f"rl/{name}"] == pytest.approx(float(values[name]), rel=1e-9), name
        assert metrics[k]["optimizer/gradient_norm"] == pytest.approx(values["norm"], rel=1e-9)
        assert metrics[k]["optimizer/learning_rate"] == pytest.approx(OPTIMIZER.learning_rate * (1 - k / STEPS))


def test_ppo_microbatches_add_up_to_the_minibatch():
    (whole, metrics), (parts, own) = ppo_steps(), ppo_steps(microbatch=1)
    assert_trees_close(parts, whole, 1e-12)
    assert_trees_close(own, metrics, 1e-12)


@pytest.mark.long
def test_ppo_update_on_eight_devices_equals_one():
    (one, metrics), (eight, own) = ppo_steps(), ppo_steps(microbatch=4, shape=(4, 2))
    assert_trees_close(eight, one, 1e-9)
    assert_trees_close(own, metrics, 1e-9)


def test_the_first_update_has_ratio_one():
    _, metrics = ppo_steps(noise=0.0)
    assert metrics[0]["rl/log_ratio_max"] < 1e-13
    assert metrics[0]["rl/ratio_mean"] == pytest.approx(1, abs=1e-13)
    assert metrics[0]["rl/clip_fraction"] == 0
    assert metrics[1]["rl/log_ratio_max"] > 1e-3, "one step moves it"


def test_ppo_donates_its_state_and_not_the_experience():
    where = mesh()
    step, args = ppo.build_update(
        MODEL, PPO, where, temperature=TEMPERATURE, total_steps=STEPS, prompt=PROMPT, response=RESPONSE
    )
    compiled = step.lower(*args).compile()
    state = init_state(on_mesh(host_params(), where), make_optimizer(OPTIMIZER, STEPS), where)
    data = to_global(experience()[0], batch_shardings(experience()[0], where))
    new, _ = compiled(state, data, ROWS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, data)))
    with pytest.raises(TypeError, match="compiled"):
        compiled(new, data, ROWS[:4])


# GRPO and RLOO: the rows are two samples each of four questions, the last of them filler

GROUPED = {
    "grpo": {"kl_in": "loss", "kl_estimator": "k3"},
    "grpo_unscaled": {"kl_in": "loss", "kl_estimator": "k1", "loss_aggregation": "token_mean", "scale_by_group": False},
    "rloo": {"kl_in": "reward", "kl_estimator": "k1", "loss_aggregation": "token_mean"},
    "rloo_k3": {"kl_in": "reward", "kl_estimator": "k3"},
}


def grouped(case: str, **settings: Any) -> RlConfig:
    algorithm, samples = case.split("_")[0], {"rollout_batch_size": B // 2, "samples_per_question": 2}
    return dataclasses.replace(PPO, algorithm=algorithm, **samples, **GROUPED[case], **settings)


def without_critic(params: Any) -> Any:
    return {"decoder": params["decoder"]}


@functools.cache
def grouped_steps(case: str, microbatch: int = B, shape=(1, 1)):
    """(experience, metrics of it, state, metrics of two updates on six of the eight rows), on the host."""
    where, sizes = mesh(*shape), {"temperature": TEMPERATURE, "prompt": PROMPT, "response": RESPONSE}
    config = grouped(case, microbatch_size=microbatch, minibatch_size=B)
    score, _ = ppo.build_experience(MODEL, config, where, **sizes)
    reference = without_critic(host_params(7, 0.1))
    given = make_rollout(), REWARDS, RIGHT
    batch = to_global(given, batch_shardings(given, where))
    data, scored = score(on_mesh(without_critic(host_params()), where), on_mesh(reference, where), *batch)
    step, _ = ppo.build_update(MODEL, config, where, **sizes, total_steps=STEPS)
    params = on_mesh(without_critic(host_params(9, 0.05)), where)
    state, metrics = init_state(params, make_optimizer(OPTIMIZER, STEPS), where), []
    for _ in range(2):
        state, new = step(state, data, ROWS)
        metrics.append(to_host(new))
    return to_host(data), to_host(scored), to_host(state), metrics


def naive_grouped(case: str):
    """Advantages of each row, and the two updates by a loss on full logits, row by row, and Adam in numpy."""
    config, sequences = grouped(case), make_rows()
    old, _ = full_log_softmax(without_critic(host_params()), sequences, TEMPERATURE)
    reference, _ = full_log_softmax(without_critic(host_params(7, 0.1)), sequences, TEMPERATURE)
    old, reference = ([chosen(np.asarray(table), sequences, i) for i in range(B)] for table in (old, reference))
    estimate = {"k1": lambda p, q: p - q, "k3": lambda p, q: jnp.exp(q - p) - 1 - (q - p)}[config.kl_estimator]
    total = np.array(REWARDS)
    if config.kl_in == "reward":
        total = total - config.kl_coef * np.array([float(np.sum(estimate(p, q))) for p, q in zip(old, reference)])
    advantages = np.zeros(B)
    for i, j in [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]:
        advantages[i] = total[i] - total[j]
        if config.algorithm == "grpo":
            advantages[i] = total[i] - (total[i] + total[j]) / 2
            if config.scale_by_group:
                advantages[i] /= abs(total[i] - total[j]) / np.sqrt(2) + 1e-4
    asked = [i for i in range(B) if LENGTHS[i]]

    def loss(params):
        table, _ = full_log_softmax(params, sequences, TEMPERATURE)
        sums = []
        for i in asked:
            new = chosen(table, sequences, i)
            ratio = jnp.exp(new - old[i])
            clipped = jnp.clip(ratio, 1 - config.clip_range, 1 + config.clip_range)
            terms = -jnp.minimum(ratio * advantages[i], clipped * advantages[i])
            if config.kl_in == "loss":
                terms = terms + config.kl_coef * ratio * estimate(new, reference[i])
            sums.append(terms.sum() if config.loss_aggregation == "token_mean" else terms.mean())
        return sum(sums) / (sum(LENGTHS) if config.loss_aggregation == "token_mean" else len(asked))

    adam, losses = Adam(without_critic(host_params(9, 0.05))), []
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    for _ in range(2):
        value, gradient = value_and_gradient(adam.params)
        losses.append(float(value))
        adam.step(gradient)
    return advantages, adam, losses


@pytest.mark.parametrize("case", few(GROUPED, ["grpo", "rloo_k3"]))
def test_grpo_and_rloo_equal_adam_on_a_naive_loss(case):
    data, _, state, metrics = grouped_steps(case)
    advantages, adam, losses = naive_grouped(case)
    assert np.ptp(advantages) > 0.1
    np.testing.assert_allclose(data.advantages, np.where(MASK, advantages[:, None], 0), rtol=0, atol=1e-11)
    assert data.values is None
    assert data.returns is None
    if GROUPED[case]["kl_in"] == "loss":
        table, _ = full_log_softmax(without_critic(host_params(7, 0.1)), make_rows(), TEMPERATURE)
        assert_rows_close(data.reference, [chosen(np.asarray(table), make_rows(), i) for i in range(B)])
    else:
        assert data.reference is None
    assert_trees_close(state.params, adam.params, 1e-10)
    assert [m["rl/total_loss"] for m in metrics] == pytest.approx(losses, rel=1e-10)
    assert metrics[0]["rl/clip_fraction"] > 0, "the case must clip some ratios"


@pytest.mark.ci
@pytest.mark.parametrize("case", ["grpo_unscaled", "rloo"])
def test_grpo_and_rloo_do_not_depend_on_microbatches_or_devices(case):
    one = grouped_steps(case)
    for other in (grouped_steps(case, 1), grouped_steps(case, 4, (4, 2))):
        np.testing.assert_allclose(other[0].advantages, one[0].advantages, rtol=0, atol=1e-12)
        for got, expected in zip(other[1:], one[1:]):
            assert_trees_close(got, expected, 1e-9)


# Online self-training

CORRECT = np.array([True, False, True, True, False, False, False, False])
GOLD_PROMPTS = np.array([2, 4, 1, 3, 1, 1, 1, 1], np.int32)
GOLD_RESPONSES = np.array([3, 5, 4, 0, 2, 1, 0, 0], np.int32)  # the fourth annotation was dropped


def make_lesson(correct: np.ndarray = CORRECT, gold: bool = True) -> self_training.SelfTrainingBatch:
    rng = np.random.default_rng(3)
    tokens, responses = np.zeros((B, 9), np.int32), np.zeros((B, 5), np.int32)
    for i, (p, r) in enumerate(zip(GOLD_PROMPTS, GOLD_RESPONSES)):
        tokens[i, : p + r] = rng.integers(0, VOCAB, p + r)
        responses[i, :r] = tokens[i, p : p + r]
    rows = Sequences(tokens, GOLD_PROMPTS, responses, GOLD_RESPONSES)
    return self_training.SelfTrainingBatch(sampled=make_rows(), correct=correct, gold=rows if gold else None)


def taught(lesson: self_training.SelfTrainingBatch, microbatch: int = B, shape=(1, 1), gold_weight: float = 0.25):
    """(state, metrics) after one update on all rows."""
    where, weight = mesh(*shape), dataclasses.replace(PPO.self_training, gold_weight=gold_weight)
    config = dataclasses.replace(PPO, algorithm="self_training", self_training=weight, microbatch_size=microbatch)
    sizes = {"prompt": PROMPT, "response": RESPONSE, "gold": (4, 5) if lesson.gold else None}
    step, _ = self_training.build_update(MODEL, config, where, total_steps=STEPS, **sizes)
    state = init_state(on_mesh(without_critic(host_params()), where), make_optimizer(OPTIMIZER, STEPS), where)
    return to_host(step(state, to_global(lesson, batch_shardings(lesson, where)), ROWS))


def naive_lesson(lesson: self_training.SelfTrainingBatch, gold_weight: float):
    """One update by token means over rows picked by hand, and Adam in numpy: (Adam, loss)."""

    def mean(params, rows, picked):
        table, _ = full_log_softmax(params, rows, 1.0)
        total = 0.0
        for i in picked:
            p, r = rows.prompt_lengths[i], rows.response_lengths[i]
            total -= jnp.sum(table[i, np.arange(p - 1, p + r - 1), rows.tokens[i, p : p + r]])
        return total / max(1, sum(int(rows.response_lengths[i]) for i in picked))

    def loss(params):
        own = mean(params, lesson.sampled, np.flatnonzero(lesson.correct))
        gold = mean(params, lesson.gold, range(B)) if lesson.gold else 0.0
        return (1 - gold_weight) * own + gold_weight * gold

    adam = Adam(without_critic(host_params()))
    value, gradient = jax.jit(jax.value_and_grad(loss))(adam.params)
    adam.step(gradient)
    return adam, float(value)


@pytest.mark.parametrize(
    ("correct", "gold_weight"), [(CORRECT, 0.25), (CORRECT, 0.0), (np.zeros(B, bool), 0.5)], ids=str
)
def test_self_training_equals_adam_on_a_naive_loss(correct, gold_weight):
    lesson = make_lesson(correct, gold=gold_weight > 0)
    state, metrics = taught(lesson, gold_weight=gold_weight)
    adam, loss = naive_lesson(lesson, gold_weight)
    assert_trees_close(state.params, adam.params, 1e-10)
    assert metrics["rl/total_loss"] == pytest.approx(loss, rel=1e-12)
    assert ("rl/gold_loss" in metrics) == (gold_weight > 0)


@pytest.mark.ci
@pytest.mark.parametrize("gold", [True, False])
def test_self_training_does_not_depend_on_microbatches_or_devices(gold):
    lesson = functools.partial(make_lesson, gold=gold)
    one = taught(lesson())
    for other in (taught(lesson(), 1), taught(lesson(), 4, (4, 2))):
        for state_or_metrics in (other, one):
            state_or_metrics[1].pop("throughput/padding_share", None)
        for got, expected in zip(other, one):
            assert_trees_close(got, expected, 1e-9)


@pytest.mark.ci
def test_self_training_computes_no_wrong_completions_where_annotations_do_not_count(monkeypatch):
    computed: list[int] = []

    def recorded(policy, params, sequences, *others):
        jax.debug.callback(lambda lengths: computed.extend(lengths), sequences.response_lengths)
        return score_responses(policy, params, sequences, *others)

    monkeypatch.setattr(self_training, "score_responses", recorded)
    taught(make_lesson(gold=False), 1)
    jax.effects_barrier()
    assert sorted(computed) == sorted(int(n) for n in RESPONSE_LENGTHS[CORRECT])


# Self-checks


def test_checks_pass_on_a_sound_start():
    data, metrics = experience(reference_noise=0.0)
    assert metrics["rl/kl_max"] < 1e-13
    self_checks.check_experience(data, metrics, data, from_reference=True, tolerance=2e-3)
    self_checks.check_first_update(ppo_steps(noise=0.0)[1][0], tolerance=1e-12)


def test_checks_name_what_is_broken():
    data, metrics = experience(reference_noise=0.0)
    check = functools.partial(self_checks.check_experience, from_reference=True, tolerance=2e-3)
    other_reference = experience(reference_noise=0.1)
    with pytest.raises(RuntimeError, match=r"equals its reference and yet their KL is not 0: \d\.\d+ nats"):
        check(*other_reference, other_reference[0])
    check(*other_reference, other_reference[0], from_reference=False)
    with pytest.raises(RuntimeError, match=r"sampler's log-probs differ.*more than rl.check_tolerance \(0.0002\)"):
        check(data, metrics, data, tolerance=2e-4)
    with pytest.raises(RuntimeError, match="differ"):
        check(data, {**metrics, "rl/sampler_gap": np.nan}, data)
    for name in ("log_probs", "values"):
        leaking = getattr(data, name) + np.where(np.arange(B)[:, None] == 2, 0.1, 0)
        with pytest.raises(RuntimeError, match="change with what pads the rows"):
            check(data, metrics, data.replace(**{name: leaking}))
    hidden = data.replace(values=data.values + np.where(MASK, 0, 0.1))
    check(data, metrics, hidden)  # what the mask hides may differ
    with pytest.raises(RuntimeError, match=r"ratio is not 1 before the first update.*: 0\.1 nats"):
        self_checks.check_first_update({"rl/log_ratio_mean": np.float64(0.1)}, tolerance=1e-3)


def test_other_padding_changes_all_padding_and_nothing_else():
    rollout = make_rollout()
    other = self_checks.with_other_padding(rollout)
    ends = (PROMPT_LENGTHS + RESPONSE_LENGTHS)[:, None]
    padding = np.arange(PROMPT + RESPONSE)[None] >= ends
    np.testing.assert_array_equal(np.asarray(other.sequences.tokens) != rollout.sequences.tokens, padding)
    restored = other.replace(sequences=other.sequences.replace(tokens=rollout.sequences.tokens))
    jax.tree.map(np.testing.assert_array_equal, restored, rollout)


# Learning rates


@pytest.mark.parametrize(
    ("schedule", "lr_warmup_fraction", "expected"),
    [
        ("linear", 0.0, {0: 1.0, 1: 0.95, 10: 0.5, 19: 0.05, 20: 0.0, 25: 0.0}),
        ("linear", 0.1, {0: 0.0, 1: 0.5, 2: 1.0, 3: 17 / 18, 11: 0.5, 19: 1 / 18, 20: 0.0}),
        ("constant", 0.0, {0: 1.0, 1: 1.0, 20: 1.0, 1000: 1.0}),
        ("constant", 0.2, {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 20: 1.0}),
    ],
)
def test_learning_rates(schedule, lr_warmup_fraction, expected):
    config = OptimizerConfig(learning_rate=3e-4, schedule=schedule, lr_warmup_fraction=lr_warmup_fraction)
    rates = make_schedule(config, total_steps=20)
    for step, share in expected.items():
        assert float(rates(step)) == pytest.approx(3e-4 * share, rel=1e-6, abs=1e-12), step
