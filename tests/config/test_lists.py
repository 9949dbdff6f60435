"""Lists as people write them, on the command line and in files, are those of the long form; the rest is refused."""

import json
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import Config, config_parser, load_config, parse_config
from reft_jax.config.faults import fields_of
from reft_jax.config.lists import in_settings, item_type, on_command_line

VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]
FIELDS = fields_of(Config)


def test_these_settings_are_lists():
    kinds = {key: item_type(field) for key, field in FIELDS.items() if item_type(field)}
    assert {key for key, kind in kinds.items() if kind is int} == {
        *(f"{stage}.{name}_buckets" for stage in ("pretrain", "sft") for name in ("prompt", "response")),
        "generation.prompt_buckets",
        "reward_model.row_buckets",
    }
    assert {key for key, kind in kinds.items() if kind is str} == {
        "allow_changed",
        "generation.stop",
        "logging.trackers",
        "model.lora.targets",
        "reward_model.samples",
    }


@pytest.mark.parametrize(
    "words",
    [["36", "48"], ["[36, 48]"], ["[36,48]"], ["36,48"], ["36, 48"], ["36 48"], ["36,", "48"]],
    ids=" ".join,
)
def test_lengths_may_be_written_in_all_these_ways(words):
    config = load_config([*VALID, "--sft.prompt_buckets", *words, "--rl.epochs", "7", "--seed=9"])
    assert (config.sft.prompt_buckets, config.rl.epochs, config.seed) == ((36, 48), 7, 9)
    if len(words) == 1:
        assert load_config([*VALID, f"--sft.prompt_buckets={words[0]}"]).sft.prompt_buckets == (36, 48)


@pytest.mark.parametrize("words", [["--sft.prompt_buckets", "48"], ["--sft.prompt_buckets=48"]])
def test_one_length_is_a_list_of_one(words):
    assert load_config([*VALID, *words]).sft.prompt_buckets == (48,)


def test_texts_may_be_written_without_brackets(tmp_path):
    line = ["--reward_model.samples", "a,b.jsonl", "c.jsonl", "--allow_changed", "rl.kl_coef", "rl.epochs"]
    config = load_config([*VALID, *line, "--model.lora.targets=q,v"])
    assert config.reward_model.samples == (os.path.abspath("a,b.jsonl"), os.path.abspath("c.jsonl")), (
        "a comma is no end"
    )
    assert config.allow_changed == ("rl.kl_coef", "rl.epochs")
    assert config.model.lora.targets == ("q", "v")
    assert load_config([*VALID, "--reward_model.samples", "a.jsonl"]).reward_model.samples == (
        os.path.abspath("a.jsonl"),
    )


@pytest.mark.parametrize("text", ["\n\n", ", and", "[END]", "null"])
def test_a_stop_text_is_one_text(text, tmp_path):
    """None is taken apart or read as something else; a bracket on the command line begins a list."""
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"generation": {"stop": text}}))
    lines = [["--config", str(tmp_path / "one.yaml")], [f"--generation.stop={json.dumps([text])}"]]
    lines += [["--generation.stop", text]] if text != "[END]" else []
    assert [load_config([*VALID, *line]).generation.stop for line in lines] == [(text,)] * len(lines)


@pytest.mark.parametrize("value", ["", '["a", ""]', '["a\ufffd"]'])
def test_a_stop_text_that_every_response_has_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        load_config([*VALID, f"--generation.stop={value}"])
    assert "generation.stop is" in capsys.readouterr().err


def test_a_list_does_not_take_what_belongs_to_no_option():
    """A text behind it may be the command's own argument; a number cannot be a text's."""
    parser = config_parser("one", "")
    parser.add_argument("paths", nargs="+")
    config, given = parse_config(parser, ["--sft.prompt_buckets", "36", "48", "checkpoint", *VALID])
    assert (config.sft.prompt_buckets, given.paths) == ((36, 48), ["checkpoint"])
    config, given = parse_config(parser, ["--allow_changed", "rl", "checkpoint", "out", *VALID])
    assert (config.allow_changed, given.paths) == (("rl",), ["checkpoint", "out"])


