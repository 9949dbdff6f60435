"""Sampling against a slow loop of whole forward passes, one a token; drawing against numpy and statistics."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from reft_jax.algorithms import rollout as sampling_module
from reft_jax.algorithms.rollout import (
    SamplingParams,
    build_layout,
    draw,
    filter_logits,
    generate,
    needs_layout,
    rollout_policy,
)
from reft_jax.algorithms.train_state import init_params
from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.data.batches import PromptBatch
from reft_jax.models.policy import Policy, call, score_responses
from reft_jax.parallel.compilation import CompiledSteps, Step
from reft_jax.parallel.sharding import batch_shardings, to_global, to_host
from tests.devices import mesh
from tests.generation import build_generate

pytestmark = pytest.mark.compiles

DECODER = DecoderConfig(
    vocab_size=19,
    vocab_multiple=8,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    mlp_dim=32,
    initializer_range=0.5,
)
MODEL = ModelConfig(decoder=DECODER)
PROMPT, RESPONSE, PAD = 6, 9, 3  # PAD is a token like any other: nothing may be read from it
SEED, STEP = 11, 4
GREEDY, SAMPLED, COOL = SamplingParams(temperature=0), SamplingParams(), SamplingParams(temperature=0.7)


@functools.cache
def params(fsdp: int = 1, tensor: int = 1, weights: str = "auto", scan_layers: bool = True):
    """The same parameters as a sampling program on that mesh takes them."""
    where = mesh(fsdp, tensor)
    trained = init_params(Policy(MODEL, where), where, jax.random.key(0), value_head=False)
    layout, _ = build_layout(MODEL, where, weights, scan_layers=scan_layers)
    return layout(trained)


def make_prompts() -> PromptBatch:
    """Eight rows: lengths from 1 to P, two samples of one problem, the last one filler."""
    rng = np.random.default_rng(2)
    lengths = np.array([6, 1, 3, 3, 5, 2, 6, 1], np.int32)
    tokens = rng.integers(0, 19, (8, PROMPT)).astype(np.int32)
    tokens[3] = tokens[2]
    tokens[np.arange(PROMPT)[None] >= lengths[:, None]] = PAD
    problem = np.array([7, 2, 9, 9, 0, 4, 1, -1], np.int32)
    return PromptBatch(tokens=tokens, lengths=lengths, problem=problem, sample=np.array([0, 0, 0, 1, 0, 0, 0, 0], "i4"))


def take(prompts: PromptBatch, rows, width: int = PROMPT) -> PromptBatch:
    """Some rows of a batch, their prompts padded to `width`."""
    picked = jax.tree.map(lambda x: x[np.asarray(rows)], prompts)
    fill = ((0, 0), (0, width - picked.tokens.shape[1]))
    return picked.replace(tokens=np.pad(picked.tokens, fill, constant_values=PAD))


@functools.cache
def program(
    batch: int,
    prompt: int,
    sampling: SamplingParams,
    eos: int,
    scan_layers: bool = False,
    shape=(1, 1, "auto"),
    samples: int = 1,
):
    step, args = build_generate(
        MODEL,
        mesh(*shape[:2]),
        batch=batch,
        prompt=prompt,
        max_new_tokens=RESPONSE,
        sampling=sampling,
        eos=eos,
        pad=PAD,
        scan_layers=scan_layers,
        weight_layout=shape[2],
        samples=samples,
    )
    return step.lower(*args).compile()


def sample(
    prompts: PromptBatch,
    sampling: SamplingParams,
    eos: int,
    seed=SEED,
    step=STEP,
    scan_layers=False,
    shape=(1, 1, "auto"),
    samples=1,
):
    run = program(*prompts.tokens.shape, sampling, eos, scan_layers, shape, samples)
    on_device = to_global(prompts, batch_shardings(prompts, mesh(*shape[:2])))
    return to_host(run(params(*shape, scan_layers), on_device, np.int32(seed), np.int32(step)))


@jax.jit
def last_logits(weights, tokens, length):
    """Logits after the first `length` of tokens [T], from a forward over the whole row without a cache."""
    policy = Policy(MODEL)
    hidden = policy.apply({"params": weights}, tokens[None], method="hidden")
    return policy.apply({"params": weights}, hidden[0, length - 1], method="logits")


def slow_row(prompts: PromptBatch, row: int, sampling: SamplingParams, eos: int) -> tuple[list[int], list[float]]:
    """One response and its log-probs in float64, one whole forward a token, one uniform number a token."""
    if prompts.problem[row] < 0:
        return [], []
    key = jax.random.fold_in(jax.random.key(SEED), STEP)
    key = jax.random.fold_in(jax.random.fold_in(key, int(prompts.problem[row])), int(prompts.sample[row]))
    text = list(prompts.tokens[row, : prompts.lengths[row]])
    response, log_probs = [], []
    while len(response) < RESPONSE and eos not in response:
        padded = np.zeros(PROMPT + RESPONSE, np.int32)
        padded[: len(text)] = text
        logits = np.asarray(last_logits(params(), padded, len(text)), np.float64)[: DECODER.vocab_size]
        logits /= sampling.temperature or 1.0
        p = np.exp(logits - logits.max())
        p /= p.sum()
        uniform = float(jax.random.uniform(jax.random.fold_in(key, len(response))))
        token = int(np.argmax(p)) if sampling.temperature == 0 else int(np.argmax(np.cumsum(p) > uniform))
        text.append(token)
        response.append(token)
        log_probs.append(np.log(p[token]))
    return response, log_probs


@functools.cache
def slow(sampling: SamplingParams, eos: int):
    prompts = make_prompts()
    return [slow_row(prompts, row, sampling, eos) for row in range(8)]


@functools.cache
def middle_token(sampling: SamplingParams) -> int:
    """A token that ends some rows in the middle and leaves others to be cut, chosen from endless responses."""
    rows = [response for response, _ in slow(sampling, -1)][:7]
    counts = {token: sum(token in row[2:-1] and token not in row[:2] for row in rows) for token in range(19)}
    return max((t for t in counts if any(t not in row for row in rows)), key=counts.__getitem__)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, COOL], ids=["greedy", "sampled", "cool"])
def test_equals_the_slow_loop(sampling):
    prompts, eos = make_prompts(), middle_token(sampling)
    expected = slow(sampling, eos)
    rollout = sample(prompts, sampling, eos)
    rows = rollout.sequences
    lengths = [len(response) for response, _ in expected]
    assert any(2 < n < RESPONSE for n in lengths), "the case needs a row that ends in the middle"
    assert any(eos not in response for response, _ in expected[:7]), "and one that is cut"
    np.testing.assert_array_equal(rows.response_lengths, lengths)
    np.testing.assert_array_equal(rollout.ended, [*(eos in response for response, _ in expected[:7]), True])
    np.testing.assert_array_equal(rows.prompt_lengths, prompts.lengths)
    for i, (response, log_probs) in enumerate(expected):
        n, start = len(response), prompts.lengths[i]
        np.testing.assert_array_equal(rows.responses[i], [*response, *[PAD] * (RESPONSE - n)])
        np.testing.assert_allclose(rollout.log_probs[i], [*log_probs, *[0.0] * (RESPONSE - n)], atol=1e-5)
        whole = [*prompts.tokens[i, :start], *response]
        np.testing.assert_array_equal(rows.tokens[i], [*whole, *[PAD] * (PROMPT + RESPONSE - len(whole))])


@pytest.mark.parametrize("sampling", [SAMPLED, COOL], ids=["sampled", "cool"])
def test_log_probs_are_those_of_the_scorer(sampling):
    rollout = sample(make_prompts(), sampling, middle_token(sampling))
    score = jax.jit(lambda weights, rows: score_responses(Policy(MODEL), weights, rows, sampling.temperature))
    scores = score(params(), rollout.sequences)
    mask = rollout.sequences.response_mask
    assert mask.sum() > 20
    np.testing.assert_allclose(rollout.log_probs[mask], scores.log_probs[mask], atol=1e-5)
    assert not rollout.log_probs[~mask].any()


@pytest.mark.parametrize(
    "shape", [(1, 1, "auto"), (2, 1, "sharded"), (8, 1, "replicated")], ids=["one", "two", "eight"]
)
def test_samples_of_a_question_share_its_prefill_where_they_lie_together(shape):
    questions = take(make_prompts(), [2, 2, 0, 0, 4, 4, 7, 7])
    prompts = questions.replace(sample=np.array([0, 1] * 4, "i4"))
    eos = middle_token(SAMPLED)
    alone, together = (sample(prompts, SAMPLED, eos, shape=shape, samples=samples) for samples in (1, 2))
    np.testing.assert_array_equal(alone.sequences.tokens, together.sequences.tokens)
    np.testing.assert_allclose(alone.log_probs, together.log_probs, atol=1e-5)
    assert np.any(together.sequences.responses[0] != together.sequences.responses[1])
    flops = [program(8, PROMPT, SAMPLED, eos, False, shape, samples).cost_analysis()["flops"] for samples in (1, 2)]
    assert (flops[1] < 0.8 * flops[0]) == (shape[0] * shape[1] < 8), "eight devices have a row each"


def test_samples_differ_by_seed_step_problem_and_sample():
    prompts = take(make_prompts(), [2, 2, 2])
    prompts = prompts.replace(problem=np.array([9, 9, 8], "i4"), sample=np.array([0, 1, 0], "i4"))
    draws = [sample(prompts, SAMPLED, -1, *at).sequences.responses for at in ((SEED, STEP), (SEED, 5), (12, STEP))]
    rows = {tuple(row) for responses in draws for row in responses}
    assert len(rows) == 9


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_its_batch_place_or_padding(sampling):
    prompts, eos = make_prompts(), middle_token(sampling)
    together = sample(prompts, sampling, eos)
    moved = sample(take(prompts, [4, 7, 0, 6, 5, 3, 1, 2], width=PROMPT + 5), sampling, eos)
    places = {0: 2, 1: 6, 2: 7, 3: 5, 4: 0, 5: 4, 6: 3}
    for row, place in places.items():
        alone = sample(take(prompts, [row], width=PROMPT + 2), sampling, eos)
        for other, at in ((alone, 0), (moved, place)):
            np.testing.assert_array_equal(together.sequences.responses[row], other.sequences.responses[at])
            np.testing.assert_allclose(together.log_probs[row], other.log_probs[at], atol=1e-5)
            assert together.ended[row] == other.ended[at]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "kwargs",
    [{"scan_layers": True}, *({"shape": shape} for shape in ((2, 1, "sharded"), (4, 2, "replicated"), (4, 2, "auto")))],
    ids=["scanned", "sharded", "replicated", "auto"],
)
def test_layers_scanned_or_split_over_devices_draw_the_same(sampling, kwargs):
    prompts, eos = make_prompts(), middle_token(sampling)
    one, other = sample(prompts, sampling, eos), sample(prompts, sampling, eos, **kwargs)
    np.testing.assert_array_equal(one.sequences.tokens, other.sequences.tokens)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_weights_in_the_compute_type_draw_the_same_bits():
    """They are cast where they are used anyway; norms and the output's bias are used wider, and stay."""
    d = dataclasses.replace(DECODER, num_kv_heads=4, lm_head_bias=True, qkv_bias=True, mlp_bias=True, norm="layer")
    model, where = ModelConfig(decoder=d, dtype="bfloat16"), mesh()
    shapes = init_params(Policy(model, where), where, jax.random.key(1), value_head=False)
    rng = np.random.default_rng(0)  # biases too, with digits that bfloat16 has not
    trained = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.4), x.dtype), shapes)
    build, _ = build_layout(model, where, "auto")
    sampled = build(trained)
    kept = {jax.tree_util.keystr(k) for k, x in jax.tree.leaves_with_path(sampled) if x.dtype == jnp.float32}
    assert kept == {jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(sampled) if "norm" in str(k[-2])} | {
        "['decoder']['lm_head_bias']"
    }
    draws = functools.partial(
        generate, max_new_tokens=RESPONSE, sampling=SAMPLED, eos=5, pad=PAD, step=jnp.int32(0), seed=jnp.int32(1)
    )
    run = jax.jit(lambda params, prompts: draws(Policy(model, where), params, prompts))
    one, other = run(trained, make_prompts()), run(sampled, make_prompts())
    chex.assert_trees_all_equal(one, other)


