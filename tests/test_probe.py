"""`python -m reft_jax.probe`: its figures beside brute force and closed forms, and the command on a tiny run."""

import dataclasses
import itertools
import json
import math
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from scipy import stats

from reft_jax.algorithms.gradient_noise import (
    advantages,
    build_gradients,
    draw_signs,
    figures,
    jackknife,
    ratio,
    sketch,
)
from reft_jax.algorithms.train_state import init_params
from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, score_responses
from reft_jax.parallel.processes import REFUSED
from reft_jax.parallel.sharding import make_mesh
from reft_jax.probe import by_width
from reft_jax.samples import probing
from tests.runs import complete, end, run, start

# What samples say


@pytest.mark.parametrize("counts", [(5, 0), (3, 2), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_groups_without_signal_are_counted_as_all_groups_would_be(counts):
    rewards = [float(i) for i, count in enumerate(counts) for _ in range(count)]
    for n in range(1, 6):
        chosen = list(itertools.combinations(rewards, n))
        alike = sum(len(set(group)) == 1 for group in chosen) / len(chosen)
        assert probing.without_signal([rewards], n) == pytest.approx(alike)
    with pytest.raises(ValueError, match="groups of 6, and a question with 5 samples"):
        probing.without_signal([rewards], 6)


def test_groups_without_signal_are_what_the_binomial_expects():
    """Its mean over all outcomes of 6 samples, by scipy, is p^n + (1 - p)^n; and pass@k's is 1 - (1 - p)^k."""
    for p in (0.1, 0.6):
        weights = stats.binom(6, p).pmf(range(7))
        outcomes = [[1.0] * right + [0.1] * (6 - right) for right in range(7)]
        for n in (2, 3, 6):
            expected = sum(w * probing.without_signal([each], n) for w, each in zip(weights, outcomes))
            assert expected == pytest.approx(p**n + (1 - p) ** n)
        curves = [probing.pass_curve([right], 6) for right in range(7)]
        for k in (1, 2, 4, 6):
            expected = sum(w * curve[k].value for w, curve in zip(weights, curves))
            assert expected == pytest.approx(1 - (1 - p) ** k)


def test_figures_and_bins():
    rewards = [[1.0, 1.0, 1.0, 1.0], [0.1, 0.1, 0.1, 0.0], [1.0, 0.1, 0.1, 0.0]]
    made = probing.figures(rewards, [4, 0, 1])
    assert made["questions_by_right_samples"] == [1, 1, 0, 0, 1]
    assert made["reward"] == pytest.approx((4 + 0.3 + 1.2) / 12)
    assert made["pass"]["1"]["value"] == pytest.approx(5 / 12)
    assert made["pass"]["4"]["value"] == pytest.approx(2 / 3)
    assert set(made["pass"]) == {"1", "2", "4"}
    assert set(made["without_signal"]) == {"2", "4"}
    bins = dict(probing.histogram(made["questions_by_right_samples"]))
    assert (bins["never"], bins["20 to 30 %"], bins["always"], sum(bins.values())) == (1, 1, 1, 3)
    assert probing.powers(6) == [1, 2, 4, 6]
    assert probing.powers(7, 2) == [2, 4, 7]


def advised(right: list[int], samples: int = 8, **more) -> str:
    rewards = [[1.0] * count + [0.0] * (samples - count) for count in right]
    return "\n".join(probing.advice({**probing.figures(rewards, right), **more}, 32))


def test_what_the_figures_speak_for():
    assert "next to nothing to reinforce" in advised([0] * 40)
    assert "little left to gain" in advised([8] * 40)
    assert "solved in nearly every one" in advised([8] * 20 + [0] * 20)
    assert "87.5 % of the samples are right, and 100.0 % of the questions" in advised([7] * 40)
    assert "rl.samples_per_question 2 gives" in advised([4] * 40)
    assert "rl.max_draws" in advised([8] * 25 + [4] * 15)
    row = {"algorithm": "RLOO, Dr. GRPO", "samples": 4, "ratio": 0.5, "error": 0.1, "completions": 64.0}
    row["behind_error"] = 0.0
    other = {**row, "algorithm": "GRPO", "ratio": 0.4, "completions": 80.0, "behind_error": 0.06}
    text = advised([4] * 40, gradients=[row, other])
    assert "ratio of signal to noise of 0.5, and 64 would with 1\n" in text
    assert "algorithm: RLOO, Dr. GRPO of 4 samples, GRPO of 4 samples (level within the errors)" in text
    assert advised([4] * 40, gradients=[row, {**other, "behind_error": 0.04}]).endswith(
        "algorithm: " + "RLOO, Dr. GRPO of 4 samples"
    )
    assert "stands out of its noise" in advised([4] * 40, gradients=[{**row, "error": 0.4}])
    whole = probing.advice({**probing.figures([[1.0, 0.0]] * 9, [1] * 9), "gradients": [row]}, 32, completions=6400)
    assert "64 would with 1; a run's 6,400 are 100 times as many" in whole[-2]


# What gradients say


def test_the_ratio_of_signal_to_noise_beside_loops():
    drawn = np.random.default_rng(0)
    pieces = drawn.normal(size=(7, 3, 5)) + 0.8

    def slow(pieces: np.ndarray) -> float:
        signal = np.mean([x.mean(0) @ y.mean(0) for x, y in itertools.permutations(pieces, 2)])
        second = np.mean([piece @ piece for each in pieces for piece in each])
        return 4 * signal / (second - signal)

    value, each, needed = ratio(pieces, 4)
    assert value == pytest.approx(slow(pieces))
    assert needed == pytest.approx(4 / value)
    others = [slow(np.delete(pieces, i, axis=0)) for i in range(7)]
    np.testing.assert_allclose(each, others)
    assert jackknife(each) == pytest.approx(np.std(others) * math.sqrt(6))


def test_the_ratio_is_that_of_a_known_distribution():
    """Question's mean mu + u, sample's v: signal |mu|^2, noise of m questions (tr U + tr V) / m."""
    drawn, mu = np.random.default_rng(1), np.array([0.5, -0.2, 0.1])
    pieces = mu + drawn.normal(size=(4000, 1, 3)) * 0.7 + drawn.normal(size=(4000, 2, 3)) * 1.1
    value, each, _ = ratio(pieces, 10)
    assert abs(value - 10 * 0.3 / (3 * (0.49 + 1.21))) < 4 * jackknife(each) < 0.2
    value, each, needed = ratio(np.zeros((4, 1, 3)), 10)
    assert (value, jackknife(each), needed) == (0.0, 0.0, math.inf)


@pytest.mark.compiles
def test_advantages_by_the_formulas():
    rewards = np.array([[1.0, 0.0, 0.1, 1.0], [0.0, 0.0, 0.0, 0.0]])
    found = advantages(rewards, 4)
    others = np.array([[np.delete(row, j).mean() for j in range(4)] for row in rewards])
    np.testing.assert_allclose(found["RLOO, Dr. GRPO"], rewards - others, atol=1e-6)
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(found["GRPO"], centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4), atol=1e-5)
    np.testing.assert_allclose(found["MaxRL"][0], centred[0] / rewards[0].mean(), atol=1e-6)
    assert not found["MaxRL"][1].any()
    assert "MaxRL" not in advantages(rewards - 1, 4)
    single = advantages(rewards[:, :1], 1)
    np.testing.assert_allclose(single["REINFORCE"], rewards[:, :1])
    np.testing.assert_allclose(single["constant baseline"], [[0.5], [-0.5]])


@pytest.mark.compiles
def test_figures_beside_a_loop_over_minibatches():
    """Each algorithm's minibatches, with questions of their own, made one by one."""
    drawn = np.random.default_rng(2)
    gradients, rewards = drawn.normal(size=(6, 4, 3)), drawn.integers(0, 2, (6, 4)).astype(float)
    lengths = drawn.integers(1, 9, (6, 4))
    found = {
        (r["algorithm"], r["samples"]): r for r in figures(gradients, rewards, lengths, minibatch=8, by_token=True)
    }
    assert {n for _, n in found} == {1, 2, 4}
    scaled = gradients * lengths[..., None]
    of_pairs = np.zeros((6, 2, 3))
    for q, c in itertools.product(range(6), range(2)):
        first, second = 2 * c, 2 * c + 1
        gap = rewards[q, first] - rewards[q, second]
        of_pairs[q, c] = (gap * scaled[q, first] - gap * scaled[q, second]) / 2
    assert found["RLOO, Dr. GRPO", 2]["ratio"] == pytest.approx(ratio(of_pairs, 4)[0], rel=1e-5)
    plain = ratio(rewards[..., None] * scaled, 8)
    assert found["REINFORCE", 1]["ratio"] == pytest.approx(plain[0])
    best = max(found.values(), key=lambda r: r["ratio"])
    assert best["behind_error"] == 0
    assert (best["algorithm"], best["samples"]) == ("REINFORCE", 1), "for the next line"
    behind = jackknife(plain[1] - ratio(of_pairs, 4)[1])
    assert found["RLOO, Dr. GRPO", 2]["behind_error"] == pytest.approx(behind, rel=1e-5)
    assert found["REINFORCE", 1]["completions"] == (pytest.approx(plain[2]) if plain[2] < np.inf else None)


@pytest.mark.compiles
def test_a_sketch_keeps_inner_products_without_bias():
    drawn = np.random.default_rng(0)
    x, y = (jnp.asarray(drawn.normal(size=(30, 11)), jnp.float32) for _ in range(2))
    signs = lambda key, width: draw_signs(x.size, key, width)
    np.testing.assert_array_equal(sketch(x, signs(jax.random.key(0), 400), 400), x.ravel())
    of = lambda key: sketch(x, signs(key, 64), 64) @ sketch(y + x, signs(key, 64), 64)
    found = np.asarray(jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(1), 4000)))
    assert abs(found.mean() - float(jnp.vdot(x, y + x))) < 4 * found.std() / math.sqrt(4000)
    assert found.std() > 0


