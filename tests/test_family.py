"""`benchmarks.family`: its programs by hand and by running them, one budget for all arms, its page of made-up runs."""

import json

import pytest

from benchmarks import family
from benchmarks.study import options
from reft_jax.config.load import load_config
from reft_jax.data.embedded.problems import generate_problems

HEADER = 'def solution():\n    """How many?"""\n'


def value(program: str) -> object:
    """What a program of the embedded problems returns."""
    names: dict = {}
    exec(program, names)
    return names["solution"]()


def test_a_program_written_out_by_hand():
    body = "    a = 31 + 21\n    result = 31 / a\n    return result"
    out = (
        "    first = 31\n    second = 21\n    a = first + second\n"
        "    first = 31\n    second = a\n    result = first / second\n    return result"
    )
    assert family.written_out(HEADER + body) == HEADER + out


@pytest.mark.parametrize("split", ["train", "test"])
def test_programs_written_out_give_what_they_gave(split):
    programs = [p.cot for p in generate_problems(split)]
    assert all(value(family.written_out(program)) == value(program) for program in programs)
    longer = sum(map(len, map(str.split, map(family.written_out, programs)))) / sum(map(len, map(str.split, programs)))
    assert longer > 1.2


def test_words_are_tokens_and_none_crosses_from_header_to_program():
    rows = generate_problems("test")[:50]
    texts = [family.written_out(p.cot) for p in rows]
    tokenizer = family.word_tokenizer(texts)
    for problem, text in zip(rows, texts):
        header = f'def solution():\n    """{problem.question}"""\n'
        whole = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in whole
        assert tokenizer.decode(whole) == text
        assert whole == [*tokenizer(header)["input_ids"], *tokenizer(text.removeprefix(header))["input_ids"]]
    assert tokenizer.tokenize("    a = first + 12\n") == ["    ", "a", " =", " first", " +", " 12", "\n"]


@pytest.mark.parametrize("arm", family.ARMS, ids=lambda arm: arm.run)
def test_an_arm_has_the_budget_of_all(arm):
    files = [part for name in (family.CONFIG, *arm.overlays) for part in ("--config", name)]
    rl = load_config([*files, *map(str, options(arm.changes))]).rl
    assert rl.rollout_batch_size * rl.samples_per_question == 256
    assert rl.epochs * rl.samples_per_question == 4, "times each question is asked"
    assert (rl.minibatch_size, rl.update_epochs, rl.optimizer.learning_rate) == (32, 1, 5e-4)
    assert rl.max_draws == 1
    assert (rl.samples_per_question > 1) == family.is_grouped(arm)


def fake(runs: family.Runs, run: str, accuracy: float | None) -> None:
    """A finished run; without an accuracy none of its models was read on dev."""
    folder = runs.folder / run
    folder.mkdir(parents=True)
    models = {} if accuracy is None else {"warmup" if run == "sft" else "rl_best": {"accuracy": accuracy}}
    (folder / "summary.json").write_text(json.dumps(models))
    steps = [{"stage": "rl", "reward/mean": 0.5, "reward/correct": 0.1 * n, "response/length_mean": 12} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def test_the_page_says_what_is_finished(tmp_path):
    made = {setting: [family.Runs(tmp_path, setting, n) for n in (1, 2)] for setting in (family.SHORT, family.LATER)}
    short, later = made.values()
    for runs in short:
        for run, accuracy in {"sft": 0.2, "steady": 0.3, "raft": 0.3, "ppo": 0.1 * runs.seed}.items():
            fake(runs, run, accuracy)
    fake(short[0], "grpo", 0.4)
    fake(short[0], "rloo", None)
    fake(later[0], "raft", 0.25)
    fake(later[0], "rloo", None)
    arms = [arm for arm in family.ARMS if arm.run in ("steady", "raft", "ppo", "grpo", "rloo")]
    text = "\n".join(family.page(made, arms))
    told = " ".join(text.split())
    assert "GRPO (as-they-are, seed 2); GRPO (later, seed 1); GRPO (later, seed 2); RLOO, without KL (as-" in told
    first, second = text.split("## Programs as they are, from the model of `steady`")
    assert "| the start |  | 20.0 | 20.0 | **20.0** |" in first
    assert "| steady: right completions alone | 1 | 30.0 | 30.0 | **30.0** |  | 15 |  | 12 |" in first
    assert "| PPO, ReFT | 1 | 10.0 | 20.0 | **15.0** | -15.0 (" in first
    assert "| GRPO | 4 | 40.0 |  | **40.0** | +10.0 |" in first
    assert "| RLOO, without KL | 4 | 20.0 |  | **20.0** | -10.0 |" in first, "it stands at the warm-up"
    assert "Beyond right completions alone on every seed: GRPO (+10.0)." in told
    assert "Below on every seed: PPO, ReFT (-15.0); RLOO, without KL (-10.0). Neither: none." in told
    assert "At first 10 % of the completions are right, and a completion has 12 tokens." in told
    assert "| the start |  | 30.0 | 30.0 | **30.0** |" in second, "the model of steady"
    assert "| RLOO, without KL | 4 | 30.0 |  | **30.0** | +5.0 |" in second