def test_where_nothing_would_change_no_second_copy_is_made():
    assert not needs_layout(MODEL, mesh(), "auto")
    assert needs_layout(MODEL, mesh(), "auto", scan_layers=False), "a CPU wants each layer by itself"
    assert not needs_layout(MODEL, mesh(1, 2), "sharded"), "one tensor axis: training's layout already is sampling's"
    assert needs_layout(MODEL, mesh(2, 1), "replicated")
    assert needs_layout(dataclasses.replace(MODEL, dtype="bfloat16"), mesh(), "auto")


def test_heads_that_do_not_split_are_refused_by_name_or_copied():
    with pytest.raises(ValueError, match=r"blocks/attn/k/kernel: its kv_heads dimension of 2.*8 shards.*`replicated`"):
        build_layout(MODEL, mesh(4, 2), "sharded")
    assert rollout_policy(MODEL, mesh(4, 2), "auto").layout == "replicated"
    assert rollout_policy(MODEL, mesh(2, 1), "auto").layout == "sharded"


@dataclasses.dataclass(frozen=True)
class CountingPolicy:
    """A policy that also counts, at run time, how often its layers run."""

    policy: Policy
    steps: list[int]
    config = property(lambda self: self.policy.config)
    layout = property(lambda self: self.policy.layout)
    mesh = None

    def apply(self, variables, *args, method):
        if method == "step":
            jax.debug.callback(lambda: self.steps.append(args[0].shape[1]))
        return self.policy.apply(variables, *args, method=method)