def completions_of_a_tiny_model() -> tuple[ModelConfig, Sequences, jax.Array]:
    """The model, five rows, and by a loop of whole gradients the inner products of their mean log-probs' [5, 5]."""
    shape = DecoderConfig(
        vocab_size=32, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, rotary_dim=8
    )
    config, drawn = ModelConfig(decoder=dataclasses.replace(shape, qkv_bias=True)), np.random.default_rng(0)
    lengths = np.array([3, 5, 1, 4, 2], np.int32)
    responses = drawn.integers(1, 32, (5, 5)).astype(np.int32)
    prompts = drawn.integers(1, 32, (5, 4)).astype(np.int32)
    rows = Sequences(np.concatenate([prompts, responses], axis=1), np.full(5, 4, np.int32), responses, lengths)
    params, alone = tiny_params(config, make_mesh(MeshConfig(), jax.devices()[:1])), Policy(config, None)
    whole = []
    for i, n in enumerate(lengths):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], rows)
        mean = lambda params, row=row, n=n: score_responses(alone, params, row, 0.7).log_probs[0, :n].mean()
        whole.append(np.asarray(ravel_pytree(jax.grad(mean)(jax.device_get(params)))[0]))
    return config, rows, np.stack(whole) @ np.stack(whole).T


def tiny_params(config: ModelConfig, mesh: Mesh) -> Params:
    return init_params(Policy(config, mesh), mesh, jax.random.key(1), value_head=False)


