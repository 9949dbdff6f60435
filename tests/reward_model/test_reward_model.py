"""Reward models from samples to figures: one that learns what can be told, is interrupted, and is asked for too much.

The samples are programs for the embedded problems, right where they add and wrong where they subtract: all that a
classifier has to find is one token in the middle of a row. Some completions of a question are equal.
"""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from reft_jax.algorithms.train_state import init_params
from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig, TemplateConfig
from reft_jax.data.embedded.problems import generate_problems
from reft_jax.data.prompts import program_header, prompt_text
from reft_jax.evaluate import from_samples
from reft_jax.evaluate import main as evaluate
from reft_jax.export import export, export_adapter
from reft_jax.models.policy import Policy
from reft_jax.parallel.processes import REFUSED, STOPPED
from reft_jax.parallel.sharding import make_mesh
from reft_jax.records.checkpoint import Checkpoints
from reft_jax.reward_model import training as reward_training
from reft_jax.reward_model.__main__ import main
from reft_jax.samples.file import settings_path
from reft_jax.training.supervised import StepRecorder
from tests.records.test_model_card import run_code
from tests.runs import TINY, assert_same_bits, on_devices, read, repeatable, restore

pytestmark = pytest.mark.compiles

QUESTIONS, SAMPLES, EPOCHS = 40, 8, 4
GENERATED_TEST = {"kind": "generated", "path": "test"}
SETTINGS = {
    **{name: TINY[name] for name in ("seed", "model")},
    "data": {"dev_fraction": 0.25},
    "reward_model": {
        "epochs": EPOCHS,
        "batch_size": 12,
        "microbatch_size": 4,
        "row_buckets": [80, 100],
        "evaluate_every": 7,
        "save_every": 5,
        "optimizer": {"learning_rate": 0.02, "beta2": 0.98},
    },
    "logging": {"trackers": []},
}


def write_samples(path: Path, split: str, count: int) -> Path:
    rng = np.random.default_rng(len(split))
    lines = []
    for problem in generate_problems(split)[:count]:
        texts = []
        for number in range(SAMPLES):
            right = rng.random() < 0.4
            a, sign, b = rng.integers(10, 99), "+" if right else "-", rng.integers(10, 99)
            text = f"    a = {a} {sign} {b}\n    result = a * 2\n    return result"
            texts.append((program_header(problem, TemplateConfig()) + text, right))
            text, right = texts[rng.integers(len(texts))] if number % 3 == 2 else texts[-1]
            value = float(problem.answer) if right else None if rng.random() < 0.2 else -rng.integers(1, 3).item()
            outcome = "correct" if right else "error" if value is None else "wrong"
            line = {"id": problem.id, "sample": number, "question": problem.question, "gold": problem.answer}
            lines.append({**line, "completion": text, "outcome": outcome, "value": value})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, compilation_cache):
    """Makes the command line of `train`."""
    folder = tmp_path_factory.mktemp("reward_model")
    samples = write_samples(folder / "train.jsonl", "train", QUESTIONS)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))

    def make(run_dir: Path, **overrides) -> list[str]:
        line = ["train", "--config", str(folder / "config.yaml"), "--run_dir", str(run_dir)]
        own = {"reward_model__samples": json.dumps([str(samples)]), "compilation_cache_dir": compilation_cache}
        for key, value in {**own, **overrides}.items():
            line += ["--" + key.replace("__", "."), str(value)]
        return line

    return make


def command(arguments: list[str]) -> int:
    """Runs here on one device; returns the exit code."""
    with on_devices(1):
        try:
            return main([*arguments, "--distributed.detect", "false"])  # JAX is at work here already
        except SystemExit as left:
            return left.code


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert command(arguments(run_dir)) == 0
    return run_dir


# Training


def test_it_learns_to_tell_right_from_wrong(finished):
    records = read(finished, "metrics")
    steps = [record for record in records if "reward_model/loss" in record]
    dev = [record for record in records if "rerank/accuracy" in record]
    epoch = len(steps) // EPOCHS
    assert [record["step"] for record in steps] == list(range(1, EPOCHS * epoch + 1))
    assert [r["step"] for r in dev] == [s for s in range(1, len(steps) + 1) if s % epoch == 0 or s % 7 == 0]
    assert dev[-1]["rerank/classification_accuracy"] > 0.95
    assert dev[-1]["rerank/accuracy"] == dev[-1]["rerank/upper_bound"] > dev[-1]["rerank/vote"]
    assert np.mean([record["reward_model/accuracy"] for record in steps[-epoch:]]) > 0.95
    assert steps[-1]["reward_model/loss"] < 0.1 < steps[0]["reward_model/loss"]
    assert steps[-1]["run/epoch"] == EPOCHS
    assert max(record["run/compilations"] for record in records if "run/compilations" in record) <= 4


