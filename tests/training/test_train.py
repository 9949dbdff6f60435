"""Whole small runs: what they write, what the numbers in it say of each other, and every way to start a stage.

A run that is to make devices of its own is a process; the others run here, on one device.
"""

import dataclasses
import datetime
import itertools
import json
import math
import re
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from reft_jax.algorithms.rollout import admission_size, reaches
from reft_jax.config import load_config
from reft_jax.data.batches import bucket, step_indices
from reft_jax.data.embedded.problems import generate_problems
from reft_jax.data.problem_sets import encode_for_sampling, encode_for_training, read_problem_sets
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.problem import Problem
from reft_jax.reward.verdicts import Verdict
from reft_jax.samples.statistics import wilson_interval
from reft_jax.training.completion import Completion
from reft_jax.training.reinforcement import unread
from reft_jax.training.state import Records, RunProgress
from tests.runs import (
    DEV,
    ITERATIONS,
    RECORDS,
    SFT_STEPS,
    TEST,
    TINY,
    TRAIN,
    UNREPEATABLE,
    assert_same_bits,
    complete,
    end,
    read,
    repeatable,
    restore,
    start,
    steps,
)

pytestmark = pytest.mark.compiles

# What a run writes


def test_files_of_a_run(finished):
    run_dir, output = finished
    expected = {
        ".lock",
        "config.yaml",
        "run.json",
        "summary.json",
        "tokenizer",
        "tensorboard",
        "checkpoints",
        "log.txt",
    }
    assert {path.name for path in run_dir.iterdir()} == expected | {f"{name}.jsonl" for name in RECORDS}
    summary = json.loads((run_dir / "summary.json").read_text())
    best = {name: f"{name}_step_{int(summary[name]['step'])}" for name in ("sft_best", "rl_best")}
    best["rl_best_value_head"] = f"{best['rl_best']}_value_head"
    entries = list((run_dir / "checkpoints").iterdir())
    assert {p.name: str(p.readlink()) for p in entries if p.is_symlink()} == best
    assert {p.name for p in entries if not p.is_symlink()} == {"warmup", "sft", "resume", *best.values()}
    info = json.loads((run_dir / "run.json").read_text())
    assert info["versions"]["jax"] == jax.__version__
    (attempt,) = info["attempts"]
    began, ended = (datetime.datetime.fromisoformat(attempt[name]) for name in ("started", "ended"))
    spent = sum(r["time/step_s"] for r in read(run_dir, "metrics") if "time/step_s" in r)
    assert spent - 2 < (ended - began).total_seconds() < 600  # both are cut to the second
    devices = {"device": "cpu", "devices": 1, "processes": 1, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}}
    assert devices.items() <= attempt["hardware"].items()
    assert set(attempt["hardware"]) == {*devices, "host", "cores", "memory_gb"}
    assert load_config(["--config", str(run_dir / "config.yaml")]).model.decoder.vocab_size > 100, "resolved"
    assert load_tokenizer(str(run_dir / "tokenizer"), "main").get_vocab() == load_tokenizer("embedded", "").get_vocab()
    assert f"problems: {TRAIN} train, {DEV} dev, {TEST} test" in output
    for line in (
        rf"sft {SFT_STEPS}/{SFT_STEPS}  ETA 0:00  loss",
        rf"rl {ITERATIONS}/{ITERATIONS}  ETA .*reward .*tok/s",
    ):
        assert re.search(line, output)


def test_summary_agrees_with_the_completions_on_test(finished):
    run_dir, output = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) == {"warmup", "sft", "sft_best", "rl_best"}
    evaluations = [r for r in read(run_dir, "evaluations") if r["split"] == "test"]
    for name, facts in summary.items():
        completions = [r for r in evaluations if r["model"] == name]
        assert len({r["id"] for r in completions}) == len(completions) == TEST
        correct = sum(r["outcome"] == "correct" for r in completions)
        assert facts["accuracy"] == correct / TEST
        assert facts["interval"] == pytest.approx(wilson_interval(correct, TEST))
        assert facts["seconds"] > 0
        (metrics,) = [r for r in read(run_dir, "metrics") if f"test/{name}/accuracy" in r]
        assert metrics[f"test/{name}/accuracy"] == facts["accuracy"]
        assert metrics["step"] == SFT_STEPS + ITERATIONS + 1
    assert summary["warmup"]["examples"] == 9 * TRAIN
    assert summary["sft"]["examples"] == 11 * TRAIN
    assert (
        summary["rl_best"]["examples"]
        == 9 * TRAIN + 2 * min(i for i in (3, 6, 9) if summary["rl_best"]["step"] == SFT_STEPS + i) * TRAIN // 3
    )
    assert summary["warmup"]["seconds"] <= summary["sft"]["seconds"]
    for heading in ("warm-up", "SFT continued", "SFT best on dev", "ReFT", "95 % interval", "seconds"):
        assert heading in output


