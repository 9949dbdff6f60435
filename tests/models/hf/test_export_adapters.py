"""Adapters that leave a run: on the base that they name they are the checkpoint, in PEFT as in our own reader."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import LoraConfig, MeshConfig, ModelConfig, load_config
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.export import export, export_adapter, main, read_params
from reft_jax.models.hf.adapters import load_adapters, save_adapters
from reft_jax.models.hf.load import decoder_config, load_decoder_params, model_type
from reft_jax.models.lora import concatenate, merge, scale
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest
from reft_jax.parallel.sharding import make_mesh
from reft_jax.records.checkpoint import Checkpoints, part_name
from reft_jax.training.model import Model
from reft_jax.training.startup import prepare
from tests.data.characters import build_tokenizer
from tests.models.test_parity import assert_close
from tests.records.test_model_card import run_code

pytestmark = pytest.mark.compiles

GOLDEN = Path(__file__).parents[1] / "golden"
TARGETS = {"llama": LoraConfig().targets, "gpt2": ("o", "up", "down")}  # gpt2 keeps q, k and v together


def random_adapters(decoder, lora: LoraConfig, seed: int) -> dict:
    """Adapters of random numbers, B included."""
    policy = Policy(ModelConfig(decoder=decoder, lora=lora), make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
    shapes = abstract_params(policy, policy.mesh, value_head=False)["lora"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture
def make_run(tmp_path):
    """The folder of a run with adapters, as training leaves it: `warmup`, and `rl_best` on top of it."""

    def make(case: str, *settings: str, before: LoraConfig | None = None) -> Path:
        base = tmp_path / "base"
        shutil.copytree(GOLDEN / case, base)
        build_tokenizer().save_pretrained(tmp_path / "tokenizer")
        line = ["--run_dir", str(tmp_path / "run"), "--model.path", str(base)]
        line += ["--model.tokenizer", str(tmp_path / "tokenizer"), "--data.train.kind", "generated"]
        line += [
            "--data.train.path",
            "train",
            "--generation.prompt_buckets",
            "[20]",
            "--generation.max_new_tokens",
            "9",
        ]
        line += ["--sft.prompt_buckets", "[20]", "--sft.response_buckets", "[20]", "--model.lora.rank", "3"]
        line += ["--model.lora.alpha", "7", "--model.lora.targets", json.dumps(TARGETS[case])]
        if before:
            shape = ModelConfig(decoder=decoder_config(base), lora=before)
            save_adapters(
                tmp_path / "before", random_adapters(shape.decoder, before, 5), shape, model_type(base), str(base)
            )
            line += ["--model.lora.path", str(tmp_path / "before")]
        config, _ = prepare(load_config([*line, *settings]))
        model = Model(
            config=config,
            mesh=make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]),
            ids=SpecialIds(pad=0, eos=0, ends=(0,)),
            compiled=CompiledSteps({}),
            stop=StopRequest(),
        )
        params = model.start_params()
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            for seed, name in enumerate(("warmup", "rl_best")):
                lora = random_adapters(config.model.decoder, config.model.lora, seed)
                params = merge({**params, "lora": lora}, config.model.lora)
                checkpoints.save_params(name, params)
                checkpoints.save_params(part_name(name, "lora"), {"lora": lora})
        return tmp_path / "run"

    return make


BEFORE = LoraConfig(rank=2, alpha=5.0, targets=("o", "up"))  # as model.lora.path: another scale, fewer targets
SUMS = [
    pytest.param("llama", "warmup", None, 3, marks=pytest.mark.ci),
    pytest.param("llama", "rl_best", None, 6, marks=pytest.mark.long),
    ("llama", "rl_best", BEFORE, 8),
    pytest.param("gpt2", "warmup", BEFORE, 5, marks=pytest.mark.ci),
    pytest.param("gpt2", "rl_best", None, 6, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("case", "name", "before", "rank"), SUMS)
def test_the_base_with_the_adapters_is_the_checkpoint(case, name, before, rank, make_run, tmp_path, capsys):
    """By our own reader: the weights of the checkpoint, in which all adapters are merged."""
    run = make_run(case, before=before)
    assert main([str(run / "checkpoints" / name), str(tmp_path / "out"), "--adapter"]) == 0
    assert f"adapters for {tmp_path / 'base'}\n" in capsys.readouterr().out
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"]) == (str(tmp_path / "base"), None)
    config = load_config(["--config", str(run / "config.yaml")])
    settings, lora = load_adapters(tmp_path / "out", config.model, model_type(tmp_path / "base"))
    assert settings.rank == rank
    if rank == 3:
        own = read_params(run / "checkpoints" / f"{name}_lora", config, part="lora")
        assert settings.alpha == 7.0
        jax.tree.map(np.testing.assert_array_equal, lora, own)
    base = load_decoder_params(tmp_path / "base", config.model)
    merged = merge({"decoder": base, "lora": lora}, settings)["decoder"]
    expected = read_params(run / "checkpoints" / name, config, part="decoder")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), merged, expected)
    far = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(expected)))
    assert far > 0.1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
@pytest.mark.parametrize(("case", "name", "before", "rank"), SUMS)
def test_peft_computes_what_the_merged_export_does(case, name, before, rank, make_run, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoModelForCausalLM

    run = make_run(case, before=before)
    export(run / "checkpoints" / name, tmp_path / "merged", dtype="float32")
    export_adapter(run / "checkpoints" / name, tmp_path / "out")
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 61, (3, 9)))
    with torch.no_grad():
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
        expected = merged(tokens).logits
        assert_close(adapted(tokens).logits, expected, 1e-5)
        assert (base(tokens).logits - expected).abs().max() > 0.1 * expected.abs().max()
    if case == "llama":  # the other has not enough positions for the card's question
        run_code(tmp_path / "out")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
def test_the_adapters_of_a_run_that_trained(finished, arguments, here, tmp_path):
    """SFT and PPO with adapters, from a model into which another one is merged."""
    torch = pytest.importorskip("torch", reason="needs torch")
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoModelForCausalLM

    base, run = tmp_path / "base", tmp_path / "run"
    export(finished[0] / "checkpoints/warmup", base)
    shape = ModelConfig(decoder=decoder_config(base), lora=BEFORE)
    save_adapters(tmp_path / "before", random_adapters(shape.decoder, BEFORE, 5), shape, "llama", str(base))
    settings = {"model__path": base, "model__lora__path": tmp_path / "before", "model__lora__rank": 3, "rl__epochs": 1}
    settings |= {"sft__schedule_epochs": 2, "sft__warmup_epoch": 1, "sft__stop_epoch": 2, "sft__evaluate_every": 1}
    here(arguments(run, **settings))
    tokens = torch.tensor(np.random.default_rng(0).integers(0, shape.decoder.vocab_size, (3, 9)))
    for name in ("warmup", "sft", "sft_best", "rl_best"):
        export(run / "checkpoints" / name, tmp_path / name)
        export_adapter(run / "checkpoints" / name, tmp_path / f"{name}_adapter")
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()(tokens).logits
            adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / f"{name}_adapter").eval()
            assert_close(adapted(tokens).logits, expected, 1e-5)


def test_parts_of_one_scale_stand_side_by_side_as_they_were():
    """The last part as it is; a target that only one has is 0 in the other."""
    decoder = decoder_config(GOLDEN / "llama")
    one, other = (
        LoraConfig(rank=rank, alpha=2.0 * rank, targets=targets) for rank, targets in ((2, ("q",)), (3, ("q", "down")))
    )
    first, last = random_adapters(decoder, one, 0), random_adapters(decoder, other, 1)
    settings, lora = concatenate([(one, first), (other, last)])
    assert (settings.rank, scale(settings), set(settings.targets)) == (5, 2.0, {"q", "down"})
    q, down = lora["blocks"]["attn"]["q_lora"], lora["blocks"]["mlp"]["down_lora"]
    for tree, place in ((first, slice(0, 2)), (last, slice(2, 5))):
        np.testing.assert_array_equal(q["a"][..., place], tree["blocks"]["attn"]["q_lora"]["a"])
        np.testing.assert_array_equal(q["b"][:, place], tree["blocks"]["attn"]["q_lora"]["b"])
    assert not np.any(down["a"][..., :2])
    assert not np.any(down["b"][:, :2])
    np.testing.assert_array_equal(down["a"][..., 2:], last["blocks"]["mlp"]["down_lora"]["a"])


def test_with_a_base_only_the_last_stage_is_written(make_run, tmp_path):
    run = make_run("llama")
    assert export_adapter(run / "checkpoints/rl_best", tmp_path / "out", "their/warmup") == "their/warmup"
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["r"]) == ("their/warmup", 3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: their/warmup\n" in card
    assert "what is here is of the last stage alone" in card


def test_a_revision_is_named(make_run, tmp_path):
    run = make_run("llama")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= {"path": "someone/something", "revision": "v2"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export_adapter(run / "checkpoints/rl_best", tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("someone/something", "v2")
    assert "base: `someone/something`, revision `v2`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "name", "owner"),
    [
        ("pretrain", "warmup", "pretrain"),
        ("pretrain", "rl_best", "warmup"),
        ("init_from", "rl_best", "/elsewhere"),
        ("scratch", "rl_best", "warmup"),
        ("scratch", "warmup", "the model that the run made from scratch, which is in no file"),
    ],
)
def test_what_is_no_sum_of_adapters_is_refused_by_the_right_base(change, name, owner, make_run, tmp_path, capsys):
    run = make_run("llama")
    config = yaml.safe_load((run / "config.yaml").read_text())
    if change == "init_from":
        shutil.rmtree(run / "checkpoints/warmup")
        config["rl"]["init_from"], config["sft"]["schedule_epochs"] = "/elsewhere", 0  # which is gone
    if change == "scratch":
        config["model"] |= {"path": "", "tokenizer": "embedded"}
    if change == "pretrain":
        shutil.copytree(run / "checkpoints/warmup", run / "checkpoints/pretrain")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    line = [str(run / "checkpoints" / name), str(tmp_path / "out"), "--adapter"]
    assert main(line) == 2
    error = capsys.readouterr().err
    where = owner if owner == "/elsewhere" or " " in owner else str(run / "checkpoints" / owner)
    assert f"the adapters of {run / 'checkpoints' / name} belong to {where}, which is more than model.path" in error
    assert ("export the model without --adapter" if " " in owner else f"export {where} to a folder") in error
    assert not (tmp_path / "out").exists()
    assert main([*line, "--base", "their/base"]) == 0


def test_a_base_that_cannot_be_the_right_one_is_refused(make_run, tmp_path, capsys, monkeypatch):
    """Adapters of reinforcement belong to the warm-up; that one's to `model.path`, whose folder is kept absolute."""
    run = make_run("llama")
    export(run / "checkpoints/warmup", tmp_path / "warmup")
    line = lambda name, out: [str(run / "checkpoints" / name), str(tmp_path / out), "--adapter", "--base"]
    assert main([*line("rl_best", "a"), str(tmp_path / "base")]) == 2
    assert f"belong to {run / 'checkpoints/warmup'}, not to model.path" in capsys.readouterr().err
    assert main([*line("rl_best", "a"), str(tmp_path / "none")]) == 2
    assert f"--base: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert main([*line("rl_best", "a"), str(tmp_path / "tokenizer")]) == 2
    assert "--base: " in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main([*line("rl_best", "b"), "warmup"]) == 0
    assert main([*line("warmup", "c"), str(tmp_path / "base")]) == 0
    named = lambda out: json.loads((tmp_path / out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (named("b"), named("c")) == (str(tmp_path / "warmup"), str(tmp_path / "base"))