def test_its_run_has_the_files_of_a_run(finished, arguments, capfd):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "tokenizer", "checkpoints", "summary.json"} <= names
    (facts,) = json.loads((finished / "summary.json").read_text()).values()
    dev = [record for record in read(finished, "metrics") if "rerank/accuracy" in record]
    best = max(
        dev, key=lambda record: (record["rerank/accuracy"], record["rerank/classification_accuracy"])
    )  # of equals the first
    assert sum(record["rerank/accuracy"] == best["rerank/accuracy"] for record in dev) > 1
    names = ("step", "rerank/accuracy", "rerank/classification_accuracy")
    assert [facts[name] for name in ("step", "dev_accuracy", "dev_classification_accuracy")] == [
        best[name] for name in names
    ]
    checkpoints = finished / "checkpoints"
    for name in ("", "_class_head"):
        link = checkpoints / f"reward_model_best{name}"
        assert str(link.readlink()) == f"reward_model_best_step_{facts['step']}{name}"
    last = checkpoints / "resume" / str(max(int(path.name) for path in (checkpoints / "resume").iterdir()))
    params = restore(last / "state")["params"]
    assert_same_bits(params["class_head"], restore(checkpoints / "reward_model_class_head")["class_head"])
    assert_same_bits(params["decoder"], restore(checkpoints / "reward_model")["decoder"])
    before = (finished / "metrics.jsonl").read_bytes()
    assert command(arguments(finished)) == 0
    assert f"best on dev after step {facts['step']}" in capfd.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.ci
