"""Low-rank adaptation: off it is nothing, merged it is the same, and PEFT reads and computes what we do."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import Config, LoraConfig, MeshConfig, ModelConfig
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.hf.adapters import FIELDS, load_adapters, read_settings, save_adapters
from reft_jax.models.hf.load import decoder_config, load_decoder_params, model_type
from reft_jax.models.lora import merge, split_trainable
from reft_jax.models.params import abstract_variables
from reft_jax.models.policy import Policy, call
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest
from reft_jax.parallel.sharding import make_mesh
from reft_jax.training.model import Model
from tests.models.test_parity import assert_close, torch_model
from tests.tiers import few

pytestmark = pytest.mark.compiles

GOLDEN = Path(__file__).parent / "golden"
CASES = ("llama", "gpt2", "codegen", "qwen3")
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 9))


def adapted(case: str, dtype: str = "float64", **settings) -> tuple[ModelConfig, dict]:
    """A golden model with adapters of random numbers, B included: {"decoder", "lora"}."""
    lora = LoraConfig(rank=3, alpha=7.0, **settings)
    config = ModelConfig(decoder=decoder_config(GOLDEN / case), lora=lora, dtype=dtype, param_dtype=dtype)
    shapes = abstract_variables(Policy(config), inputs=1)["lora"]["decoder"]
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)
    return config, {
        "decoder": load_decoder_params(GOLDEN / case, config),
        "lora": jax.tree.map(draw, nn.meta.unbox(shapes)),
    }


@functools.partial(jax.jit, static_argnums=0)
def logits(config: ModelConfig, params: dict) -> jax.Array:
    policy = Policy(config)
    return call(policy, params, call(policy, params, jnp.asarray(TOKENS, jnp.int32), method="hidden"), method="logits")


@pytest.mark.parametrize("case", few(CASES, ["llama"]))
def test_merged_adapters_compute_the_same_and_fresh_ones_nothing(case):
    with jax.enable_x64(True):
        config, params = adapted(case)
        base, active = logits(config, {"decoder": params["decoder"]}), logits(config, params)
        assert jnp.abs(active - base).max() > 0.1 * jnp.abs(base).max()
        np.testing.assert_allclose(logits(config, merge(params, config.lora)), active, rtol=1e-10, atol=1e-10)
        variables = nn.meta.unbox(Policy(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
        fresh = {"decoder": params["decoder"], "lora": variables["lora"]["decoder"]}
        np.testing.assert_allclose(logits(config, fresh), base, rtol=0, atol=1e-13 * jnp.abs(base).max())
        assert any(np.any(x) for x in jax.tree.leaves(fresh["lora"])), "A is not 0, or nothing could be learnt"


def test_only_the_targets_have_adapters():
    _, params = adapted("llama", "float32", targets=("q", "down"))
    assert {part: list(adapters) for part, adapters in params["lora"]["blocks"].items()} == {
        "attn": ["q_lora"],
        "mlp": ["down_lora"],
    }
    trainable, frozen = split_trainable({**params, "value_head": 1})
    assert set(trainable) == {"lora", "value_head"}
    assert set(frozen) == {"decoder"}


@pytest.mark.parametrize(("case", "targets"), [("llama", LoraConfig().targets), ("gpt2", ("o", "up", "down"))])
def test_files_come_back_as_they_were(case, targets, tmp_path):
    config, params = adapted(case, "float32", targets=targets)
    save_adapters(tmp_path, params["lora"], config, model_type(GOLDEN / case), "some/base")
    settings, again = load_adapters(tmp_path, config, model_type(GOLDEN / case))
    assert (settings.rank, settings.alpha, set(settings.targets)) == (3, 7.0, set(targets))
    jax.tree.map(np.testing.assert_array_equal, params["lora"], again)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
@pytest.mark.parametrize(("case", "targets"), [("llama", LoraConfig().targets), ("gpt2", ("o", "up", "down"))])
def test_peft_computes_the_same_logits_and_gradients(case, targets, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    peft = pytest.importorskip("peft", reason="needs peft")
    tokens = torch.tensor(TOKENS)
    with jax.enable_x64(True):
        config, params = adapted(case, targets=targets)
        save_adapters(tmp_path / "ours", params["lora"], config, model_type(GOLDEN / case), str(GOLDEN / case))
        base = torch_model(torch, GOLDEN / case, "float64")
        model = peft.PeftModel.from_pretrained(base, tmp_path / "ours", is_trainable=True).eval()
        expected = model(tokens).logits
        assert_close(logits(config, params), expected.detach(), 1e-10)

        expected[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).sum().backward()
        for parameter in model.parameters():  # gradients are written to a file and read as if they were adapters
            if parameter.grad is not None:
                parameter.data = parameter.grad
        model.save_pretrained(tmp_path / "gradients")
        _, theirs = load_adapters(tmp_path / "gradients", config, model_type(GOLDEN / case))

        def total(lora):
            log_probs = jax.nn.log_softmax(logits(config, {**params, "lora": lora})[:, :-1])
            return jnp.sum(jnp.take_along_axis(log_probs, TOKENS[:, 1:, None], axis=2))

        for path, gradient in jax.tree.leaves_with_path(jax.grad(total)(params["lora"])):
            other = functools.reduce(lambda tree, key: tree[key.key], path, theirs)
            assert_close(gradient, other, 1e-10, name=jax.tree_util.keystr(path))


def test_adapters_that_the_format_has_no_place_for_are_named(tmp_path):
    config, params = adapted("gpt2", "float32")
    with pytest.raises(ValueError, match=r"adapter of [qkv] has no place.*gpt2 keeps that projection with others"):
        save_adapters(tmp_path, params["lora"], config, "gpt2", "")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"use_dora": True}, ValueError, r"adapter_config\.json: use_dora = True is not supported"),
        ({"peft_type": "IA3"}, ValueError, "peft_type = 'IA3'"),
        ({"r": 4}, ValueError, r"lora_A\.weight has shape \(3, 24\), expected \(4, 24\)"),
        ("1.self_attn.q_proj.lora_B", ValueError, r"q_proj\.lora_B\.weight is missing; a target has .* in every layer"),
        ("layers.0", ValueError, r"layers\.0\.self_attn\.q_proj\.lora_A\.weight is missing; a target has"),
        ({"layers_to_transform": [0]}, ValueError, r"layers_to_transform = \[0\] is not supported \(only all 2 layers"),
        ("score.lora_A.weight", ValueError, r"tensor base_model\.model\.score\.lora_A\.weight is for nothing"),
        ("lm_head.lora_A.weight", ValueError, r"config\.json: target_modules: an adapter of lm_head is not .*merge"),
        ("model.embed_tokens.lora_embedding_A", ValueError, "target_modules: an adapter of embed_tokens is not.*merge"),
        ("model.embed_tokens.weight", ValueError, r"tensor .*embed_tokens\.weight would replace the base's own.*merge"),
        ("cut short", ValueError, r"adapter_model\.safetensors: truncated or corrupt"),
        ("no file", FileNotFoundError, r"adapter_config\.json: no such file"),
    ],
)
def test_files_that_do_not_fit_are_named(change, error, message, tmp_path):
    from safetensors.numpy import load_file, save_file

    config, params = adapted("llama", "float32", targets=("q",))
    save_adapters(tmp_path, params["lora"], config, "llama", "")
    fields, path = json.loads((tmp_path / "adapter_config.json").read_text()), tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    if isinstance(change, dict):
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields | change))
    elif any(change in name for name in tensors):
        save_file({name: x for name, x in tensors.items() if change not in name}, path)
    elif change == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif change != "no file":
        save_file(tensors | {f"base_model.model.{change}": np.zeros((3, 24), np.float32)}, path)
    else:
        (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(error, match=message):
        load_adapters(tmp_path, config, "llama")


def test_a_target_that_is_only_a_part_of_a_tensor_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    config, params = adapted("gpt2", "float32", targets=("o",))
    save_adapters(tmp_path, params["lora"], config, "gpt2", "")
    path = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("attn.c_proj", "attn.c_attn"): x for name, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"target_modules: an adapter of c_attn is not supported \(it is several"):
        load_adapters(tmp_path, config, "gpt2")


def settings_file(folder: Path, **fields) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **fields}))
    return folder


@pytest.mark.parametrize("key", [*(key for key, accepted in FIELDS.items() if accepted is not None), "of_next_year"])
def test_a_setting_that_is_not_known_is_refused_unless_it_is_off(key, tmp_path):
    for off in (None, *FIELDS.get(key, (False, "", [], {}))):
        assert read_settings(settings_file(tmp_path, **{key: off}), 2) == (2, 4.0)
    for value in (0, 0.5, "else", [1], {"q_proj": 8}, *([True] if True not in FIELDS.get(key, ()) else [])):
        with pytest.raises(ValueError, match=rf"adapter_config\.json: {key} = .* is not supported"):
            read_settings(settings_file(tmp_path, **{key: value}), 2)


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [None, "8", True])
def test_rank_and_alpha_must_be_numbers(key, value, tmp_path):
    with pytest.raises(ValueError, match=rf"adapter_config\.json: (field )?{key} (is missing|= .*it must be a number)"):
        read_settings(settings_file(tmp_path, **{key: value}), 2)


@pytest.mark.parametrize("chosen", [None, [], [0, 1]])
def test_all_layers_may_be_named(chosen, tmp_path):
    assert read_settings(settings_file(tmp_path, layers_to_transform=chosen), 2) == (2, 4.0)


def test_what_is_no_lora_is_told_so_first(tmp_path):
    """IA3 has no rank, and other settings."""
    peft = pytest.importorskip("peft", reason="needs peft")
    peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"peft_type = 'IA3' is not supported \(supported: 'LORA'\)"):
        read_settings(tmp_path, 2)


def test_every_setting_of_peft_is_known_and_its_default_accepted(tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    fields = peft.LoraConfig(target_modules=["q_proj"]).to_dict()
    assert set(fields) <= FIELDS.keys() | {"peft_type", "r", "lora_alpha", "layers_to_transform"}
    peft.LoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path)
    assert read_settings(tmp_path, 2) == (8, 8.0)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"])
def test_an_adapter_is_refused_where_peft_changed_the_base_for_it(start, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    peft = pytest.importorskip("peft", reason="needs peft")
    base = torch.nn.Sequential(torch.nn.Linear(8, 8))
    before = base[0].weight.detach().clone()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=start))
    model.peft_config["default"].save_pretrained(tmp_path)
    if torch.equal(base[0].base_layer.weight, before):
        assert read_settings(tmp_path, 2) == (2, 8.0)
    else:
        with pytest.raises(
            ValueError, match=rf"init_lora_weights = '{start}' .*path_initial_model_for_weight_conversion"
        ):
            read_settings(tmp_path, 2)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "PiSSA"])
def test_other_starts_that_change_the_base_are_refused_alike(start, tmp_path):
    with pytest.raises(ValueError, match=r"init_lora_weights = .*path_initial_model_for_weight_conversion"):
        read_settings(settings_file(tmp_path, init_lora_weights=start), 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_adapters_of_16_bits_are_multiplied_in_float32(dtype, tmp_path):
    """By numpy in float64, from the rounded numbers in the file; rounding B A as well would cost 1e-3."""
    from safetensors.numpy import load_file, save_file

    config, params = adapted("llama", "float32", targets=("q", "down"))
    save_adapters(tmp_path, params["lora"], config, "llama", "")
    path = tmp_path / "adapter_model.safetensors"
    rounded = {name: x.astype(jnp.dtype(dtype)) for name, x in load_file(path).items()}
    save_file(rounded, path)
    settings, lora = load_adapters(tmp_path, config, "llama")
    assert {x.dtype.name for x in jax.tree.leaves(lora)} == {"float32"}
    merged = merge({"decoder": params["decoder"], "lora": lora}, settings)["decoder"]["blocks"]
    for module, (part, target) in {"self_attn.q_proj": ("attn", "q"), "mlp.down_proj": ("mlp", "down")}.items():
        for layer in range(2):
            name = f"base_model.model.model.layers.{layer}.{module}.lora_{{}}.weight"
            a, b = (rounded[name.format(key)].astype(np.float64) for key in "AB")
            kernel = np.asarray(params["decoder"]["blocks"][part][target]["kernel"][layer], np.float64)
            expected = kernel + 7 / 3 * (b @ a).T.reshape(kernel.shape)
            np.testing.assert_allclose(merged[part][target]["kernel"][layer], expected, rtol=0, atol=2e-6)


def test_numbers_that_are_no_floats_are_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    config, params = adapted("llama", "float32", targets=("q",))
    save_adapters(tmp_path, params["lora"], config, "llama", "")
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: x.astype(np.int8) for name, x in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: tensor .* is int8; readable are float64"):
        load_adapters(tmp_path, config, "llama")


@pytest.mark.ci
def test_training_moves_the_adapters_alone_and_the_optimizer_holds_nothing_else():
    from reft_jax.algorithms.sft import build_step
    from reft_jax.algorithms.train_state import init_params, init_state, make_optimizer
    from reft_jax.config import MeshConfig, SftConfig
    from reft_jax.data.batches import Sequences
    from reft_jax.parallel.sharding import batch_shardings, make_mesh, to_global

    config, _ = adapted("llama", "float32")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_multiple=8))
    mesh, settings = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()), SftConfig(batch_size=8, microbatch_size=4)
    state = init_state(
        init_params(Policy(config, mesh), mesh, jax.random.key(0), value_head=False),
        make_optimizer(settings.optimizer, 10),
        mesh,
    )
    before = jax.tree.map(np.asarray, state.params)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(before["lora"]))
    rows = np.random.default_rng(0).integers(0, 61, (8, 9)).astype(np.int32)
    batch = Sequences(rows, np.full(8, 4, np.int32), rows[:, 4:], np.full(8, 5, np.int32))
    step, _ = build_step(config, settings, mesh, total_steps=10, prompt=4, response=5)
    losses = []
    for _ in range(4):
        state, metrics = step(state, to_global(batch, batch_shardings(batch, mesh)))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    after = jax.tree.map(np.asarray, state.params)
    jax.tree.map(np.testing.assert_array_equal, before["decoder"], after["decoder"])
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before["lora"]), jax.tree.leaves(after["lora"])))


def test_an_adapter_is_merged_when_a_run_starts_from_it(tmp_path):
    """`model.lora.path`: the folder may be gone when the run is under way."""
    config, params = adapted("llama", "float32")
    shutil.copytree(GOLDEN / "llama", tmp_path / "base")
    save_adapters(tmp_path / "adapter", params["lora"], config, "llama", "")
    model = dataclasses.replace(config, path=str(tmp_path / "base"), lora=LoraConfig(path=str(tmp_path / "adapter")))
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_multiple=8))
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices())
    ids = SpecialIds(pad=0, eos=1, ends=(1,))
    run = Model(config=Config(model=model), mesh=mesh, ids=ids, compiled=CompiledSteps({}), stop=StopRequest())
    started = run.start_params()
    wanted = abstract_params(Policy(model, mesh), mesh, value_head=False)
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(lambda x: x.sharding, wanted)
    expected = merge(params, config.lora)["decoder"]
    np.testing.assert_allclose(started["decoder"].pop("embed")[:61], expected.pop("embed"), rtol=0, atol=0)
    np.testing.assert_allclose(started["decoder"].pop("lm_head")[:61], expected.pop("lm_head"), rtol=0, atol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), started["decoder"], expected)
