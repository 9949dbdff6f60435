"""Parameters back to Hugging Face files: the same bytes as were read, and what transformers loads without a word."""

import dataclasses
import json
import logging
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from reft_jax.algorithms.train_state import init_params
from reft_jax.config import DecoderConfig, EvaluationConfig, MeshConfig, ModelConfig, load_config
from reft_jax.data.chat import with_templates
from reft_jax.data.prompts import generation_prompt, prompt_text
from reft_jax.data.tokenizers import SpecialIds, load_tokenizer
from reft_jax.export import export, main
from reft_jax.models.classifier import Classifier, class_logits
from reft_jax.models.hf.export import classifier_fields, generation_fields, save_decoder
from reft_jax.models.hf.load import decoder_config, load_decoder_params
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import make_mesh
from reft_jax.problem import Problem
from reft_jax.records.checkpoint import Checkpoints, part_name
from reft_jax.records.model_card import EXAMPLE
from reft_jax.training.startup import prepare
from tests.data.test_chat import LLAMA32, QWEN3
from tests.data.test_chat import build_tokenizer as build_chat_tokenizer
from tests.models.test_parity import CASES, FAMILIES, NEXT
from tests.tiers import few

pytestmark = pytest.mark.compiles

GOLDEN = Path(__file__).parents[1] / "golden"


def tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, whatever files they are in."""
    return {name: array for path in directory.glob("model*.safetensors") for name, array in load_file(path).items()}


def fields(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())


def generation(directory: Path) -> dict:
    return json.loads((directory / "generation_config.json").read_text())


def load(directory: Path, **settings) -> tuple[ModelConfig, dict]:
    config = ModelConfig(decoder=dataclasses.replace(decoder_config(directory), **settings))
    return config, load_decoder_params(directory, config)


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_an_export_has_the_tensors_that_were_read(case, tmp_path):
    """Also with a padded vocabulary, whose padding is cut off, and over several files with an index."""
    config, params = load(GOLDEN / case, vocab_multiple=16)
    save_decoder(tmp_path, params, config.decoder, fields(GOLDEN / case), dtype="float32", shard_bytes=20_000)
    read, written = tensors(GOLDEN / case), tensors(tmp_path)
    assert read.keys() == written.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(written[name], array.astype(np.float32), err_msg=name)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 1
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in written.values())
    _, again = load(tmp_path, vocab_multiple=16)
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_type_asked_for(dtype, tmp_path):
    config, params = load(GOLDEN / "llama")
    save_decoder(tmp_path, params, config.decoder, fields(GOLDEN / "llama"), dtype=dtype, shard_bytes=10**9)
    assert fields(tmp_path)["dtype"] == dtype
    assert not (tmp_path / "model.safetensors.index.json").exists()
    for name, array in tensors(GOLDEN / "llama").items():
        np.testing.assert_array_equal(
            tensors(tmp_path)[name], np.asarray(jnp.asarray(array).astype(dtype)), err_msg=name
        )


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_transformers_loads_an_export_without_a_word(case, tmp_path, caplog):
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForCausalLM

    config, params = load(GOLDEN / case)
    save_decoder(tmp_path, params, config.decoder, fields(GOLDEN / case), dtype="float32", shard_bytes=20_000)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not caplog.records
    expected = np.load(GOLDEN / case / "expected.npz")
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"])).logits.numpy()
    assert np.abs(logits - expected["logits"]).max() <= 1e-5 * np.abs(expected["logits"]).max()


@pytest.mark.parametrize("case", few(CASES, FAMILIES, ci=NEXT))
def test_transformers_loads_a_classifier_of_every_family_that_has_one(case, tmp_path, caplog):
    """Its classes are the head's on the final state of the last token that is no padding."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForSequenceClassification

    config, params = load(GOLDEN / case)
    if case.startswith("codegen"):
        with pytest.raises(ValueError, match="no sequence classifier for model_type 'codegen'"):
            classifier_fields(fields(GOLDEN / case), pad=1)
        return
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tie_embeddings=True))
    classifier, pad = Classifier(config), 1
    head = np.random.default_rng(0).normal(size=(config.decoder.embed_dim, 2)).astype(np.float32)
    params = {"decoder": {name: x for name, x in params.items() if name != "lm_head"}, "class_head": {"kernel": head}}
    written = {**params["decoder"], "class_head": params["class_head"]}
    shape = classifier_fields(fields(GOLDEN / case), pad=pad)
    save_decoder(tmp_path, written, config.decoder, shape, dtype="float32", shard_bytes=20_000)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert not caplog.records
    lengths = np.array([5, 9])
    tokens = np.random.default_rng(1).integers(2, config.decoder.vocab_size, size=(2, 9))
    tokens = np.where(np.arange(9) < lengths[:, None], tokens, pad)
    with torch.no_grad():
        mask = torch.tensor(tokens != pad, dtype=torch.long)
        logits = model(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    ours = class_logits(classifier, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths))
    np.testing.assert_allclose(ours, logits, atol=1e-5 * np.abs(logits).max())