@pytest.mark.ci
def test_gradients_are_those_of_single_completions_on_any_mesh():
    """Sketches as large as the gradients, on one device and with weights split over eight."""
    config, rows, exact = completions_of_a_tiny_model()
    for devices, settings in ((1, MeshConfig()), (8, MeshConfig(fsdp=4, tensor=2))):
        mesh = make_mesh(settings, jax.devices()[:devices])
        params = tiny_params(config, mesh)
        steps = build_gradients(Policy(config, mesh), mesh, params, temperature=0.7, rank=32)
        found = np.asarray(steps.step(params, rows, steps.draw(params, jax.random.key(0))))
        assert found.shape[1] == sum(x.size for x in jax.tree.leaves(params)), "the sketches are whole"
        np.testing.assert_allclose(found @ found.T, exact, rtol=1e-4, atol=1e-4 * exact.max())


@pytest.mark.ci
def test_sketches_of_gradients_keep_their_inner_products_without_bias():
    """Over many draws of small sketches the mean of their products is that of whole gradients."""
    config, rows, exact = completions_of_a_tiny_model()
    mesh, draws = make_mesh(MeshConfig(), jax.devices()[:1]), 600
    params = tiny_params(config, mesh)
    steps = build_gradients(Policy(config, mesh), mesh, params, temperature=0.7, width=64, rank=4)
    products = []
    for i in range(draws):
        found = np.asarray(steps.step(params, rows, steps.draw(params, jax.random.key(i))))
        products.append(found @ found.T)
    assert found.shape[1] < exact.shape[0] * 300
    mean, error = np.mean(products, axis=0), np.std(products, axis=0) / math.sqrt(draws)
    assert (np.abs(mean - exact) < 4 * error).all()
    assert (error > 0).all()
    assert (error < 0.05 * exact.max()).all()


