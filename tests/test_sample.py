"""`python -m reft_jax.sample`: one file, whatever interrupts it, on whatever devices; drawn as it says.

The model is a fresh one, in float64: nothing here depends on what it has learnt, nor on rounding.
"""

import fcntl
import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reft_jax.algorithms.train_state import init_params
from reft_jax.config import MeshConfig, load_config
from reft_jax.data.batches import prompt_batches
from reft_jax.data.encoding import Prompt
from reft_jax.data.readers import read_problems, read_sets, split_dev
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.export import export
from reft_jax.models.policy import Policy, call
from reft_jax.parallel.processes import REFUSED, STOPPED
from reft_jax.parallel.sharding import make_mesh
from reft_jax.records.checkpoint import Checkpoints
from reft_jax.reward.__main__ import read_rows
from reft_jax.samples.file import FIELDS, SampleFile, read_samples, read_settings, settings_path
from reft_jax.training import sampler as sampler_module
from reft_jax.training.model_source import without_training
from reft_jax.training.startup import prepare
from tests.runs import TINY, restore, run, start

pytestmark = pytest.mark.compiles
SAMPLES, TEST = 3, 20
COMMAND = ["--split", "test", "--samples", str(SAMPLES), "--generation.slots", "2"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, compilation_cache) -> Path:
    """The folder of a run with one checkpoint, `warmup`, of a fresh model in float64."""
    folder = tmp_path_factory.mktemp("fresh")
    model = {**TINY["model"], "dtype": "float64", "param_dtype": "float64"}
    config = {**TINY, "model": model, "compilation_cache_dir": compilation_cache}
    (folder / "fresh.yaml").write_text(yaml.safe_dump(config))
    with jax.enable_x64(True):
        line = ["--config", str(folder / "fresh.yaml"), "--run_dir", str(folder / "run")]
        config, _ = prepare(load_config(line))
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        params = init_params(Policy(config.model, mesh), mesh, jax.random.key(1), value_head=False)
        with Checkpoints(folder / "run" / "checkpoints") as checkpoints:
            checkpoints.save_params("warmup", params)
    return folder / "run"


@pytest.fixture(scope="module")
def take(run_dir):
    """Samples in this process on some devices from `warmup`; returns the file's bytes, leaves with what it says."""

    def sample(out: Path, *arguments: str, devices: int = 1, checkpoint: Path | None = run_dir / "checkpoints/warmup"):
        try:
            code, printed, said = run(
                [*map(str, filter(None, (checkpoint, out))), *COMMAND, *arguments], devices, "sample"
            )
        finally:
            jax.config.update("jax_enable_x64", False)
        if code:
            raise SystemExit(said if code in (1, REFUSED) else code)
        assert f"{out}: {len(lines(out)):,} completions" in printed
        return out.read_bytes()

    return sample


@pytest.fixture(scope="module")
def whole(take, tmp_path_factory) -> Path:
    """The file of an uninterrupted command."""
    out = tmp_path_factory.mktemp("samples") / "whole.jsonl"
    take(out)
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_log_probs(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "log_prob"} for line in lines(path)]


# What is written


def test_a_line_for_each_sample_of_each_question(whole):
    found, problems = lines(whole), read_problems(load_config(generated("test")).data.test)
    assert all(tuple(line) == FIELDS for line in found)
    assert Counter((line["id"], line["sample"]) for line in found) == Counter(
        (problem.id, i) for problem in problems for i in range(SAMPLES)
    )
    by_id = {problem.id: problem for problem in problems}
    for line in found:
        problem = by_id[line["id"]]
        assert (line["question"], line["gold"]) == (problem.question, problem.answer)
        assert line["completion"].startswith(f'def solution():\n    """{problem.question}"""\n')
        assert 1 <= line["tokens"] <= 20
        assert line["log_prob"] < 0
        assert line["ended"] or line["tokens"] == 20
    texts = Counter(line["completion"] for line in found)
    assert max(texts.values()) == 1, "samples of a question differ"
    assert [row.completion for row in read_rows(whole, "completion", "gold")] == [line["completion"] for line in found]
    settings = read_settings(whole)
    assert (settings["samples"], settings["lines"], settings["left_out"]) == (SAMPLES, len(found), [])
    assert settings["checkpoint"].endswith("run/checkpoints/warmup")


