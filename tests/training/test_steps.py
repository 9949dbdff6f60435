"""The list of steps against what runs ask for: whole runs whose steps return zeros, and responses that end at once, so
that nothing is compiled."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import train
from reft_jax.algorithms.steps import steps
from reft_jax.config import TemplateConfig, load_config
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.models.hf.load import resolve_model
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.sharding import make_mesh
from reft_jax.reward_model.__main__ import main as reward_model
from tests.runs import TINY

CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.compiles

VOCABULARY = 400
OURS = {
    "model": {"path": "", "tokenizer": "embedded", "decoder": {**TINY["model"]["decoder"], "max_positions": 4096}},
    "data": {
        "cot": "program",
        "templates": dataclasses.asdict(TemplateConfig()),
        "train": {"kind": "generated", "path": "train", "limit": 24},
        "dev": {"kind": "generated", "path": "test", "limit": 3},
        "test": {"kind": "generated", "path": "test", "limit": 3},
    },
    "pretrain": {"source": {"kind": "generated", "path": "pretrain", "limit": 8}},
    "logging": {"trackers": []},
    "reward": {"workers": 1},
    "distributed": {"detect": False},
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
}
"""What stands in for a config's model, data and devices; all else is its own."""


def variants() -> dict[str, list[str]]:
    """Command lines by name: the paper's recipes, every overlay, and what changes the steps besides."""
    recipe = "paper/gsm8k_pcot_codellama_7b.yaml"
    overlays = {path.stem: [recipe, f"overlays/{path.name}"] for path in sorted((CONFIGS / "overlays").glob("*.yaml"))}
    for machine in ("one_gpu", "two_cores"):
        overlays[machine][0] = "svamp_pcot_smollm2_135m.yaml"
    files = {
        "quickstart": ["quickstart.yaml"],
        "svamp": ["svamp_pcot_smollm2_135m.yaml"],
        "small": ["paper/gsm8k_pcot_codegen_350m.yaml"],
        "small_mathqa": ["paper/mathqa_pcot_codegen_350m.yaml"],
        **overlays,
    }
    lines = {name: [x for file in parts for x in ("--config", str(CONFIGS / file))] for name, parts in files.items()}
    lines["dapo"] += ["--rl.max_draws", "2"]  # of ten: here no question is ever mixed
    lines["adapters"] = [*lines["quickstart"], "--model.lora.rank", "2"]
    lines["bfloat16"] = [*lines["quickstart"], "--model.dtype", "bfloat16"]
    return lines


@pytest.fixture
def asked(monkeypatch) -> dict[tuple[str, tuple[int, ...]], object]:
    """What runs in this process ask for, by step and bucket: shapes and types of the arguments of the last call."""
    end = load_tokenizer("embedded", "main").eos_token_id
    calls: dict[tuple[str, tuple[int, ...]], object] = {}
    built: dict[tuple[str, tuple[int, ...]], object] = {}

    def get(compiled: CompiledSteps, name: str, *bucket: int):
        assert bucket in compiled.steps[name].buckets
        if (name, bucket) not in built:
            jitted, abstract = compiled.steps[name].build(*bucket)
            built[name, bucket] = jax.eval_shape(jitted, *abstract)

        def call(*args):
            calls[name, bucket] = jax.tree.map(lambda x: (np.shape(x), x.dtype), args)
            out = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), built[name, bucket])
            if name.startswith(("prefill", "decode")):  # responses end at once
                out = out[0], jnp.full_like(out[1], end), out[2]
            return out

        return call

    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    monkeypatch.setattr(CompiledSteps, "get", get)
    monkeypatch.setattr(CompiledSteps, "__len__", lambda compiled: len(calls))
    return calls


def assert_planned(line: list[str], asked: dict[tuple[str, tuple[int, ...]], object]) -> None:
    """Preflight has the steps that a run of the command line asked for, no others, and with the same arguments."""
    config = load_config(line)
    config = dataclasses.replace(config, model=resolve_model(config.model, {"last": VOCABULARY - 1}))
    listed = steps(config, make_mesh(config.mesh, jax.devices()[:1]))
    assert {name for name, _ in asked} == set(listed)
    for (name, bucket), arguments in asked.items():
        _, abstract = listed[name].build(*bucket)
        jax.tree.map(lambda x, given: np.testing.assert_equal((x.shape, x.dtype), given), abstract, arguments)


def overrides(folder: Path, line: list[str], run_dir: Path) -> list[str]:
    """The command line with our model and data, and one epoch of each stage that it has on, but two with a warm-up."""
    (folder / "ours.yaml").write_text(json.dumps(OURS))
    line = [*line, "--config", str(folder / "ours.yaml"), "--run_dir", str(run_dir)]
    config = load_config(line)
    line += ["--model.decoder.vocab_size", str(VOCABULARY)]
    if config.pretrain.epochs:
        line += ["--pretrain.epochs", "1"]
    if config.sft.schedule_epochs:
        line += [x for key in ("schedule_epochs", "warmup_epoch", "stop_epoch") for x in (f"--sft.{key}", "1")]
    if config.rl.critic_warmup:
        line += ["--rl.critic_warmup", "1", "--rl.epochs", "2"]
    elif config.rl.epochs:
        line += ["--rl.epochs", "1"]
    return line


IN_CI = ("online_self_training", "svamp", "quickstart")
"""Those of the variants that CI tries; by default the reward model stands for all."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.ci if name in IN_CI else pytest.mark.long) for name in variants()],
)
def test_a_run_asks_for_the_steps_that_preflight_compiles_with_their_arguments(name, asked, tmp_path):
    """All of their names, and of their buckets those that its data need."""
    line = overrides(tmp_path, variants()[name], tmp_path / "run")
    assert train.main(line) == 0
    assert_planned(line, asked)


def test_a_reward_model_asks_for_the_steps_that_preflight_compiles(asked, tmp_path):
    rows = [
        {
            "id": f"{i}",
            "sample": j,
            "question": f"question {i}",
            "gold": "3",
            "completion": f"def solution():\n    return {j}",
        }
        | {"outcome": "correct" if j == 3 else "wrong", "value": j}
        for i, j in itertools.product(range(20), range(4))
    ]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    off = ["--sft.schedule_epochs", "0", "--rl.epochs", "0", "--pretrain.epochs", "0"]
    line = [
        *overrides(tmp_path, variants()["quickstart"], tmp_path / "run"),
        "--reward_model.samples",
        f'["{samples}"]',
        *off,
    ]
    line += [
        "--reward_model.epochs",
        "1",
        "--data.train.kind",
        "none",
        "--data.test.kind",
        "none",
        "--data.dev.kind",
        "none",
    ]
    assert reward_model(["train", *line]) == 0
    assert {name for name, _ in asked} == {"reward_model", "classify"}
    assert_planned(line, asked)