def test_it_starts_from_a_checkpoint(arguments, tmp_path):
    """At a learning rate of 0 it ends with the decoder that it began with, but for the output projection."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    untied = {"model__decoder__tie_embeddings": False}
    decoder = DecoderConfig(**{**TINY["model"]["decoder"], "vocab_size": 384, "tie_embeddings": False})
    given = init_params(Policy(ModelConfig(decoder=decoder), mesh), mesh, jax.random.key(11), value_head=False)
    with Checkpoints(tmp_path / "given") as checkpoints:
        checkpoints.save_params("sft_best", given)
    start = {"reward_model__init_from": tmp_path / "given" / "sft_best", "reward_model__optimizer__learning_rate": 0}
    assert command(arguments(tmp_path / "run", **untied, **start, reward_model__epochs=1)) == 0
    made = restore(tmp_path / "run" / "checkpoints" / "reward_model")["decoder"]
    expected = jax.tree.map(np.asarray, given["decoder"])
    assert set(expected) - set(made) == {"lm_head"}
    assert_same_bits(made, {name: expected[name] for name in made})


@pytest.mark.long
def test_an_interrupted_run_ends_like_an_uninterrupted_one(finished, arguments, tmp_path, monkeypatch):
    """Asked to stop in a step, in one that is followed by a reading of dev, and while dev is read."""
    run_dir, moments = tmp_path / "stopped", []

    def watch(owner, name, place, step_of):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            if moments and moments[0] == (place, step_of(*args)):
                del moments[0]
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(StepRecorder, "push", "step", lambda recorder, step, *_: step)
    watch(reward_training, "evaluate_dev", "dev", lambda run, params, step: step)
    for moment, saved in ((("step", 3), 4), (("step", 6), 7), (("dev", 14), 14)):
        moments[:] = [moment]
        assert command(arguments(run_dir)) == STOPPED
        assert not moments
        assert max(int(path.name) for path in (run_dir / "checkpoints/resume").iterdir()) == saved
    assert "rerank/accuracy" not in read(run_dir, "metrics")[-1]
    assert command(arguments(run_dir)) == 0
    assert repeatable(run_dir, "metrics") == repeatable(finished, "metrics")
    for name in ("reward_model", "reward_model_class_head", "reward_model_best", "reward_model_best_class_head"):
        assert_same_bits(*(restore(folder / "checkpoints" / name) for folder in (run_dir, finished)))


@pytest.mark.ci
def test_dev_of_its_own_source_chooses_the_model(arguments, tmp_path, capfd):
    """On questions of test, the summary and what is printed say so; nothing is read between epochs."""
    files = [str(write_samples(tmp_path / f"{split}.jsonl", split, 12)) for split in ("train", "test")]
    settings = {f"data__{name}__{key}": value for name in ("dev", "test") for key, value in GENERATED_TEST.items()}
    often = {"reward_model__evaluate_every": 0, "reward_model__save_every": 0, "reward_model__epochs": 2}
    line = arguments(tmp_path / "run", **settings, **often, reward_model__samples=json.dumps(files))
    assert command(line) == 0
    assert "dev samples: 12 questions" in (printed := capfd.readouterr().out)
    assert "best on test (test-best) after step" in printed
    (facts,) = json.loads((tmp_path / "run" / "summary.json").read_text()).values()
    assert facts["test_best"] is True
    steps = [record["step"] for record in read(tmp_path / "run", "metrics") if "reward_model/loss" in record]
    dev = [record["step"] for record in read(tmp_path / "run", "metrics") if "rerank/accuracy" in record]
    assert dev == [len(steps) // 2, len(steps)]


# Reranking


def test_it_chooses_among_samples_of_other_questions(finished, tmp_path, capfd):
    samples = write_samples(tmp_path / "test.jsonl", "test", 30)
    files = {name: str(tmp_path / name) for name in ("json", "scores")}
    line = ["rerank", str(finished / "checkpoints/reward_model_best"), str(samples), "--k", "1", "3", "8"]
    assert command([*line, "--json", files["json"], "--probs", files["scores"]]) == 0
    printed = capfd.readouterr().out
    assert "told right from wrong" in printed
    assert "upper bound" in printed
    figures = json.loads((tmp_path / "json").read_text())
    scored = [json.loads(row) for row in (tmp_path / "scores").read_text().splitlines()]
    given = [json.loads(row) for row in samples.read_text().splitlines()]
    unique = {(row["id"], row["completion"]): row["outcome"] == "correct" for row in given}
    assert {(row["id"], row["completion"]) for row in scored} == set(unique)
    assert len(scored) == len(unique) < len(given) == 30 * SAMPLES
    told = [(row["p_correct"] > 0.5) == unique[row["id"], row["completion"]] for row in scored]
    assert figures["classification"]["accuracy"] == sum(told) / len(told) > 0.9
    assert figures["classification"]["majority"] < 0.75
    assert (figures["questions"], figures["samples"]) == (30, 30 * SAMPLES)
    rerank, vote, bound = (
        [figures["first"][k][name]["accuracy"] for k in "138"] for name in ("rerank", "vote", "upper_bound")
    )
    alone = np.mean([row["outcome"] == "correct" for row in given if row["sample"] == 0])
    assert rerank[0] == vote[0] == bound[0] == alone
    assert bound == sorted(bound)
    assert rerank[2] > vote[2] + 0.1
    assert rerank[2] > 0.9 * bound[2]


def test_all_samples_and_other_devices_give_the_same(finished, tmp_path):
    samples = write_samples(tmp_path / "test.jsonl", "test", 6)
    line = ["rerank", str(finished / "checkpoints/reward_model"), str(samples), "--distributed.detect", "false"]
    sizes = ["--reward_model.microbatch_size", "8", "--reward_model.batch_size", "8"]
    assert command([*line, "--json", str(tmp_path / "one"), "--probs", str(tmp_path / "one.jsonl")]) == 0
    mesh = ["--mesh.fsdp", "4", "--mesh.tensor", "2"]
    main([*line, *sizes, *mesh, "--json", str(tmp_path / "eight"), "--probs", str(tmp_path / "eight.jsonl")])
    assert list(json.loads((tmp_path / "one").read_text())["first"]) == ["all"]
    assert json.loads((tmp_path / "one").read_text()) == json.loads((tmp_path / "eight").read_text())
    one, eight = (
        [json.loads(row)["p_correct"] for row in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("one", "eight")
    )
    np.testing.assert_allclose(one, eight, atol=1e-4)


def test_its_vote_and_its_bound_are_those_of_evaluate(finished, tmp_path):
    """Over all samples; questions that were too long to be asked count as wrong in both."""
    samples = write_samples(tmp_path / "test.jsonl", "test", 6)
    settings_path(samples).write_text(json.dumps({"lines": 6 * SAMPLES, "left_out": ["a", "b"]}))
    line = ["rerank", str(finished / "checkpoints/reward_model_best"), str(samples), "--json", str(tmp_path / "json")]
    assert command(line) == 0
    figures, expected = json.loads((tmp_path / "json").read_text()), from_samples(samples, [SAMPLES])
    assert figures["questions"] == expected["questions"] == 8
    assert figures["left_out"] == expected["left_out"] == 2
    for name, measure in (("vote", "maj"), ("upper_bound", "pass")):
        choice, result = figures["first"]["all"][name], expected["results"][f"{measure}@{SAMPLES}"]
        assert [choice["accuracy"], *choice["interval"]] == pytest.approx([result["value"], *result["interval"]])
    assert figures["first"]["all"]["rerank"]["total"] == 8


# Export


def test_transformers_scores_with_its_export_as_it_does(finished, tmp_path):
    """Several rows at once, padded, and one alone; from their texts, as a user would."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    samples = write_samples(tmp_path / "test.jsonl", "test", 6)
    checkpoint, out, scores = finished / "checkpoints/reward_model_best", tmp_path / "out", tmp_path / "scores"
    assert command(["rerank", str(checkpoint), str(samples), "--probs", str(scores)]) == 0
    export(checkpoint, out)
    assert not (out / "generation_config.json").exists()
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out).eval(),
        AutoTokenizer.from_pretrained(out),
    )
    assert model.config.id2label == {0: "wrong", 1: "right"}
    problems = {problem.id: problem for problem in generate_problems("test")}
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    texts = [prompt_text(problems[row["id"]], TemplateConfig()) + row["completion"] for row in rows]

    def ask(texts):
        tokens = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            return model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits.softmax(-1)[:, 1].numpy()

    expected = np.array([row["p_correct"] for row in rows])
    assert np.ptp(expected) > 0.01  # not constant
    assert (np.abs(expected - 0.5) < 0.49).any()  # nor saturated
    np.testing.assert_allclose(ask(texts), expected, atol=1e-5)
    np.testing.assert_allclose(ask(texts[:1]), expected[:1], atol=1e-5)
    assert run_code(out).startswith("tensor([")
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    dev = json.loads((finished / "summary.json").read_text())["reward_model_best"]["dev_accuracy"]
    assert f"| **reward model, best on dev** | dev | {100 * dev:.1f} |" in card