def generated(split: str) -> list[str]:
    """A command line for a config that has the tiny run's problems of a split."""
    line = ["--run_dir", "x", "--model.tokenizer", "embedded", "--rl.epochs", "0", "--sft.schedule_epochs", "0"]
    line += ["--pretrain.epochs", "1", "--pretrain.source.kind", "generated", "--pretrain.source.path", "pretrain"]
    return [*line, *(f"--data.{split}.{key}={value}" for key, value in TINY["data"][split].items())]


@pytest.mark.ci
def test_train_is_what_the_run_trained_on_and_dev_what_it_kept(take, tmp_path):
    train, dev = split_dev(read_problems(load_config(generated("train")).data.train), TINY["data"]["dev_fraction"])
    for split, problems in (("train", train), ("dev", dev)):
        out = tmp_path / f"{split}.jsonl"
        take(out, "--split", split, "--samples", "1", "--generation.max_new_tokens", "2")
        assert {line["id"] for line in lines(out)} == {problem.id for problem in problems}


def test_where_dev_is_a_source_of_its_own_train_is_asked_whole():
    own = ["--data.dev.kind", "generated", "--data.dev.path", "test", "--data.dev.limit", "7"]
    config = load_config([*generated("train"), *own])
    asked = {split: read_sets(without_training(config, split)) for split in ("train", "dev")}
    assert asked["train"]["train"] == read_problems(config.data.train)
    assert asked["dev"]["dev"] == read_problems(config.data.dev)


