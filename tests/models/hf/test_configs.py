"""Families of Hugging Face against published models: their shapes, counts and tensors, and what is refused of them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.models.decoder import Decoder, empty_cache
from reft_jax.models.hf.configs import WITHOUT_EFFECT, ConfigFields
from reft_jax.models.hf.load import decoder_config
from reft_jax.models.hf.tensors import FAMILIES, TensorLayout

ROOT = Path(__file__).parents[3]
CONFIGS = Path(__file__).parents[1] / "configs"
STORED = sorted(path for folder in ("configs", "tests/models/golden") for path in (ROOT / folder).rglob("config.json"))
GATED = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 8,
    "vocab_size": 5,
}
SMALLEST = {  # of each family, the fields that a file must have
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "smollm3": GATED,
    "olmo2": GATED,
    "gpt2": {"n_embd": 8, "n_head": 4, "n_layer": 2, "vocab_size": 5},
    "opt": {"hidden_size": 8, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 8, "vocab_size": 5},
    "codegen": {"n_embd": 8, "n_head": 4, "n_layer": 2, "rotary_dim": 2, "vocab_size": 5},
}
ODD = {  # where 1 is no value of the field
    "architectures": ["SomethingElse"],
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "_attn_implementation_internal": "eager",
    "_experts_implementation_internal": "eager",
    "transformers_version": "1.0",
    "use_cache": False,
    "return_dict": True,  # torch's own models do not work without
    "output_hidden_states": True,
    "reorder_and_upcast_attn": True,
    "id2label": {"0": "wrong"},
    "label2id": {"wrong": 0},
    "num_labels": 1,
    "problem_type": "regression",
    "summary_use_proj": False,
    "summary_proj_to_labels": False,
    "summary_type": "mean",
    "summary_activation": "tanh",
    "cache_implementation": "static",
    "do_sample": True,
    "eos_token_id": [1, 2],
}
LEFT_OVER = {  # what files on the hub have beside the fields that the config classes of today write
    "_name_or_path": "here/model",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "_attn_implementation_autoset": True,
    "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"fp16": "float16"}},
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "max_length": 4096,
    "temperature": 0.6,
    "top_p": 0.9,
    "do_sample": True,
    "unsloth_version": "2025.1",
    "unsloth_fixed": True,
    "is_llama_config": True,
    "rope_interleaved": False,
    "use_mrope": False,
    "pretraining_tp": 2,
    "prefix": "</s>",
    "learned_embeddings": True,
    "scale_embeddings": False,
    "scale_attn_weights": True,
    "gradient_checkpointing": False,
    "activation_dropout": 0.0,
    "pruned_heads": {},
    "quantization_config": None,
    "tokenizer_class": "GPT2Tokenizer",
    "n_ctx": 1024,
    "n_special": 0,
    "predict_special_tokens": True,
    "output_past": True,
    "_num_labels": 1,
}
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


def from_file(directory: Path, fields: dict) -> DecoderConfig:
    (directory / "config.json").write_text(json.dumps(fields))
    return decoder_config(directory)


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
        cache = () if slots is None else empty_cache(model.config, 1, slots)
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


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_configs_in_this_repository_are_read(path):
    assert decoder_config(path.parent) == translate(json.loads(path.read_text()))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_configs_are_read_with_what_is_left_over_in_them(name, tmp_path):
    fields = read(name)
    assert from_file(tmp_path, {**LEFT_OVER, **fields}) == translate(fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_that_is_not_known_is_refused_unless_it_is_off(family, tmp_path):
    smallest = {"model_type": family, **SMALLEST[family]}
    from_file(tmp_path, smallest | {"logit_scale": None})
    with pytest.raises(ValueError, match=r"config\.json: logit_scale = 0\.5 is not .*delete it if it changes nothing"):
        from_file(tmp_path, smallest | {"logit_scale": 0.5})


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=4)


@given(json_values)
def test_off_is_null_false_and_what_is_empty(value):
    """0 is a value: a factor of 0 is none at all."""
    fields = ConfigFields(Path("config.json"), {"logit_scale": value, "temperature": value})
    if value is None or value is False or (isinstance(value, str | list | dict) and not value):
        fields.refuse_unread(WITHOUT_EFFECT)
    else:
        with pytest.raises(ValueError, match=r"logit_scale = .*not known here"):
            fields.refuse_unread(WITHOUT_EFFECT)


@given(json_values)
def test_a_field_is_of_the_kind_of_its_default(value):
    fields = ConfigFields(Path("config.json"), {"x": value})
    for default, kinds in ((False, bool), (1, int | float), (0.5, int | float), ("", str), ([], list), ({}, dict)):
        right = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
        if value is None or right:
            assert fields.get("x", default) == (default if value is None else value)
        else:
            with pytest.raises(ValueError, match=r"x = .* is not supported \(it must be "):
                fields.get("x", default)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_transformers_is_read_or_known_to_have_no_effect(family, tmp_path):
    """At its default it passes; no field is there of which nobody has thought."""
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family, **SMALLEST[family]).to_dict()
    from_file(tmp_path, json.loads(json.dumps(theirs, default=str)))
    fields = ConfigFields(Path("config.json"), {"model_type": family, **SMALLEST[family]})
    FAMILIES[family].config(fields)
    read_elsewhere = {"model_type"}  # `hf.load` reads it
    assert set(theirs) <= fields.seen | WITHOUT_EFFECT.keys() | read_elsewhere


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_that_a_family_reads_is_said_to_have_no_effect(family):
    fields = ConfigFields(Path("config.json"), {"model_type": family, **SMALLEST[family]})
    FAMILIES[family].config(fields)
    assert not {key for key in fields.seen if WITHOUT_EFFECT.get(key, ()) is None}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_effect_here_has_none_in_torch(family):
    """Logits of torch's model with all these fields at odd values, of the same weights."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    odd = dict.fromkeys((key for key, accepted in WITHOUT_EFFECT.items() if accepted is None), 1) | ODD
    model = lambda **fields: AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{"pad_token_id": 0, **SMALLEST[family], **fields}), dtype=torch.float32
    ).eval()
    plain, changed = model(), model(**odd)
    changed.load_state_dict(plain.state_dict())
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        torch.testing.assert_close(changed(tokens)[0], plain(tokens)[0], rtol=0, atol=1e-6)