def test_stops_when_the_last_row_has_ended():
    prompts, eos = make_prompts(), middle_token(GREEDY)
    lengths = [len(response) for response, _ in slow(GREEDY, eos)]
    ending = [row for row in range(8) if lengths[row] < RESPONSE]
    counting = CountingPolicy(Policy(MODEL), [])
    call = functools.partial(generate, counting, max_new_tokens=RESPONSE, sampling=GREEDY, eos=eos, pad=PAD)
    jax.block_until_ready(jax.jit(call)(params(), take(prompts, ending), SEED, STEP))
    jax.effects_barrier()
    longest = max(lengths[row] for row in ending)
    assert 2 < longest < RESPONSE
    assert counting.steps == [PROMPT] + [1] * (longest - 1)


def test_each_of_several_end_tokens_ends_a_response():
    """A row with two end tokens is the shorter of its rows with one."""
    prompts, first = make_prompts(), middle_token(GREEDY)
    free = [response for response, _ in slow(GREEDY, -1)]
    second = next(token for row in free for token in row[1:] if token != first and first not in row)
    alone = [sample(prompts, GREEDY, eos).sequences.response_lengths for eos in (first, second)]
    both = sample(prompts, GREEDY, (first, second))
    np.testing.assert_array_equal(both.sequences.response_lengths, np.minimum(*alone))
    assert np.any(both.sequences.response_lengths < alone[0])
    assert np.any(both.sequences.response_lengths < alone[1])
    lasts = [
        row[length - 1] for row, length in zip(both.sequences.responses, both.sequences.response_lengths) if length
    ]
    assert {first, second} <= set(lasts)


