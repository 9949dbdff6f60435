"""The paper's study: every run's numbers, made of its parts, against tables typed here from the reference's scripts."""

import dataclasses
import functools
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from reft_jax.algorithms.train_state import make_schedule
from reft_jax.config import Config, load_config
from reft_jax.config.validation import check_batches, check_lengths
from reft_jax.data.problem_sets import read_problem_sets
from reft_jax.models.hf.load import resolve_model
from reft_jax.preflight.__main__ import with_model_directory
from reft_jax.training.startup import plan_stages

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
RUNS = sorted(path.stem for path in PAPER.glob("*.yaml"))


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set with one kind of chain of thought, and what the reference's scripts make of it for 7B models."""

    rows: int
    steps: int  # of an epoch, 48 rows each
    warmup_epoch: int
    warmup_step: int
    kl_coef: float
    cot: str
    train: str
    test: str


DATA = {
    "gsm8k_pcot": Data(7356, 154, 2, 308, 0.01, "program", "gsm8k_python_sdp", "gsm8k"),
    "gsm8k_ncot": Data(7465, 156, 2, 312, 0.05, "text", "gsm8k_nl", "gsm8k"),
    "svamp_pcot": Data(3043, 64, 2, 128, 0.01, "program", "svamp_python_sdp", "svamp"),
    "svamp_ncot": Data(3076, 65, 2, 130, 0.05, "text", "svamp_nl", "svamp"),
    "mathqa_pcot": Data(15250, 318, 2, 636, 0.01, "program", "mathqa_python_sdp", "mathqa"),
    "mathqa_ncot": Data(14862, 310, 5, 1550, 0.05, "text", "mathqa_nl", "mathqa"),
    "mathqa_numeric_ncot": Data(8955, 187, 10, 1870, 0.01, "text", "mathqa-numeric_nl", "mathqa-numeric"),
}
SMALL = {"gsm8k_pcot": (40, 10, 1540), "svamp_pcot": (40, 10, 640), "mathqa_pcot": (100, 40, 12720)}
"""Epochs of SFT, and epoch and step of the warm-up, of small models."""

MODELS = {  # hub id, layers, width, positions
    "codellama_7b": ("codellama/CodeLlama-7b-hf", 32, 4096, 16384),
    "galactica_6.7b": ("facebook/galactica-6.7b", 32, 4096, 2048),
    "galactica_125m": ("facebook/galactica-125m", 12, 768, 2048),
    "codeparrot_small": ("codeparrot/codeparrot-small", 12, 768, 1024),
    "codegen_350m": ("Salesforce/codegen-350M-mono", 20, 1024, 2048),
}
LARGE = ("codellama_7b", "galactica_6.7b")


def parts(run: str) -> tuple[str, str]:
    """Data and model of a run by its name."""
    (data,) = [name for name in DATA if run.startswith(name + "_")]
    return data, run.removeprefix(data + "_")


@functools.cache
def loaded(run: str, *overlays: str) -> Config:
    files = [PAPER / f"{run}.yaml", *(ROOT / "configs" / "overlays" / f"{name}.yaml" for name in overlays)]
    return load_config([argument for file in files for argument in ("--config", str(file))])


def plan(config: Config, rows: int) -> Any:
    """The stages of a run that trains on so many problems."""
    return SimpleNamespace(**plan_stages(config, pretrain=0, sft=rows, rl=rows))


