"""Files that are whole or not there, and lines of JSON with their place."""

import os
import time
from decimal import Decimal

import huggingface_hub.constants
import pytest

from reft_jax.config import SourceConfig
from reft_jax.data.rows import read_rows
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.files import ask_hub, json_lines, json_object, parse_json, replacing, write_whole


def test_a_file_is_replaced_when_its_successor_is_whole(tmp_path):
    path = tmp_path / "settings.json"
    write_whole(path, "old ≈ 1\n")
    with replacing(path) as file:
        file.write(b"new\n")
        assert path.read_bytes() == "old ≈ 1\n".encode()
    assert path.read_bytes() == b"new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_and_the_next_attempt_succeeds(tmp_path):
    path = tmp_path / "settings.json"
    write_whole(path, "old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half of", "something"])
    assert path.read_bytes() == b"old"
    write_whole(path, "new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_have_their_numbers_with_blank_ones_left_out(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes('\ufeff{"a": 0.10}\r\n  \n{"b": "x\u2028y\x85"}'.encode())
    assert list(json_lines(path)) == [
        (1, f"{path}, line 1", {"a": 0.1}),
        (3, f"{path}, line 3", {"b": "x\u2028y\x85"}),
    ]
    assert str(next(json_lines(path, parse_float=Decimal))[2]["a"]) == "0.10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1', "here: not JSON in UTF-8: .*column"),
        (b'{"a": "\xe9"}', "here: not JSON in UTF-8: .*0xe9"),
        (b"[1]", "here: should be a JSON object, is a list"),
        (b"[" * 200_000, "here: nested too deeply to be read"),
        (b'{"a":' * 200_000, "here: nested too deeply to be read"),
    ],
)
def test_errors_name_the_place(text, message):
    with pytest.raises(ValueError, match=message):
        json_object(text, "here")


def test_a_value_of_any_kind_is_parsed():
    assert parse_json(b"[1, 0.5, NaN]", "here")[:2] == [1, 0.5]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe"):
        with pytest.raises(OSError, match="no regular file"):
            write_whole(path, "text")
    assert not (tmp_path / "pipe").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"a": "Q \ud83d"}', r"field `a`: '\ud83d', its character 3, is half"),
        (r'{"a": {"b": [1, {"c": "\ude00\ud83d"}]}}', r"field `a.b[1].c`: '\ude00', its character 1, is half"),
        (r'{"a\uDFFF": 1}', r"field `a\udfff`: '\udfff', its character 2, is half"),
    ],
)
def test_half_of_a_surrogate_pair_is_named(tmp_path, line, message):
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": "whole \\ud83d\\ude00 \\u2028"}\n' + line)
    lines = json_lines(path)
    assert next(lines)[2] == {"a": "whole \U0001f600 \u2028"}
    with pytest.raises(ValueError) as refused:
        next(lines)
    assert str(refused.value).startswith(f"{path}, line 2: {message}")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, capfd):
    """Its libraries by themselves ask each file six times, for half a minute."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    ask_hub.cache_clear()
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"model.tokenizer: there is no folder no/such, .*`hf download no/such"):
        load_tokenizer("no/such", "main")
    with pytest.raises(ValueError, match=r"no/such .*cannot load this hub data set"):
        list(read_rows(SourceConfig(kind="hub", path="no/such")))
    ask_hub.cache_clear()
    assert time.monotonic() - began < 15, "most of it imports"
    assert "Retrying" not in capfd.readouterr().err