def test_records_agree_with_each_other(finished):
    run_dir, _ = finished
    metrics, evaluations, rollouts = (read(run_dir, name) for name in RECORDS)
    assert [r["step"] for r in steps(run_dir, "sft")] == list(range(1, SFT_STEPS + 1))
    assert [r["step"] for r in steps(run_dir, "rl")] == list(range(SFT_STEPS + 1, SFT_STEPS + ITERATIONS + 1))
    for record in steps(run_dir, "rl"):
        rows = [r for r in rollouts if r["step"] == record["step"]]
        iteration = record["step"] - SFT_STEPS - 1
        assert len(rows) == (36, 36, 24)[iteration % 3], "filler rows are not judged"
        assert record["reward/mean"] == pytest.approx(np.mean([r["reward"] for r in rows]))
        assert record["response/length_mean"] == pytest.approx(np.mean([r["tokens"] for r in rows]))
        assert record["response/truncated"] == pytest.approx(np.mean([not r["ended"] for r in rows]))
        for outcome in {r["outcome"] for r in rows}:
            share = np.mean([r["outcome"] == outcome for r in rows])
            name = "reward/correct" if outcome == "correct" else f"reward/outcome_{outcome}"
            assert record[name] == pytest.approx(share)
        assert all(r["completion"].startswith(f'def solution():\n    """{r["question"]}"""\n') for r in rows)
    epochs = [[r["id"] for r in rollouts if SFT_STEPS + 3 * k < r["step"] <= SFT_STEPS + 3 * k + 3] for k in range(3)]
    assert all(len(set(ids)) == len(ids) == TRAIN for ids in epochs), "every question once an epoch"
    assert epochs[0] != epochs[1]
    dev = [r for r in metrics if "eval/accuracy" in r]
    assert [r["step"] for r in dev] == [24, 48, 54, 66, *(SFT_STEPS + k for k in (3, 6, 9))]
    for record in dev:
        rows = [r for r in evaluations if r["step"] == record["step"] and r["split"] == "dev"]
        assert len(rows) == DEV
        assert record["eval/accuracy"] == np.mean([r["outcome"] == "correct" for r in rows])


def test_the_run_learns(finished):
    """Otherwise what the other tests compare would be nothing: the loss falls, and PPO raises a reward that varies."""
    run_dir, _ = finished
    losses = [r["sft/loss"] for r in steps(run_dir, "sft")]
    rewards = [r["reward/mean"] for r in steps(run_dir, "rl")]
    assert losses[-1] < losses[0] / 2
    assert 0 < rewards[0] < np.mean(rewards[-3:])
    checkpoints = run_dir / "checkpoints"
    warmup, sft, reft = (restore(checkpoints / name)["decoder"] for name in ("warmup", "sft", "rl_best"))
    assert all((x != y).any() for x, y in zip(jax.tree.leaves(warmup), jax.tree.leaves(sft)))
    assert all((x != y).any() for x, y in zip(jax.tree.leaves(warmup), jax.tree.leaves(reft)))


def test_the_log_has_what_the_console_says_with_times(finished):
    run_dir, output = finished
    info = json.loads((run_dir / "run.json").read_text())
    lines = (run_dir / "log.txt").read_text().splitlines()
    times = [line.partition(" ")[0] for line in lines]
    assert times == sorted(times)
    assert datetime.datetime.fromisoformat(times[-1]).tzinfo is not None
    assert lines[0] == f"{times[0]} $ {info['command']}"
    said = [line.partition(" ")[2].split() for line in lines[1:]]
    assert said == [line.split() for line in output.splitlines()], "but for how wide the table is"


