"""Hugging Face directories: configs translated or refused, weights laid out, cut and cast, damage named."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from reft_jax.config import DecoderConfig, LoraConfig, MeshConfig, ModelConfig, load_config, to_dict
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf import load as hf
from reft_jax.models.hf.load import (
    decoder_config,
    end_tokens,
    load_decoder_params,
    require_model,
    require_weights,
    resolve,
    resolve_model,
)
from reft_jax.parallel.sharding import make_mesh, param_shardings
from tests.models.test_parity import CASES, FAMILIES, NEXT
from tests.tiers import few

pytestmark = pytest.mark.compiles

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMA_31 = {  # meta-llama/Llama-3.1-8B, as it stands on the hub
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
UNSCALED = LLAMA_31 | {"rope_scaling": None}
GPT2 = {  # openai-community/gpt2
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


def write_config(directory: Path, fields: dict) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def abstract_params(decoder: DecoderConfig):
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(ModelConfig(decoder=decoder)).init, jax.random.key(0), token, token)["params"]


def load(directory: Path, shardings=None, multiple: int = 1, **kwargs) -> dict:
    decoder = dataclasses.replace(decoder_config(directory), vocab_multiple=multiple)
    return load_decoder_params(directory, ModelConfig(decoder=decoder, **kwargs), shardings)


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden model's directory, to be damaged."""
    return lambda case: Path(shutil.copytree(GOLDEN / case, tmp_path / case, dirs_exist_ok=True))


def test_published_configs_have_their_published_parameter_counts(tmp_path):
    count = lambda fields: sum(
        x.size for x in jax.tree.leaves(abstract_params(decoder_config(write_config(tmp_path, fields))))
    )
    assert count(LLAMA_31) == 8_030_261_248
    assert count(GPT2) == 124_439_808