LLAMA = ["--model.decoder.mlp_dim", "48", "--model.decoder.rope_theta", "500.0", "--model.decoder.vocab_multiple", "8"]


@pytest.fixture
def make_run(tmp_path):
    """A run's folder with one checkpoint, as training leaves it; returns the folder, the model and its parameters."""

    def make(*settings):
        data = ["--data.train.kind", "generated", "--data.train.path", "train", "--sft.schedule_epochs", "0"]
        data += ["--generation.prompt_buckets", "[64]", "--generation.max_new_tokens", "32"]
        config, _ = prepare(load_config(["--run_dir", str(tmp_path / "run"), *data, *settings]))
        mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices())  # a checkpoint of many devices
        params = init_params(Policy(config.model, mesh), mesh, jax.random.key(0), value_head=True)
        params["value_head"]["kernel"] = params["value_head"]["kernel"] + 0.5
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            checkpoints.save_params("rl_best", {"decoder": params["decoder"]})
            checkpoints.save_params(part_name("rl_best", "value_head"), {"value_head": params["value_head"]})
        return tmp_path / "run", config.model, params

    return make


@pytest.mark.ci
def test_a_model_made_from_scratch_becomes_a_llama(make_run, tmp_path, capsys):
    run, model, params = make_run("--model.tokenizer", "embedded", *LLAMA)
    main([str(run / "checkpoints" / "rl_best"), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "value_head.safetensors",
    ):
        assert name in printed
        assert (tmp_path / "out" / name).exists()
    assert decoder_config(tmp_path / "out") == dataclasses.replace(model.decoder, vocab_multiple=1)
    again = load_decoder_params(tmp_path / "out", model)
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], again)
    head = load_file(tmp_path / "out" / "value_head.safetensors")
    assert head["weight"].shape == (1, model.decoder.embed_dim)
    np.testing.assert_array_equal(head["weight"], 0.5)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert generation(tmp_path / "out") == {**special, "do_sample": False}
    assert fields(tmp_path / "out").items() >= {**special, "bos_token_id": None}.items()


def test_a_chat_templates_run_keeps_the_template_and_its_card_makes_the_runs_prompt(make_run, tmp_path):
    """The run has the strings in its config, and goes on as it is by the same command; the export ends at both ends."""
    torch = pytest.importorskip("torch", reason="needs torch")
    tokenizer = build_chat_tokenizer(QWEN3)
    tokenizer.save_pretrained(tmp_path / "chat")
    settings = ["--model.tokenizer", str(tmp_path / "chat"), *LLAMA, "--data.templates.kind", "chat"]
    settings += ["--data.templates.variables.enable_thinking", "false", "--data.templates.system", 'It\'s "1".']
    run, _, _ = make_run(*settings)
    written = load_config(["--config", str(run / "config.yaml")])
    again = with_templates(load_config(["--config", str(run / "config.yaml"), *settings]), tokenizer)
    assert written.data.templates == again.data.templates
    export(run / "checkpoints" / "rl_best", tmp_path / "out")
    exported = load_tokenizer(str(tmp_path / "out"), "main")
    assert exported.chat_template == QWEN3
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert generation(tmp_path / "out")["eos_token_id"] == ends
    said = json.loads((tmp_path / "out" / "prompt_format.json").read_text())
    assert (said["kind"], said["target_end"]) == ("chat", "<|im_end|>")
    card = (tmp_path / "out" / "README.md").read_text()
    prompt = generation_prompt(Problem("", EXAMPLE, ""), written.data.templates, "program")
    assert prompt.startswith('<|im_start|>system\nIt\'s "1".<|im_end|>\n')
    assert prompt.endswith(f'</think>\n\ndef solution():\n    """{EXAMPLE}"""\n')
    assert prompt in card
    code = (
        card.partition("```python\n")[2].partition("```")[0].replace('here = "."', f"here = {str(tmp_path / 'out')!r}")
    )
    found: dict = {}
    with torch.no_grad():
        exec(code, found)
    assert found["prompt"] == prompt


def test_an_exported_template_has_the_date_that_was_trained_on(make_run, tmp_path):
    tokenizer = build_chat_tokenizer(LLAMA32)
    assert "strftime_now" in LLAMA32
    tokenizer.save_pretrained(tmp_path / "chat")
    settings = ["--model.tokenizer", str(tmp_path / "chat"), *LLAMA, "--data.templates.kind", "chat"]
    run, _, _ = make_run(*settings)
    export(run / "checkpoints" / "rl_best", tmp_path / "out")
    exported = load_tokenizer(str(tmp_path / "out"), "main")
    templates = load_config(["--config", str(run / "config.yaml")]).data.templates
    turn = [{"role": "user", "content": EXAMPLE}]
    prompt = exported.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert prompt == prompt_text(Problem("", EXAMPLE, ""), templates)
    assert "26 Jul 2024" in prompt


