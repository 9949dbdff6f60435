"""Paths of the settings: absolute from where the command runs, `~` replaced, URLs refused, hub names left alone."""

import os

import pytest

from reft_jax.config import Config, load_config
from reft_jax.config.faults import fields_of
from reft_jax.config.paths import with_absolute_paths
from reft_jax.config.ranges import is_path
from tests.config.test_ranges import at, changed

VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]
PATHS = [key for key, field in fields_of(Config).items() if is_path(field)]


def kept(key: str, value: str) -> str:
    """What becomes of a path."""
    given = changed(Config(), key, (value,) if key.endswith("samples") else value)
    found = at(with_absolute_paths(given), key)
    return found[0] if isinstance(found, tuple) else found


def test_all_that_sounds_like_a_path_is_one_of_these():
    named = {key for key in fields_of(Config) if key.endswith(("path", "_dir", "tokenizer", "init_from", ".samples"))}
    assert named == set(PATHS) | {
        f"{source}.path" for source in ("data.train", "data.dev", "data.test", "pretrain.source")
    }


@pytest.mark.parametrize("key", PATHS)
def test_paths_are_kept_absolute_and_home_is_replaced(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "there").mkdir()
    assert kept(key, "there") == str(tmp_path / "there")
    assert kept(key, "~/x") == str(tmp_path / "home/x")
    assert kept(key, "../x/./y") == os.path.abspath("../x/y")
    assert kept(key, "") == ""


def test_names_of_the_hub_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()
    config = load_config([*VALID, "--model.path=owner/name", "--data.test.kind=hub", "--data.test.path=owner/set"])
    assert (config.model.path, config.model.tokenizer, config.data.test.path) == ("owner/name", "embedded", "owner/set")


@pytest.mark.parametrize("key", [*PATHS, "data.train.path"])
def test_urls_are_refused_at_once(capsys, key):
    url = "gs://bucket/x"
    more = ["--data.train.kind=jsonl"] if key.startswith("data") else []
    with pytest.raises(SystemExit):
        load_config([*VALID, *more, f"--{key}", f'["{url}"]' if key.endswith("samples") else url])
    told = capsys.readouterr().err
    assert f"{key} is " in told
    assert url in told
    assert "no URL" in told


def test_a_source_that_reads_a_file_has_its_path_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/mine")
    config = load_config([*VALID, "--data.train.kind=gsm8k", "--data.train.path=a.jsonl", "--data.test.path=~/b.jsonl"])
    assert (config.data.train.path, config.data.test.path) == (str(tmp_path / "a.jsonl"), "/home/of/mine/b.jsonl")
