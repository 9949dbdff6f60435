"""Families of Hugging Face against published models: their shapes, counts and tensors, and what is refused of them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.models.decoder import Decoder, KVCache
from reft_jax.models.hf.configs import ConfigFields
from reft_jax.models.hf.tensors import FAMILIES, TensorLayout

CONFIGS = Path(__file__).parents[1] / "configs"
PARAMETERS = {  # as published; a tied table counts once
    "codegen-350m-mono": 356_712_448,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-7b": 6_738_546_688,
    "codeparrot-small": 111_008_256,
    "galactica-125m": 124_909_056,
    "galactica-6.7b": 6_655_647_744,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "opt-125m": 125_239_296,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
}


def read(name: str, **changes) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text()) | changes


def translate(fields: dict) -> DecoderConfig:
    return FAMILIES[fields["model_type"]].config(ConfigFields(Path("config.json"), fields))


def abstract_params(decoder: DecoderConfig) -> dict:
    """Boxed shapes by path."""
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    init = lambda token: Decoder(ModelConfig(decoder=decoder)).init(jax.random.key(0), token, token)
    tree = jax.eval_shape(init, token)["params"]
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "names"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): box for path, box in leaves}


def test_every_config_is_counted():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_parameter_counts(name):
    assert sum(box.value.size for box in abstract_params(translate(read(name))).values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_tensors_have_the_names_and_shapes_of_torchs(name):
    """Both ways: a tensor too many, too few, misnamed or turned shows here."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = read(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    decoder, family = translate(fields), FAMILIES[fields["model_type"]]
    params = abstract_params(decoder)
    assert set(params) <= {stored.param for stored in family.tensors}
    ours = {}
    for stored in family.tensors:
        if stored.param in params:
            box = params[stored.param]
            sizes = dict(zip(map(str, box.names), box.value.shape))
            prefix = "" if stored.name.startswith("lm_head") else family.prefix
            for layer in range(sizes.get("layers", 1)):
                ours[prefix + stored.name.format(layer)] = stored.shape(sizes)
    assert ours == theirs
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_codegen_keeps_queries_values_and_keys_in_four_groups():
    """Counted out for 8 heads of 5: the rows of two heads' queries, of their values, of their keys, and again."""
    rows = {}
    for group in range(4):
        for name in "qvk":
            for head in (2 * group, 2 * group + 1):
                for feature in range(5):
                    rows[name, head, feature] = len(rows)
    sizes = {"heads": 8, "kv_heads": 8, "head_dim": 5, "embed": 7}
    for name in "qvk":
        stored = next(s for s in FAMILIES["codegen"].tensors if s.param == f"blocks/attn/{name}/kernel")
        expected = [[rows[name, head, feature] for feature in range(5)] for head in range(8)]
        np.testing.assert_array_equal(stored.places(sizes)[0], expected)
        np.testing.assert_array_equal(stored.places(sizes)[1], np.arange(7))
        assert stored.shape(sizes) == (120, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_that_share_a_tensor_fill_it_once(family):
    sizes = {"heads": 8, "kv_heads": 8, "head_dim": 5, "embed": 7, "mlp": 11, "table_rows": 13}
    sizes |= {"table_embed": 3, "position_rows": 2, "norm": 7}
    tensors: dict[str, list[TensorLayout]] = {}
    for stored in FAMILIES[family].tensors:
        tensors.setdefault(stored.name, []).append(stored)
    for shared in tensors.values():
        filled = np.zeros(shared[0].shape(sizes), int)
        for stored in shared:
            filled[np.ix_(*(place.ravel() for place in stored.places(sizes)))] += 1
        assert np.all(filled == 1), shared


@pytest.mark.parametrize(
    ("name", "changes", "positions"),
    [
        ("mistral-7b-v0.1", {}, 4096),
        ("mistral-7b-v0.1", {"sliding_window": None}, 32768),
        ("mistral-7b-v0.1", {"sliding_window": 65536}, 32768),
        ("qwen2.5-7b", {"sliding_window": 4096}, 131072),
        ("qwen2.5-7b", {"sliding_window": 4096, "use_sliding_window": True}, 4096),
        ("qwen3-0.6b", {"sliding_window": 1000, "use_sliding_window": True}, 1000),
    ],
)
def test_rows_stay_within_a_sliding_window(name, changes, positions):
    assert translate(read(name, **changes)).max_positions == positions


def test_a_missing_window_is_that_of_mistrals_first_model():
    fields = read("mistral-7b-v0.1")
    del fields["sliding_window"]
    assert translate(fields).max_positions == 4096


@pytest.mark.parametrize(("length", "slots"), [(9, None), (1, 9), (8, 9)])
def test_rows_longer_than_the_positions_are_refused(length, slots):
    model = Decoder(ModelConfig(decoder=DecoderConfig(vocab_size=5, max_positions=8)))

    def run(length, slots):
        tokens = jnp.zeros((1, length), jnp.int32)
        cache = None if slots is None else KVCache.empty(model.config, 1, slots)
        return model.init(jax.random.key(0), tokens, tokens, cache)

    jax.eval_shape(lambda: run(min(length, 8), slots and 8))
    with pytest.raises(ValueError, match=r"rows of 9 tokens are longer than model\.decoder\.max_positions = 8"):
        jax.eval_shape(lambda: run(length, slots))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("opt-125m", {"do_layer_norm_before": False}, ["do_layer_norm_before", "False"]),  # opt-350m
        ("opt-125m", {"word_embed_proj_dim": 512}, ["word_embed_proj_dim", "512", "768"]),  # opt-350m
        ("opt-125m", {"_remove_final_layer_norm": True}, ["_remove_final_layer_norm", "True"]),
        ("opt-125m", {"num_attention_heads": 7}, ["num_attention_heads", "7"]),
        ("galactica-125m", {"activation_function": "swish"}, ["activation_function", "'swish'"]),
        ("codegen-350m-mono", {"n_head": 2}, ["n_head", "2", "4"]),
        ("codegen-350m-mono", {"rotary_dim": 0}, ["rotary_dim", "0"]),
        ("codegen-350m-mono", {"rotary_dim": 66}, ["rotary_dim", "66", "64"]),
        ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["type", "'yarn'"]),
        ("qwen3-0.6b", {"num_key_value_heads": 3}, ["num_key_value_heads", "3", "16"]),
    ],
)
def test_decoder_configs_refuse_by_name_and_value_what_is_not_supported(name, change, words):
    with pytest.raises(ValueError) as error:
        translate(read(name, **change))
    for word in ["config.json", *words]:
        assert word in str(error.value)