def test_a_separate_critic_has_a_folder_of_its_own(make_run, tmp_path):
    run, model, params = make_run("--model.tokenizer", "embedded", *LLAMA, "--rl.critic", "separate")
    critic = jax.tree.map(lambda x: x + 1, params["decoder"])
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save_params(part_name("rl_best", "critic"), {"critic": critic})
    export(run / "checkpoints" / "rl_best", tmp_path / "out")
    for folder, expected in (("out", params["decoder"]), ("out/critic", critic)):
        jax.tree.map(np.testing.assert_array_equal, expected, load_decoder_params(tmp_path / folder, model))


OTHERS = {"repetition_penalty": 1.1, "temperature": 0.6, "top_k": 20, "task_specific_params": {"text-generation": {}}}


@pytest.mark.ci
def test_a_model_that_was_loaded_keeps_its_shape_and_not_how_it_generated(make_run, tmp_path):
    """The folder it was loaded from is not needed any more."""
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / "qwen3", base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "do_sample": True, **OTHERS}))
    vocabulary = 3000  # room for the embedded tokenizer
    config = ModelConfig(decoder=dataclasses.replace(decoder_config(base), vocab_size=vocabulary))
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = init_params(Policy(config, mesh), mesh, jax.random.key(1), value_head=False)["decoder"]
    grown = {**fields(base), "vocab_size": vocabulary}
    save_decoder(base, params, config.decoder, {**grown, **OTHERS}, dtype="float32", shard_bytes=10**9)
    for stale in base.glob("model-*"):
        stale.unlink()
    (base / "model.safetensors.index.json").unlink(missing_ok=True)
    drawn = ["--evaluation.temperature", "0.7", "--evaluation.top_p", "0.9"]
    run, model, params = make_run("--model.path", str(base), "--model.tokenizer", "embedded", *drawn)
    shutil.rmtree(base)
    export(run / "checkpoints" / "rl_best", tmp_path / "out", dtype="float32")
    special = {"eos_token_id": [1, 7, 9], "pad_token_id": 0}  # the tokenizer's, and those of the generation config
    assert fields(tmp_path / "out") == {**grown, **special, "bos_token_id": None, "dtype": "float32"}
    suppressed = list(range(len(load_tokenizer("embedded", "main")), vocabulary))
    decoding = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9, "suppress_tokens": suppressed}
    assert generation(tmp_path / "out") == {**special, **decoding}
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], load_decoder_params(tmp_path / "out", model))


def test_adapters_are_exported_apart_from_the_model(make_run, tmp_path, capsys):
    from reft_jax.models.hf.adapters import load_adapters

    run, model, params = make_run("--model.tokenizer", "embedded", *LLAMA, "--model.lora.rank", "2")
    assert main([str(run / "checkpoints" / "rl_best"), str(tmp_path / "out"), "--adapter"]) == 2
    assert "was trained without adapters" in capsys.readouterr().err
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save_params(part_name("rl_best", "lora"), {"lora": params["lora"]})
    main([str(run / "checkpoints" / "rl_best"), str(tmp_path / "out"), "--adapter", "--base", "their/base"])
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "their/base"
    settings, lora = load_adapters(tmp_path / "out", model, "llama")
    assert (settings.rank, settings.alpha) == (2, 16.0)
    jax.tree.map(np.testing.assert_array_equal, params["lora"], lora)


def test_export_names_what_it_cannot_write(make_run, tmp_path, capsys):
    run, _, _ = make_run("--model.tokenizer", "embedded", "--model.decoder.gated_mlp", "false")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for checkpoint, out, message in (
        (run / "checkpoints" / "rl_best", tmp_path / "out", "from scratch with model.decoder.gated_mlp = False"),
        (run / "checkpoints" / "sft", tmp_path / "out", "no " + str(run / "checkpoints" / "sft")),
        (tmp_path / "full", tmp_path / "out", "config.yaml"),
        (run / "checkpoints" / "rl_best", tmp_path / "full", "is not empty"),
    ):
        assert main([str(checkpoint), str(out)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_base_is_refused_where_no_adapters_are_asked_for(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run/checkpoints/rl_best", "out", "--base", "their/base"])
    assert "goes with --adapter" in capsys.readouterr().err


def test_every_field_of_the_shape_is_looked_at_before_a_model_is_called_a_llama():
    """A new field of the decoder that the Llama translator does not set must not be lost in silence."""
    from reft_jax.models.hf.export import fresh_fields

    assert fresh_fields(DecoderConfig(vocab_size=7))["vocab_size"] == 7
    with pytest.raises(ValueError, match=r"qk_norm = True, model\.decoder\.position_offset = 2"):
        fresh_fields(DecoderConfig(vocab_size=7, qk_norm=True, position_offset=2))


def test_transformers_does_not_draw_ids_without_a_token(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    fields = generation_fields(SpecialIds(pad=0, eos=1, ends=(1,)), None, EvaluationConfig(), [(2, 5), (6, 12)])
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, **shape)).eval()
    settings = GenerationConfig.from_pretrained(tmp_path)
    out = model.generate(torch.tensor([[0]] * 50), generation_config=settings, do_sample=True, max_new_tokens=8)
    assert set(out[:, 1:].unique().tolist()) <= {0, 1, 5}
