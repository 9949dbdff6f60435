"""What the compiled programs do on eight devices, against counts by hand: what they gather, reuse and hold.

Numbers do not show a layout that is lost: every mesh computes the same, with every weight on every device too.
"""

import functools
import math
import re
from typing import Any

import jax
import pytest

from reft_jax.algorithms import ppo, sft
from reft_jax.algorithms.rollout import Limits, SamplingParams, build_decode, build_prefill, rollout_policy
from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import DecoderConfig, ModelConfig, OptimizerConfig, RlConfig, SupervisedConfig
from reft_jax.models.params import is_stacked
from reft_jax.models.policy import Policy
from reft_jax.preflight import hlo
from tests.devices import mesh

pytestmark = pytest.mark.compiles

D, H, K, h, M, V, L = 128, 16, 8, 16, 192, 256, 3  # embed, heads, kv heads, head_dim, mlp, vocabulary, layers
KERNELS = {"q": D * H * h, "k": D * K * h, "v": D * K * h, "o": H * h * D, "gate": D * M, "up": D * M, "down": M * D}
BLOCK, TABLE, NORMS = sum(KERNELS.values()), V * D, (2 * L + 1) * D  # entries; two norms a block and one behind them
B, PROMPT, RESPONSE, DEVICES = 16, 8, 24, 8
ROWS, SAMPLED = 8, 1016  # slots, and longest responses in them
SLOT = PROMPT + SAMPLED  # positions of a slot
T = PROMPT + RESPONSE
DECODER = DecoderConfig(
    vocab_size=V,
    embed_dim=D,
    num_layers=L,
    num_heads=H,
    num_kv_heads=K,
    head_dim=h,
    rotary_dim=h,
    mlp_dim=M,
    tie_embeddings=False,
)


# Training, all devices along fsdp