def test_batches_hold_every_row_once_by_length_and_need_few_shapes():
    draw = np.random.default_rng(0)
    prompts = [Prompt(i, np.arange(draw.integers(1, 30), dtype=np.int32)) for i in range(13)]
    sizes = {"samples": 5, "batch_size": 8, "prompt_buckets": (10, 30), "pad_id": 0}
    batches = list(prompt_batches(prompts, **sizes))
    assert len(batches) == -(-13 * 5 // 8)
    rows = [(p, s, n) for b in batches for p, s, n in zip(b.problem, b.sample, b.lengths) if p >= 0]
    assert Counter((p, s) for p, s, _ in rows) == Counter((p, s) for p in range(13) for s in range(5))
    lengths = [n for _, _, n in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert all(n == len(prompts[p].tokens) for p, _, n in rows)
    assert {batch.tokens.shape for batch in batches} == {(8, 30), (8, 10)}
    later = list(prompt_batches(prompts, **sizes, first=3))
    jax.tree.map(np.testing.assert_array_equal, later, batches[3:])


# Interrupted


@pytest.mark.ci
def test_a_killed_file_ends_like_an_uninterrupted_one(run_dir, whole, take, tmp_path):
    """Killed once while it writes, then cut at every kind of place: within a line, between lines, between batches."""
    out = tmp_path / "killed.jsonl"
    process = start([str(run_dir / "checkpoints/warmup"), str(out), *COMMAND], ("tests.runs", "sample"))
    deadline = time.monotonic() + 300
    while not out.exists() or not out.stat().st_size:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert take(out) == whole.read_bytes()

    text = whole.read_bytes()
    ends = np.cumsum([len(line) for line in text.splitlines(keepends=True)])
    for cut in (ends[16] + 5, ends[40] - 1, ends[31], ends[-1] - 1):
        os.truncate(out, cut)
        assert take(out) == text, cut
    before = out.stat().st_mtime_ns
    assert take(out) == text
    assert out.stat().st_mtime_ns == before, "a file that is whole is left alone"


@pytest.mark.ci
def test_a_file_that_is_asked_to_stop_goes_on(take, whole, tmp_path, monkeypatch):
    out, judge, seen = tmp_path / "stopped.jsonl", sampler_module.judge, []

    def judged(*args, **kwargs):
        seen.append(len(seen))
        if seen == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sampler_module, "judge", judged)
        with pytest.raises(SystemExit) as stopped:
            take(out)
    assert stopped.value.code == STOPPED
    assert 0 < len(lines(out)) < SAMPLES * TEST
    assert take(out) == whole.read_bytes()


@pytest.mark.ci
def test_sample_refuses_other_settings_and_other_files(take, whole, tmp_path):
    out = tmp_path / "taken.jsonl"
    out.write_bytes(whole.read_bytes())
    with pytest.raises(SystemExit, match=r"taken.jsonl is not empty, and there is no .*taken.settings.json"):
        take(out)
    settings_path(out).write_bytes(settings_path(whole).read_bytes())
    for arguments, key in (
        (("--seed", "4"), "seed"),
        (("--top_k", "5"), "evaluation.top_k"),
        (("--generation.max_new_tokens", "9"), "generation.max_new_tokens"),
        (("--data.test.limit", "19"), "lines, problems, data.test.limit"),
    ):
        with pytest.raises(SystemExit, match=rf"other settings \({key}\): name a fresh file"):
            take(out, *arguments)
    assert take(out) == whole.read_bytes()
    swapped = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join([swapped[1], swapped[0]]))
    with pytest.raises(SystemExit, match=r"taken.jsonl, line 1: .* stands where .* should"):
        take(out)
    with out.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=r"taken.jsonl is being written by another process"):
            take(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "--samples is 0: it must be more than 0"),
        (["--temperature", "-1"], "--temperature is -1.0: it must be 0, or 0.001 or more"),
        (["--data.test.kind", "none"], "data.test.kind is `none`: there are no problems to ask"),
        (["--few_shot", "none.jsonl"], "no file `none.jsonl`"),
        (["--generation.slots", "2", "--mesh.fsdp", "3"], "mesh.fsdp=3, mesh.tensor=1 does not fit 1 device"),
    ],
)
def test_sample_refuses_what_cannot_work(take, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as left:
        take(tmp_path / "x.jsonl", *arguments)
    assert message in str(left.value)
    assert not (tmp_path / "x.jsonl").exists()


def test_a_checkpoint_or_a_model_has_to_be_named(take, run_dir, tmp_path):
    with pytest.raises(SystemExit, match=r"no .*checkpoints/none: give a folder of RUN_DIR/checkpoints"):
        take(tmp_path / "x.jsonl", checkpoint=run_dir / "checkpoints/none")
    with pytest.raises(
        SystemExit, match=r"no model: name a folder of RUN_DIR/checkpoints, or a config with model.path"
    ):
        take(tmp_path / "x.jsonl", checkpoint=None)


# The same samples everywhere


@pytest.mark.long
def test_samples_depend_on_neither_batches_nor_devices(take, whole, tmp_path):
    """Other batches, and eight devices in a mesh of all three axes."""
    mesh = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    for number, (arguments, devices) in enumerate(((["--generation.slots", "7"], 1), (mesh, 8))):
        out = tmp_path / f"{number}.jsonl"
        take(out, *arguments, devices=devices)
        assert without_log_probs(out) == without_log_probs(whole)
        log_probs = [[line["log_prob"] for line in lines(path)] for path in (out, whole)]
        np.testing.assert_allclose(*log_probs, rtol=1e-10)


def test_fewer_samples_are_the_first_of_more(take, whole, tmp_path):
    out = tmp_path / "fewer.jsonl"
    take(out, "--samples", "2")
    assert without_log_probs(out) == [line for line in without_log_probs(whole) if line["sample"] < 2]


@pytest.mark.long
def test_two_processes_write_one_file(run_dir, whole, tmp_path):
    """One of them is asked to stop on the way: both do, and go on."""
    out = tmp_path / "two.jsonl"
    for interrupted in (True, False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        join = [
            "--distributed.coordinator_address",
            f"127.0.0.1:{port}",
            "--distributed.num_processes",
            "2",
            "--mesh.fsdp",
            "2",
        ]
        line = [str(run_dir / "checkpoints/warmup"), str(out), *COMMAND, *join]
        both = [start([*line, "--distributed.process_id", str(i)], ("reft_jax.sample",)) for i in range(2)]
        while interrupted and not (out.exists() and out.stat().st_size):
            assert both[0].poll() is None, both[0].communicate()[0]
            time.sleep(0.01)
        if interrupted:
            both[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=300)[0] for process in both]
        codes = {process.returncode for process in both}
        assert codes == {STOPPED} if interrupted and len(lines(out)) < SAMPLES * TEST else codes == {0}, outputs
    assert without_log_probs(out) == without_log_probs(whole)


# Drawn as it says


@pytest.mark.long
def test_tokens_are_drawn_from_the_models_distribution(run_dir, take, tmp_path):
    """The first token of 3,000 samples of one question, against a forward pass; with and without top-k."""
    config = load_config(["--config", str(run_dir / "config.yaml")])
    (problem,) = read_problems(load_config([*generated("test"), "--data.test.limit", "1"]).data.test)
    tokenizer = load_tokenizer("embedded", "main")
    prompt = f'Question:\n{problem.question}\nAnswer reasoning:\ndef solution():\n    """{problem.question}"""\n'
    ids = np.asarray(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    with jax.enable_x64(True):
        policy, params = Policy(config.model), restore(run_dir / "checkpoints/warmup")
        hidden = call(policy, params, ids[None], method="hidden")
        logits = np.asarray(call(policy, params, hidden[:, -1], method="logits"))[0]
    logits = logits / 0.8
    for top_k in (0, 6):
        kept = logits >= np.sort(logits)[-top_k] if top_k else np.ones(len(logits), bool)
        probs = np.where(kept, np.exp(logits - logits.max()), 0)
        probs /= probs.sum()
        out, count = tmp_path / f"{top_k}.jsonl", 3000
        draw = ["--temperature", "0.8", "--top_k", str(top_k), "--data.test.limit", "1", "--samples", str(count)]
        take(out, *draw, "--generation.max_new_tokens", "1", "--generation.slots", "500")
        cut = (tokenizer.eos_token_id, tokenizer.pad_token_id)  # all other tokens are seen, special ones too
        texts = ["" if i in cut else tokenizer.decode([i]) for i in range(len(tokenizer))]
        expected: Counter = Counter()
        for text, prob in zip(texts, probs):
            expected[text] += prob
        header = f'def solution():\n    """{problem.question}"""\n'
        found = Counter(line["completion"].removeprefix(header) for line in lines(out))
        assert set(found) <= {text for text in expected if expected[text] > 0}
        often = [text for text in expected if count * expected[text] >= 5]
        observed = [found[text] for text in often] + [count - sum(found[text] for text in often)]
        wanted = [count * expected[text] for text in often] + [count * (1 - sum(expected[text] for text in often))]
        both = np.array([pair for pair in zip(observed, wanted) if pair[1] > 1e-9])
        assert len(both) > 4
        assert stats.chisquare(both[:, 0], both[:, 1] * count / both[:, 1].sum()).pvalue > 1e-3
        single = {text: np.log(prob) for text, prob in zip(texts, probs) if texts.count(text) == 1 and prob > 0}
        told = [(line["log_prob"], single.get(line["completion"].removeprefix(header))) for line in lines(out)]
        told = [pair for pair in told if pair[1] is not None]
        assert len(told) > count / 2
        np.testing.assert_allclose(*zip(*told), rtol=0, atol=1e-8)


@pytest.mark.ci
def test_a_model_without_a_run_is_shown_how(run_dir, take, tmp_path):
    """A Hugging Face directory and a config; completions end before the separator."""
    export(run_dir / "checkpoints/warmup", tmp_path / "base", dtype="float32")
    fields = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**fields, "max_position_embeddings": 256}))
    config = {key: TINY[key] for key in ("seed", "generation", "reward")}
    config["model"] = {"path": str(tmp_path / "base"), "dtype": "float64", "param_dtype": "float64"}
    config["data"] = {"test": TINY["data"]["test"]}
    config["generation"] = {"prompt_buckets": [180], "max_new_tokens": 40}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    problems = read_problems(load_config(generated("train")).data.train)[:1]
    rows = [{"id": p.id, "question": p.question, "answer": p.answer, "cot": p.cot} for p in problems]
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    separator = "\n    b ="  # which the example has not, and the vocabulary has
    shown = ["--config", str(tmp_path / "base.yaml"), "--few_shot", str(tmp_path / "shots.jsonl")]
    shown += ["--separator", separator, "--samples", "5"]
    take(tmp_path / "out.jsonl", *shown, checkpoint=None)
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == 5 * TEST
    bodies = [line["completion"].partition('"""\n')[2] for line in found]
    assert not any(separator in body for body in bodies)
    assert any(line["ended"] and line["tokens"] < 40 for line in found), "ended by the separator"
    assert read_settings(tmp_path / "out.jsonl")["generation"]["stop"] == [separator]
    with pytest.raises(SystemExit, match=r"other settings \(data.templates.instruction, generation.stop\)"):
        take(tmp_path / "out.jsonl", "--config", str(tmp_path / "base.yaml"), "--samples", "5", checkpoint=None)