def test_rotary_fields_mean_the_same_in_both_spellings(tmp_path):
    old = decoder_config(write_config(tmp_path, LLAMA_31))
    rope = LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0}
    rest = {k: v for k, v in LLAMA_31.items() if k not in ("rope_theta", "rope_scaling")}
    assert decoder_config(write_config(tmp_path, rest | {"rope_parameters": rope})) == old
    assert (old.rope_theta, old.rope_scaling_factor, old.rope_original_positions) == (500000.0, 8.0, 8192)
    plain = {"rope_theta": 500000.0, "rope_type": "default"}
    unscaled = decoder_config(write_config(tmp_path, rest | {"rope_parameters": plain}))
    assert unscaled == decoder_config(write_config(tmp_path, LLAMA_31 | {"rope_scaling": None}))
    assert unscaled.rope_scaling_factor == 1.0


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (LLAMA_31, {"model_type": "mamba"}, ["model_type", "'mamba'", "'llama'"]),
        (LLAMA_31, {"hidden_act": "mish"}, ["hidden_act", "'mish'"]),
        (LLAMA_31, {"hidden_size": None}, ["hidden_size", "missing"]),
        (LLAMA_31, {"num_key_value_heads": 5}, ["num_key_value_heads", "5"]),
        (LLAMA_31, {"sliding_window": 4096}, ["sliding_window", "4096", "131072"]),
        (LLAMA_31, {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["type", "'linear'"]),
        (UNSCALED, {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["rope_type", "'yarn'"]),
        (UNSCALED, {"rope_parameters": {"rope_type": "llama3"}}, ["factor", "missing"]),
        (UNSCALED, {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
        (UNSCALED, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        (UNSCALED, {"rope_parameters": {"factor": 8.0}}, ["rope_parameters.factor", "8.0", "delete it"]),
        (UNSCALED, {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, ["rope_parameters", "full_attention"]),
        (LLAMA_31, {"rope_parameters": {"rope_theta": 5e5}}, ["rope_scaling", "rope_parameters say something else"]),
        (LLAMA_31, {"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding_attention"]),
        (LLAMA_31, {"layer_types": "full_attention"}, ["layer_types", "a list"]),
        (LLAMA_31, {"tie_word_embeddings": "false"}, ["tie_word_embeddings", "'false'", "true or false"]),
        (LLAMA_31, {"hidden_size": "4096"}, ["hidden_size", "'4096'", "a number"]),
        (LLAMA_31, {"head_dim": True}, ["head_dim", "True", "a number"]),
        (LLAMA_31, {"model_type": ["llama"]}, ["model_type", "a string"]),
        (LLAMA_31, {"quantization_config": {"bits": 4}}, ["quantization_config", "4"]),
        (GPT2, {"activation_function": "mish"}, ["activation_function", "'mish'"]),
        (GPT2, {"add_cross_attention": True}, ["add_cross_attention", "True"]),
        (GPT2, {"n_head": 7}, ["n_head", "7"]),
    ],
)
def test_loading_refuses_by_name_and_value_what_is_not_supported(base, change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        decoder_config(write_config(tmp_path, base | change))
    for word in ["config.json", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gemma3_text", "phi3"])
def test_another_family_is_refused_by_name_with_those_that_work(family, tmp_path):
    path = write_config(tmp_path, {"model_type": family})
    with pytest.raises(ValueError, match=rf"config\.json: model_type = '{family}' is not supported \(.*'qwen3'.*\)"):
        decoder_config(path)


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        decoder_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        decoder_config(tmp_path)


def test_kernels_have_the_inputs_first():
    """Against the definition of torch's Linear, y = W x, and of GPT-2's Conv1D, y = x W with q, k, v side by side."""
    rng = np.random.default_rng(0)
    x, heads = rng.normal(size=24), rng.normal(size=(6, 8))
    llama = {k: v for path in (GOLDEN / "llama").glob("*.safetensors") for k, v in load_file(path).items()}
    attn = load(GOLDEN / "llama")["blocks"]["attn"]
    key = llama["model.layers.1.self_attn.k_proj.weight"] @ x
    np.testing.assert_allclose(np.einsum("d,dkh->kh", x, attn["k"]["kernel"][1]), key.reshape(2, 8), atol=1e-12)
    out = llama["model.layers.0.self_attn.o_proj.weight"] @ heads.ravel()
    np.testing.assert_allclose(np.einsum("nh,nhd->d", heads, attn["o"]["kernel"][0]), out, atol=1e-12)

    attn = load(GOLDEN / "gpt2")["blocks"]["attn"]
    fused = x @ load_file(GOLDEN / "gpt2" / "model.safetensors")["transformer.h.1.attn.c_attn.weight"]
    for name, expected in zip("qkv", np.split(fused, 3)):
        actual = np.einsum("d,dnh->nh", x, attn[name]["kernel"][1])
        np.testing.assert_allclose(actual, expected.reshape(4, 6), atol=1e-12)


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_loaded_trees_are_those_of_init(case):
    expected = abstract_params(decoder_config(GOLDEN / case))
    unboxed = jax.tree.map(lambda b: b.value, expected, is_leaf=lambda x: hasattr(x, "names"))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert describe(load(GOLDEN / case)) == describe(unboxed)


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_a_mesh_gets_the_same_values_in_the_shardings_asked_for(case):
    whole = load(GOLDEN / case, multiple=8)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices())
    decoder = dataclasses.replace(decoder_config(GOLDEN / case), vocab_multiple=8)
    shardings = param_shardings(abstract_params(decoder), mesh)
    split = load(GOLDEN / case, shardings, multiple=8)
    assert jax.tree.map(lambda x: x.sharding, split) == shardings
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(split)} == {8}
    assert split["embed"].addressable_shards[0].data.shape == (8, decoder.embed_dim)


def test_pieces_that_do_not_stand_together_in_the_file_are_put_together():
    """A head's features split over devices: rows of the tensor that are apart."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices())
    spec = {4: PartitionSpec(None, None, None, "tensor")}
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, spec.get(x.ndim, PartitionSpec())), load(GOLDEN / "gpt2"))
    split = load(GOLDEN / "gpt2", shardings)
    assert split["blocks"]["attn"]["q"]["kernel"].addressable_shards[0].data.shape == (2, 24, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, split, load(GOLDEN / "gpt2"))


def test_a_device_reads_only_its_part(monkeypatch):
    """Entries read from the files are as many as entries on devices, where nothing is replicated."""
    read = []

    def counting(self, shape, index):
        piece = original(self, shape, index)
        read.append(piece.size)
        return piece

    original = hf.FileTensor.read
    monkeypatch.setattr(hf.FileTensor, "read", counting)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices())
    decoder = dataclasses.replace(decoder_config(GOLDEN / "llama3"), vocab_multiple=8)
    params = load(GOLDEN / "llama3", param_shardings(abstract_params(decoder), mesh), multiple=8)
    matrices = [x for x in jax.tree.leaves(params) if x.ndim > 2] + [params["embed"]]
    norms = [x for x in jax.tree.leaves(params) if x.ndim <= 2 and x is not params["embed"]]
    padding = 3 * 24
    assert sum(read) == sum(x.size for x in matrices) - padding + sum(x.size for x in norms)


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_weights_are_held_against_their_config_without_reading_them(case, monkeypatch):
    """A config of a layer more or less, or of another width, is told by a tensor; numbers are left in the file."""
    read = []

    def counting(self, shape, index):
        read.append(original(self, shape, index))
        return read[-1]

    original = hf.FileTensor.read
    monkeypatch.setattr(hf.FileTensor, "read", counting)
    decoder = decoder_config(GOLDEN / case)
    require_weights(ModelConfig(path=str(GOLDEN / case), decoder=decoder))
    assert {array.size for array in read} == {1}
    for change in ({"num_layers": decoder.num_layers + 1}, {"num_layers": 1}, {"mlp_dim": decoder.mlp_dim + 4}):
        with pytest.raises(ValueError, match=r"tensor"):
            require_weights(ModelConfig(path=str(GOLDEN / case), decoder=dataclasses.replace(decoder, **change)))


def test_padding_rows_of_the_vocabulary_are_zero():
    for name in ("embed", "lm_head"):
        padded, plain = load(GOLDEN / "llama", multiple=64)[name], load(GOLDEN / "llama")[name]
        assert padded.shape == (64, 24)
        np.testing.assert_array_equal(padded[:61], plain)
        assert not np.any(padded[61:])


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_files_of_every_type_are_cast_to_the_parameters_type(case):
    """The files are float32, bfloat16 or float16; each is read exactly, then rounded once."""
    wide, narrow = load(GOLDEN / case), load(GOLDEN / case, param_dtype="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(narrow)} == {"bfloat16"}
    jax.tree.map(lambda n, w: np.testing.assert_array_equal(n, w.astype(jnp.bfloat16)), narrow, wide)


def test_a_bare_body_and_old_buffers_load_alike(copy):
    """Hub files of GPT-2 lack the prefix and keep causal masks; tied files may repeat the embedding as lm_head."""
    directory = copy("gpt2")
    path = directory / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(path).items()}
    buffers = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32), "lm_head.weight": tensors["wte.weight"]}
    save_file(tensors | buffers, path)
    jax.tree.map(np.testing.assert_array_equal, load(directory), load(GOLDEN / "gpt2"))


def edit(directory: Path, change) -> Path:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return directory


def test_loading_names_a_missing_or_extra_tensor(copy):
    name = "transformer.h.1.mlp.c_fc.weight"
    with pytest.raises(ValueError, match=r"gpt2: 1 tensor\(s\) missing.*h\.1\.mlp\.c_fc\.weight"):
        load(edit(copy("gpt2"), lambda t: t.pop(name)))
    with pytest.raises(ValueError, match=r"model\.safetensors: 1 tensor.*transformer\.h\.2\.mlp\.c_fc\.weight"):
        load(edit(copy("gpt2"), lambda t: t.update({name.replace("1", "2"): t[name]})))


def test_a_wrong_shape_or_type_is_named_with_its_file(copy):
    name, directory = "transformer.wpe.weight", copy("gpt2")
    where = r"model\.safetensors: tensor transformer\.wpe\.weight "
    with pytest.raises(ValueError, match=where + r".*\(39, 24\).*\(40, 24\)"):
        load(edit(directory, lambda t: t.update({name: t[name][1:]})))
    with pytest.raises(ValueError, match=where + "is I32"):
        load(edit(directory, lambda t: t.update({name: np.zeros((40, 24), np.int32)})))


def test_a_truncated_or_missing_file_is_named(copy):
    directory = copy("llama")
    path = sorted(directory.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path.name}: truncated or corrupt"):
        load(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name}: no such file"):
        load(directory)


def test_an_index_that_does_not_fit_its_files_is_named(copy):
    index = copy("llama") / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    first, last = listed["weight_map"]["model.embed_tokens.weight"], listed["weight_map"]["lm_head.weight"]
    assert first != last
    listed["weight_map"]["model.embed_tokens.weight"] = last
    index.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=rf"index\.json: tensor model\.embed_tokens\.weight should be in {last}"):
        load(index.parent)


def test_resolve_takes_directories_and_what_the_hub_cache_has(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve(str(GOLDEN / "gpt2")) == GOLDEN / "gpt2"
    with pytest.raises(
        FileNotFoundError, match=r"^model\.path: there is no folder .*hf download some/model --revision v1"
    ):
        resolve("some/model", "v1")
    with pytest.raises(FileNotFoundError, match=r"^model\.path: there is no folder my model, and it is no hub id"):
        resolve("my model")
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(GOLDEN / "gpt2", snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "v1").write_text("0" * 40)
    assert decoder_config(resolve("some/model", "v1")) == decoder_config(GOLDEN / "gpt2")


@pytest.mark.parametrize("key", ["model.path", "model.lora.path"])
@pytest.mark.parametrize("path", ["/no/such/place", "~/nothing", "./nothing", "../nothing", "runs/some/model"])
def test_a_path_that_is_no_hub_id_is_told_in_a_line(path, key):
    with pytest.raises(FileNotFoundError) as error:
        resolve(path, key=key)
    assert str(error.value) == f"{key}: there is no folder {path}"


def test_a_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", str(GOLDEN))
    assert resolve("~/gpt2") == GOLDEN / "gpt2"


@pytest.mark.parametrize(
    ("key", "files", "message"),
    [
        ("model.path", {}, "is no Hugging Face model, it has no config.json"),
        (
            "model.path",
            {"adapter_config.json": {"base_model_name_or_path": "the/base"}},
            "is a PEFT adapter: give it as model.lora.path and its base (the/base) as model.path",
        ),
        (
            "model.path",
            {"adapter_config.json": {"base_model_name_or_path": None}},
            "is a PEFT adapter: give it as model.lora.path and its base (which it does not name) as model.path",
        ),
        (
            "model.path",
            {"adapter_config.json": {}, "config.json": {}},
            "has an adapter beside the model, which transformers would apply: move its files to a folder of their own, "
            "and give that as model.lora.path if it is wanted",
        ),
        ("model.lora.path", {}, "is no PEFT adapter, it has no adapter_config.json"),
        (
            "model.lora.path",
            {"config.json": {}},
            "is no PEFT adapter, it is a whole model: give it as model.path",
        ),
    ],
)
def test_a_folder_of_something_else_says_what_it_is(key, files, message, tmp_path):
    for name, fields in files.items():
        (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(FileNotFoundError) as error:
        resolve(str(tmp_path), key=key)
    assert str(error.value) == f"{key}: {tmp_path} {message}"


def test_a_model_is_judged_by_its_files_of_settings_alone(tmp_path):
    """No weights are there yet."""
    write_config(tmp_path, LLAMA_31)
    require_model(ModelConfig(path=str(tmp_path)))
    write_config(tmp_path, LLAMA_31 | {"logit_scale": 2})
    with pytest.raises(ValueError, match="logit_scale = 2"):
        require_model(ModelConfig(path=str(tmp_path)))
    write_config(tmp_path, LLAMA_31)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    adapted = ModelConfig(path=str(tmp_path), lora=LoraConfig(path=str(adapter)))
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "init_lora_weights": "pissa"}))
    with pytest.raises(ValueError, match="init_lora_weights = 'pissa'"):
        require_model(adapted)
    require_model(adapted, adapter=False)


@pytest.mark.parametrize("case", ["gpt2", "opt", "llama3", "qwen3"])
def test_an_output_projection_beside_a_tied_embedding_must_be_the_same(case, copy, monkeypatch):
    monkeypatch.setattr(hf, "ROWS", 7)  # of 61
    name = next(name for name in load_file(copy(case) / "model.safetensors") if re.search(r"wte|embed_tokens", name))
    for row in (6, 60):
        directory = edit(copy(case), lambda t: t.update({"lm_head.weight": t[name].copy()}))
        jax.tree.map(np.testing.assert_array_equal, load(directory), load(GOLDEN / case))

        def change(tensors, row=row):
            tensors["lm_head.weight"][row, -1] += 1

        with pytest.raises(
            ValueError, match=rf"safetensors: tensor lm_head\.weight .*{name}.*tie_word_embeddings.*false"
        ):
            load(edit(directory, change))
        fields = json.loads((directory / "config.json").read_text())
        both = load(write_config(directory, fields | {"tie_word_embeddings": False}))
        np.testing.assert_array_equal(both["embed"], load(GOLDEN / case)["embed"])
        assert np.flatnonzero(np.any(both["lm_head"] != both["embed"], axis=1)).tolist() == [row]


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, {}, ()),
        (None, {"eos_token_id": 7}, (7,)),
        (None, {"eos_token_id": [7, 8]}, (7, 8)),
        ({}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": None}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": 9}, {"eos_token_id": 7}, (9, 7)),
        ({"eos_token_id": [9, 0]}, {"eos_token_id": 7}, (9, 0, 7)),
        ({"eos_token_id": [9, 7]}, {"eos_token_id": [7, 8]}, (9, 7, 8)),
    ],
)
def test_responses_end_as_the_models_own_files_say(generation, config, ends, tmp_path):
    write_config(tmp_path, {**GPT2, "vocab_size": 10, **config})
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path) == ends


def test_transformers_ends_at_the_same_tokens(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        **GPT2,
        "n_embd": 8,
        "n_head": 2,
        "n_layer": 1,
        "n_positions": 8,
        "vocab_size": 10,
        "eos_token_id": [7, 8],
    }
    with torch.device("cpu"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    write_config(tmp_path, fields)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert list(end_tokens(tmp_path)) == theirs == [7, 8]


@pytest.mark.parametrize("token", [10, -1, "7", True])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_the_embedding_lacks_is_refused(token, file, tmp_path):
    write_config(tmp_path, {**GPT2, "vocab_size": 10})
    fields = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(fields | {"eos_token_id": [7, token]}))
    with pytest.raises(ValueError, match=rf"{file}: eos_token_id names {token!r}, which is no id of the embedding"):
        end_tokens(tmp_path)


@pytest.mark.parametrize("hole", [0, 1, 5])
def test_the_highest_id_of_a_tokenizer_must_be_in_the_embedding(hole, tmp_path):
    """61 rows in the model; a tokenizer of 61 - `hole` tokens and as many ids that no token has."""
    vocabulary = {str(i): i for i in range(60 - hole)} | {"<added>": 60}
    assert resolve_model(ModelConfig(path=str(GOLDEN / "gpt2")), vocabulary).decoder.vocab_size == 61
    assert resolve_model(ModelConfig(), vocabulary).decoder.vocab_size == 61
    for model in (ModelConfig(path=str(GOLDEN / "gpt2")), ModelConfig(decoder=DecoderConfig(vocab_size=61))):
        with pytest.raises(ValueError, match="'<added>' has id 61, and the embedding has 61 tokens"):
            resolve_model(model, vocabulary | {"<added>": 61})


def test_ids_without_a_token_are_unused_but_those_that_end(tmp_path):
    write_config(tmp_path, {**GPT2, "vocab_size": 12, "eos_token_id": 9})
    vocabulary = {"a": 0, "b": 1, "c": 4, "<added>": 6}
    decoder = resolve_model(ModelConfig(path=str(tmp_path)), vocabulary).decoder
    assert (decoder.vocab_size, decoder.unused_ids) == (12, ((2, 4), (5, 6), (7, 9), (10, 12)))
    assert resolve_model(ModelConfig(), vocabulary).decoder.unused_ids == ((2, 4), (5, 6))
    assert resolve_model(ModelConfig(), {"a": 0, "b": 1}).decoder.unused_ids == ()


def test_unused_ids_survive_a_runs_file(tmp_path):
    model = resolve_model(ModelConfig(tokenizer="embedded"), {"a": 0, "b": 3, "c": 6})
    (tmp_path / "config.yaml").write_text(json.dumps({"model": to_dict(model)}))
    quickstart = Path(__file__).parents[3] / "configs/quickstart.yaml"
    files = ["--config", str(quickstart), "--config", str(tmp_path / "config.yaml")]
    read = load_config([*files, "--run_dir", str(tmp_path / "run")]).model
    assert (read, hash(read)) == (model, hash(model))


def test_a_real_tokenizers_added_tokens_count():
    from tests.data.characters import ALPHABET, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    assert resolve_model(ModelConfig(), tokenizer.get_vocab()).decoder.vocab_size == len(ALPHABET) + 3