def test_rollouts_have_the_scores_of_each_token(finished):
    """Against the metrics, which the devices made of all tokens."""
    metrics = {record["step"]: record for record in steps(finished[0], "rl")}
    rollouts = read(finished[0], "rollouts")
    for step, own in itertools.groupby(rollouts, key=lambda record: record["step"]):
        rows = list(own)
        for row in rows:
            scores = row["per_token"]
            assert {len(scores[name]) for name in ("text", "value", "advantage", "log_ratio")} == {row["tokens"]}
            text = scores["head"] + "".join(scores["text"][: -1 if row["ended"] else None])
            assert text == row["completion"]
        together = lambda name: np.concatenate([row["per_token"][name] for row in rows])  # noqa: B023
        assert np.mean(together("value")) == pytest.approx(metrics[step]["rl/value_mean"], abs=1e-3)
        assert np.mean(together("log_ratio")) == pytest.approx(metrics[step]["rl/kl_k1"], abs=1e-3)
        assert np.mean(together("advantage")) == pytest.approx(0, abs=0.01), "whitened"
        assert np.std(together("advantage")) == pytest.approx(1, abs=0.01)
    assert {row["step"] for row in rollouts} == set(metrics)


def test_first_iteration_is_on_policy(finished):
    first = steps(finished[0], "rl")[0]
    assert first["rl/kl_max"] == 0
    assert first["rl/sampler_gap"] < 1e-4


def test_tensorboard_holds_the_same_numbers(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(finished[0] / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for name in ("sft/loss", "reward/mean", "rl/kl_k3", "optimizer/gradient_norm"):
        written = [(r["step"], r[name]) for r in read(finished[0], "metrics") if name in r]
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(s, pytest.approx(v)) for s, v in written]


def test_as_many_programs_as_buckets_are_used(finished, arguments, tmp_path):
    """Counted from the problems: the largest row of each batch, and of prompts that are read at once, decides."""
    config = load_config(arguments(tmp_path))
    tokenizer = load_tokenizer("embedded", "")
    problems = read_problem_sets(config, print)
    examples = encode_for_training(problems["train"], config, tokenizer, "sft", config.sft, print)
    prompts = {s: encode_for_sampling(problems[s], config, tokenizer, s, print) for s in ("train", "dev", "test")}

    def used(rows, sizes, purpose: int, count: int, batch: int) -> set[int]:
        drawn = (step_indices(config.seed * 4 + purpose, k, TRAIN, batch) for k in range(count))
        return {bucket(max(len(rows[i]) for i in indices), sizes) for indices in drawn}

    sft = used([e.prompt for e in examples], config.sft.prompt_buckets, 1, SFT_STEPS, 16)
    rl = used([p.tokens for p in prompts["train"]], config.generation.prompt_buckets, 2, ITERATIONS, 36)
    read = admission_size(36, 1)[0]  # with a slot for each completion
    batches = [step_indices(config.seed * 4 + 2, k, TRAIN, 36) for k in range(ITERATIONS)]
    asked = [[prompts["train"][i] for i in indices] for indices in batches] + [prompts["dev"]]
    lengths = [sorted((len(prompt.tokens) for prompt in rows), reverse=True) for rows in asked]
    prefill = {bucket(n, config.generation.prompt_buckets) for rows in lengths for n in rows[::read]}
    assert len(sft) == 2, "of three that the config has"
    assert len(prefill) == 2
    compiled = [r["run/compilations"] for r in steps(finished[0], "sft") + steps(finished[0], "rl")]
    assert compiled == sorted(compiled)
    decode = compiled[-1] - (len(sft) + 1 + len(prefill) + 2 * len(rl))  # there is one program for empty slots
    longest = max(config.generation.prompt_buckets) + config.generation.max_new_tokens
    assert 1 <= decode <= len(reaches(longest, "cpu"))


# Runs that go on


def test_a_finished_run_prints_its_table_and_does_nothing(finished, copied, arguments, here):
    run_dir, output = copied, finished[1]
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    again = here(arguments(run_dir, logging__trackers="[]"))
    again = again.replace(str(run_dir), str(finished[0]))
    assert again.strip() == output[output.index(again.strip()[:20]) :].strip()
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


# Stages switched on and off, devices, and failures


@pytest.mark.long
def test_eight_devices_by_config_alone(finished, arguments, tmp_path):
    run_dir = tmp_path / "mesh"
    line = arguments(run_dir, mesh__fsdp=4, mesh__tensor=2, mesh__fake_cpu_devices=8)
    end(start(line, ("reft_jax.train",)), 0)
    for stage, name, count in (
        ("sft", "sft/loss", SFT_STEPS),
        ("rl", "rl/total_loss", 3),
        ("rl", "rl/value_loss", 3),
    ):
        one, eight = ([r[name] for r in steps(folder, stage)[:count]] for folder in (finished[0], run_dir))
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-4, err_msg=name)
    first = lambda folder: [
        (r["step"], r["id"], r["completion"], r["tokens"], r["outcome"])
        for r in read(folder, "rollouts")
        if r["step"] <= SFT_STEPS + 3
    ]
    assert len(first(run_dir)) == TRAIN
    assert first(run_dir) == first(finished[0])


