"""The config's only door: what it accepts, what it refuses and how it says so, before any device is touched."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from reft_jax.config import Config, RlConfig, config_parser, load_config, parse_config, settings, to_dict
from reft_jax.config.validation import validate
from reft_jax.parallel.processes import REFUSED
from reft_jax.train import main
from reft_jax.training.startup import prepare

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VALID = [
    "--run_dir",
    "r",
    "--model.tokenizer",
    "embedded",
    "--data.train.kind",
    "generated",
    "--data.train.path",
    "train",
]
TASK = ["--data.test.kind", "reasoning_gym", "--data.test.name", "gcd", "--data.test.limit", "9"]


def leaves(config_type: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, class, field) of every setting."""
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, config_type.__name__, field.name


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting of nested dictionaries."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def texts() -> dict[tuple[str, str], str]:
    """The string below each field of each class in the source."""
    found = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:]):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[node.name, field.target.id] = text.value.value
    return found


def refusal(capsys, *arguments: str) -> str:
    """What the command prints when it exits with 2, on one line."""
    with pytest.raises(SystemExit) as stop:
        load_config(arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


# Accepted


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_returns(path, tmp_path):
    config = load_config(["--config", str(path), "--run_dir", "r"])
    assert config.run_dir == os.path.abspath("r")
    written = dict(flat(to_dict(config)))
    for key, value in flat(yaml.safe_load(path.read_text())):
        file = isinstance(value, str) and key.startswith("data.") and "/" in value
        assert key == "run_dir" or written[key] == (os.path.abspath(value) if file else value), key
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(["--config", str(tmp_path / "again.yaml")]) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs/overlays").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_overlay_loads_over_the_config_that_its_first_line_names(path):
    base = re.match(r"# Over (\S+\.yaml)[:,]", path.read_text())
    written = dict(flat(to_dict(load_config(["--config", str(ROOT / "configs" / base[1]), "--config", str(path)]))))
    for key, value in flat(yaml.safe_load(path.read_text())):
        assert key == "config" or written[key] == value, key


def test_print_config_loads_back(capsys, tmp_path):
    line = ["--config", str(CONFIGS[0]), "--rl.kl_coef", "0.02", "--sft.prompt_buckets", "[36, 40]", "--seed", "7"]
    with pytest.raises(SystemExit) as stop:
        load_config([*line, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(["--config", str(tmp_path / "printed.yaml")])
    assert config == load_config(line)
    assert (config.rl.kl_coef, config.sft.prompt_buckets, config.seed) == (0.02, (36, 40), 7)


def test_later_files_and_overrides_win_and_leave_the_rest(tmp_path):
    (tmp_path / "a.yaml").write_text("rl: {kl_coef: 0.5, epochs: 7}\n")
    (tmp_path / "b.yaml").write_text("rl: {epochs: 8}\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    rl = load_config([*VALID, *files, "--rl.optimizer.beta2", "0.9"]).rl
    expected = dataclasses.replace(rl.optimizer, beta2=0.9)
    assert (rl.kl_coef, rl.epochs, rl.optimizer, rl.clip_range) == (0.5, 8, expected, 0.2)
    assert rl.optimizer.learning_rate == 3e-7, "the default of this stage, not of the class"


def test_a_file_is_read_after_those_that_it_is_made_of(tmp_path, monkeypatch):
    """Key by key, whatever order the file itself has, by paths from its own folder, and files of files."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.yaml").write_text("run_dir: a\nrl: {kl_coef: 0.5, epochs: 7, optimizer: {beta2: 0.9}}\n")
    (tmp_path / "parts/b.yaml").write_text("config: [a.yaml]\nrl: {epochs: 8}\nmodel: model.yaml\n")
    (tmp_path / "parts/model.yaml").write_text("tokenizer: embedded\n")
    (tmp_path / "c.yaml").write_text("sft: {stop_epoch: 12}\n")
    own = "run_dir: own\nrl: {optimizer: {eps: 1e-6}}\ndata: {train: {kind: generated, path: train}}\n"
    (tmp_path / "whole.yaml").write_text(own + "config: [parts/b.yaml, c.yaml]\n")
    config = load_config(["--config", str(tmp_path / "whole.yaml"), "--rl.vf_coef", "2"])
    assert (config.run_dir, config.model.tokenizer, config.sft.stop_epoch) == (os.path.abspath("own"), "embedded", 12)
    assert (config.rl.kl_coef, config.rl.epochs, config.rl.vf_coef) == (0.5, 8, 2.0)
    assert (config.rl.optimizer.beta2, config.rl.optimizer.eps, config.rl.optimizer.learning_rate) == (0.9, 1e-6, 3e-7)
    files = [f"--config={tmp_path / name}" for name in ("parts/a.yaml", "parts/b.yaml", "c.yaml")]
    (tmp_path / "own.yaml").write_text(own)
    assert load_config([*files, "--config", str(tmp_path / "own.yaml"), "--rl.vf_coef", "2"]) == config
    monkeypatch.chdir(tmp_path)
    there = load_config(["--config", "whole.yaml", "--rl.vf_coef", "2"])
    assert there == dataclasses.replace(config, run_dir=str(tmp_path / "own"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: [no.yaml]", "whole.yaml: config: there is no file 'no.yaml' in"),
        ("config: whole.yaml", "whole.yaml: config: 'whole.yaml' is made of this file itself"),
        ("config: [1]", "config is [1]: it must be a file, or a list of files"),
        ("config: [whole.yaml]", "config: 'whole.yaml' is made of this file itself"),
        ("config: [other.yaml]", "other.yaml: config: 'whole.yaml' is made of this file itself"),
        ("config: [bad.yaml]", "kl_coeff"),
        ("config: [\n", "whole.yaml, line 2: not YAML in UTF-8"),
        ("config: [broken.yaml]", "broken.yaml, line 3: not YAML in UTF-8"),
        ("config: [text.yaml]", "text.yaml: a config is keys with values, such as `seed: 1`, and this is 'seed'"),
    ],
)
def test_files_that_cannot_be_put_together_are_named(capsys, tmp_path, text, message):
    (tmp_path / "whole.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("config: [whole.yaml]")
    (tmp_path / "bad.yaml").write_text("rl: {kl_coeff: 0.1}")
    (tmp_path / "broken.yaml").write_text("seed: 1\nrl:\n\tepochs: 2\n")
    (tmp_path / "text.yaml").write_text("seed")
    assert message in refusal(capsys, *VALID, "--config", str(tmp_path / "whole.yaml"))


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(["--help-all"])
    assert stop.value.code == 0
    squeeze = lambda text: "".join(text.split())
    printed, explained = capsys.readouterr().out, texts()
    sections = {part.split()[0]: squeeze(part) for part in re.split(r"^  --", printed, flags=re.MULTILINE)}
    keys = list(leaves(Config))
    assert len(keys) > 120
    for key, owner, field in keys:
        text = explained.get((owner, field)) or explained.get(("SupervisedConfig", field))
        assert text, f"{owner}.{field} has no text"
        assert squeeze(text) in sections[key], f"--{key} is printed without its text"


def test_loads_leave_nothing_behind_for_the_next(capsys, tmp_path):
    """The parser of a command is made once."""
    (tmp_path / "a.yaml").write_text("rl: {kl_coef: 0.5}\nreward: {functions: {a.b: 2}}\n")
    first = load_config([*VALID, "--config", str(tmp_path / "a.yaml"), "--rl.optimizer.beta2", "0.9", "--seed", "7"])
    assert "rl.vf_coef is -1.0" in refusal(capsys, *VALID, "--rl.vf_coef", "-1")
    assert "generation.max_new_tokens" in refusal(capsys, *VALID, "--generation.max_response", "5")
    second = load_config([*VALID, "--rl.discount", "0.5"])
    assert (first.rl.kl_coef, first.rl.optimizer.beta2, first.seed, first.rl.discount) == (0.5, 0.9, 7, 1)
    valid = dataclasses.replace(
        Config(),
        run_dir=os.path.abspath("r"),
        model=settings.ModelConfig(tokenizer="embedded"),
        data=settings.DataConfig(train=settings.SourceConfig(kind="generated", path="train")),
    )
    assert second == dataclasses.replace(valid, rl=RlConfig(discount=0.5))
    assert "rl.kl_coeff" in refusal(capsys, *VALID, "--rl.kl_coeff", "1")
    assert load_config(VALID) == valid


def test_a_commands_own_arguments_are_no_other_commands(capsys):
    parser = config_parser("one", "")
    parser.add_argument("--own", type=int, default=3)
    config, options = parse_config(parser, [*VALID, "--own", "4"])
    assert (options.own, config) == (4, load_config(VALID, prog="one", description=""))
    assert "own is no setting" in refusal(capsys, *VALID, "--own", "4")


# Refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rl.kl_coeff", "0.1"], "rl.kl_coeff"),
        (["--pppo.kl_coef", "0.1"], "pppo"),
        (["--rl.kl_coef", "much"], "rl.kl_coef"),
        (["--rl.epochs", "1.5"], "rl.epochs"),
        (["--sft.prompt_buckets", "[12, many]"], "sft.prompt_buckets"),
        (["--model.dtype", "float8"], "model.dtype"),
        (["--data.train.kind", "csv"], "data.train.kind"),
        (["--config", "no/such/file.yaml"], "no/such/file.yaml"),
        (["--generation.top_k", "50"], "generation.top_k is no setting: reinforcement samples from the whole policy"),
        (["--rl.top_p", "0.9"], "rl.top_p is no setting: reinforcement samples from the whole policy"),
    ],
)
def test_unknown_and_ill_typed_arguments_are_named(capsys, arguments, message):
    assert message in refusal(capsys, *VALID, *arguments)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("rl: {kl_coeff: 0.1}", ["kl_coeff"]),
        ("rl: {optimizer: {lr: 0.1}}", ["lr"]),
        ("rollout: {size: 1}", ["rollout"]),
        ("generation: {slots: many}", ["generation.slots", "many"]),
        ("model: {scan_layers: 3}", ["model.scan_layers", "3"]),
        ("rl: {config: [a.yaml]}", ["config"]),
    ],
)
def test_unknown_and_ill_typed_keys_of_a_file_are_named(capsys, tmp_path, text, messages):
    (tmp_path / "bad.yaml").write_text(text)
    printed = refusal(capsys, *VALID, "--config", str(tmp_path / "bad.yaml"))
    assert all(message in printed for message in messages), printed


IMPOSSIBLE = [
    (["--run_dir", ""], "run_dir is empty"),
    (["--model.tokenizer", ""], "model.path and model.tokenizer are both empty"),
    (["--model.decoder.num_kv_heads", "3"], r"model.decoder.num_heads (4) must be a multiple of model.decoder.num_kv"),
    (["--model.decoder.rotary_dim", "15"], "model.decoder.rotary_dim (15) must be even"),
    (["--model.lora.targets", "[q, query]"], "model.lora.targets names query: there are q, k, v"),
    (["--model.lora.path", "adapter"], "model.lora.path is set and model.path is empty"),
    (["--model.decoder.rotary_dim", "18"], "model.decoder.rotary_dim (18) must be even and at most"),
    (["--sft.schedule_epochs", "0", "--rl.epochs", "0"], "are all 0: there is nothing to do"),
    (["--pretrain.epochs", "1"], "pretrain.source.kind is `none`"),
    (["--data.train.kind", "none"], "data.train.kind is `none`"),
    (["--data.train.path", "dev"], "data.train.path is 'dev': the generated splits are train, test and pretrain"),
    (["--data.test.kind", "gsm8k"], "data.test.path is empty"),
    (
        ["--data.dev.answer_pattern", "(?P<cot>.*"],
        "data.dev.answer_pattern is '(?P<cot>.*': it is no regular expression of Python's: missing ), unterminated",
    ),
    (["--data.dev.answer_pattern", ".*"], "data.dev.answer_pattern is '.*': it must have a group `(?P<answer>...)`"),
    (["--data.dev.answer_pattern", "(?P<answer>.)(?P<cots>.)"], "names the groups cots; there are `answer` and `cot`"),
    (
        ["--data.train.answer_pattern", "(?P<answer>.*)"],
        "data.train.answer_pattern is '(?P<answer>.*)': kind `generated` has its own way to take answers apart",
    ),
    (["--data.dev.kind", "gsm8k"], "data.dev.path is empty"),
    (["--data.test.kind", "reasoning_gym", "--data.test.limit", "9"], "data.test.name is empty"),
    (["--data.test.kind", "reasoning_gym", "--data.test.name", "gcd"], "data.test.limit is 0"),
    (["--data.train.kind", "reasoning_gym"], "data.train.path is train: data.train.kind `reasoning_gym` reads no file"),
    (["--data.train.config", '{"min_terms": 3}'], "data.train.config is set and data.train.kind is `generated`"),
    ([*TASK, "--data.test.config", '{"size": 3, "x": 1}'], "data.test.config has size: items are chosen by"),
    (
        [*TASK, "--reward.rules", "reference"],
        "data.test.kind is reasoning_gym: reward.rules `reference` knows no tasks",
    ),
    (
        [*TASK, *(word.replace("test", "dev") for word in TASK), "--data.dev.seed", "8"],
        "data.test.seed is 0 and data.dev has items 8 to 16 of gcd: they would share some, set data.test.seed to 17",
    ),
    (["--sft.evaluate_every", "0"], "sft.evaluate_every is 0: it must be more than 0"),
    (["--sft.save_every", "0"], "sft.save_every is 0: it must be more than 0"),
    (["--rl.evaluate_every", "-1"], "rl.evaluate_every is -1: it must be 0 or more"),
    (["--sft.warmup_epoch", "0"], "0 < sft.warmup_epoch (0) <= sft.stop_epoch (40)"),
    (["--sft.stop_epoch", "41"], "sft.stop_epoch (41) <= sft.schedule_epochs (40) does not hold"),
    (["--rl.init_from", "x"], "rl.init_from is set but PPO starts from the warm-up"),
    (["--rl.minibatch_size", "24"], "rl.rollout_batch_size * rl.samples_per_question (32) must be a multiple of"),
    (["--rl.microbatch_size", "5"], "rl.microbatch_size (5)"),
    (["--sft.microbatch_size", "36"], "sft.batch_size (48) must be a multiple of sft.microbatch_size (36)"),
    (["--pretrain.batch_size", "7"], "pretrain.batch_size (7) must be a multiple of pretrain.microbatch_size (48)"),
    (["--generation.temperature", "0"], "generation.temperature is 0.0"),
    (["--generation.temperature", "1e-38"], "generation.temperature is 1e-38: it must be 0.001 or more"),
    (["--evaluation.temperature", "-1"], "evaluation.temperature is -1.0: it must be 0, or 0.001 or more"),
    (["--evaluation.top_p", "0"], "evaluation.top_p is 0.0: it must be more than 0 and at most 1"),
    (["--model.decoder.num_layers", "100000000000"], "model.decoder.num_layers is 100000000000: it must be less than"),
    (["--model.param_dtype", "bfloat16"], "steps below 0.0001 are lost in its rounding"),
    (["--generation.prompt_buckets", "[]"], "generation.prompt_buckets is (): it must be one or more lengths"),
    (["--sft.response_buckets", "[8, 0]"], "sft.response_buckets is (8, 0)"),
    (["--sft.batch_size", "0"], "sft.batch_size is 0: it must be more than 0"),
    (["--rl.samples_per_question", "-1"], "rl.samples_per_question is -1: it must be more than 0"),
    (["--rl.kl_coef", "-0.1"], "rl.kl_coef is -0.1: it must be 0 or more"),
    (["--seed", "2147483648"], "seed is 2147483648: it must be 0 or more and less than 2147483648"),
    (["--data.cot", "text", "--data.templates.answer_trigger", ""], "data.templates.answer_trigger is empty"),
    (["--rl.optimizer.learning_rate", "1e999"], "rl.optimizer.learning_rate is inf: it must be finite"),
    (["--sft.optimizer.beta1", "1"], "sft.optimizer.beta1 is 1.0: it must be 0 or more and less than 1"),
    (["--rl.discount", "1.5"], "rl.discount is 1.5: it must be between 0 and 1"),
    (["--data.dev_fraction", "1"], "data.dev_fraction is 1.0: it must be between 0 and 1, without the ends"),
    (["--evaluation.top_p", "-0.5"], "evaluation.top_p is -0.5"),
    (["--reward.workers", "0"], "reward.workers is 0: it must be more than 0"),
]


@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_impossible_settings_are_named(capsys, arguments, message):
    assert message in refusal(capsys, *VALID, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--rl.discount", "1", "--rl.gae_lambda", "0", "--rl.kl_coef", "0", "--evaluation.top_p", "1"],
        ["--sft.warmup_epoch", "40"],
        ["--sft.schedule_epochs", "0", "--rl.init_from", "x"],
        ["--rl.epochs", "0"],
        ["--rl.evaluate_every", "0", "--rl.save_every", "0"],
        ["--rl.rollout_batch_size", "8", "--rl.samples_per_question", "12", "--rl.minibatch_size", "96"],
        ["--model.decoder.rotary_dim", "0"],
    ],
)
def test_the_limits_themselves_are_allowed(arguments):
    validate(load_config([*VALID, *arguments]))


def test_configs_are_read_without_jax(tmp_path):
    """Also every refusal above: nothing that reads or checks a config can touch a device."""
    blocked = dict.fromkeys(("jax", "jaxlib", "flax", "numpy", "transformers"))
    code = f"import sys\nsys.modules.update({blocked!r})\nfrom reft_jax.config import load_config\nload_config()"
    line = [sys.executable, "-c", code, *VALID]
    assert subprocess.run(line, cwd=ROOT, capture_output=True).returncode == 0
    refused = subprocess.run([*line, "--rl.kl_coef", "-1"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "rl.kl_coef is -1.0" in refused.stderr


def refused_run(capfd, arguments: list[str]) -> str:
    """What a run says that is refused; JAX is at work in this process, so no other processes are looked for."""
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--distributed.detect", "false"])
    assert left.value.code == REFUSED
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data.train.kind", "reft_json", "--data.train.path", "no.json"],
            f"data.train.path: there is no file {os.path.abspath('no.json')!r}",
        ),
        (
            ["--data.test.kind", "jsonl", "--data.test.path", "no.jsonl"],
            f"data.test.path: there is no file {os.path.abspath('no.jsonl')!r}",
        ),
        (
            ["--data.dev.kind", "reft_json", "--data.dev.path", "no.json"],
            f"data.dev.path: there is no file {os.path.abspath('no.json')!r}",
        ),
        (
            ["--data.test.kind", "mathqa", "--data.test.path", "no.json"],
            f"data.test.path: there is no file {os.path.abspath('no.json')!r}",
        ),
        (
            ["--sft.schedule_epochs", "0", "--rl.init_from", "no/dir"],
            "rl.init_from: there is no checkpoint directory",
        ),
        (
            ["--pretrain.epochs", "1", "--pretrain.source.kind", "gsm8k", "--pretrain.source.path", "no"],
            f"pretrain.source.path: there is no file {os.path.abspath('no')!r}",
        ),
    ],
)
def test_missing_files_stop_a_run_before_it_begins(monkeypatch, capfd, tmp_path, arguments, message):
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("a device was asked for"))
    assert message in refused_run(capfd, [*VALID, "--run_dir", str(tmp_path / "run"), *arguments])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh.fsdp", "3"], "mesh.data=1, mesh.fsdp=3, mesh.tensor=1 does not fit 8 device"),
        (
            ["--sft.microbatch_size", "12"],
            r"sft.microbatch_size \(12\) must be a multiple of mesh.data \* mesh.fsdp \(8\)",
        ),
        (["--rl.microbatch_size", "4"], r"rl.microbatch_size \(4\) must be a multiple"),
        (["--generation.prompt_buckets", "[20]"], "generation.prompt_buckets"),
        (["--sft.response_buckets", "[20]"], "sft.response_buckets"),
        (["--data.train.limit", "1"], "data.train has . problems to train on and . for dev"),
        (["--model.decoder.vocab_size", "9"], "and the embedding has 9 tokens"),
    ],
)
def test_what_does_not_fit_devices_or_data_stops_a_run_before_compilation(
    monkeypatch, capfd, tmp_path, arguments, message
):
    monkeypatch.setattr(jax, "jit", lambda *a, **k: pytest.fail("something was compiled"))
    limit = [] if "--data.train.limit" in arguments else ["--data.train.limit", "60"]
    said = refused_run(capfd, [*VALID, "--run_dir", str(tmp_path / "run"), *limit, *arguments])
    assert re.search(message, said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--generation.max_new_tokens", "1749"],
            "generation.prompt_buckets and generation.max_new_tokens come to 2049 tok",
        ),
        (["--sft.response_buckets", "[8, 1025]"], "sft.prompt_buckets and sft.response_buckets come to 2049 tokens"),
        (["--model.decoder.max_positions", "699"], "come to 700 tokens, but the model has 699 positions"),
    ],
)
def test_buckets_longer_than_the_models_positions_are_refused_at_the_start(settings, message, tmp_path):
    """All of it at once is 300 + 400 tokens of generation and 1024 + 1024 of SFT, by default."""
    line = [*VALID[2:], "--run_dir", str(tmp_path / "run"), "--generation.prompt_buckets", "[300]"]
    off = ["--sft.schedule_epochs", "0"] if "sft" not in settings[0] else []
    config = load_config([*line, *off, *settings])
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(config)
    assert not (tmp_path / "run").exists()
