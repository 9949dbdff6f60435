"""Sixty command lines and files that are wrong, each told in at most four lines with key, file and cure."""

import importlib
from pathlib import Path

import pytest

from reft_jax.config import Config
from reft_jax.config.faults import fields_of, no_setting

VALID = "--run_dir r --model.tokenizer embedded --data.train.kind generated --data.train.path train"
FILES = {
    "good.yaml": "run_dir: r\nmodel: {tokenizer: embedded}\ndata: {train: {kind: generated, path: train}}\n",
    "tab.yaml": "rl:\n\tepochs: 3\n",
    "brace.yaml": "rl: {epochs: 3\n",
    "text.yaml": "rl.epochs=3\n",
    "list.yaml": "- rl\n- sft\n",
    "latin.yaml": b"# \xe4\nseed: 1\n",
    "unknown.yaml": "rl: {kl_coeff: 0.1}\n",
    "section.yaml": "trainer: {epochs: 1}\n",
    "flat.yaml": "kl_coef: 0.1\n",
    "type.yaml": "rl: {epochs: many}\n",
    "fraction.yaml": "rl: {epochs: 2.5}\n",
    "range.yaml": "sft: {batch_size: 0}\n",
    "null.yaml": "rl: {kl_coef: null}\n",
    "scalar.yaml": "rl: 3\n",
    "mapping.yaml": "seed: {a: 1}\n",
    "bool.yaml": "rl: {whiten_advantages: 3}\n",
    "lists.yaml": "sft: {prompt_buckets: [36, long]}\n",
    "empty_list.yaml": "sft: {prompt_buckets: []}\n",
    "gone.yaml": "config: [no.yaml]\n",
    "number.yaml": "config: 3\n",
    "circle.yaml": "config: circle.yaml\n",
    "base_bad.yaml": "config: unknown.yaml\n",
    "renamed.yaml": "evaluation: {limit: 3}\n",
    "choice.yaml": "model: {dtype: float8}\n",
    "data.yaml": "data: {train: {kind: csv}}\n",
    "url.yaml": "run_dir: gs://bucket/run\n",
    "twice.yaml": "rl:\n  epochs: 3\nseed: 1\nrl:\n  kl_coef: 0.1\n",
    "twice_inside.yaml": "rl:\n  epochs: 3\n  epochs: 4\n",
    "base_twice.yaml": "config: twice.yaml\n",
    "rl_twice.yaml": "epochs: 3\nepochs: 4\n",
    "section_twice.yaml": "rl: rl_twice.yaml\n",
    "tiny.yaml": "model: tiny\n",
    "empty.yaml": "# nothing yet\n",
    "rl_unknown.yaml": "kl_coeff: 0.1\n",
    "section_unknown.yaml": "rl: rl_unknown.yaml\n",
    "itself.yaml": "x: &a [*a]\n",
    "deep.yaml": "rl: " + "[" * 9999,
    "data.jsonl": "",
    "answers.jsonl": '{"question": "q", "completion": "5", "answer": "5"}\n',
}
WRONG = [  # command, arguments, and what must be among what is said
    # Unknown keys and names
    ("train", f"{VALID} --rl.kl_coeff 0.1", "rl.kl_coeff", "did you mean rl.kl_coef?"),
    ("train", f"{VALID} --kl_coef 0.1", "kl_coef", "did you mean rl.kl_coef?"),
    ("train", f"{VALID} --sed 3", "sed", "did you mean seed?"),
    ("train", f"{VALID} --ppo.epochs 3", "ppo.epochs", "did you mean rl.epochs?"),
    ("train", f"{VALID} --rl.epoch=3", "rl.epoch", "did you mean rl.epochs?"),
    ("train", f"{VALID} --evaluation.limit 3", "evaluation.limit", "is now evaluation.dev_limit"),
    ("train", f"{VALID} --generation.weight_layout split", "generation.weight_layout", "is now `sharded`"),
    ("train", f"{VALID} rl.epochs=3", "rl.epochs=3", "--key value"),
    ("train", f"{VALID} -seed 3", "-seed", "--seed"),
    ("train", f"{VALID} --rl.epochs 3 4", "4", "--key value"),
    # Values
    ("train", f"{VALID} --rl.epochs many", "rl.epochs", "a whole number, 0 or more"),
    ("train", f"{VALID} --rl.epochs", "rl.epochs", "a whole number, 0 or more"),
    ("train", f"{VALID} --rl.epochs 2.5", "rl.epochs", "a whole number, 0 or more"),
    ("train", f"{VALID} --rl.kl_coef much", "rl.kl_coef", "a number, 0 or more"),
    ("train", f"{VALID} --rl.kl_coef -0.1", "rl.kl_coef", "0 or more"),
    ("train", f"{VALID} --rl.discount 1.5", "rl.discount", "between 0 and 1"),
    ("train", f"{VALID} --sft.batch_size 0", "sft.batch_size", "more than 0"),
    ("train", f"{VALID} --sft.microbatch_size -1", "sft.microbatch_size", "0 or more"),
    ("train", f"{VALID} --sft.microbatch_size 36", "sft.microbatch_size", "a multiple of"),
    ("train", f"{VALID} --model.dtype float8", "model.dtype", "one of float32, bfloat16, float64"),
    ("train", f"{VALID} --rl.algorithm dpo", "rl.algorithm", "one of ppo, grpo, rloo, reinforce, self_training"),
    ("train", f"{VALID} --rl.whiten_advantages maybe", "rl.whiten_advantages", "true or false"),
    ("train", f"{VALID} --sft.prompt_buckets long", "sft.prompt_buckets", "a list of whole numbers"),
    ("train", f"{VALID} --sft.prompt_buckets 36 1.5", "sft.prompt_buckets", "a list of whole numbers"),
    ("train", f"{VALID} --sft.prompt_buckets []", "sft.prompt_buckets", "one or more lengths"),
    ("train", f"{VALID} --sft.prompt_buckets 36 0", "sft.prompt_buckets", "each more than 0"),
    ("train", f"{VALID} --generation.stop x --generation.stop y", "generation.stop is given 2 times", "stop A B"),
    ("train", f"{VALID} --reward.functions brevity", "reward.functions", "names with numbers"),
    ("train", f"{VALID} --model.lora.targets query", "model.lora.targets", "there are q, k, v"),
    ("train", f"{VALID} --seed -3", "seed", "0 or more"),
    ("train", f"{VALID} --run_dir gs://bucket/x", "run_dir", "no URL"),
    # What cannot work together
    ("train", f"{VALID} --model.tokenizer=", "model.path", "give a checkpoint"),
    ("train", f"{VALID} --run_dir=", "run_dir", "name the folder"),
    ("train", f"{VALID} --sft.warmup_epoch 50", "sft.warmup_epoch", "sft.schedule_epochs"),
    ("train", f"{VALID} --rl.algorithm grpo", "rl.samples_per_question", "2 or more"),
    ("train", f"{VALID} --rl.clip_range_high wide", "rl.clip_range_high", "a number, more than 0, or auto"),
    ("train", f"{VALID} --rl.value_lambda 1.5", "rl.value_lambda", "between 0 and 1, or auto"),
    ("train", f"{VALID} --rl.dual_clip 0.5", "rl.dual_clip", "0, or more than 1"),
    ("train", f"{VALID} --rl.minibatch_size 24", "rl.minibatch_size", "a multiple of"),
    ("train", f"{VALID} --data.train.path dev", "data.train.path", "train, test and pretrain"),
    ("train", f"{VALID} --allow_changed rl.kl", "allow_changed", "no setting"),
    # Files
    ("train", "--config no.yaml", "no.yaml", "there are countdown_qwen2.5_0.5b, quickstart"),
    ("train", "--config quikstart", "quikstart", "did you mean quickstart?"),
    ("train", "--config configs/one_gpu.yaml", "one_gpu", "did you mean overlays/one_gpu?"),
    ("train", "--config", "--config", "name a YAML file"),
    ("train", "--config {", "--config", "neither a file nor YAML"),
    ("train", "--config tab.yaml", "tab.yaml, line 2", "not YAML"),
    ("train", "--config brace.yaml", "brace.yaml, line 2", "not YAML"),
    ("train", "--config text.yaml", "text.yaml", "such as `seed: 1`"),
    ("train", "--config list.yaml", "list.yaml", "such as `seed: 1`"),
    ("train", "--config latin.yaml", "latin.yaml", "UTF-8"),
    ("train", "--config good.yaml --config unknown.yaml", "unknown.yaml", "did you mean rl.kl_coef?"),
    ("train", "--config good.yaml --config section.yaml", "section.yaml", "trainer"),
    ("train", "--config good.yaml --config flat.yaml", "flat.yaml", "did you mean rl.kl_coef?"),
    ("train", "--config good.yaml --config type.yaml", "type.yaml", "rl.epochs is 'many': it must be a whole number"),
    ("train", "--config good.yaml --config fraction.yaml", "fraction.yaml", "rl.epochs is 2.5: it must be a whole"),
    ("train", "--config good.yaml --config range.yaml", "range.yaml", "sft.batch_size is 0: it must be more than 0"),
    ("train", "--config good.yaml --config null.yaml", "null.yaml", "rl.kl_coef is null: it must be a number"),
    ("train", "--config good.yaml --config scalar.yaml", "scalar.yaml", "rl is 3: it must be a section"),
    ("train", "--config good.yaml --config mapping.yaml", "mapping.yaml", "seed is {'a': 1}: it must be a whole"),
    ("train", "--config good.yaml --config bool.yaml", "bool.yaml", "rl.whiten_advantages is 3: it must be true or"),
    ("train", "--config good.yaml --config lists.yaml", "lists.yaml", "sft.prompt_buckets is [36, 'long']: it must be"),
    ("train", "--config good.yaml --config empty_list.yaml", "empty_list.yaml", "one or more lengths"),
    ("train", "--config gone.yaml", "gone.yaml", "there is no file 'no.yaml'"),
    ("train", "--config number.yaml", "number.yaml", "a file, or a list of files"),
    ("train", "--config circle.yaml", "circle.yaml", "made of this file itself"),
    ("train", "--config good.yaml --config base_bad.yaml", "unknown.yaml", "did you mean rl.kl_coef?"),
    ("train", "--config good.yaml --config renamed.yaml", "renamed.yaml", "is now evaluation.dev_limit"),
    ("train", "--config good.yaml --config choice.yaml", "choice.yaml", "one of float32, bfloat16, float64"),
    ("train", "--config good.yaml --config data.yaml", "data.yaml", "one of none, reft_json, gsm8k"),
    ("train", "--config good.yaml --config url.yaml", "url.yaml", "no URL"),
    ("train", "--config twice.yaml", "twice.yaml, line 4", "key 'rl' is in line 1 already"),
    ("train", "--config twice_inside.yaml", "twice_inside.yaml, line 3", "key 'epochs' is in line 2 already"),
    ("train", "--config base_twice.yaml", "twice.yaml, line 4", "key 'rl' is in line 1 already"),
    ("train", "--config section_twice.yaml", "rl_twice.yaml, line 2", "key 'epochs' is in line 1 already"),
    ("train", f"{VALID} --rl rl_twice.yaml", "rl_twice.yaml, line 2", "key 'epochs' is in line 1 already"),
    ("train", f'{VALID} --rl {{"epochs":3,"epochs":4}}', '\'{"epochs":3,', "key 'epochs' is in line 1 already"),
    ("train", '--config {"seed":1,"seed":2}', "--config", "key 'seed' is in line 1 already"),
    ("train", "--config deep.yaml", "deep.yaml", "nested too deeply"),
    # Sections that are no section
    ("train", f"{VALID} --model tiny", "model is 'tiny'", "such as model.path, or a YAML file"),
    ("train", f"{VALID} --data mine", "data is 'mine'", "such as data.cot, or a YAML file"),
    ("train", f"{VALID} --rl=", "rl is ''", "such as rl.algorithm, or a YAML file"),
    ("train", f"{VALID} --rl {{", "rl is '{'", "such as rl.algorithm, or a YAML file"),
    ("train", f"{VALID} --data.train data.jsonl", "data.train is 'data.jsonl'", "such as data.train.path"),
    ("train", f"{VALID} --rl rl_unknown.yaml", "rl_unknown.yaml", "did you mean rl.kl_coef?"),
    ("train", f"{VALID} --rl list.yaml", "rl is 'list.yaml'", "such as rl.algorithm"),
    ("train", f"{VALID} --rl tab.yaml", "tab.yaml, line 2", "not YAML"),
    ("train", "--config good.yaml --config tiny.yaml", "tiny.yaml", "such as model.path, or a YAML file"),
    ("train", "--config section_unknown.yaml", "rl_unknown.yaml", "did you mean rl.kl_coef?"),
    # Nothing at all
    ("train", "", "no settings", "--config quickstart"),
    ("train", "--config empty.yaml", "no settings", "--config quickstart"),
    # Other commands
    ("sample", "out.jsonl --split test", "--samples", "required"),
    ("sample", "a out.jsonl", "--split, --samples", "required"),
    ("sample", "out.jsonl --split tests --samples 3", "--split", "one of train, dev, test"),
    ("sample", "out.jsonl --split test --samples 0", "--samples", "more than 0"),
    ("sample", "out.jsonl --split test --samples 3 --top_p 2", "--top_p", "at most 1"),
    ("sample", "out.jsonl --split test --samples 3", "no model", "--config"),
    ("sample", "nowhere out.jsonl --split test --samples 3", "nowhere", "checkpoint"),
    ("sample", "a b c --split test --samples 3", "a b c", "CHECKPOINT OUT"),
    ("evaluate", "", "no model", "RUN_DIR/checkpoints"),
    ("evaluate", "--k 3", "--k", "--samples FILE"),
    ("evaluate", "--samples no.jsonl", "no.jsonl", "there is no file"),
    ("evaluate", "--samples data.jsonl --k 1 --k 2", "k is given 2 times", "--k A B"),
    ("data.__main__", "data.jsonl --stated_after a --stated_after b", "stated_after is given 2 times", "A B"),
    ("reward_model.__main__", "rerank a b --k 1 --k 2", "k is given 2 times", "--k A B"),
    ("evaluate", "--samples data.jsonl --k many", "--k", "a whole number"),
    ("export", "nowhere out", "nowhere", "a folder of RUN_DIR/checkpoints"),
    ("export", "a b --dtype float8", "--dtype", "one of float32, bfloat16, float16"),
    ("export", "a b --shard_size 0", "--shard_size", "more than 0"),
    ("select", "no.jsonl out.jsonl", "no.jsonl", "there is no file"),
    ("select", "a b --gold.kind csv", "--gold.kind", "one of none, reft_json"),
    ("data.__main__", "", "--config FILE", "name a file"),
    ("data.__main__", "data.jsonl", "--kind", "one of reft_json, gsm8k"),
    ("data.__main__", "no.jsonl --kind jsonl", "no.jsonl", "is a file on this machine"),
    ("reward.__main__", "no.jsonl", "no.jsonl", "RUN_DIR/rollouts.jsonl"),
    ("reward.__main__", ".", "is a folder", "name a file"),
    ("reward.__main__", "answers.jsonl", "answers.jsonl, line 1: field `gold`", "--gold_field"),
    ("reward.__main__", "answers.jsonl --completion_field text", "field `text`", "--completion_field"),
    ("reward.__main__", "data.jsonl --reward.workers many", "--reward.workers", "a whole number, more than 0"),
    ("reward.__main__", "data.jsonl --rl.epochs 3", "--rl.epochs", "no such option"),
    ("preflight.__main__", "--config quickstart", "--target", "required: cpu:N; a100"),
    ("preflight.__main__", "--target gpu", "gpu", "cpu:N"),
    ("preflight.__main__", "--config quickstart --target gpu", "gpu", "cpu:N"),
    ("preflight.__main__", "--config quickstart --target cpu:8 --rl.epoch 3", "rl.epoch", "did you mean rl.epochs?"),
    ("reward_model.__main__", "trian", "train", "rerank"),
    ("reward_model.__main__", "", "error: ", "name what it does: train, or rerank"),
    ("train", "--config itself.yaml", "itself.yaml", "write the value out"),
    ("export", ". out", "config.yaml", "a folder of RUN_DIR/checkpoints"),
    ("train", f"{VALID} --sft.prompt_buckets 0", "sft.prompt_buckets", "each more than 0"),
    ("data.__main__", "answers.jsonl --kind reasoning_gym", "leave answers.jsonl out", "name: TASK"),
]
ONCE = [("--rl.optimizer 5", "rl.optimizer is"), ("--data.templates foo", "data.templates is")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        (made / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return made


@pytest.mark.ci  # half a second each, most of it the parser's
@pytest.mark.parametrize(("command", "line", "place", "cure"), WRONG)
def test_what_is_wrong_is_told_in_four_lines_with_its_place_and_cure(
    command, line, place, cure, folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    try:
        code = importlib.import_module(f"reft_jax.{command}").main(line.split())
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr().err
    assert code == 2, told
    assert len(told.splitlines()) <= 4, told
    assert "Traceback" not in told
    assert place in told, told
    assert cure in told, told


@pytest.mark.ci
@pytest.mark.parametrize(("given", "told"), ONCE)
def test_a_section_that_is_none_is_told_once(given, told, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("reft_jax.train").main(f"{VALID} {given}".split())
    assert capsys.readouterr().err.count(told) == 1


def test_nothing_is_suggested_for_what_is_like_no_setting(capsys):
    for key in ("rl.foo", "model.zzz", "rl.quantity", "data.train.nothing"):
        assert no_setting(key, fields_of(Config)) == f"{key} is no setting"
    assert no_setting("rl.vf", fields_of(Config)) == "rl.vf is no setting: did you mean rl.vf_coef?"


def test_there_are_sixty_of_them():
    assert len({(command, line) for command, line, *_ in WRONG}) == len(WRONG) >= 60
    used = {name for _, line, *_ in WRONG for name in line.split()} | {"unknown.yaml"}
    assert set(FILES) <= used