@pytest.mark.long
def test_ppo_alone_from_a_checkpoint_equals_ppo_after_the_warm_up(finished, arguments, tmp_path):
    warmup = finished[0] / "checkpoints" / "warmup"
    complete(arguments(tmp_path / "alone", sft__schedule_epochs=0, rl__init_from=warmup))
    strip = lambda record, offset: {**record, "step": record["step"] - offset}
    for name in RECORDS:
        alone = [strip(r, 0) for r in repeatable(tmp_path / "alone", name)]
        after = [strip(r, SFT_STEPS) for r in repeatable(finished[0], name) if r["step"] > SFT_STEPS]
        in_ppo = lambda r: r.get("stage", "rl") in ("rl", "rl_best") and r.get("model", "rl") in ("rl", "rl_best")
        assert list(filter(in_ppo, alone)) == list(filter(in_ppo, after)), name
    best = "checkpoints/rl_best"
    assert_same_bits(restore(tmp_path / "alone" / best), restore(finished[0] / best))
    assert set(json.loads((tmp_path / "alone" / "summary.json").read_text())) == {"rl_best"}


@pytest.mark.ci
def test_sft_alone_up_to_the_warm_up_makes_no_baseline(finished, arguments, tmp_path):
    output = complete(arguments(tmp_path / "sft", rl__epochs=0, sft__stop_epoch=9))
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert set(summary) == {"warmup", "sft_best"}
    assert "ReFT" not in output
    strip = lambda records: [{k: v for k, v in r.items() if not UNREPEATABLE.match(k)} for r in records]
    assert strip(steps(tmp_path / "sft", "sft")) == strip(steps(finished[0], "sft")[:54])
    assert_same_bits(*(restore(folder / "checkpoints/warmup") for folder in (tmp_path / "sft", finished[0])))


@pytest.mark.long
def test_what_is_chosen_on_a_dev_that_is_test_is_called_test_best(arguments, here, tmp_path):
    """All rows of train are trained on, and the length of an epoch says when it is evaluated and saved."""
    dev = {"data__dev__kind": "generated", "data__dev__path": "test", "data__dev__limit": 20}
    short = {"sft__schedule_epochs": 1, "sft__warmup_epoch": 1, "sft__stop_epoch": 1, "rl__epochs": 2}
    output = here(arguments(tmp_path / "run", **dev, **short, rl__evaluate_every=0, rl__save_every=0))
    assert f"problems: {TRAIN + DEV} train, {TEST} dev, {TEST} test" in output
    assert "warning: dev is part of test" in output
    assert "ReFT (PPO) test-best" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: facts.get("test_best", False) for name, facts in summary.items()} == {
        "warmup": False,
        "sft_best": True,
        "rl_best": True,
    }
    assert all(facts["accuracy"] == facts["dev_accuracy"] for name, facts in summary.items() if name != "warmup")
    sft, epoch = 8, 4  # 120 rows by 16 and by 36
    read_at = [r["step"] for r in read(tmp_path / "run", "metrics") if "eval/accuracy" in r]
    assert read_at == [sft, sft + epoch, sft + 2 * epoch]