def test_a_reward_model_has_no_adapters_to_export(finished, tmp_path):
    with pytest.raises(ValueError, match="reward_model_best is a reward model"):
        export_adapter(finished / "checkpoints/reward_model_best", tmp_path / "out")


# Refusals


def test_samples_that_are_all_wrong_teach_nothing(arguments, tmp_path, capfd):
    path = write_samples(tmp_path / "samples.jsonl", "train", 20)
    rows = [{**json.loads(line), "outcome": "wrong"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(arguments(tmp_path / "run", reward_model__samples=json.dumps([str(path)]))) == REFUSED
    assert "unique train samples are wrong: a reward model learns to tell the two apart" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"reward_model__samples": "[]"}, "reward_model.samples is empty"),
        ({"reward_model__samples": '["no.jsonl"]'}, "no.jsonl'"),
        ({"reward_model__init_from": "no/checkpoint"}, "reward_model.init_from: there is no checkpoint directory"),
        ({"reward_model__row_buckets": "[200]"}, "reward_model.row_buckets come to 200 tokens, but the model has 128"),
        ({"reward_model__row_buckets": "[60]"}, "rows are longer than the 60 tokens of `reward_model.row_buckets`"),
        ({"reward_model__epochs": "0"}, "reward_model.epochs is 0"),
        ({"reward_model__microbatch_size": "5"}, "reward_model.batch_size (12) must be a multiple of"),
        ({"data__dev_fraction": "0.999"}, "there are no train samples"),
    ],
)
def test_training_a_reward_model_refuses_what_cannot_work(arguments, tmp_path, capfd, overrides, message):
    assert command(arguments(tmp_path / "run", **overrides)) == REFUSED
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("nowhere", [], "nowhere: give a folder of RUN_DIR/checkpoints, such as RUN_DIR/checkpoints/reward_model_best"),
        ("checkpoints/resume", [], "checkpoints/resume: resume points are no models"),
        ("checkpoints/reward_model", ["--k", "9"], "2 questions have fewer than 9 samples"),
        ("checkpoints/reward_model", ["--k", "0"], "--k is [0]: each must be 1 or more"),
        ("checkpoints/reward_model", ["--reward_model.row_buckets", "[60]"], "longer than the 60 tokens"),
    ],
)
def test_rerank_refuses_what_it_cannot_rank(finished, tmp_path, capfd, checkpoint, options, message):
    samples = write_samples(tmp_path / "test.jsonl", "test", 2)
    assert command(["rerank", str(finished / checkpoint), str(samples), *options]) == REFUSED
    assert message in capfd.readouterr().err


def test_it_is_not_asked_for_tokens(finished, capfd):
    with pytest.raises(SystemExit) as left:
        evaluate([str(finished / "checkpoints/reward_model_best"), "--split", "test"])
    assert left.value.code == REFUSED
    assert "reward_model_best is a reward model, which predicts no tokens" in capfd.readouterr().err


def test_another_word_is_no_command(capfd):
    assert command(["tune"]) == REFUSED
    assert "usage: python -m reft_jax.reward_model {train,rerank}" in capfd.readouterr().err
