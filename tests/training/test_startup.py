"""Before a run begins: what its folders are is told by their keys, in a line, and before anything of them is loaded."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from reft_jax.config import Config, LoraConfig, MeshConfig, ModelConfig, load_config
from reft_jax.parallel.processes import Interrupted
from reft_jax.parallel.sharding import make_mesh
from reft_jax.training import startup
from reft_jax.training.directory import recorded_attempt
from reft_jax.training.startup import prepare
from tests.runs import complete

GOLDEN = Path(__file__).parents[1] / "models" / "golden"


@pytest.fixture
def folders(tmp_path):
    """A model, an adapter for it, an empty folder, and a tokenizer of three tokens with the ids 0, 1 and 60."""
    shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "the/base"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    (tmp_path / "empty").mkdir()
    save_tokenizer(tmp_path / "tokenizer", last=60)
    return tmp_path


def save_tokenizer(folder: Path, last: int) -> None:
    words = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "<last>": last}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)


def config(arguments, folders: Path, path: str = "", tokenizer: str = "", adapter: str = "") -> Config:
    """Of the tiny run, on a model there, with lengths that it has positions for."""
    where = lambda name: name and str(folders / name)
    keys = {"path": path, "tokenizer": tokenizer, "lora__path": adapter}
    overrides = {f"model__{key}": where(name) for key, name in keys.items()}
    short = {"generation__prompt_buckets": "[60]", "sft__prompt_buckets": "[34]"}
    return load_config(arguments(folders / "run", **overrides, **short))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("no/such", "tokenizer"), "model.path: there is no folder {}/no/such"),
        (
            ("model/config.json", "tokenizer"),
            "model.path: {}/model/config.json is a file: name the folder of a model, or its hub id (owner/name)",
        ),
        (("empty", "tokenizer"), "model.path: {}/empty is no Hugging Face model, it has no config.json"),
        (
            ("adapter", "tokenizer"),
            "model.path: {}/adapter is a PEFT adapter: give it as model.lora.path and its base (the/base) as "
            "model.path",
        ),
        (("model", "tokenizer", "no/such"), "model.lora.path: there is no folder {}/no/such"),
        (
            ("model", "tokenizer", "model"),
            "model.lora.path: {}/model is no PEFT adapter, it is a whole model: give it as model.path",
        ),
    ],
)
def test_a_folder_of_something_else_is_told_before_a_tokenizer_is_loaded(
    arguments, folders, names, message, monkeypatch
):
    monkeypatch.setattr(startup, "model_tokenizer", lambda _: pytest.fail("loaded first"))
    with pytest.raises(FileNotFoundError) as error:
        prepare(config(arguments, folders, *names))
    assert str(error.value) == message.format(folders)
    assert not (folders / "run").exists()


@pytest.mark.parametrize(
    ("name", "what"), [("no/such", "there is no folder"), ("empty", "no tokenizer can be read from")]
)
def test_a_tokenizer_that_is_not_there_is_told_in_a_line(arguments, folders, name, what):
    with pytest.raises(FileNotFoundError, match=f"^model.tokenizer: {what}") as error:
        prepare(config(arguments, folders, "model", name))
    assert len(str(error.value).splitlines()) == 1


def test_a_model_without_a_tokenizer_asks_for_one(arguments, folders):
    with pytest.raises(FileNotFoundError, match=r"^model\.path: no tokenizer can be read from .*model\.tokenizer"):
        prepare(config(arguments, folders, "model"))


def test_a_tokenizer_is_as_large_as_its_highest_id(arguments, folders):
    """Three tokens, and an embedding of 61."""
    assert prepare(config(arguments, folders, "model", "tokenizer"))[0].model.decoder.vocab_size == 61
    fresh, tokenizer = prepare(config(arguments, folders, "", "tokenizer"))
    assert (fresh.model.decoder.vocab_size, len(tokenizer)) == (61, 3)
    save_tokenizer(folders / "tokenizer", last=61)
    with pytest.raises(ValueError, match="'<last>' has id 61, and the embedding has 61 tokens"):
        prepare(config(arguments, folders, "model", "tokenizer"))


def test_a_run_that_has_begun_needs_its_adapter_no_more(arguments, folders, monkeypatch):
    monkeypatch.setattr(startup, "require_weights", lambda _: None)  # the adapter here has none
    made = config(arguments, folders, "model", "tokenizer", "adapter")
    prepare(made)
    shutil.rmtree(folders / "adapter")
    with pytest.raises(FileNotFoundError, match=r"model\.lora\.path: there is no folder"):
        prepare(made)
    (folders / "run" / "checkpoints").mkdir()
    prepare(made)


@pytest.mark.parametrize(("base", "told"), [("/elsewhere/model", False), ("their/other", True), (None, False)])
def test_an_adapter_of_another_base_is_told(tmp_path, base, told):
    """By the last part of its path: a base may have been moved."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    said = startup.other_base(ModelConfig(path="/here/model", lora=LoraConfig(path=str(tmp_path))))
    assert said.startswith("warning: the adapter") == told
    assert startup.other_base(ModelConfig(path="/here/model", lora=LoraConfig(path="of/the_hub"))) == ""


@pytest.mark.parametrize("existing", [False, True])
def test_a_run_that_is_refused_leaves_no_folder_behind(arguments, tmp_path, existing):
    """But what was there before it."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1 ?", "answer": "2"}\n')
    run_dir = tmp_path / "runs" / "mine"
    if existing:
        run_dir.mkdir(parents=True)
        (run_dir / "notes.txt").write_text("mine")
    source = {"data__train__kind": "jsonl", "data__train__path": tmp_path / "rows.jsonl"}
    assert "give more" in complete(arguments(run_dir, **source), code=2)
    assert run_dir.exists() == existing
    assert not existing or (run_dir / "notes.txt").read_text() == "mine"


def test_each_attempt_is_kept_with_its_begin_its_end_and_its_devices(tmp_path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    (tmp_path / "run.json").write_text('{"command": "first"}')
    with recorded_attempt(tmp_path, mesh):
        pass
    with pytest.raises(KeyboardInterrupt), recorded_attempt(tmp_path, mesh):
        raise KeyboardInterrupt
    killed = recorded_attempt(tmp_path, mesh)
    killed.__enter__()
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["command"] == "first"
    assert [attempt["ended"] is None for attempt in info["attempts"]] == [False, False, True]
    assert all(attempt["started"] <= (attempt["ended"] or "3") for attempt in info["attempts"])
    assert {attempt["hardware"]["devices"] for attempt in info["attempts"]} == {2}


def test_the_log_says_what_ended_a_run_early(tmp_path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    for error in (Interrupted(), FloatingPointError("sft/loss is nan")):
        with pytest.raises(type(error)), recorded_attempt(tmp_path, mesh):
            raise error
    lines = [line.partition(" ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines[:2] == ["stopped as asked", "Traceback (most recent call last):"]
    assert lines[-1] == "FloatingPointError: sft/loss is nan"
