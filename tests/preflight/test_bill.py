"""The estimate of time: the compiler's count of operations, the one card that was measured, and sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from reft_jax.config import Config, DecoderConfig, GenerationConfig, ModelConfig, RlConfig, SftConfig
from reft_jax.models.policy import Policy, call
from reft_jax.preflight.bill import Lengths, bill, forward, lines
from reft_jax.preflight.devices import parse_target

SMOLLM2 = DecoderConfig(
    vocab_size=49152,
    embed_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    mlp_dim=1536,
    max_positions=8192,
)
CARD = Config(
    model=ModelConfig(decoder=SMOLLM2, remat="dots", dtype="bfloat16"),
    sft=SftConfig(schedule_epochs=0),
    rl=RlConfig(rollout_batch_size=256, minibatch_size=64, microbatch_size=64, update_epochs=2),
    generation=GenerationConfig(prompt_buckets=(288,), max_new_tokens=128),
)
"""What ran on one H200: docs/results.md, Speed."""


def planned(config: Config, slots: int, shards: int, **arguments: float) -> dict:
    return {
        "shape": dataclasses.asdict(config.model.decoder),
        "slots": slots,
        "shards": shards,
        "steps": {"decode": {"arguments": arguments}},
    }


def measured(**per_step: dict) -> dict:
    nothing = {"collectives": {}, "per_turn": {}}
    return {step: nothing | per_step.get(step, {}) for step in ("sft", "decode", "experience", "update")}


@pytest.mark.compiles
def test_operations_are_those_of_the_compiler():
    """In rows that are short beside the width, so that little is attention, which XLA counts whole."""
    d = DecoderConfig(
        vocab_size=1000,
        embed_dim=256,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rotary_dim=32,
        mlp_dim=700,
        tie_embeddings=False,
    )
    policy = Policy(ModelConfig(decoder=d, scan_layers=False))

    def scores(params, tokens):
        return call(policy, params, call(policy, params, tokens, method="hidden")[:, 5:], method="logits")

    tokens = jax.ShapeDtypeStruct((4, 12), jnp.int32)
    params = jax.eval_shape(lambda: policy.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    params = jax.tree.map(lambda x: x.value, params, is_leaf=lambda x: hasattr(x, "value"))
    counted = jax.jit(scores).lower(params, tokens).compile().cost_analysis()["flops"]
    assert forward(d, 4, Lengths(5, 7), 7) == pytest.approx(counted, rel=0.03)


def test_the_card_that_was_measured():
    """An iteration of 1.63 s: 0.79 for sampling, 0.16 for scoring, 0.63 for eight updates."""
    cache = 256 * 416 * 2 * 30 * 3 * 64 * 2
    plan = planned(CARD, 256, 1, weights=2 * 135e6, cache=cache)
    found = bill(CARD, parse_target("h200:1x1x1"), plan, measured())
    for part, seconds in (("sampling", 0.79), ("scoring", 0.16), ("updates", 0.63)):
        assert found["seconds"][part] == pytest.approx(seconds, rel=0.25), part
    assert found["iteration"] == pytest.approx(1.58, rel=0.15)
    assert found["decode_step"] == pytest.approx(6.2e-3, rel=0.1)


def test_hours_and_collectives_by_hand():
    config = dataclasses.replace(CARD, rl=dataclasses.replace(CARD.rl, epochs=10))
    plan = planned(config, 32, 8, weights=1e9, cache=1e9)
    moves = {"all-gather": {"count": 100, "bytes": 21e9}, "all-reduce": {"count": 100, "bytes": 8.0}}
    target = parse_target("a100:1x1x8")
    alone = bill(config, target, plan, measured())
    found = bill(config, target, plan, measured(update={"collectives": moves}), problems=1001)
    more = found["seconds"]["updates"] - alone["seconds"]["updates"]
    assert more == pytest.approx(8 * (21e9 / (0.7 * 300e9) + 100 * 2e-5))  # eight updates; of the second kind the least
    assert found["iterations"] == 10 * 4
    assert found["hours"] == pytest.approx(40 * found["iteration"] / 3600)
    assert found["device_hours"] == 8 * found["hours"]
    said = "\n".join(lines(found))
    assert "All 40 iterations" in said
    assert "as long as its largest bucket" in said
    half = bill(config, target, plan, measured(), mean=Lengths(144, 64))
    assert half["seconds"]["sampling"] == pytest.approx(alone["seconds"]["sampling"] / 2, rel=0.1)
    assert "rows of 144 + 64 tokens" in "\n".join(lines(half))


def test_no_bill_where_nothing_is_known():
    plan = planned(CARD, 256, 1, weights=1, cache=1)
    assert bill(CARD, parse_target("cpu:1"), plan, measured()) == {}
    assert bill(CARD, parse_target("h200:1x1x1"), plan, {"update": {"refused": "too large"}}) == {}