@pytest.mark.long
def test_pretraining_comes_first_and_helps(finished, arguments, here, tmp_path):
    (tmp_path / "pretrain.yaml").write_text(
        yaml.safe_dump(
            {
                "pretrain": {
                    **{key: TINY["sft"][key] for key in ("batch_size", "microbatch_size", "optimizer")},
                    "prompt_buckets": [34],
                    "response_buckets": [56],
                    "epochs": 2,
                    "source": {"kind": "generated", "path": "pretrain", "limit": 200},
                },
                "sft": {"schedule_epochs": 1, "warmup_epoch": 1, "stop_epoch": 1},
            }
        )
    )
    line = [*arguments(tmp_path / "pretrain", rl__epochs=0), "--config", str(tmp_path / "pretrain.yaml")]
    here(line)
    first, then = (steps(tmp_path / "pretrain", stage) for stage in ("pretrain", "sft"))
    assert [r["step"] for r in (*first, *then)] == list(range(1, 26 + 6 + 1))
    assert then[0]["sft/loss"] < steps(finished[0], "sft")[0]["sft/loss"] - 1
    progress = json.loads((tmp_path / "pretrain" / "summary.json").read_text())
    assert progress["warmup"]["examples"] == TRAIN


@pytest.mark.long
def test_adapters_learn_beside_frozen_weights_and_own_rewards_count(arguments, here, tmp_path, monkeypatch):
    (tmp_path / "their_rewards.py").write_text(
        "def brevity(completion_ids, **columns): return [-len(ids) / 100 for ids in completion_ids]"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = {"model__lora__rank": 4, "sft__schedule_epochs": 2, "sft__warmup_epoch": 1, "sft__stop_epoch": 1}
    functions = '{"their_rewards.brevity": 0.5}'
    run_dir = tmp_path / "adapted"
    here(arguments(run_dir, rl__epochs=1, rl__critic="separate", reward__functions=functions, **overrides))

    warmup, reft = (restore(run_dir / "checkpoints" / name)["decoder"] for name in ("warmup", "rl_best"))
    adapters = restore(run_dir / "checkpoints" / "rl_best_lora")["lora"]["blocks"]
    moved = {}
    for part, targets in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
        for target in targets:
            before, after = (tree["blocks"][part].pop(target)["kernel"] for tree in (warmup, reft))
            a, b = (adapters[part][f"{target}_lora"][key] for key in ("a", "b"))
            delta = 16 / 4 * np.stack([x.reshape(-1, 4) @ y.reshape(4, -1) for x, y in zip(a, b)])
            np.testing.assert_allclose(after, before + delta.reshape(before.shape), rtol=1e-5, atol=1e-6)
            moved[target] = np.any(after != before)
    assert all(moved.values()), moved
    assert_same_bits(warmup, reft)  # all that is left: embedding and norms
    critic = restore(run_dir / "checkpoints" / "rl_best_critic")["critic"]
    assert np.any(critic["embed"] != reft["embed"]), "a critic of its own learns with all its weights"

    for metrics in steps(run_dir, "rl"):
        assert metrics["reward/function/brevity"] == pytest.approx(-metrics["response/length_mean"] / 100)
    for record in read(run_dir, "rollouts"):
        own = {"correct": 1.0, "wrong": 0.1}.get(record["outcome"], 0.0)
        assert record["functions"] == {"brevity": -record["tokens"] / 100}
        assert record["reward"] == pytest.approx(own - 0.5 * record["tokens"] / 100)


@pytest.mark.ci
def test_a_loss_that_is_not_finite_stops_the_run(arguments, tmp_path):
    """PPO's weight decay is absurd: the error names the step, and the checkpoint at the end of SFT."""
    run_dir = tmp_path / "nan"
    absurd = {"rl__optimizer__learning_rate": 1.0, "rl__optimizer__weight_decay": 1e30}
    short = {"sft__schedule_epochs": 1, "sft__warmup_epoch": 1, "sft__stop_epoch": 1}
    output = complete(arguments(run_dir, **absurd, **short), code=1)
    error = r"FloatingPointError: \S+ is nan at step (\d+) \(rl[^)]*\); last good checkpoint in \S+: step (\d+);"
    step, checkpoint = map(int, re.search(error, output).groups())
    assert checkpoint == TRAIN // 16 < step
    assert read(run_dir, "metrics")[-1]["step"] == step
    assert not (run_dir / "summary.json").exists()


def record_first(stage: str, stage_step: int) -> str:
    """What is said of a loss that is nan."""
    records = Records.__new__(Records)
    checkpoints = types.SimpleNamespace(latest=lambda: None)
    for name, value in {
        "progress": RunProgress(stage=stage, stage_step=stage_step),
        "checkpoints": checkpoints,
        "run_dir": "here",
        "writer": types.SimpleNamespace(write=lambda *_: None),
        "display": types.SimpleNamespace(advance=lambda *_: None),
    }.items():
        object.__setattr__(records, name, value)
    with pytest.raises(FloatingPointError) as stopped:
        records.record(stage_step, {f"{stage}/loss": math.nan})
    return str(stopped.value)


def test_a_lower_learning_rate_is_no_advice_before_anything_was_learned():
    assert "nothing was learned before it: look at the weights" in record_first("sft", 1)
    assert "a lower sft.optimizer.learning_rate may help" in record_first("sft", 2)
    assert "a lower rl.optimizer.learning_rate may help" in record_first("rl", 1), "an iteration has several updates"


# What would learn nothing


def rows_of_prose(path: Path, *, programs: int) -> Path:
    """Problems with prose for chains of thought, but for the first so many."""
    problems = generate_problems("train")[:120]
    rows = [{"id": p.id, "question": p.question, "answer": p.answer, "cot": p.cot} for p in problems]
    for row in rows[programs:]:
        row["cot"] = row["question"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("programs", "stage"), [(0, "train"), (30, "train"), (0, "pretrain")])
def test_annotations_that_do_not_give_their_answers_are_told(arguments, here, tmp_path, programs, stage, monkeypatch):
    """Prose read as programs: none right is refused before anything is compiled, most of them wrong is said."""
    monkeypatch.setattr("reft_jax.train.train", lambda run: {})
    path = rows_of_prose(tmp_path / "prose.jsonl", programs=programs)
    key = "data__train" if stage == "train" else "pretrain__source"
    source = {f"{key}__kind": "jsonl", f"{key}__path": path, "pretrain__epochs": int(stage == "pretrain")}
    source |= {"pretrain__prompt_buckets": "[48]", "pretrain__response_buckets": "[56]"}
    line = arguments(tmp_path / "run", **source, data__test__kind="none", data__train__limit=120)
    said = rf"of 3\d annotated chains of thought of {stage} do not give their answers as data.cot: program"
    if programs:
        assert re.search(f"warning: .* {said}.*how many", re.sub(r"\s+", " ", here(line)).lower())
    else:
        with pytest.raises(SystemExit, match=rf"{said}, such as that of `\S+` \(error, gold '\d+'\): "):
            here(line)


@pytest.mark.parametrize(
    ("key", "bucket", "message"),
    [
        ("sft__response_buckets", "[3]", "all 96 sft rows are longer than sft.prompt_buckets and response_buckets"),
        ("generation__prompt_buckets", "[9]", "all 96 train prompts are longer than generation.prompt_buckets"),
    ],
)
def test_a_stage_that_is_left_with_nothing_is_refused(arguments, here, tmp_path, key, bucket, message):
    with pytest.raises(SystemExit, match=message):
        here(arguments(tmp_path / "run", data__overlong="drop", **{key: bucket}))


def test_first_completions_without_answers_are_told_with_one():
    problem = Problem(id="p", question="q", answer="1")
    made = lambda outcome, count: (
        [Completion(problem, f"text {outcome}", Verdict(0.0, outcome, None), 0.0, tokens=1, ended=True)] * count
    )
    said = unread([*made("error", 30), *made("no_answer", 1), *made("wrong", 1)])
    assert "31 of the 32 completions of the first iteration have no answer that can be read" in said
    assert "(error 30, no_answer 1), such as 'text error'" in said
    assert unread([*made("error", 30), *made("wrong", 2)]) == "", "an untuned model may begin like this"
    assert "max_new_tokens" not in said
    cut = lambda completions: [dataclasses.replace(completion, ended=False) for completion in completions]
    said = unread([*cut(made("no_answer", 20)), *made("no_answer", 12)])
    assert "; 20 of them were cut at generation.max_new_tokens: is it long enough, and does the model know the" in said
    assert "max_new_tokens" not in unread([*cut(made("no_answer", 16)), *made("no_answer", 16)]), "no more than half"
    assert unread([*cut(made("wrong", 30)), *made("no_answer", 2)]) == ""


def test_self_checks_stop_a_run(finished, arguments, tmp_path):
    """No float32 sampler and scorer agree to 1e-12."""
    start_from = {"sft__schedule_epochs": 0, "rl__init_from": finished[0] / "checkpoints" / "warmup"}
    output = complete(arguments(tmp_path / "checked", **start_from, rl__check_tolerance=1e-12), code=1)
    assert re.search(r"RuntimeError: self-check: .* more than rl.check_tolerance \(1e-12\)", output)