def test_ids_without_a_token_are_never_drawn_and_have_no_share_in_log_probs():
    """Drawn and scored by the softmax over the other ids alone, here in numpy over the logits of the whole table."""
    unused = ((0, 3), (6, 8), (11, 19))
    used = np.array([i for i in range(19) if not any(first <= i < stop for first, stop in unused)])
    policy = Policy(dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, unused_ids=unused)))
    draws = jax.jit(lambda *args: generate(policy, *args, max_new_tokens=RESPONSE, sampling=SAMPLED, eos=5, pad=PAD))
    rollout = to_host(draws(params(), make_prompts(), SEED, STEP))
    rows = rollout.sequences
    assert set(np.unique(rows.responses[rows.response_mask])) <= {*used}
    assert len(np.unique(rows.responses[rows.response_mask])) == len(used), "each is drawn"
    scored = np.asarray(jax.jit(lambda p, s: score_responses(policy, p, s).log_probs)(params(), rows))
    whole = Policy(MODEL)
    hidden = call(whole, params(), rows.tokens, method="hidden")
    logits = np.asarray(call(whole, params(), hidden, method="logits"), np.float64)
    for i, (start, length) in enumerate(zip(rows.prompt_lengths, rows.response_lengths)):
        left = logits[i, start - 1 : start - 1 + length][:, used]
        share = np.exp(left) / np.exp(left).sum(-1, keepdims=True)
        drawn = np.searchsorted(used, rows.responses[i, :length])
        expected = np.log(share[np.arange(length), drawn])
        np.testing.assert_allclose(scored[i, :length], expected, atol=1e-5)
        np.testing.assert_allclose(rollout.log_probs[i, :length], expected, atol=1e-5)


def test_one_compilation_serves_all_calls():
    chex.clear_trace_counter()
    prompts = make_prompts()

    def call(*args):
        return generate(Policy(MODEL), *args, max_new_tokens=2, sampling=SAMPLED, eos=0, pad=PAD)

    counted = jax.jit(chex.assert_max_traces(call, n=1))
    for k in range(3):
        counted(params(), take(prompts, np.roll(np.arange(8), k)), jnp.int32(k), jnp.int32(-k))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        counted(params(), take(prompts, [0, 1]), jnp.int32(0), jnp.int32(0))