def test_calls_for_gradients_have_every_row_and_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(20, 200, 37)
    calls = list(by_width(lengths, 8))
    assert {row for order, _ in calls for row in order.tolist()} == set(range(37))
    assert all(len(order) == 8 and set(order) <= set(same) for order, same in calls)
    widths = [lengths[same].max() for _, same in calls]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    assert all((lengths[same] > lengths.max() / 2).all() or lengths[same].max() <= 112 for _, same in calls)
    assert len(list(by_width(np.full(5, 40), 8))) == 1


# The command


@pytest.mark.ci
def test_a_checkpoint_is_probed(finished, tmp_path):
    """The same figures from the file of `sample`, whose lines are the same samples."""
    checkpoint, out = str(finished[0] / "checkpoints/warmup"), tmp_path / "probe.json"
    line = [checkpoint, "--samples", "4", "--questions", "24", "--gradient_samples", "64", "--json", str(out)]
    printed = complete(line, command="probe")
    made = json.loads(out.read_text())
    assert (made["questions"], made["samples"], made["split"], made["minibatch"]) == (24, 4, "train", 12)
    assert sum(made["questions_by_right_samples"]) == 24
    assert all(sentence in printed for sentence in made["advice"])
    assert "pass@4" in printed
    assert {row["samples"] for row in made["gradients"]} == {1, 2, 4}
    assert all(np.isfinite(row["ratio"]) for row in made["gradients"])
    samples = tmp_path / "samples.jsonl"
    complete([checkpoint, str(samples), "--split", "train", "--samples", "4"], command="sample")
    lines = [json.loads(text) for text in samples.read_text().splitlines()]
    right: dict[str, int] = {}
    for each in lines:
        right[each["id"]] = right.get(each["id"], 0) + (each["outcome"] == "correct")
    whole = complete([*line[:3], "--questions", "0", "--gradient_samples", "0", "--json", str(out)], command="probe")
    made = json.loads(out.read_text())
    assert "gradients" not in made
    assert "signal to noise" not in whole
    assert made["questions_by_right_samples"] == [list(right.values()).count(i) for i in range(5)]
    mean = sum(each["reward"] for each in lines) / len(lines)
    assert made["reward"] == pytest.approx(mean)


@pytest.mark.long
def test_two_processes_probe_as_one(finished, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    join = ["--distributed.coordinator_address", address, "--distributed.num_processes", "2", "--mesh.fsdp", "2"]
    line = [str(finished[0] / "checkpoints/warmup"), "--questions", "8", "--samples", "2", "--gradient_samples", "16"]
    complete([*line, "--json", str(tmp_path / "one.json")], command="probe")
    own = lambda i: [*line, *join, "--distributed.process_id", str(i), "--json", str(tmp_path / f"{i}.json")]
    both = [start(own(i), ("reft_jax.probe",)) for i in range(2)]
    for process in both:
        end(process, 0)
    assert not (tmp_path / "1.json").exists()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0"))
    assert two["questions_by_right_samples"] == one["questions_by_right_samples"]
    for found, wanted in zip(two["gradients"], one["gradients"], strict=True):
        assert found["ratio"] == pytest.approx(wanted["ratio"], abs=1e-3)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--samples", "1"], "--samples is 1: it must be 2 or more"),
        (["--split", "test"], "--split"),
        (["--gradient_samples", "9"], "with --samples 8 it must be 0, or 64 or more"),
        (["--json", "no/folder/x.json"], "there is no folder"),
        (["other"], "give one CHECKPOINT, or --config FILE, not"),
        (["--data.train.limit", "9", "--questions", "3"], "has 3 questions with a gold answer to ask"),
    ],
)
def test_what_cannot_work_is_refused(finished, line, message):
    code, _, said = run([str(finished[0] / "checkpoints/warmup"), *line], command="probe")
    assert code == REFUSED, said
    assert message in said


def test_a_model_has_to_be_named(capsys):
    code, _, said = run([], command="probe")
    assert code == REFUSED
    assert "no model: name a folder of RUN_DIR/checkpoints" in said