def test_the_runs_are_those_of_the_papers_tables():
    large = {f"{data}_{model}" for data in DATA for model in LARGE}
    assert set(RUNS) == large | {f"{data}_{model}" for data in SMALL for model in set(MODELS) - set(LARGE)}
    named = [set(yaml.safe_load(path.read_text())["config"]) for path in PAPER.glob("*.yaml")]
    recipes = {str(path.relative_to(PAPER)) for path in PAPER.glob("*/*.yaml")}
    assert set().union(*named) == recipes, "every part is used"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_the_numbers_of_the_references_scripts(run):
    config, (name, model) = loaded(run), parts(run)
    data, large = DATA[name], model in LARGE
    sft, rl = config.sft, config.rl
    assert config.run_dir == os.path.abspath(f"runs/{run}")
    assert config.model.path == MODELS[model][0]
    assert (config.data.cot, config.data.train.path) == (data.cot, os.path.abspath(f"data/{data.train}.json"))
    assert config.data.test.path == config.data.dev.path == os.path.abspath(f"data/{data.test}_test_set.json")
    epochs, warmup_epoch, warmup_step = (40, data.warmup_epoch, data.warmup_step) if large else SMALL[name]
    assert (sft.schedule_epochs, sft.stop_epoch, sft.warmup_epoch) == (epochs, epochs, warmup_epoch)
    assert (sft.batch_size, sft.optimizer.learning_rate) == (48, 1e-5 if large else 2e-5)
    assert (sft.optimizer.schedule, sft.optimizer.lr_warmup_fraction) == ("linear", 0.1)
    assert max(sft.prompt_buckets) + max(sft.response_buckets) == 1024
    batch = 32 if large else 256
    assert (rl.algorithm, rl.critic, rl.rollout_batch_size, rl.samples_per_question) == ("ppo", "shared", batch, 1)
    assert (rl.epochs, rl.optimizer.learning_rate) == ((300, 3e-7) if large else (700, 3e-6))
    assert (rl.optimizer.schedule, rl.optimizer.lr_warmup_fraction) == ("constant", 0)
    assert (rl.minibatch_size, rl.update_epochs, rl.updates(batch)) == (batch, 2, 2)
    assert (rl.kl_coef, rl.vf_coef, rl.kl_in, rl.kl_estimator) == (data.kl_coef, 5, "reward", "k1")
    assert (rl.clip_range, rl.value_clip_range, rl.discount, rl.gae_lambda) == (0.2, 0.2, 1, 0.95)
    assert rl.whiten_advantages
    assert (max(config.generation.prompt_buckets), config.generation.max_new_tokens) == (300, 400)
    assert config.generation.temperature == 1
    for optimizer in (sft.optimizer, rl.optimizer):
        assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0, 1)
    assert (config.reward.correct, config.reward.wrong, config.reward.no_answer) == (1, 0.1, 0)

    made = plan(config, data.rows)
    assert made.sft.epoch == data.steps
    assert made.sft.stop == made.sft.schedule == data.steps * epochs
    assert sft.warmup_epoch * made.sft.epoch == warmup_step
    assert made.rl.epoch == -(-data.rows // batch)


@pytest.mark.compiles
def test_gsm8k_with_programs_by_the_step():
    """6,160 steps of SFT, the warm-up from within the ramp, at half the peak; then 69,000 rollouts, 138,000 updates."""
    config = loaded("gsm8k_pcot_codellama_7b")
    made = plan(config, 7356)
    assert (made.sft.schedule, made.rl.epoch, made.rl.stop, made.rl.schedule) == (6160, 230, 69_000, 138_000)
    rate = make_schedule(config.sft.optimizer, made.sft.schedule)
    assert rate(308) == pytest.approx(5e-6, rel=1e-6)
    assert rate(616) == pytest.approx(1e-5, rel=1e-6)
    assert 0 < rate(6159) < 2e-9, "the reference's rate is 0 in its last 40 steps"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_fits_its_models_positions_and_eight_devices(run):
    config, (_, layers, width, positions) = loaded(run), MODELS[parts(run)[1]]
    shaped = with_model_directory(config, "").model
    config = dataclasses.replace(config, model=resolve_model(shaped, {}))
    decoder = config.model.decoder
    assert (decoder.num_layers, decoder.embed_dim, decoder.max_positions) == (layers, width, positions)
    check_lengths(config)
    check_batches(config, 8)


OVERLAYS: dict[str, dict[str, Any]] = {
    "paper_protocol": {"data.dev.kind": "reft_json"},
    "sft_only": {"rl.epochs": 0},
    "offline_self_training": {
        "sft.schedule_epochs": 20,
        "sft.warmup_epoch": 20,
        "sft.stop_epoch": 20,
        "sft.optimizer.learning_rate": 1e-5,
        "sft.batch_size": 48,
        "rl.epochs": 0,
        "data.train.kind": "jsonl",
    },
    "online_self_training": {"rl.algorithm": "self_training", "rl.kl_coef": 0, "rl.self_training.gold_limit": 0},
    "online_self_training_reference": {
        "rl.algorithm": "self_training",
        "rl.kl_coef": 0,
        "rl.self_training.gold_limit": 300,
        "rl.self_training.gold_weight": 0.5,
    },
    "grpo": {"rl.algorithm": "grpo", "rl.samples_per_question": 8, "rl.kl_in": "loss"},
    "rloo": {"rl.algorithm": "rloo", "rl.samples_per_question": 8, "rl.kl_in": "reward"},
    "dr_grpo": {"rl.algorithm": "grpo", "rl.chosen_scale": "none", "rl.loss_aggregation": "constant_length"},
    "dapo": {"rl.chosen_scale": "group_deviation", "rl.clip_range": 0.2, "rl.clip_range_high": 0.28, "rl.kl_coef": 0},
    "gspo": {"rl.ratio": "sequence_mean", "rl.clip_range": 3e-4, "rl.clip_range_high": 4e-4},
    "cispo": {"rl.surrogate": "cispo", "rl.loss_aggregation": "token_mean"},
    "maxrl": {"rl.chosen_baseline": "group_mean", "rl.chosen_scale": "group_mean", "reward.wrong": 0},
    "reinforce": {"rl.chosen_baseline": "none", "rl.chosen_scale": "none", "rl.has_critic": False, "reward.wrong": 0.1},
    "reinforce_plus_plus": {"rl.chosen_baseline": "none", "rl.chosen_scale": "whiten", "rl.samples_per_question": 1},
    "raft_plus_plus": {"rl.negative_weight": 0, "rl.positive_weight": 1, "reward.wrong": 0},
    "reinforce_rej": {"rl.only_mixed_groups": True, "reward.wrong": -1, "reward.no_answer": -1},
    "w_reinforce": {"rl.positive_weight": 0.1, "rl.negative_weight": 1, "reward.wrong": -1},
    "topr": {"rl.surrogate": "topr", "rl.ratio": "sequence_product", "reward.wrong": -1},
    "asymre": {"rl.chosen_baseline": "group_mean", "rl.baseline_shift": -0.1, "rl.surrogate": "reinforce"},
    "dual_clip": {"rl.algorithm": "ppo", "rl.dual_clip": 3},
    "sampler_weights": {"rl.algorithm": "ppo", "rl.sampler_ratio_cap": 2},
    "entropy_floor": {"rl.algorithm": "ppo", "rl.entropy_floor": 0.2},
    "vc_ppo": {"rl.critic": "separate", "rl.critic_warmup": 50, "rl.value_lambda": 1, "rl.gae_lambda": 0.95},
    "vapo": {"rl.critic": "separate", "rl.gae_length_alpha": 0.05, "rl.positive_nll_coef": 0.1, "rl.value_lambda": 1},
    "detached_critic": {"rl.critic": "detached", "rl.value_start": "mean_reward", "rl.chosen_scale": "whiten"},
    "no_partial_reward": {"reward.wrong": 0, "reward.correct": 1},
    "no_kl": {"rl.kl_coef": 0},
    "separate_critic": {"rl.critic": "separate"},
    "no_baseline": {
        "rl.vf_coef": 0,
        "rl.whiten_advantages": False,
        "rl.critic": "shared",
        "rl.gae_lambda": 1,
        "rl.discount": 1,
    },
    "no_warmup": {"sft.schedule_epochs": 0, "rl.init_from": ""},
    "reference_rules": {"reward.rules": "reference"},
}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("run", ["mathqa_ncot_galactica_6.7b", "mathqa_pcot_codeparrot_small"])
def test_a_method_is_an_overlay_over_any_run(run, overlay):
    config = loaded(run, overlay)
    for key, value in OVERLAYS[overlay].items():
        assert functools.reduce(getattr, key.split("."), config) == value, key
    check_batches(config, 8)


def test_every_overlay_of_the_paper_is_tested_here():
    overlays = {path.stem for path in (ROOT / "configs" / "overlays").glob("*.yaml") if "paper/" in path.read_text()}
    assert overlays == set(OVERLAYS)


@pytest.mark.parametrize(("run", "rows"), [("svamp_pcot_codellama_7b", 3043), ("svamp_ncot_galactica_6.7b", 3076)])
def test_the_papers_protocol_trains_on_all_rows_and_chooses_on_test(real_data, run, rows, monkeypatch, tmp_path):
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    loaded_here = loaded.__wrapped__  # paths are taken from here
    carved = read_problem_sets(loaded_here(run), said.append)
    assert len(carved["train"]) + len(carved["dev"]) == rows
    assert not any("warning" in line for line in said)
    config = loaded_here(run, "paper_protocol")
    problems = read_problem_sets(config, said.append)
    assert len(problems["train"]) == rows == DATA[parts(run)[0]].rows
    assert [p.id for p in problems["dev"]] == [p.id for p in problems["test"]]
    assert len(problems["test"]) == 1000
    assert [line for line in said if "warning" in line] == [
        "warning: dev is part of test: models are chosen on test, and their accuracy there is test-best"
    ]
    assert plan(config, len(problems["train"])).sft.epoch == DATA[parts(run)[0]].steps


def test_the_guide_names_every_run_and_no_file_that_is_not_there():
    text = (ROOT / "docs" / "paper.md").read_text()
    for path in re.findall(r"configs/[\w./-]+\.yaml", text):
        assert (ROOT / path).is_file(), path
    assert set(OVERLAYS) == set(re.findall(r"configs/overlays/(\w+)\.yaml", text))
    assert all(f"`{name}`" in text for name in (*RUNS, *DATA, *MODELS))
