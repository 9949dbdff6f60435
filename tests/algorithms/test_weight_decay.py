"""What weight decay shrinks and what it spares, written down by hand for every family and for what stands beside it."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from reft_jax.algorithms.train_state import abstract_params, make_optimizer
from reft_jax.config import DecoderConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from reft_jax.models.classifier import Classifier
from reft_jax.models.hf.configs import ConfigFields
from reft_jax.models.hf.tensors import FAMILIES
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import make_mesh

pytestmark = pytest.mark.compiles

CONFIGS = Path(__file__).parents[1] / "models" / "configs"
GOLDEN = CONFIGS.parent / "golden"
ATTENTION = {f"blocks/attn/{name}/kernel" for name in "qkvo"}
GATED = {"embed", *ATTENTION, *(f"blocks/mlp/{name}/kernel" for name in ("gate", "up", "down"))}
PLAIN = {"embed", *ATTENTION, *(f"blocks/mlp/{name}/kernel" for name in ("up", "down"))}
RMS_NORMS = {"blocks/attn_norm/scale", "blocks/mlp_norm/scale", "final_norm/scale"}
LAYER_NORMS = RMS_NORMS | {"blocks/attn_norm/bias", "blocks/mlp_norm/bias", "final_norm/bias"}
QKV_BIASES = {f"blocks/attn/{name}/bias" for name in "qkv"}
MLP_BIASES = {f"blocks/mlp/{name}/bias" for name in ("up", "down")}
BIASES = {*QKV_BIASES, "blocks/attn/o/bias", *MLP_BIASES}
QK_NORMS = {"blocks/attn/q_norm/scale", "blocks/attn/k_norm/scale"}
FAMILY = {  # a model of each: (what is decayed, what is not)
    "codellama-7b": (GATED | {"lm_head"}, RMS_NORMS),
    "llama-3.2-1b": (GATED, RMS_NORMS),
    "mistral-7b-v0.1": (GATED | {"lm_head"}, RMS_NORMS),
    "qwen2.5-7b": (GATED | {"lm_head"}, RMS_NORMS | QKV_BIASES),
    "qwen3-0.6b": (GATED, RMS_NORMS | QK_NORMS),
    "codeparrot-small": (PLAIN | {"position_embed"}, LAYER_NORMS | BIASES),
    "opt-125m": (PLAIN | {"position_embed"}, LAYER_NORMS | BIASES),
    "galactica-125m": (PLAIN | {"position_embed"}, set()),  # no biases, and norms without parameters
    "codegen-350m-mono": (
        PLAIN | {"lm_head"},
        LAYER_NORMS - {"blocks/mlp_norm/scale", "blocks/mlp_norm/bias"} | MLP_BIASES | {"lm_head_bias"},
    ),
    "smollm3": (GATED, RMS_NORMS),
    "olmo2": (GATED | {"lm_head"}, RMS_NORMS | QK_NORMS),
}


def fields_of(name: str) -> dict:
    """Of a published model, else of a golden one."""
    published = CONFIGS / f"{name}.json"
    return json.loads((published if published.exists() else GOLDEN / name / "config.json").read_text())


def read(name: str) -> ModelConfig:
    fields = fields_of(name)
    return ModelConfig(decoder=FAMILIES[fields["model_type"]].config(ConfigFields(Path("config.json"), fields)))


def decayed(model: Policy | Classifier, *, value_head: bool) -> tuple[set[str], set[str]]:
    """Paths of the parameters that a step without a gradient shrinks, and of those that it leaves alone."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    params = jax.tree.map(lambda _: jnp.ones(()), abstract_params(model, mesh, value_head=value_head))
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.5, lr_warmup_fraction=0.0, schedule="constant")
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {float(x) for x in jax.tree.leaves(updates)} <= {0.0, -0.5}
    shrunk = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(x)
        for path, x in jax.tree.leaves_with_path(updates)
    }
    return {name for name, found in shrunk.items() if found}, {name for name, found in shrunk.items() if not found}


def test_every_family_is_here():
    named = {fields_of(name)["model_type"] for name in FAMILY}
    assert named == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILY)
def test_weights_are_decayed_and_biases_and_norms_are_not(name):
    expected = tuple({f"decoder/{path}" for path in paths} for paths in FAMILY[name])
    assert decayed(Policy(read(name)), value_head=False) == expected


def test_heads_and_adapters_are_weights_too():
    model = ModelConfig(decoder=DecoderConfig(vocab_size=8), lora=LoraConfig(rank=2, targets=("q",)))
    shrunk, spared = decayed(Policy(model, separate_critic=True), value_head=True)
    beside = lambda paths: {path for path in paths if not path.startswith(("decoder/", "critic/"))}
    assert beside(shrunk) == {"value_head/kernel", "lora/blocks/attn/q_lora/a", "lora/blocks/attn/q_lora/b"}
    assert beside(spared) == {"value_head/bias"}
    own = lambda paths, part: {path.removeprefix(part) for path in paths if path.startswith(part)}
    assert own(shrunk, "critic/") == own(shrunk, "decoder/")
    shrunk, spared = decayed(Classifier(dataclasses.replace(model, lora=LoraConfig())), value_head=False)
    assert beside(shrunk) == {"class_head/kernel"}
    assert not beside(spared)