def test_steps_compile_once_a_bucket_and_only_for_those_that_there_are():
    built = []

    def build(width: int):
        built.append(width)
        return jax.jit(lambda x: x + width), (jax.ShapeDtypeStruct((width,), jnp.float32),)

    compiled = CompiledSteps({"add": Step(build, ((3,), (5,)))})
    for width in (3, 5, 3, 5, 3):
        np.testing.assert_array_equal(compiled.get("add", width)(np.zeros(width, np.float32)), np.full(width, width))
    assert built == [3, 5]
    assert len(compiled) == 2
    with pytest.raises(TypeError, match="compiled"):
        compiled.get("add", 3)(np.zeros(5, np.float32))
    with pytest.raises(RuntimeError, match=r"step add was asked for bucket \(7,\); the config has \(\(3,\), \(5,\)\)"):
        compiled.get("add", 7)
    with pytest.raises(KeyError, match="subtract"):
        compiled.get("subtract", 3)


def hidden_and_spread_logits() -> np.ndarray:
    """[12] logits, of which the first, the last and some between have no probability at all."""
    logits = np.random.default_rng(5).normal(size=12).astype(np.float32)
    logits[[0, 4, 5, 9]] = np.finfo(np.float32).min
    logits[11] = -np.inf
    return logits


def test_draw_has_the_frequencies_of_the_softmax():
    logits, n = hidden_and_spread_logits(), 40_000
    keys = jax.random.split(jax.random.key(3), n)
    tokens, log_probs = jax.jit(lambda x, k: draw(x, k, COOL))(jnp.broadcast_to(logits, (n, 12)), keys)
    p = np.exp(logits.astype(np.float64) / COOL.temperature)
    p /= p.sum()
    counts = np.bincount(tokens, minlength=12)
    assert not counts[p == 0].any()
    assert stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 0.01
    np.testing.assert_allclose(log_probs, np.log(p[np.asarray(tokens)]), atol=1e-5)


@pytest.mark.parametrize("size", [33, 512, 1000])
def test_draw_never_takes_a_token_without_probability(monkeypatch, size):
    """Every uniform number in the neighbourhood of every boundary between tokens, and both ends of the interval."""
    rng = np.random.default_rng(size)
    logits = rng.normal(size=size).astype(np.float32) * 3
    logits[rng.random(size) < 0.6] = np.finfo(np.float32).min
    logits[-size // 4 :] = np.finfo(np.float32).min
    cumulative = np.cumsum(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    spread = np.arange(-24, 25)[None] * 2.0**-25
    uniforms = np.clip(cumulative[:, None] + spread, 0, 1 - 2.0**-24).astype(np.float32).ravel()
    monkeypatch.setattr(jax.random, "uniform", lambda key, **_: key)
    for name in ("draw", "_invert"):  # unchecked, for their keys are the numbers themselves
        monkeypatch.setattr(sampling_module, name, inspect.unwrap(getattr(sampling_module, name)))
    draw_with = lambda u: sampling_module.draw(jnp.asarray(logits)[None], u[None], SAMPLED)
    tokens, log_probs = jax.vmap(draw_with)(jnp.asarray(uniforms))
    assert logits[np.asarray(tokens)].min() > -1e30
    assert np.asarray(log_probs).min() > -1e3
    assert set(np.unique(tokens)) == set(np.flatnonzero(logits > -1e30)), "every other token is drawn somewhere"


def kept(logits: np.ndarray, sampling: SamplingParams) -> tuple[set[int], np.ndarray]:
    """Tokens that may be drawn and their probabilities, in float64, by walking down from the most likely one."""
    p = np.exp(logits.astype(np.float64) / sampling.temperature)
    order = np.argsort(-p)[: sampling.top_k or None]
    p = np.where(np.isin(np.arange(p.size), order), p, 0)
    p /= p.sum()
    chosen, reached = set(), 0.0
    for token in order:
        if reached >= sampling.top_p:
            break
        chosen.add(int(token))
        reached += p[token]
    p = np.where(np.isin(np.arange(p.size), list(chosen)), p, 0)
    return chosen, p / p.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (10**6, 1.0), (0, 0.9), (0, 0.3), (0, 1e-6), (6, 0.7)]
)
def test_filtering_keeps_what_numpy_keeps(temperature, top_k, top_p):
    sampling = SamplingParams(temperature, top_k, top_p)
    logits = np.random.default_rng(8).normal(size=(6, 29)).astype(np.float32) * 2
    filtered = np.asarray(jax.nn.softmax(filter_logits(jnp.asarray(logits), sampling), axis=-1))
    for row, probabilities in zip(logits, filtered):
        chosen, p = kept(row, sampling)
        assert set(np.flatnonzero(probabilities)) == chosen
        np.testing.assert_allclose(probabilities, p, atol=1e-6)