@functools.cache
def trained(kind: str = "sft", remat: str = "none", microbatches: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """The compiled step on micro-batches of B rows, and its abstract arguments."""
    model, where = ModelConfig(decoder=DECODER, remat=remat), mesh(1, DEVICES, 1)
    lengths = {"prompt": PROMPT, "response": RESPONSE, "total_steps": 10}
    if kind == "sft":
        config = SupervisedConfig(batch_size=microbatches * B, microbatch_size=B)
        step, args = sft.build_step(model, config, where, **lengths)
    else:
        alone = kind == "critic_update"
        own = {"critic_warmup": 1, "critic_optimizer": OptimizerConfig()} if alone else {}
        config = RlConfig(rollout_batch_size=B, minibatch_size=B, microbatch_size=B, **own)
        step, args = ppo.build_update(model, config, where, temperature=1.0, **lengths, critic_alone=alone)
    return step.lower(*args).compile(), args


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_step_gathers_its_weights_twice_and_nothing_else(remat, microbatches):
    program, _ = trained("sft", remat, microbatches)
    found = hlo.collectives(program.as_text())
    # Each layer's kernels on the way there and on the way back, where recomputing a block needs them anyway. Tables
    # once a step: they are not in the loop over layers. (With fewer tokens than the input's table has rows, the vectors
    # that were looked up would be gathered instead.) Micro-batches are made of rows that each device has.
    gathers = found.once["all-gather"]
    assert gathers.count == microbatches * 2 * L * len(KERNELS) + 2
    assert gathers.bytes == 4 * (microbatches * 2 * L * BLOCK + 2 * TABLE)
    # The gradient of each kernel, norm and table once; then the loss, the gradient's norm and the count of tokens.
    gradients = 4 * microbatches * (L * BLOCK + NORMS + 2 * TABLE)
    assert 0 < found.once["all-reduce"].bytes - gradients < 256
    assert set(found.once) == {"all-gather", "all-reduce"}
    assert found.open_loops == 0


def test_a_block_that_is_recomputed_keeps_little():
    sizes = [trained("sft", remat)[0].memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full")]
    assert sizes[2] < sizes[0] / 2
    assert sizes[2] < sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("kind", ["sft", "update", pytest.param("critic_update", marks=pytest.mark.ci)])
def test_a_step_overwrites_all_of_its_state(kind):
    program, args = trained(kind)
    leaves = jax.tree.leaves_with_path(args[0])
    assert hlo.aliased_inputs(program.as_text()) == {f"state{jax.tree_util.keystr(path)}" for path, _ in leaves}
    shards = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for _, x in leaves]
    assert program.memory_analysis().alias_size_in_bytes == sum(shards)


def test_a_step_is_given_twelve_bytes_a_parameter_over_the_devices():
    program, _ = trained("sft")
    state = 12 * ((L * BLOCK + 2 * TABLE) // DEVICES + NORMS) + 3 * 4  # norms are whole everywhere; three counters
    batch = 4 * (B // DEVICES) * (T + RESPONSE + 2)  # tokens, responses, two lengths
    assert program.memory_analysis().argument_size_in_bytes == state + batch


# Decoding: one turn of the loop is one token of each row


@functools.cache
def sampler(weights: Any, *shape: int) -> Any:
    """The compiled decoding, `weights` in one of the layouts for sampling, or in `training`'s."""
    model, where = ModelConfig(decoder=DECODER), mesh(*shape)
    policy = Policy(model, where) if weights == "training" else rollout_policy(model, where, weights)
    step, args = build_decode(policy, ROWS, SLOT, Limits(SAMPLED, (1,)), SamplingParams(), reach=SLOT)
    return step.lower(*args).compile()


def turn(weights: str, *shape: int) -> dict[str, hlo.Traffic]:
    """Collectives of one turn."""
    found = hlo.collectives(sampler(weights, *shape).as_text())
    assert found.open_loops == 1
    return found.per_turn


@pytest.mark.parametrize("stacked", [True, False])
def test_a_token_copies_no_weights_where_each_layer_has_its_own(stacked):
    """On a CPU a kernel is read where it lies; out of a stack it is copied, which shows that this can fail."""
    policy = rollout_policy(ModelConfig(decoder=DECODER), mesh(), "auto", scan_layers=False)
    assert not is_stacked(abstract_params(policy, policy.mesh, value_head=False))
    policy = policy.clone(stacked=stacked)
    step, args = build_decode(policy, ROWS, SLOT, Limits(SAMPLED, (1,)), SamplingParams(), reach=SLOT)
    made = re.findall(rf"= f32\[(?:1,)?{D},{M}\]\S* (\w[\w-]*)\(", step.lower(*args).compile().as_text())
    assert bool({*made} - {"parameter", "get-tuple-element", "bitcast"}) == stacked


@pytest.mark.parametrize("unrolled", [True, False])
def test_scoring_copies_no_weights_where_each_layer_has_its_own(unrolled):
    """As for a token. The rows have 88 tokens together, which is no side of a kernel."""
    model = ModelConfig(decoder=DECODER, scan_layers=not unrolled)
    config = RlConfig(rollout_batch_size=8, minibatch_size=8, microbatch_size=8)
    step, args = ppo.build_experience(model, config, mesh(), temperature=1.0, prompt=7, response=4)
    assert is_stacked(args[0]) != unrolled
    made = re.findall(rf"= f32\[(?:1,)?{D},{M}\]\S* (\w[\w-]*)\(", step.lower(*args).compile().as_text())
    assert bool({*made} - {"parameter", "get-tuple-element", "bitcast"}) != unrolled


LIMIT = 4 * min(KERNELS.values()) // 4  # bytes; the smallest kernel, split over tensor=2, has twice as many


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("weights", ["sharded", "replicated"])
def test_a_token_gathers_no_weights(weights, shape):
    assert turn(weights, *shape).get("all-gather", hlo.Traffic()).bytes < LIMIT


def test_in_the_layout_of_training_a_token_would_gather_all_weights():
    """Which shows that the tests above can fail."""
    assert turn("training", 1, 8, 1)["all-gather"].bytes >= 4 * L * BLOCK


def test_copied_weights_need_no_other_device_but_to_stop_together():
    assert turn("replicated", 1, 8, 1) == {"all-reduce": hlo.Traffic(1, 1)}


def test_split_weights_add_up_each_half_of_a_block():
    """Sums [ROWS, D] over devices: the rows of the table, attention and MLP of each layer. All know when to stop."""
    assert turn("sharded", 1, 8, 1)["all-reduce"] == hlo.Traffic(2 * L + 1, (2 * L + 1) * 4 * ROWS * D)


@pytest.mark.parametrize(("weights", "shape"), [("sharded", (1, 8, 1)), ("replicated", (1, 4, 2))], ids=str)
def test_reading_prompts_gathers_no_weights_and_no_cache(weights, shape):
    """Beside sums of activations there are the states from which the first tokens are drawn, and these tokens."""
    policy = rollout_policy(ModelConfig(decoder=DECODER), mesh(*shape), weights)
    limits, sizes = Limits(SAMPLED, (1,)), {"prompts": ROWS, "rows": ROWS, "prompt": PROMPT}
    step, args = build_prefill(policy, ROWS, SLOT, limits, SamplingParams(), **sizes)
    program = step.lower(*args).compile()
    found = hlo.collectives(program.as_text())
    assert set(found.once) <= {"all-gather", "all-reduce", "all-to-all"}
    assert found.once["all-gather"].bytes < 4 * ROWS * (D + V + 8)
    assert program.memory_analysis().alias_size_in_bytes >= 2 * 4 * L * ROWS * K * SLOT * h // 8


@pytest.mark.parametrize(
    ("weights", "shape", "rows", "heads"),
    [
        ("sharded", (1, 8, 1), ROWS, K // 8),
        ("sharded", (2, 2, 2), ROWS // 2, K // 4),
        ("replicated", (1, 8, 1), ROWS // 8, K),
        ("replicated", (1, 4, 2), ROWS // 4, K // 2),
    ],
    ids=str,
)
def test_each_device_holds_an_eighth_of_one_cache(weights, shape, rows, heads):
    program = sampler(weights, *shape)
    carries = re.findall(r" = (\(.*\)) while\(", program.as_text())
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", " ".join(carries))]
    piece = (L, rows, heads, SLOT, h)
    assert {shape for shape in shapes if len(shape) == 5} == {piece}
    # Beside the cache, which is the argument's own, there are keys and values of the layer at work, and little else.
    whole = 2 * 4 * math.prod(piece)
    assert program.memory_analysis().alias_size_in_bytes >= whole
    assert program.memory_analysis().temp_size_in_bytes < (1 / L + 0.25) * whole
