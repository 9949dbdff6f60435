"""The command that compiles a run for devices that are not there: its figures by hand, its answers, its refusals."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reft_jax.config import Config, LoraConfig, ModelConfig, RlConfig, load_config
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.preflight.__main__ import compile_all, in_subprocess, known_lines, main, with_model_directory
from reft_jax.preflight.devices import GPUS, missing_wheels, parse_target
from reft_jax.preflight.report import assess, pool_fraction, show

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SMALL = ["--pretrain.epochs", "0", "--model.decoder.num_layers", "1", "--generation.slots", "32"]
SFT_ONLY = [*SMALL, "--rl.epochs", "0", "--sft.microbatch_size", "16"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "reft_jax.preflight", "--config", QUICKSTART, *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"})


# A whole run of it


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """(what it printed, what it wrote) of the quickstart with one layer, for eight devices."""
    path = tmp_path_factory.mktemp("preflight") / "report.json"
    done = command(*SMALL, "--target", "cpu:8", "--memory_gb", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.mark.compiles
@pytest.mark.ci
def test_a_run_that_fits_says_so_and_how_full_it_gets(quickstart):
    printed, report = quickstart
    steps = ["sft", "layout", "prefill", "decode", "experience", "update"]
    assert list(report["steps"]) == steps
    assert [(phase["stage"], phase["step"]) for phase in report["phases"]] == [
        *(("sft", step) for step in ("sft", "layout", "prefill", "decode")),
        *(("rl", step) for step in ("layout", "prefill", "decode", "experience", "update")),
    ]
    assert (report["fits"], report["mesh"]) == (True, {"data": 1, "fsdp": 8, "tensor": 1})
    assert report["target"]["count"] == 8
    assert report["fullest"]["total"] == max(phase["total"] for phase in report["phases"])
    assert "Fits cpu:8" in printed
    assert all(step in printed for step in steps)
    assert "per decoded token" in printed
    assert report["changes"] == []


@pytest.mark.compiles
@pytest.mark.ci
def test_arguments_are_those_of_the_hand_formula(quickstart):
    """One layer of width 64: what is split over 8 devices, and what every device holds."""
    steps = quickstart[1]["steps"]
    rows = math.ceil(len(load_tokenizer("embedded", "main")) / 8) * 8
    split = rows * 64 + 4 * 64 * 64 + 2 * 64 * 256  # embedding; q, k, v, o; up, down
    norms = 3 * 64  # one before attention, one before the MLP, one at the end
    params, counters = 4 * (split // 8 + norms), 3 * 4  # the step, Adam's count and the schedule's
    batch = 16 // 8 * (36 + 54 + 54 + 2) * 4  # tokens, responses and two lengths, int32
    assert steps["sft"]["arguments"] == {"params": params, "optimizer": 2 * params + counters, "batch": batch}
    assert steps["sft"]["argument"] == 3 * params + counters + batch
    assert steps["layout"]["argument"] == params
    head = 4 * (64 // 8 + 1)  # the value head, its bias on every device
    experience = 256 // 8 * (72 + 20 + 20 + 2 + 4 * 20) * 4  # the same, and four arrays of the response's length
    update = 3 * (params + head) + counters + experience + 32 * 4
    assert steps["update"]["argument"] == update
    assert steps["update"]["alias"] == 3 * (params + head) + counters
    rollout = 256 // 8 * (72 + 20 + 20 + 2 + 20 + 1) * 4  # with log-probs and a reward; whether it ended is not read
    assert steps["experience"]["argument"] == 2 * params + head + rollout + 256 // 8  # whether each is right, a byte
    cache = 2 * 32 * (72 + 20) * 2 * 32 * 4  # k and v of two heads of 32, in 32 slots
    assert steps["prefill"]["arguments"]["cache"] == steps["decode"]["arguments"]["cache"] == cache
    rows = 32 * (5 * 4 + 1)  # of each five numbers, and whether it goes on
    assert steps["decode"]["arguments"]["batch"] == rows + 3 * 4  # seed, step, temperature
    assert steps["decode"]["alias"] == cache + rows


@pytest.mark.compiles
@pytest.mark.ci
def test_donated_inputs_are_all_reused(quickstart):
    assert all(step["not_aliased"] == {} for step in quickstart[1]["steps"].values())


@pytest.mark.compiles
@pytest.mark.ci
def test_only_sampling_has_a_loop_of_unknown_length_and_it_gathers_no_weights(quickstart):
    for name, step in quickstart[1]["steps"].items():
        assert step["open_loops"] == (name == "decode")
        assert sum(kind["bytes"] for kind in step["per_turn"].values()) < 1000, "not even one weight"


@pytest.mark.compiles
@pytest.mark.ci
def test_the_update_holds_the_reference_and_the_rollout_everything(quickstart):
    report = quickstart[1]
    parts = {(phase["stage"], phase["step"]): phase["parts"] for phase in report["phases"]}
    weights = report["steps"]["decode"]["arguments"]["weights"]
    reference = report["steps"]["experience"]["arguments"]["reference"]
    assert reference == report["steps"]["layout"]["argument"]
    for step in ("layout", "prefill", "decode", "experience", "update"):
        held = parts["rl", step]
        assert held["reference"] == reference
        assert held["adam"] == report["steps"]["update"]["arguments"]["optimizer"]
        assert held["weights"] == (weights if step in ("layout", "prefill", "decode") else 0)
        assert (held["cache"] > 0) == (step in ("prefill", "decode"))
    assert all(held["reference"] == 0 for (stage, _), held in parts.items() if stage == "sft")
    update = report["steps"]["update"]
    unread = 256 // 8 * 20 * 4  # bytes of `log_ratio`: it lies there for the records, and is no argument of the step
    assert sum(parts["rl", "update"].values()) == update["argument"] + unread + update["temp"] + reference + (
        update["output"] - update["alias"]
    )


@pytest.mark.compiles
@pytest.mark.ci
def test_a_run_that_does_not_fit_ends_with_1_and_names_what_to_change(tmp_path):
    done = command(*SFT_ONLY, "--target", "cpu:8", "--memory_gb", "0.001", "--json", str(tmp_path / "report.json"))
    assert done.returncode == 1, done.stderr
    assert "Does not fit cpu:8" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fullest"]["spare"] < 0
    for change in ("sft.microbatch_size: 16 -> 8", "model.remat: dots", "model.dtype: bfloat16", "a larger machine"):
        assert any(change in text for text in report["changes"]), change
        assert change in done.stdout


# What is asked of it


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "v4-8"], "there is no target 'v4-8'; targets are cpu:N; a100|"),
        (["--target", "tpu:v5e:2x2x2"], "there is no target"),
        (["--target", "a100:8"], "there is no target"),
        (["--target", "cpu:8", "--mesh.fsdp", "3"], "mesh.fsdp=3, mesh.tensor=1 does not fit 8 device"),
        (["--target", "cpu:8", "--sft.microbatch_size", "4"], "sft.microbatch_size (4) must be a multiple"),
        (["--target", "cpu:2", "--generation.max_new_tokens", "300"], "the model has 256 positions"),
        (["--target", "cpu:2", "--model.path", "some/model"], "--model_config FILE"),
        (["--target", "cpu:2", "--model_config", "none.json"], "--model_config none.json: there is no such file"),
        (["--target", "cpu:2", "--model.tokenizer", "some/tokenizer"], "set model.decoder.vocab_size"),
        (["--target", "cpu:2", "--memory_gb", "nan"], "--memory_gb is nan: it must be 0"),
        (["--target", "cpu:2", "--json", "/no/such/folder/x.json"], "there is no such folder to write to"),
    ],
)
def test_preflight_exits_with_2_where_it_cannot_tell(capsys, arguments, message):
    assert main(["--config", QUICKSTART, *arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("could not tell: ")
    assert message in error


CUDA12 = {
    "jax-cuda12-plugin": "7.8",
    "jax-cuda12-pjrt": "7.8",
    "nvidia-cuda-nvcc-cu12": "12",
    "nvidia-cudnn-cu12": "9",
}


@pytest.mark.parametrize(
    ("target", "installed", "commands"),
    [
        ("a100:1x1x8", {}, "plugin==7.8 jax-cuda12-pjrt==7.8 nvidia-cuda-nvcc-cu12 nvidia-cudnn-cu12"),
        ("h100:1x1x1", {**CUDA12, "jax-cuda12-pjrt": "7.7"}, "plugin==7.8"),
        ("h100:1x1x1", {k: v for k, v in CUDA12.items() if k != "nvidia-cudnn-cu12"}, "nvidia-cudnn-cu12"),
        ("h100:1x1x1", CUDA12, ""),
        (
            "h100:1x1x1",
            {"jax-cuda13-plugin": "7.8", "jax-cuda13-pjrt": "7.8", "nvidia-cuda-nvcc": "13", "nvidia-cudnn-cu13": "9"},
            "",
        ),
        ("tpu:v5e:4x4", {}, "pip install 'libtpu==1.2.*'"),
        ("tpu:v5e:4x4", {"libtpu": "1.2.3"}, ""),
        ("cpu:8", {}, ""),
    ],
)
def test_missing_wheels_are_named_with_their_command(monkeypatch, capsys, target, installed, commands):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if not name.startswith(("jax", "nvidia", "libtpu")):
            return real(name)
        try:
            return {"jax": "7.8", **installed}[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", 'libtpu==1.2.*; extra == "tpu"'])
    monkeypatch.setattr("shutil.which", lambda _: None)
    found = missing_wheels(parse_target(target))
    assert commands in found
    assert bool(commands) == bool(found)
    if commands:
        assert main(["--config", QUICKSTART, "--target", target]) == 2
        assert commands in " ".join(capsys.readouterr().err.split())


def test_targets_have_the_devices_and_the_memory_of_their_kind():
    counts = {"cpu:8": 8, "a100:2x2x8": 32, "h200:1x1x4": 4, "tpu:v5e:4x4": 16, "tpu:v5p:2x2x4": 16}
    assert {name: parse_target(name).count for name in counts} == counts
    assert parse_target("a100_40gb:1x1x1").usable < 40e9 < parse_target("a100:1x1x1").usable < 80 * 2**30
    assert parse_target("tpu:v5e:1x1").usable < 16 * 2**30
    assert parse_target("a100:1x1x8", memory_gb=20).usable == 20e9
    environment = parse_target("cpu:12").environment()
    assert "--xla_force_host_platform_device_count=12" in environment["XLA_FLAGS"]
    assert environment["JAX_PLATFORMS"] == "cpu"
    for gpu in GPUS.values():
        assert f"device_memory_size: {int(gpu.memory)}" in gpu.target_config()


# The paper's config, at its full size, without compiling it


@pytest.mark.compiles
def test_the_paper_config_is_planned_at_full_size_from_its_shape_alone():
    path = ROOT / "configs" / "paper" / "gsm8k_pcot_codellama_7b.yaml"
    config = with_model_directory(load_config(["--config", str(path)]), "")
    ((plan, _),) = in_subprocess(config, parse_target("cpu:8"), ())
    split = 2 * 32016 * 4096 + 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    norms = (2 * 32 + 1) * 4096
    assert plan["parameters"] == split + norms == 6_738_546_688
    sft = plan["steps"]["sft"]
    assert sft["bucket"] == [48, 320, 704, 9]
    assert sft["arguments"]["params"] == 4 * (split // 8 + norms)
    assert sft["arguments"]["optimizer"] == 2 * sft["arguments"]["params"] + 12
    decode = plan["steps"]["decode"]
    assert decode["arguments"]["weights"] == 2 * split // 8 + 4 * norms  # bfloat16, norms in float32
    row = 2 * 32 * 700 * 4096 * 2  # bytes of cache; 2 GB hold five such rows, and an iteration has 32 on 8 devices
    assert plan["slots"] == 4 == 32 // 8
    assert decode["arguments"]["cache"] == 32 * row // 8


@pytest.mark.compiles
def test_a_reward_model_is_planned_without_output_projection_and_adapters():
    """The quickstart's width of 64 and its 3 layers on 8 devices; rows of 120 tokens, length and label."""
    off = ["--pretrain.epochs", "0", "--sft.schedule_epochs", "0", "--rl.epochs", "0", "--model.lora.rank", "4"]
    reward_model = ["--reward_model.samples", '["x"]', "--reward_model.row_buckets", "[60, 120]"]
    sizes = ["--model.decoder.tie_embeddings", "false", "--reward_model.microbatch_size", "8"]
    config = load_config(["--config", QUICKSTART, *off, *reward_model, *sizes])
    ((plan, _),) = in_subprocess(config, parse_target("cpu:8"), ())
    split = 384 * 64 + 3 * (4 * 64 * 64 + 2 * 64 * 256) + 64 * 2
    params = 4 * (split // 8 + 7 * 64)
    arguments = {"params": params, "optimizer": 2 * params + 12, "batch": 24 // 8 * (120 + 2) * 4}
    assert plan["steps"] == {
        "reward_model": {"bucket": [24, 120, 0, 2], "arguments": arguments},
        "classify": {"bucket": [8, 120, 0, 2], "arguments": {"weights": params, "batch": 121 * 4}},
    }


def test_shapes_of_the_papers_models_are_found_by_their_hub_ids():
    config = load_config(["--config", QUICKSTART])
    for path in ("codellama/CodeLlama-7b-hf", "facebook/galactica-125m", "Salesforce/codegen-350M-mono"):
        model = dataclasses.replace(config.model, path=path)
        found = Path(with_model_directory(dataclasses.replace(config, model=model), "").model.path)
        assert found.resolve() == ROOT / "configs" / "models" / path


# What is made of the compiler's words


def fake(config: Config, **measures):
    """What is said of a run whose steps measure as given, on a device of 1000 bytes."""
    target = dataclasses.replace(parse_target("cpu:8", memory_gb=1), memory=1000.0)
    state = {"params": 100, "optimizer": 200, "batch": 10}
    arguments = {
        "sft": state,
        "layout": {"params": 100},
        "prefill": {"weights": 50, "cache": 30, "batch": 10},
        "decode": {"weights": 50, "cache": 30, "batch": 10},
        "experience": {"params": 100, "reference": 90, "batch": 10},
        "update": state,
        "reward_model": state,
        "classify": {"weights": 95, "batch": 10},
    }
    steps = {name: {"bucket": [8, 16, 16, 1], "arguments": arguments[name]} for name in measures}
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    plan = {
        "mesh": mesh,
        "shards": 8,
        "slots": 4,
        "vocabulary": 100,
        "parameters": 25,
        "decoder": 90,
        "steps": steps,
    }
    empty = {"findings": [], "not_aliased": {}, "collectives": {}, "per_turn": {}, "open_loops": 0, "seconds": 0}
    sizes = {"argument": 110, "output": 0, "alias": 0, "temp": 0, "peak": 0, "code": 0}
    found = {name: one if "refused" in one else {**empty, **sizes, **one} for name, one in measures.items()}
    return assess(config, target, plan, found)


def test_what_is_resident_is_added_up_by_hand():
    measures = {
        "prefill": {"argument": 90, "needed": 170},
        "decode": {"argument": 90, "needed": 91},
        "experience": {"argument": 200, "needed": 260},
        "update": {"argument": 310, "needed": 400},
    }
    totals = lambda report: {phase["step"]: phase["total"] for phase in report["phases"]}
    state, decoder, batch = 300, 90, 10
    expected = {  # what each step needs beside its arguments
        "prefill": state + decoder + 30 + 80 + batch,
        "decode": state + decoder + 30 + 1 + batch,
        "experience": state + decoder + 60 + batch,
        "update": state + decoder + 90 + batch,
    }
    assert totals(fake(Config(), **measures)) == expected
    adapted = Config(model=ModelConfig(lora=LoraConfig(rank=4)))
    shared = {name: total - decoder for name, total in expected.items()}
    assert totals(fake(adapted, **measures)) == shared | {"save": state + decoder}
    alone = Config(rl=RlConfig(kl_coef=0.0))
    assert totals(fake(alone, **measures)) == {name: total - decoder for name, total in expected.items()}
    copied = fake(Config(), **measures, layout={"argument": 100, "output": 50, "needed": 170})
    more = {step: expected[step] + 50 for step in ("prefill", "decode")}
    assert totals(copied) == expected | more | {"layout": state + decoder + 50 + 20}


def test_a_reward_model_is_a_run_of_its_own():
    measures = {
        "sft": {"argument": 310, "needed": 400, "code": 7},
        "reward_model": {"argument": 310, "needed": 900, "code": 5},
        "classify": {"argument": 105, "needed": 150},
    }
    report = fake(Config(model=ModelConfig(lora=LoraConfig(rank=4))), **measures)
    totals = {(phase["stage"], phase["step"]): phase["total"] for phase in report["phases"]}
    assert totals == {
        ("sft", "sft"): 300 + 90 + 10 + 7,
        ("sft", "save"): 300 + 90 + 7,  # there, the adapters are merged
        ("reward_model", "reward_model"): 300 + 590 + 10 + 5,
        ("reward_model", "classify"): 300 + 45 + 10 + 5,
    }
    report = fake(Config(), classify={"argument": 105, "needed": 1000}, reward_model={"argument": 310, "needed": 900})
    assert any("reward_model.microbatch_size: 24 -> 8, down to 8" in text for text in report["changes"])
    assert not any("lora" in text or "logits" in text for text in report["changes"])


def test_what_a_compiler_refuses_does_not_fit(capsys):
    from rich.console import Console

    refusal = "Ran out of memory on HBM, the total memory required (17.31G) exceeds available HBM (15.75G)."
    report = fake(Config(), sft={"refused": refusal}, decode={"argument": 90, "needed": 91})
    assert not report["fits"]
    assert f"sft: refused by the compiler: {refusal}" in report["findings"]
    assert report["changes"]
    show(report, Console(width=160))
    printed = capsys.readouterr().out
    assert "Does not fit cpu:8: sft sft refused by the compiler." in printed
    assert refusal in printed


def test_a_gpu_that_needs_more_than_jaxs_share_of_it_says_so():
    """By default JAX takes three quarters of a card: 63.75 of 85 GB."""
    fullest = lambda gigabytes: {"total": 1e9 * gigabytes}
    a100 = parse_target("a100:1x1x8")
    assert [pool_fraction(a100, fullest(size)) for size in (63.7, 63.8, 81)] == [0, 0.95, 0.95]
    assert pool_fraction(parse_target("tpu:v5e:4x4"), fullest(15)) == 0


def test_inputs_donated_in_vain_are_told():
    found = {"argument": 310, "needed": 400, "not_aliased": {"state.params['b']": 3000, "state.params['a']": 4000}}
    assert (
        "sft: 2 donated inputs (7.00 kB) are not reused for an output, such as state.params['a']"
        in fake(Config(), sft=found)["findings"]
    )


def test_known_lines_of_the_compiler_become_findings():
    said = (
        "E0000 spmd_partitioner.cc:613] [SPMD] Involuntary full rematerialization. The compiler cannot go from "
        "sharding {devices=[8,1]<=[8]} to {replicated} efficiently for HLO operation %gather = f32[8] gather(), "
        'metadata={op_name="jit(step)/take"}. As the last resort, SPMD will replicate the tensor.\n'
        "W0000 hlo_rematerialization.cc:3005] Can't reduce memory use below 12.3GiB (13 bytes) by rematerialization; "
        "only reduced to 30GiB\nI0000 something else\n"
    )
    first, second = known_lines(said)
    assert first.startswith("1 arrays are replicated on every device")
    assert first.endswith("such as jit(step)/take")
    assert second.endswith("to stay below 12.3GiB, and still needs 30GiB")
    assert not list(known_lines("I0000 nothing\n"))


def test_a_process_that_dies_is_told_by_its_last_lines(monkeypatch):
    from rich.console import Console

    from reft_jax.preflight.__main__ import CannotTellError

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CannotTellError, match="the plan for cpu:8 failed"):
        compile_all(Config(), parse_target("cpu:8"), Console(quiet=True))
