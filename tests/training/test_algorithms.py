"""Every algorithm of reinforcement in whole small runs, on one device and on eight, and what ends one early."""

import json

import numpy as np
import pytest
import yaml

from reft_jax.config import CollapseConfig
from reft_jax.data.embedded.problems import generate_problems
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.export import export
from reft_jax.parallel.processes import COLLAPSED
from reft_jax.problem import Problem
from reft_jax.reward.verdicts import Verdict
from reft_jax.training import learners
from reft_jax.training.completion import Completion
from reft_jax.training.reinforcement import detect_collapse
from reft_jax.training.state import RunProgress
from tests.runs import complete, read, restore, steps
from tests.tiers import few

pytestmark = pytest.mark.compiles

ALGORITHMS = {
    "ppo": {"rl__kl_in": "loss", "rl__kl_estimator": "k3", "rl__loss_aggregation": "token_mean"},
    "grpo": {"rl__kl_in": "loss", "rl__kl_estimator": "k3"},
    "rloo": {"rl__loss_aggregation": "token_mean", "rl__kl_coef": 0.0, "rl__old_log_probs": "sampler"},
    "reinforce": {"rl__loss_aggregation": "constant_length", "rl__overlong_filter": "true", "rl__sampler_ratio_cap": 2},
    "self_training": {"rl__self_training__gold_limit": 40},
}
SAMPLES = 3


def train(arguments, run_dir, warmup, algorithm, devices=1, **overrides):
    """Two iterations of 12 questions with three samples each, from the warm-up; as few programs as can be."""
    sizes = {"rl__rollout_batch_size": 12, "rl__samples_per_question": SAMPLES, "rl__epochs": 1}
    start = {"sft__schedule_epochs": 0, "rl__init_from": warmup, "data__train__limit": 30}
    few = {"data__test__kind": "none", "generation__prompt_buckets": "[72]"}
    line = arguments(run_dir, rl__algorithm=algorithm, **sizes, **start, **few, **ALGORITHMS[algorithm], **overrides)
    return complete(line, devices=devices)


@pytest.mark.parametrize("algorithm", few(ALGORITHMS, ["grpo"]))
def test_an_algorithm_learns(algorithm, finished, arguments, tmp_path):
    warmup = finished[0] / "checkpoints" / "warmup"
    said = train(arguments, tmp_path / "one", warmup, algorithm)
    assert len(steps(tmp_path / "one", "rl")) > 1
    assert ("rl/kl_k1" in steps(tmp_path / "one", "rl")[0]) == (algorithm in ("ppo", "grpo", "reinforce")), (
        "where it is read"
    )
    first = [r["id"] for r in read(tmp_path / "one", "rollouts") if r["step"] == 1]
    assert first == [id for id in first[::SAMPLES] for _ in range(SAMPLES)], "samples of a question are neighbours"
    before, after = restore(warmup)["decoder"], restore(tmp_path / "one/checkpoints/rl_best")["decoder"]
    assert np.any(before["embed"] != after["embed"])
    head = tmp_path / "one/checkpoints/rl_best_value_head"
    assert head.exists() == (algorithm == "ppo")
    summary = json.loads((tmp_path / "one/summary.json").read_text())["rl_best"]
    assert summary["dev_accuracy"] == max(
        r["eval/accuracy"] for r in read(tmp_path / "one", "metrics") if "eval/accuracy" in r
    )
    assert "Accuracy on dev (there is no test set)" in said, "and not an empty table"