# The file


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.none(),
                st.floats(),
                st.integers(-(10**300), 10**300),
                st.sampled_from([-0.0, 5e-324, 2**53 + 1, 0.1]),
            ),
            st.text(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_values_and_texts_come_back_as_they_were(tmp_path_factory, answers):
    out = tmp_path_factory.mktemp("values") / "f.jsonl"
    rest = {"outcome": "wrong", "reward": 0.1, "suspicious": None, "tokens": 1, "ended": True, "log_prob": -1.0}
    rest["answer_kind"] = "number"
    rows = [
        {"id": "a", "sample": i, "question": "q", "gold": "7", "completion": text, "value": value, **rest}
        for i, (value, text) in enumerate(answers)
    ]
    with SampleFile(out) as file:
        assert file.begin({"lines": len(rows)}, [("a", i) for i in range(len(rows))], 2) == 0
        file.append(rows)
    back = list(read_samples(out))
    assert [sample.completion for sample in back] == [text for _, text in answers]
    for sample, (value, _) in zip(back, answers):
        assert type(sample.value) is type(value)
        assert repr(sample.value) == repr(value)


LINE = {"id": "a", "sample": 0, "question": "q", "gold": "7", "completion": "", "outcome": "wrong", "value": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.jsonl: holds no samples"),
        ("{\n", "f.jsonl, line 1: not JSON"),
        ("[1]\n", "f.jsonl, line 1: should be a JSON object, is a list"),
        (json.dumps({**LINE, "sample": True}), "f.jsonl, line 1: field `sample` is a bool"),
        (json.dumps({"id": "a"}), "f.jsonl, line 1: field `question` is missing; there are id"),
        (json.dumps({**LINE, "value": "b"}), "f.jsonl, line 1: field `value` is 'b', and the gold answer '7' a number"),
        (2 * (json.dumps(LINE) + "\n"), "f.jsonl, line 2: sample 0 of `a` stands twice"),
    ],
)
def test_reading_samples_names_what_is_wrong_in_the_file(tmp_path, text, message):
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(ValueError) as refused:
        list(read_samples(tmp_path / "f.jsonl"))
    assert message in str(refused.value)


def test_a_file_that_lacks_samples_is_not_read_as_a_whole_one(tmp_path, whole):
    (tmp_path / "f.jsonl").write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:48]))
    settings_path(tmp_path / "f.jsonl").write_bytes(settings_path(whole).read_bytes())
    with pytest.raises(ValueError, match=r"holds 48 of 60 samples: run the command that made it again"):
        list(read_samples(tmp_path / "f.jsonl"))