LISTS = sorted(key for key, field in FIELDS.items() if item_type(field))


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("again", [["--{}", "8"], ["--{}=[8]"]])
def test_a_list_that_is_given_twice_is_refused_by_its_key(key, again, capsys):
    with pytest.raises(SystemExit) as left:
        load_config([*VALID, f"--{key}", "9", "--rl.epochs", "7", *(word.format(key) for word in again)])
    assert left.value.code == 2
    assert f"error: {key} is given 2 times: give it once, with all values: --{key} A B\n" in capsys.readouterr().err


def test_other_settings_may_be_given_twice_and_a_list_after_a_file_that_has_it(tmp_path):
    (tmp_path / "base.yaml").write_text("generation: {stop: x}\n")
    line = ["--config", str(tmp_path / "base.yaml"), "--generation.stop", "y", "z", "--seed=1", "--seed=2"]
    config = load_config([*VALID, *line])
    assert (config.generation.stop, config.seed) == (("y", "z"), 2)


def test_files_may_say_a_single_value_where_a_list_is_wanted(tmp_path):
    (tmp_path / "base.yaml").write_text("generation: {prompt_buckets: 48}\nallow_changed: rl.kl_coef\n")
    (tmp_path / "whole.yaml").write_text("config: base.yaml\nsft: {prompt_buckets: 36, response_buckets: '8, 9'}\n")
    config = load_config([*VALID, "--config", str(tmp_path / "whole.yaml")])
    assert config.generation.prompt_buckets == (48,)
    assert config.allow_changed == ("rl.kl_coef",)
    assert (config.sft.prompt_buckets, config.sft.response_buckets) == ((36,), (8, 9))
    assert load_config([*VALID, "--config", "{sft: {prompt_buckets: 36}}"]).sft.prompt_buckets == (36,)


@pytest.mark.parametrize("words", [["36", "1.5"], ["many"], ["36;48"], ["36,"], ["3 x"], ["true"]])
def test_what_is_no_list_of_numbers_is_refused_by_its_key(words, capsys):
    with pytest.raises(SystemExit) as left:
        load_config([*VALID, "--sft.prompt_buckets", *words])
    assert left.value.code == 2
    assert "sft.prompt_buckets is " in capsys.readouterr().err


@given(st.lists(st.sampled_from(["--seed", "3", "--seed=3", "--x", "--config", "a.yaml", "--rl.kl_coef", "-1", "c"])))
def test_a_command_line_without_lists_stays_as_it_is(words):
    assert on_command_line(words, FIELDS, positionals=True) == words


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda x: st.lists(x, max_size=2)))
def test_what_a_file_says_of_other_settings_stays_as_it_is(value):
    settings = {
        "seed": value,
        "rl": {"kl_coef": value, "optimizer": value},
        "reward": {"functions": value},
        "no": value,
    }
    assert yaml.safe_dump(in_settings(settings, FIELDS)) == yaml.safe_dump(settings)


def test_templates_may_be_given_by_their_kind(tmp_path, capsys):
    (tmp_path / "chat.yaml").write_text("data: {templates: chat}")
    (tmp_path / "system.yaml").write_text("data: {templates: {system: Be brief.}}")
    files = ["--config", str(tmp_path / "chat.yaml"), "--config", str(tmp_path / "system.yaml")]
    for line in (
        files,
        ["--data.templates", "chat", *files[2:]],
        ["--data.templates=chat", "--data.templates.system=Be brief."],
    ):
        templates = load_config([*VALID, *line]).data.templates
        assert (templates.kind, templates.system) == ("chat", "Be brief.")
    assert load_config([*VALID, *files[:2], "--data.templates", "strings"]).data.templates.kind == "strings"
    assert load_config([*VALID, "--data.templates", "{kind: chat}"]).data.templates.kind == "chat"
    (tmp_path / "cat.yaml").write_text("data: {templates: cat}")
    for line in (["--data.templates", "cat"], ["--config", str(tmp_path / "cat.yaml")]):
        with pytest.raises(SystemExit):
            load_config([*VALID, *line])
        assert "data.templates is 'cat': it must be one of strings, chat, a section" in capsys.readouterr().err