@pytest.mark.ci
def test_without_a_test_set_the_gain_is_seen_on_dev(arguments, tmp_path):
    """Table, summary and card have the warm-up's accuracy on dev; and few iterations have rollouts."""
    short = {"sft__schedule_epochs": 2, "sft__warmup_epoch": 1, "sft__stop_epoch": 2, "rl__epochs": 1}
    said = complete(arguments(tmp_path / "run", data__test__kind="none", logging__rollouts_every=10, **short))
    measured = {r["step"]: r for r in read(tmp_path / "run", "metrics") if "eval/accuracy" in r}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [summary[name]["dev_accuracy"] for name in ("warmup", "sft")] == [
        measured[step]["eval/accuracy"] for step in (6, 12)
    ]
    for label, name in (("warm-up", "warmup"), ("ReFT (PPO) best on dev", "rl_best")):
        row = next(line for line in said.splitlines() if label in line and "│" in line)
        assert f" {100 * summary[name]['dev_accuracy']:.1f} " in row
    rows = [r["outcome"] for r in read(tmp_path / "run", "evaluations") if r["step"] == 6]
    export(tmp_path / "run/checkpoints/warmup", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert f"| {rows.count('correct')} of {len(rows)} |\n" in card
    assert sorted({r["step"] - 12 for r in read(tmp_path / "run", "rollouts")}) == [1, 3]


@pytest.mark.ci
@pytest.mark.parametrize("how", ["0.5", "{weight: 0.5, contained: true}"])
def test_a_reward_function_alone_is_what_is_learned_and_chosen_by(how, finished, arguments, tmp_path, monkeypatch):
    """It is asked on dev too, gets the gold answer as a number, and the best of its means there is chosen."""
    (tmp_path / "only_mine.py").write_text(
        "def short(completion_ids, gold, **columns):\n"
        "    assert all(isinstance(number, int | float) for number in gold)\n"
        "    return [-len(ids) for ids in completion_ids]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rewards = {f"reward__{name}": 0 for name in ("correct", "wrong", "no_answer")}
    said = train(
        arguments, tmp_path / "own", finished[0] / "checkpoints" / "warmup", "grpo",
        rl__evaluate_every=1, reward__functions=f"{{only_mine.short: {how}}}", **rewards,
    )  # fmt: skip
    assert ("reward functions: contained by limits" in said) == ("contained" in how)
    evaluations = [r for r in read(tmp_path / "own", "metrics") if "eval/accuracy" in r]
    assert len(evaluations) > 1
    for record in evaluations:
        rows = [r for r in read(tmp_path / "own", "evaluations") if r["step"] == record["step"]]
        assert record["eval/reward_mean"] == pytest.approx(np.mean([0.5 * row["functions"]["short"] for row in rows]))
        assert record["eval/function/short"] == pytest.approx(2 * record["eval/reward_mean"])
    best = json.loads((tmp_path / "own/summary.json").read_text())["rl_best"]
    assert best["dev_reward"] == max(r["eval/reward_mean"] for r in evaluations)


@pytest.mark.long
def test_a_run_goes_on_with_the_buckets_that_it_made(arguments, tmp_path):
    """Those that stand in its config, and not those that would be made of its data today."""
    auto = {f"{section}__prompt_buckets": "auto" for section in ("sft", "generation")}
    sizes = {"data__train__limit": 40, "sft__schedule_epochs": 2, "sft__warmup_epoch": 1, "sft__stop_epoch": 2}
    line = arguments(
        tmp_path / "run", **auto, **sizes, data__test__kind="none", sft__response_buckets="auto", rl__epochs=0
    )
    said = complete(line)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    made = config["sft"]["prompt_buckets"], config["sft"]["response_buckets"], config["generation"]["prompt_buckets"]
    for key, lengths in zip(("sft.prompt_buckets", "sft.response_buckets", "generation.prompt_buckets"), made):
        assert f"{key}: auto, made {lengths}\n" in said
    assert "Accuracy on dev" in complete(line), "the same settings: it is finished"
    config["generation"]["prompt_buckets"].append(100)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    again = complete([*line, "--rl.epochs=1", "--allow_changed", "rl.epochs"])
    assert "auto, made" not in again
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["generation"] == config["generation"]


@pytest.mark.ci
def test_questions_without_an_answer_are_learned_and_no_accuracy_is_told(finished, arguments, tmp_path, monkeypatch):
    (tmp_path / "free_rewards.py").write_text(
        "def short(completion_ids, gold, **columns):\n"
        "    assert gold == [None] * len(gold)\n"
        "    return [-len(ids) for ids in completion_ids]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for split in ("train", "test"):
        rows = [{"question": problem.question} for problem in generate_problems(split)[:40]]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {
        f"data__{s}__{k}": v
        for s in ("train", "test")
        for k, v in (("kind", "jsonl"), ("path", tmp_path / f"{s}.jsonl"))
    }
    rewards = {f"reward__{name}": 0 for name in ("correct", "wrong", "no_answer")}
    start = {"sft__schedule_epochs": 0, "rl__init_from": finished[0] / "checkpoints" / "warmup"}
    line = arguments(
        tmp_path / "run", **files, **rewards, **start, reward__functions="{free_rewards.short: 0.5}", rl__epochs=1,
        generation__prompt_buckets="[72]", data__train__limit=0, data__test__limit=0,
    )  # fmt: skip
    said = complete(line)
    assert "test: 40 of 40 problems have no answer, and no accuracy is reported" in said
    assert "Mean reward on test" in said
    assert "no answer that can be read" not in said, "none is asked for"
    metrics = read(tmp_path / "run", "metrics")
    assert not [
        key for record in metrics for key in record if "accuracy" in key or "interval" in key or "correct" in key
    ]
    best = json.loads((tmp_path / "run/summary.json").read_text())["rl_best"]
    rows = [r for r in read(tmp_path / "run", "evaluations") if r["split"] == "test"]
    assert best["reward"] == pytest.approx(np.mean([0.5 * row["functions"]["short"] for row in rows]))
    assert best["dev_reward"] == max(r["eval/reward_mean"] for r in metrics if "eval/reward_mean" in r)
    checkpoint = str(tmp_path / "run/checkpoints/rl_best")
    assert f"mean reward {best['reward']:.3f}; the problems have no answers" in complete(
        [checkpoint], command="evaluate"
    )


@pytest.mark.ci
def test_what_is_learned_of_a_response_ends_with_its_stop_text(arguments, tmp_path, monkeypatch):
    """Decoded here, token by token: no mask, length or log-prob reaches beyond, whatever was sampled behind it."""
    learned, update_all = [], learners.update_all
    monkeypatch.setattr(learners, "update_all", lambda *given: learned.append(given[3]) or update_all(*given))
    cold = {"sft__schedule_epochs": 0, "rl__epochs": 1, "data__train__limit": 30, "data__test__kind": "none"}
    cold |= {"reward__no_answer": 0.1, "generation__stop": "=", "generation__prompt_buckets": "[72]"}
    complete(arguments(tmp_path / "run", **cold), devices=2)
    tokenizer, (experience,) = load_tokenizer("embedded", "main"), learned
    rows, lengths = experience.sequences.responses, np.asarray(experience.sequences.response_lengths)
    eos, expected, stopped = tokenizer.eos_token_id, [], 0
    for row in np.asarray(rows)[: np.sum(lengths > 0)]:
        ends = [i + 1 for i, token in enumerate(row) if token == eos or "=" in tokenizer.decode([token])]
        expected.append(min(ends, default=len(row)))
        stopped += expected[-1] < len(row) and row[expected[-1] - 1] != eos
    assert lengths.tolist() == expected + [0] * (len(lengths) - len(expected))
    assert stopped >= 5
    beyond = np.arange(rows.shape[1]) >= lengths[:, None]
    assert not np.any(np.asarray(experience.advantages)[beyond])
    assert np.all(np.asarray(experience.advantages)[~beyond])
    written = read(tmp_path / "run", "rollouts")
    assert [row["tokens"] for row in written] == expected
    assert not any("=" in row["completion"].partition('"""\n')[2] for row in written)
    record = steps(tmp_path / "run", "rl")[0]
    assert record["response/length_mean"] == pytest.approx(np.mean(expected))
    assert record["response/truncated"] == sum(not row["ended"] for row in written) / len(written)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_learns_alike_on_one_device_and_on_eight(algorithm, finished, arguments, tmp_path):
    warmup = finished[0] / "checkpoints" / "warmup"
    train(arguments, tmp_path / "one", warmup, algorithm)
    train(arguments, tmp_path / "eight", warmup, algorithm, devices=8, mesh__fsdp=4, mesh__tensor=2)
    one, eight = (steps(tmp_path / name, "rl") for name in ("one", "eight"))
    for name in ("rl/total_loss", "optimizer/gradient_norm", "reward/mean"):
        assert eight[0][name] == pytest.approx(one[0][name], abs=2e-4), name


@pytest.mark.long
def test_reinforcement_starts_without_a_warm_up(arguments, tmp_path):
    complete(arguments(tmp_path / "cold", sft__schedule_epochs=0, rl__epochs=1, data__train__limit=60))
    summary = json.loads((tmp_path / "cold/summary.json").read_text())
    assert set(summary) == {"rl_best"}
    assert steps(tmp_path / "cold", "rl")[0]["rl/kl_max"] < 1e-3


@pytest.mark.ci
def test_a_run_that_goes_wrong_ends_with_the_best_model_and_says_why(finished, arguments, tmp_path):
    """Any change of the policy exceeds this bound on its KL, which the first iteration cannot."""
    run_dir = tmp_path / "wrong"
    start = {"sft__schedule_epochs": 0, "rl__init_from": finished[0] / "checkpoints" / "warmup"}
    line = arguments(run_dir, **start, rl__collapse__max_kl=1e-4, rl__evaluate_every=1, rl__save_every=1)
    line += ["--logging.rollouts_every", "50"]
    output = complete(line, code=COLLAPSED)
    assert "reinforcement ended early: the KL to the reference is" in output
    summary = json.loads((run_dir / "summary.json").read_text())
    last = steps(run_dir, "rl")[-1]
    assert last["rl/sequence_kl"] > 1e-4
    assert all(r["rl/sequence_kl"] <= 1e-4 for r in steps(run_dir, "rl")[:-1])
    assert summary["rl_best"]["step"] < last["step"], "the model is from before"
    assert {record["step"] for record in read(run_dir, "rollouts")} == {1, last["step"]}
    resume = [int(path.name) for path in (run_dir / "checkpoints/resume").iterdir()]
    assert max(resume) < last["step"], "nothing is saved after it went wrong"
    assert complete(line, code=COLLAPSED).strip().endswith(output.strip().splitlines()[-1])


def completions(*rewards: float) -> list[Completion]:
    problems = (Problem(id=str(i), question="q", answer="1") for i in range(len(rewards)))
    return [Completion(p, "", Verdict(r, "correct", 1.0), r, tokens=1, ended=True) for p, r in zip(problems, rewards)]


def test_a_fall_of_the_rewards_is_noticed():
    """Looked at every third iteration: 180 rewards of 0.6, 0.6, then 0.1 on average."""

    def verdict(reward: float) -> list[Completion]:
        return completions(*[reward] * 60)

    config, progress = CollapseConfig(window=3, reward_share=0.5), RunProgress()
    rewards = [0.3, 0.6, 0.9, 0.6, 0.6, 0.6, 0.3, 0.0, 0.0, 0.0]
    said = [detect_collapse(config, progress, verdict(reward), {}) for reward in rewards]
    assert [bool(text) for text in said] == [False] * 8 + [True, False]
    assert "the last 3 iterations is 0.1, less than 0.5 of the 0.6 of 6 iterations before" in said[8]
    losses = RunProgress()  # a reward function of one's own may charge for what it dislikes: no share of that
    assert not any(
        detect_collapse(config, losses, verdict(reward), {}) for reward in (-2.0, -1.0, -0.5, -0.4, -0.3, -0.9, -0.1)
    )
    assert detect_collapse(CollapseConfig(reward_share=0.0), RunProgress(), verdict(0.0), {"rl/sequence_kl": 1e9}) == ""
    assert "nan" in detect_collapse(
        CollapseConfig(max_kl=5.0), RunProgress(), verdict(0.0), {"rl/sequence_kl": float("nan")}
    )
