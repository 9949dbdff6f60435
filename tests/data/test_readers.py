"""Readers: every layout, every refusal, the dev split's properties, and the published row counts on the real files."""

import bz2
import csv
import dataclasses
import gzip
import io
import json
import lzma
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.config import SourceConfig, TemplateConfig
from reft_jax.data import readers
from reft_jax.data.prompts import target_text
from reft_jax.data.readers import check_rows, is_within, question_key, read_problems, shared_questions, split_dev
from reft_jax.problem import Problem
from reft_jax.reward.answers import extract_answer, parse_gold

REFT_ROW = {"item_id": "svamp_7", "question": "how many ?", "answer_value": "203.0", "answer_cot": "<203>."}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def reft_file(folder: Path, *rows: object) -> SourceConfig:
    return SourceConfig(kind="reft_json", path=write(folder, "set.json", json.dumps(rows)))


def jsonl_file(folder: Path, *rows: object, **fields) -> SourceConfig:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return SourceConfig(kind="jsonl", path=write(folder, "set.jsonl", text), **fields)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


# Layouts


def test_reft_rows(tmp_path: Path) -> None:
    other = {"item_id": "svamp_9", "question": " why ?\n", "answer_value": " 1,000 "}
    assert read_problems(reft_file(tmp_path, REFT_ROW, other)) == [
        Problem("svamp_7", "how many ?", "203.0", "number", "<203>."),
        Problem("svamp_9", "why ?", "1,000", "number", None),
    ]


@pytest.mark.parametrize(
    ("item_id", "answer", "kind"),
    [
        ("gsm8k_0", "18", "number"),
        ("svamp_0", "14.0", "number"),
        ("mathqa-numeric_0", "38.0", "number"),
        ("mathqa_0", "a", "choice"),
        ("mathqa_0", '"A"', "choice"),
        ("homework_0", "c", "choice"),
        ("homework_0", "-3", "number"),
    ],
)
def test_the_data_sets_name_decides_the_kind_of_answer_else_the_answers_do(tmp_path, item_id, answer, kind) -> None:
    source = reft_file(tmp_path, {"item_id": item_id, "question": "q", "answer_value": answer})
    (problem,) = read_problems(source)
    assert (problem.answer, problem.answer_kind) == (answer, kind)


def test_gsm8k_lines_become_what_the_reference_has(tmp_path: Path) -> None:
    lines = [
        {"question": "Sum?", "answer": "It is 48/2 = <<48/2=24>>24.\nAll in all <<24+1000=1024>>1,024.\n#### 1,024"},
        {"question": "Less?", "answer": "None left.\n#### -5"},
    ]
    path = write(tmp_path, "train.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert read_problems(SourceConfig(kind="gsm8k", path=path)) == [
        Problem("gsm8k_0", "Sum?", "1024", "number", "It is 48/2 = 24.\nAll in all 1,024."),
        Problem("gsm8k_2", "Less?", "-5", "number", "None left."),  # the empty line counts
    ]


STATIONS = {  # row 2 of MathQA's test.json
    "Problem": (
        "there are 28 stations between hyderabad and bangalore . how many second class tickets have to be printed , so "
        "that a passenger can travel from any station to any other station ?"
    ),
    "Rationale": (
        '"the total number of stations = 30 from 30 stations we have to choose any two stations and the direction of '
        "travel ( i . e . , hyderabad to bangalore is different from bangalore to hyderabad ) in 3 ⁰ p ₂ ways . 30 p ₂ "
        '= 30 * 29 = 870 . answer : c"'
    ),
    "options": "a ) 156 , b ) 167 , c ) 870 , d ) 352 , e ) 380",
    "correct": "c",
    "annotated_formula": "multiply(add(28, const_1), add(add(28, const_1), const_1))",
    "linear_formula": "add(n0,const_1)|add(#0,const_1)|multiply(#0,#1)|",
    "category": "physics",
}
STATIONS_QUESTION = (  # `mathqa_2` of the reference's mathqa_test_set.json
    "there are 28 stations between hyderabad and bangalore . how many second class tickets have to be printed , so "
    "that a passenger can travel from any station to any other station ?\n"
    "a ) 156 , b ) 167 , c ) 870 , d ) 352 , e ) 380"
)


def as_parquet(path: str) -> str:
    """The rows of a JSON file beside it, as Parquet."""
    import pyarrow
    import pyarrow.parquet

    text = Path(path).read_text(encoding="utf-8")
    rows = json.loads(text) if path.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    written = str(Path(path).with_suffix(".parquet"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), written)
    return written


def test_mathqa_rows_become_what_the_reference_has(tmp_path: Path) -> None:
    plain = {**STATIONS, "Rationale": 'so " it " is', "correct": "a", "options": "['a ) 12', 'b ) 15']"}
    path = write(tmp_path, "test.json", json.dumps([plain, {**plain, "Rationale": " "}, STATIONS]))
    odd, empty, stations = read_problems(SourceConfig(kind="mathqa", path=path))
    rationale = STATIONS["Rationale"].strip('"')
    assert stations == Problem("mathqa_2", STATIONS_QUESTION, "c", "choice", rationale)
    assert rationale.startswith("the total")
    assert odd.question.endswith("other station ?\n['a ) 12', 'b ) 15']"), "as the reference has them"
    assert (odd.id, odd.cot, empty.cot) == ("mathqa_0", 'so " it " is', None)
    assert stations.columns["category"] == "physics"


@pytest.mark.usefixtures("hub_cache")
def test_mathqa_from_its_mirror(tmp_path: Path) -> None:
    """A hub id is what does not end as a file does; a folder stands in for the hub, as `datasets` lets it."""
    path = write(tmp_path, "test.json", json.dumps([STATIONS, STATIONS]))
    ours = read_problems(SourceConfig(kind="mathqa", path=path))
    assert read_problems(SourceConfig(kind="mathqa", path=as_parquet(path))) == ours
    folder = tmp_path / "math_qa"
    folder.mkdir()
    (tmp_path / "test.parquet").rename(folder / "test-00000-of-00001.parquet")
    assert read_problems(SourceConfig(kind="mathqa", path=str(folder), split="test")) == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": "f"}, "field `correct`: gold answer 'f' is not one letter from a to e"),
        ({"correct": None}, "field `correct` is null"),
        ({"options": ["38", "27"]}, "field `options` should be text, is list"),
        ({"Problem": " ", "options": ""}, "field `Problem,options`: the question is empty"),
    ],
)
def test_a_broken_mathqa_row_is_named(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, "train.json", json.dumps([STATIONS, {**STATIONS, **change}]))
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 2: {message}")):
        read_problems(SourceConfig(kind="mathqa", path=path))


@pytest.mark.parametrize("kind", ["reft_json", "gsm8k", "jsonl"])
def test_parquet_holds_the_same(tmp_path: Path, kind) -> None:
    rows = {
        "reft_json": [REFT_ROW, {**REFT_ROW, "item_id": "svamp_8", "answer_cot": None}],
        "gsm8k": [{"question": "Sum?", "answer": "It is <<1+1=2>>2.\n#### 1,002"}],
        "jsonl": [{"question": "é?", "answer": 0.1, "cot": "so"}, {"question": "q", "answer": -2.5, "cot": None}],
    }[kind]
    text = json.dumps(rows) if kind == "reft_json" else "".join(json.dumps(row) + "\n" for row in rows)
    path = write(tmp_path, "set.json" if kind == "reft_json" else "set.jsonl", text)
    source = SourceConfig(kind=kind, path=path)
    parquet = SourceConfig(kind=kind, path=as_parquet(path))
    assert read_problems(parquet) == read_problems(source)
    assert len(read_problems(parquet)) == len(rows)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "set.parquet", "PAR")
    with pytest.raises(ValueError, match=r"set\.parquet: not Parquet: "):
        read_problems(SourceConfig(kind="jsonl", path=path))


def test_jsonl_with_fields_of_its_own_keeps_every_digit(tmp_path: Path) -> None:
    text = (
        '{"key": 3, "Body": "There were 3 . ", "Question": "how many\\u2028now ?", "value": 0.1000000000000000000001}\n'
        '{"Body": "b", "Question": "q", "value": 4691530800, "why": "because"}\n'
        '{"Body": "b", "Question": "r", "value": 14.0, "why": null}'
    )
    source = SourceConfig(
        kind="jsonl",
        path=write(tmp_path, "chal.jsonl", text),
        id_field="key",
        question_field="Body, Question",
        answer_field="value",
        cot_field="why",
    )
    assert read_problems(source) == [
        Problem("3", "There were 3 . how many\u2028now ?", "0.1000000000000000000001"),
        Problem("chal_1", "b q", "4691530800", cot="because"),
        Problem("chal_2", "b r", "14.0"),
    ]


@pytest.mark.usefixtures("hub_cache")
def test_hub_data_set_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "school-math"
    folder.mkdir()
    rows = [
        {"question": "Sum?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2", "level": 1},
        {"question": "Big?", "answer": "#### 1,000", "level": 2},
    ]
    write(folder, "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(kind="hub", path=str(folder), split="test")
    assert read_problems(source) == [
        Problem("school-math_0", "Sum?", "2", "number", "1 + 1 = 2"),
        Problem("school-math_1", "Big?", "1000", "number", None),
    ]
    by_level = SourceConfig(kind="hub", path=str(folder), split="test", answer_field="level", limit=1)
    assert read_problems(by_level) == [Problem("school-math_0", "Sum?", "1")]
    with pytest.raises(ValueError, match=r"school-math \(train\).*cannot load"):
        read_problems(SourceConfig(kind="hub", path=str(folder), split="train"))
    with pytest.raises(ValueError, match=r"school-math \(test\), row 1: field `solution` is missing.*level"):
        read_problems(SourceConfig(kind="hub", path=str(folder), split="test", answer_field="solution"))


def test_generated_problems() -> None:
    problems = read_problems(SourceConfig(kind="generated", path="test", limit=5))
    assert len(problems) == 5
    assert all(problem.question and problem.answer for problem in problems)
    with pytest.raises(ValueError, match=r"pretrain.*`?dev"):
        read_problems(SourceConfig(kind="generated", path="dev"))


@settings(max_examples=10)
@given(limit=st.integers(0, 7))
def test_limit_reads_from_the_start(tmp_path_factory, limit: int) -> None:
    rows = [{"question": f"q{i}", "answer": i} for i in range(5)]
    source = jsonl_file(tmp_path_factory.mktemp("limit"), *rows, limit=limit)
    assert [problem.answer for problem in read_problems(source)] == [str(i) for i in range(limit or 5)][:5]


def test_limit_leaves_what_follows_unread(tmp_path: Path) -> None:
    good, bad = {"question": "q", "answer": 1}, {"question": "", "answer": 1}
    assert len(read_problems(jsonl_file(tmp_path, good, bad, limit=1))) == 1


# Refusals

BROKEN_ROWS = {
    "null": ({"answer_value": None}, "field `answer_value` is null"),
    "no question": ({"question": " \n"}, "field `question`: the question is empty"),
    "question no text": ({"question": 5}, "field `question` should be text, is int 5"),
    "answer no text": ({"answer_value": ["18"]}, r"field `answer_value` should be text, is list \['18'\]"),
    "answer a truth": ({"answer_value": True}, "field `answer_value` should be text, is bool"),
    "chain no text": ({"answer_cot": 1}, "field `answer_cot` should be text, is int 1"),
    "gold unparsable": ({"answer_value": "about 5"}, "field `answer_value`: .*about 5"),
    "gold empty": ({"answer_value": " "}, "field `answer_value`: "),
    "gold not finite": ({"answer_value": "nan"}, "field `answer_value`: .*nan"),
    "a letter among numbers": ({"answer_value": "b"}, "field `answer_value`: .*b"),
    "id empty": ({"item_id": ""}, "field `item_id`: the id is empty"),
    "id blank": ({"item_id": " \n"}, "field `item_id`: the id is empty"),
    "id twice": ({"item_id": "svamp_7"}, "field `item_id`: `svamp_7` is also the id of an earlier row"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_row_is_named_with_its_field(tmp_path: Path, change: dict, message: str) -> None:
    source = reft_file(tmp_path, REFT_ROW, {**REFT_ROW, "item_id": "svamp_8", **change})
    with pytest.raises(ValueError, match=re.escape(source.path) + ", row 2: " + message):
        read_problems(source)


@pytest.mark.parametrize("answer", ["38.0", "ab", ""])
def test_a_choice_must_be_a_letter(tmp_path: Path, answer: str) -> None:
    row = {"item_id": "mathqa_0", "question": "q", "answer_value": answer}
    with pytest.raises(ValueError, match=r"set\.json, row 1: field `answer_value`"):
        read_problems(reft_file(tmp_path, row))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("reft_json", '[{"item_id": "a_1"},', r"set: not JSON in UTF-8: .*line 1 column"),
        ("reft_json", '{"item_id": "a_1"}', "set: should be a JSON list of objects, is a dict"),
        ("reft_json", '["a"]', "set, row 1: should be a JSON object, is a str"),
        ("reft_json", " \n", "set: holds no rows"),
        ("reft_json", "[]", "set: holds no rows"),
        ("jsonl", "", "set: holds no rows"),
        ("jsonl", '{"question": "q", "answer": 1}\n\n{"question"', "set, line 3: not JSON"),
        ("jsonl", '{"question": "q", "answer": 1}\n[1]\n', "set, line 2: should be a JSON object, is a list"),
        ("jsonl", '{"id": "x", "question": "q", "answer": 1}\n' * 2, "set, line 2: field `id`: `x` is also the id"),
        ("jsonl", '{"question": "q", "answer": NaN}', "set, line 1: field `answer`: .*nan"),
        ("jsonl", '{"id": "", "question": "q", "answer": 1}', "set, line 1: field `id`: the id is empty"),
        ("gsm8k", '{"question": "q", "answer": "just 5"}', "set, line 1: field `answer`: no `#### N`"),
        ("gsm8k", '{"question": "q", "answer": "so #### five"}', "set, line 1: field `answer`: .*five"),
    ],
)
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, kind, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_problems(SourceConfig(kind=kind, path=write(tmp_path, "set", text)))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é", "answer": 1}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl, line 1: not JSON in UTF-8"):
        read_problems(SourceConfig(kind="jsonl", path=str(tmp_path / "latin.jsonl")))


TABLE = [{"question": 'Sum of "1", 2?', "answer": "3"}, {"question": "Größe,\nin cm?", "answer": "1.50"}]


def table(delimiter: str, encoding: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(TABLE)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (table(",", "utf-8"), "a table"),
        (table("\t", "utf-8-sig"), "a table"),
        (table(";", "utf-8"), "a table"),
        (json.dumps(TABLE).encode(), "one JSON list"),
        (json.dumps(TABLE, indent=1, ensure_ascii=False).encode("utf-8-sig"), "one JSON list"),
    ],
    ids=["commas", "tabs", "semicolons", "list", "indented list"],
)
def test_a_table_or_a_list_is_refused_with_a_command_that_makes_it_lines(tmp_path: Path, content: bytes, told) -> None:
    path = tmp_path / "my rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"my rows\.jsonl is {told}.*: make it JSON Lines") as refused:
        read_problems(SourceConfig(kind="jsonl", path=str(path)))
    command = str(refused.value).splitlines()[-1].strip()
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    made = SourceConfig(kind="jsonl", path=str(tmp_path / "my rows.lines.jsonl"))
    assert [(problem.question, problem.answer) for problem in read_problems(made)] == [
        (row["question"], row["answer"]) for row in TABLE
    ]


@pytest.mark.parametrize("kind", ["reft_json", "gsm8k", "jsonl", "mathqa"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b'{"question": "q", "answer": 1}'), "compressed: unpack it"),
        (bz2.compress(b'{"question": "q", "answer": 1}'), "compressed: unpack it"),
        (lzma.compress(b'{"question": "q", "answer": 1}'), "compressed: unpack it"),
        (b"PK\x03\x04...", "a zip archive or a spreadsheet: unpack it"),
        (b"PAR1...", r"Parquet: let its name end in \.parquet"),
        ('{"question": "q"}'.encode("utf-16"), "in UTF-16: save it in UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS: fetch that by git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page or XML: download"),
        (table(",", "utf-8"), r"a table \(CSV\): make it JSON Lines"),
    ],
    ids=["gzip", "bz2", "xz", "zip", "parquet", "utf16", "lfs", "html", "table"],  # a packed file has the time in it
)
def test_a_file_of_another_form_is_refused_with_what_to_do(tmp_path: Path, kind, content: bytes, told: str) -> None:
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"set\.json is {told}|set\.json is a pointer to a file of {told}"):
        read_problems(SourceConfig(kind=kind, path=str(tmp_path / "set.json")))


def test_lines_under_a_kind_of_lists_and_one_object_over_lines_are_told(tmp_path: Path) -> None:
    rows = '{"item_id": "a_1"}\n{"item_id": "a_2"}\n'
    with pytest.raises(ValueError, match="a JSON object in each line, and not one list: `kind: jsonl`"):
        read_problems(SourceConfig(kind="reft_json", path=write(tmp_path, "set", rows)))
    whole = json.dumps({"data": [{"question": "q", "answer": 1}]}, indent=2)
    with pytest.raises(ValueError, match="is one JSON object over several lines: write the rows"):
        read_problems(SourceConfig(kind="jsonl", path=write(tmp_path, "set", whole)))


@pytest.mark.parametrize("kind", ["reft_json", "gsm8k", "jsonl", "mathqa"])
def test_a_missing_problem_file_is_named(tmp_path: Path, kind) -> None:
    for suffix in ("json", "jsonl", "parquet"):
        with pytest.raises(FileNotFoundError, match=rf"nowhere\.{suffix}"):
            read_problems(SourceConfig(kind=kind, path=str(tmp_path / f"nowhere.{suffix}")))
    if kind != "mathqa":
        with pytest.raises(FileNotFoundError):
            read_problems(SourceConfig(kind=kind, path=""))


def test_nothing_to_read() -> None:
    with pytest.raises(ValueError, match="`none`"):
        read_problems(SourceConfig())


# Data as it lies around


def layout_file(folder: Path, *rows: dict, suffix: str = "jsonl", **fields) -> SourceConfig:
    """Rows as JSONL, or as Parquet, under a source of kind `jsonl`."""
    path = write(folder, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(kind="jsonl", path=as_parquet(path) if suffix == "parquet" else path, **fields)


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "One and two? Let's think step by step."}],
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"index": 7, "question": "One and two?", "answer": "It is <<1+2=3>>3.\n#### 3", "split": "train"},
}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Solve."},
        {"role": "user", "content": "One and two?"},
        {"role": "assistant", "content": "It is 3.\nSo: \\boxed{3}."},
    ]
}
CHAT = {"messages": [MESSAGES["messages"][1], {"role": "assistant", "content": "It is 3.\nSo: 3"}]}
TURNS = {"prompt": [MESSAGES["messages"][1]], "completion": [{"role": "assistant", "content": "It is 3.\n#### 3"}]}
PLAIN = {"prompt": "One and two?", "completion": "It is 3.\n####3"}
DOTTED = {"a.b": "One and two?", "a": {"b": "Other?"}, "c[0]": "#### 3", "c": ["4"]}
LAYOUTS = {
    "verl": (VERL, "extra_info.question", "extra_info.answer", {"id_field": "extra_info.index"}, "7", "It is 3."),
    "verl, graded": (VERL, "extra_info.question", "reward_model.ground_truth", {}, "rows_0", None),
    "messages": (
        *(MESSAGES, "messages[1].content", "messages[-1].content"),
        {"answer_pattern": r"(?P<cot>.*)\nSo: \\boxed\{(?P<answer>.*)\}\."},
        *("rows_0", "It is 3."),
    ),
    "messages, in two fields": (
        *(MESSAGES, "messages[-2].content", "messages[2].content"),
        {"answer_pattern": r".*\{(?P<answer>.*)\}\.", "cot_field": "messages[0].content"},
        *("rows_0", "Solve."),
    ),
    "turns": (TURNS, "prompt[0].content", "completion[-1].content", {}, "rows_0", "It is 3."),
    "prompt and completion": (PLAIN, "prompt", "completion", {}, "rows_0", "It is 3."),
    "names with dots": (DOTTED, "a.b", "c[0]", {"cot_field": "no.where"}, "rows_0", None),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fields_are_found_by_path(tmp_path: Path, layout: str, suffix: str) -> None:
    row, question, answer, fields, identity, cot = LAYOUTS[layout]
    source = layout_file(tmp_path, row, suffix=suffix, question_field=question, answer_field=answer, **fields)
    assert read_problems(source) == [Problem(identity, "One and two?", "3", "number", cot)]


def test_the_settings_of_the_page_read_the_layouts_that_it_names(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/data_formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.*question_field: .*) \|$", text, re.MULTILINE)
    pattern = re.search(r"`answer_pattern: '(.*)'`", text)[1]
    assert "answer_pattern: boxed" in text
    made = {
        "verl's Parquet, with reasoning": (VERL, "7", "It is 3."),
        "verl's Parquet, answers alone": (VERL, "rows_0", None),
        "chats": (CHAT, "rows_0", "It is 3."),
        "prompt and completion": (PLAIN, "rows_0", "It is 3."),
        "... as turns": (TURNS, "rows_0", "It is 3."),
        "a question in two columns": ({"Body": "One and", "Question": "two?", "answer": 3}, "rows_0", None),
        "... and a list of options, each a line": (
            {"question": "One and two?", "options": ["A)2", "B)3"], "correct": 3},
            *("rows_0", None),
        ),
    }
    assert {name for name, _ in rows} == set(made)
    for name, cell in rows:
        fields = dict(re.findall(r"`(\w+): \"?([^`\"]+)\"?`", cell))
        fields |= {"answer_pattern": pattern} if name == "chats" else {}
        row, identity, cot = made[name]
        (problem,) = read_problems(
            layout_file(tmp_path, row, suffix="parquet" if "Parquet" in name else "jsonl", **fields)
        )
        assert (problem.id, problem.answer, problem.cot) == (identity, "3", cot)
        assert problem.question.startswith("One and two?")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_texts_that_are_listed_have_a_line_each(tmp_path: Path, suffix: str) -> None:
    row = {"question": "Six of two?", "options": ["A) 1", " B) 3 "], "note": "Choose.", "answer": "B"}
    source = layout_file(tmp_path, row, suffix=suffix, question_field="question,options,note")
    (problem,) = read_problems(source)
    assert problem.question == "Six of two?\nA) 1\n B) 3 Choose."
    (alone,) = read_problems(dataclasses.replace(source, question_field="options"))
    assert alone.question == "A) 1\n B) 3"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (["5"], "name one of its items, such as `a.b[0]`"),
        ([5, 6], "name one of its items, such as `a.b[0]`"),
        ([{"type": "text", "text": "5"}], "name its text by `a.b[0].text`"),
        ([], "is list []: write it as one"),
        ([["5"]], "is list [['5']]: write it as one"),
        ({"text": "5"}, "name its text by `a.b.text`"),
        ({"n": "5"}, "name its text by `a.b.n`"),
        ({}, "is dict {}: write it as one"),
        ([{"role": "assistant", "content": "5"}], "name its text by `a.b[-1].content`"),
        (True, 'is bool True: write it as one, such as "yes" or "no", which data.answer: text compares'),
    ],
)
def test_a_list_in_place_of_a_text_is_refused_with_what_to_name(tmp_path: Path, value: object, hint: str) -> None:
    source = layout_file(tmp_path, {"q": "why?", "a": {"b": value}}, question_field="q", answer_field="a.b")
    with pytest.raises(ValueError, match=r"field `a.b` should be text, is .*") as refused:
        read_problems(source)
    assert str(refused.value).endswith(hint)
    named = re.search(r"`(a\.b\[.*)`$", str(refused.value))
    assert not named or read_problems(dataclasses.replace(source, answer_field=named[1]))[0].answer == "5"
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        with pytest.raises(ValueError, match=re.escape(hint)):
            read_problems(dataclasses.replace(source, question_field="a.b", answer_field="q"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("b", "field `b` is missing; there are a, q"),
        ("b.c", "field `b.c` is missing: the row has a, q, and no `b`"),
        ("a.c", "field `a.c` is missing: `a` has b, d, n, and no `c`"),
        ("a.b[1].c", "field `a.b[1].c` is missing: `a.b` has 1 items, from 0"),
        ("a.b[-2].c", "field `a.b[-2].c` is missing: `a.b` has 1 items, from 0"),
        ("a.b[0].d", "field `a.b[0].d` is missing: `a.b[0]` has c, and no `d`"),
        ("a.b[0].c", "field `a.b[0].c` is null: fill it in, or leave the row out"),
        ("a.n.c", "field `a.n.c` is missing: `a.n` is null"),
        (
            "a.b.c",
            "field `a.b.c`: `a.b` is list [{'c': None}] and has no field `c`: name one of its items, such as `a.b[0]`",
        ),
        ("a.d.e", "field `a.d.e`: `a.d` is str 'text' and has no field `e`"),
        ("a.d[0]", "field `a.d[0]`: `a.d` is str 'text' and has no item 0"),
        ("a.b", "field `a.b` should be text, is list [{'c': None}]: name its text by `a.b[0].c`"),
        ("a..b", "field `a..b` is missing; there are a, q"),
    ],
)
def test_a_path_that_leads_nowhere_says_how_far_it_led(tmp_path: Path, path: str, message: str) -> None:
    row = {"a": {"b": [{"c": None}], "d": "text", "n": None}, "q": "why?"}
    source = layout_file(tmp_path, row, question_field="q", answer_field=path)
    with pytest.raises(ValueError) as refused:
        read_problems(source)
    named = ": name another by answer_field of its source, such as data.train.answer_field"
    message += named if " is missing" in message else ""
    assert str(refused.value).splitlines()[1:] == [f"  {source.path}, line 1: {message}"]


CONVERSATION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One and two?"},
                {"role": "assistant", "content": "3"}, {"role": "user", "content": "And four?"},
                {"role": "tool", "content": "4"}, {"role": "assistant", "content": "It is 7.\n#### 7"}]  # fmt: skip


@pytest.mark.parametrize("keys", [("role", "content", "user"), ("from", "value", "human")])
def test_a_missing_question_beside_messages_names_their_path(tmp_path: Path, keys) -> None:
    role, content, user = keys
    names = {"user": user}
    turns = [{role: names.get(t["role"], t["role"]), content: t["content"]} for t in CONVERSATION]
    bad = check_rows(layout_file(tmp_path, {"messages": turns})).bad
    (path,) = re.findall(r"such as data\.train\.question_field: (\S+)$", bad[0].what)
    source = layout_file(tmp_path, {"messages": turns}, question_field=path, answer_field=f"messages[-1].{content}")
    assert [(p.question, p.answer.strip()) for p in read_problems(source)] == [("And four?", "7")]
    assert path == f"messages[-3].{content}"


@pytest.mark.parametrize(
    ("question", "answer", "told"),
    [
        (
            "messages[-2].content",
            "messages[-1].content",
            "`tool`, and none of `user`: `messages[-3].content` is (quest",
        ),
        ("messages[-1].content", "messages[-1].content", "`assistant`, and none of `user`: `messages[-3].content` is"),
        ("messages[-3].content", "messages[-2].content", "`tool`, and none of `assistant`: `messages[-1].content` is"),
        ("messages[0].content", "messages[-1].content", "`system`, and none of `user`"),
    ],
)
def test_a_message_of_another_role_is_a_bad_row(tmp_path: Path, question: str, answer: str, told: str) -> None:
    source = layout_file(tmp_path, {"messages": CONVERSATION}, question_field=question, answer_field=answer)
    (row,) = check_rows(source).bad
    assert told in row.what


def test_turns_that_are_left_out_are_told_once_a_source(tmp_path: Path) -> None:
    alone = CONVERSATION[1:3]
    rows = [{"id": f"r{i}", "messages": turns} for i, turns in enumerate([alone, CONVERSATION[:3], CONVERSATION[1:4]])]
    for row in rows[2:]:
        row["messages"] = [*alone, *alone]
    fields = {"question_field": "messages[-2].content", "answer_field": "messages[-1].content"}
    said: list[str] = []
    assert len(read_problems(layout_file(tmp_path, *rows, **fields), say=said.append)) == 3
    (line,) = said
    assert "of 2 of 3 rows other turns" in line
    assert "`r1`: `messages[0]` (system)" in line
    said.clear()
    read_problems(layout_file(tmp_path, rows[0], **fields), say=said.append)
    assert said == []


@pytest.mark.parametrize("field", ["question", "answer", "cot"])
def test_a_nul_is_a_bad_row(tmp_path: Path, field: str) -> None:
    row = {"question": "One?", "answer": "1", "cot": "It is.", field: "a\0b"}
    assert check_rows(layout_file(tmp_path, row)).bad[0].what == (
        f"field `{field}` has a NUL, its character 2: leave it out"
    )


def test_a_key_that_is_there_twice_is_a_bad_row(tmp_path: Path) -> None:
    text = '{"question": "One?", "answer": 1, "more": {"a": 1, "a": 2}}\n{"question": "q", "answer": 1, "answer": 2}\n'
    bad = check_rows(SourceConfig(kind="jsonl", path=write(tmp_path, "rows.jsonl", text))).bad
    assert [row.what for row in bad] == [f"key '{key}' is there twice: leave one of them" for key in ("a", "answer")]


@pytest.mark.parametrize("name", ["choices", "options"])
def test_an_index_of_an_option_is_no_gold_number(tmp_path: Path, name: str) -> None:
    row = {"question": "Which?", name: ["x", "y", "z"], "answer": 1}
    (bad,) = check_rows(layout_file(tmp_path, row)).bad
    assert f"field `answer` is 1 beside the list `{name}`" in bad.what
    assert "such as B (data.answer: choice), or name data.answer: number" in bad.what
    assert read_problems(layout_file(tmp_path, row), answer="number")[0].answer == "1"
    assert read_problems(layout_file(tmp_path, {**row, "answer": 3}))[0].answer == "3"  # counts none of them


@pytest.mark.parametrize("answer", ["a\n#### 5\nDone.", "a\n####5", "a\n####\n5\nDone.", "a\n#### $$\n5\n$$"])
def test_the_answer_behind_the_marker_ends_with_its_line(tmp_path: Path, answer: str) -> None:
    (problem,) = read_problems(layout_file(tmp_path, {"question": "q", "answer": answer}))
    assert parse_gold(problem.answer, "number") == 5 == extract_answer(answer, "number", "####", "lenient")
    assert problem.cot == "a"


def test_lines_that_end_in_carriage_returns_alone_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "old mac.jsonl", '{"question": "q", "answer": 1}\r{"question": "r", "answer": 1}\r')
    with pytest.raises(ValueError, match="ends its lines in carriage returns alone") as refused:
        read_problems(SourceConfig(kind="jsonl", path=path))
    subprocess.run(["sh", "-c", str(refused.value).splitlines()[1]], check=True)
    assert len(read_problems(SourceConfig(kind="jsonl", path=f"{tmp_path}/old mac.lines.jsonl"))) == 2


@pytest.mark.parametrize(
    ("answer", "reasoning", "value"),
    [
        ("a\n####9", "a", "9"),
        ("1 #### 2\n#### 1,234,567.5 ", "1 #### 2", "1234567.5"),
        ("####\t-3", None, "-3"),
    ],
)
def test_the_marker_needs_no_blank_and_only_thousands_lose_their_commas(tmp_path, answer, reasoning, value) -> None:
    path = write(tmp_path, "f.jsonl", json.dumps({"question": "q", "answer": answer}))
    for kind in ("gsm8k", "jsonl"):
        (problem,) = read_problems(SourceConfig(kind=kind, path=path))
        assert (problem.cot, problem.answer) == (reasoning, value)


def test_commas_that_are_no_thousands_are_left_to_the_reader_of_answers(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(readers, "parse_gold", lambda answer, kind: asked.append(answer))
    for answer in ("1,2,3", "1,2345", "0,5", "12,345,67", "1,234"):
        read_problems(layout_file(tmp_path, {"question": "q", "answer": f"#### {answer}"}))
    assert asked == [" 1,2,3", " 1,2345", " 0,5", " 12,345,67", " 1234"]


BOXED = [
    ("1 + 2 is 3. So the answer is $\\boxed{3}$.", "3"),
    ("It is $\\boxed{1}$ or\n\\[x = \\boxed{\\frac{1}{\\text{2}}}.\\]\nDone {so}.", "\\frac{1}{\\text{2}}"),
    ("\\fbox{\n-7\n}", "-7"),
]


@pytest.mark.parametrize(("solution", "answer"), BOXED)
def test_solutions_end_in_a_box(tmp_path: Path, solution: str, answer: str) -> None:
    source = layout_file(tmp_path, {"question": "q", "answer": solution}, answer_pattern="boxed")
    (problem,) = read_problems(source)
    assert (problem.answer, problem.cot) == (answer, solution)
    templates = TemplateConfig(answer_trigger="\nThe answer is \\boxed{", answer_suffix="}")
    target = target_text(problem, templates, "text")
    assert target.count("$") % 2 == 0
    assert target.count("{") == target.count("}")
    assert extract_answer(target, "number", templates.answer_trigger, "lenient") == parse_gold(answer, "number")


REFUSED = {
    "c ### 5": "answer_pattern, such as '(?P<cot>.*)### *(?P<answer>.*)'",
    "The answer: 5": "answer_pattern, such as '(?P<cot>.*)answer: *(?P<answer>.*)'",
    "5 because": "answer_pattern, such as '(?P<answer>.*) because.*'",
    "A) Yes": "; data.answer: choice takes letters of options",
    "B) No": "; data.answer: choice takes letters of options",
    "\\text{(B)}": "; data.answer: choice takes letters of options",
    "": ": it is empty; give one, or leave the row out",
    "r \\boxed{5}": "is a solution, no answer: take it apart by its source's answer_pattern, such as boxed",
    "r\nso $\\boxed{5}$.": "answer_pattern, such as boxed",
    "The answer is 5": "answer_pattern, such as '(?P<cot>.*)answer is (?P<answer>.*)'",
    "yes": "; data.answer: text takes texts",
    "x^2": "; data.answer: latex takes expressions",
    "2\\pi": "; data.answer: latex takes expressions",
    "5 or 6": "or \\frac{3}{4}",
}


@pytest.mark.parametrize("answer", REFUSED)
def test_an_answer_that_is_none_names_the_setting_that_reads_it(tmp_path: Path, answer: str) -> None:
    said: list[str] = []
    rows = [{"question": "q", "answer": text} for text in ("1", answer, "$\\boxed{2}$", "3 apples")]
    problems = read_problems(layout_file(tmp_path, *rows), "drop", said.append)
    assert [problem.answer for problem in problems] == ["1", "$\\boxed{2}$", "3 apples"]
    assert said[0].endswith(REFUSED[answer])


@pytest.mark.parametrize("first", ["x", "I", "(B)"])
def test_a_file_that_was_taken_for_choices_says_so(tmp_path: Path, first: str) -> None:
    rows = [{"question": "q", "answer": text} for text in (first, "5")]
    bad = check_rows(layout_file(tmp_path, *rows)).bad
    assert len(bad) == (1 if first == "(B)" else 2)
    assert all(row.what.endswith("all were taken as `choice`: name data.answer (number, ...)") for row in bad)
    (row,) = check_rows(layout_file(tmp_path, rows[1]), "choice").bad
    assert row.what.endswith("as multiple choice needs")


@pytest.mark.parametrize("letter", ["F", "(G)", "j."])
def test_a_letter_beyond_e_is_refused_with_the_kind_that_takes_it(tmp_path: Path, letter: str) -> None:
    rows = [{"question": f"q{i}", "answer": text} for i, text in enumerate(("(B)", letter))]
    for answer in ("auto", "choice"):
        (row,) = check_rows(layout_file(tmp_path, *rows), answer).bad
        assert "from a to e, as multiple choice needs; data.answer: text takes other letters" in row.what
    assert len(read_problems(layout_file(tmp_path, *rows), answer="text")) == 2


@pytest.mark.parametrize("solution", ["It is 3.", "\\boxed{3", "\\boxed{3} and \\boxed{4"])
def test_a_solution_without_a_box_that_closes_is_a_bad_row(tmp_path: Path, solution: str) -> None:
    bad = check_rows(layout_file(tmp_path, {"question": "q", "answer": solution}, answer_pattern="boxed")).bad
    assert [row.what for row in bad] == [f"field `answer`: no \\boxed{{...}} in {solution!r}"]


@pytest.mark.parametrize("solution", ["$2\\boxed{9}$", "$\\boxed{5}^2$", "not \\boxed{5}", "\\boxed{1} or \\boxed{2}"])
def test_a_box_that_is_no_answer_of_a_completion_is_none_of_a_solution(tmp_path: Path, solution: str) -> None:
    (bad,) = check_rows(layout_file(tmp_path, {"question": "q", "answer": solution}, answer_pattern="boxed")).bad
    assert "is empty, a part of something, one of several or denied: no answer" in bad.what


def test_a_row_that_a_pattern_does_not_match_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": answer} for answer in ("so\n=> 4\n", "x" * 99, "=> ", "=> 5 or 6")]
    source = layout_file(tmp_path, *rows, answer_pattern="(?P<cot>.*?)=> (?P<answer>[0-9]+)?")
    said: list[str] = []
    assert [(p.cot, p.answer) for p in read_problems(source, "drop", said.append)] == [("so", "4")]
    does_not = "field `answer`: answer_pattern does not match"
    assert said[0].splitlines()[1:] == [
        f"  {source.path}, line 2: {does_not} '...{'x' * 57}'",
        f"  {source.path}, line 3: {does_not} '=> '",
        f"  {source.path}, line 4: {does_not} '=> 5 or 6'",
    ]


BAD = (
    '{"id": "a", "question": "Sum?", "answer": 1}\r\n'
    '{"id": "b", "question": "Sum?", "answer": "about 5"}\n'
    "\n"
    '{"id": "c", "question": " ", "answer": 1}\n'
    '{"id": "a", "question": "Other?", "answer": 1}\n'
    '{"id": "d", "question": "Half \\ud83d?", "answer": 1}\n'
    '{"id": "e", "question": "Whole \\ud83d\\ude00 \u2028 \x85?", "answer": 2}\n'
    '{"id": "f", "question": "Sum?", "answer": null}\n'
    '{"id": "g", "question": "Su\n'
    '{"id": "h", "question": [["Sum?"]], "answer": 1}\n'
    '{"id": "i", "question": "Sum?", "answer": 1, "tags": [{"\\udc00": 1}]}'
)
BAD_LINES = [
    "line 2: field `answer`: ",
    "line 4: field `question`: the question is empty",
    "line 5: field `id`: `a` is also the id of an earlier row",
    r"line 6: field `question`: '\ud83d', its character 6, is half of a surrogate pair, no text",
    "line 8: field `answer` is null",
    "line 9: not JSON in UTF-8: ",
    "line 10: field `question` should be text, is list [['Sum?']]",
    r"line 11: field `\udc00`: '\udc00', its character 1, is half of a surrogate pair, no text",
]


def test_all_bad_rows_are_told_at_once_or_dropped_with_the_same_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.jsonl", "\ufeff" + BAD)
    source = SourceConfig(kind="jsonl", path=path)
    with pytest.raises(ValueError) as refused:
        read_problems(source)
    head, *lines = str(refused.value).splitlines()
    assert head == f"{path}: 8 of 10 rows cannot be used: mend them, or leave them out by data.bad_rows: drop"
    for line, expected in zip(lines, BAD_LINES, strict=True):
        assert line.startswith(f"  {path}, {expected}")
    said: list[str] = []
    kept = read_problems(source, "drop", said.append)
    assert [(p.id, p.question) for p in kept] == [("a", "Sum?"), ("e", "Whole \U0001f600 \u2028 \x85?")]
    (told,) = said
    head, *dropped = told.split("\n")
    assert head == f"{path}: 8 of 10 rows cannot be used and are dropped (data.bad_rows)"
    assert dropped == lines
    as_list = "[" + ", ".join(line for i, line in enumerate(BAD.split("\n")) if i not in (2, 8)) + "]"
    source = SourceConfig(
        kind="reft_json",
        path=write(
            tmp_path, "bad.json", "\ufeff" + re.sub('"id"', '"item_id"', as_list.replace('"answer"', '"answer_value"'))
        ),
    )
    assert [p.id for p in read_problems(source, "drop", said.append)] == ["a", "e"]
    assert "7 of 9 rows" in said[1]


def _deep(levels: int) -> str:
    """More or less than Python's parser, or what walks over its values, has room for."""
    return "[" * levels + r'"\ud83d, ] }, \" {"' + "]" * levels


@pytest.mark.parametrize("levels", [400, 990, 2_000, 200_000])
@pytest.mark.parametrize("field", ["question", "answer_value", "item_id", "tags"])
def test_a_row_that_is_nested_too_deeply_is_one_bad_row(tmp_path: Path, field: str, levels: int) -> None:
    good = json.dumps({**REFT_ROW, "answer_cot": 'a "[b", ] }'})
    deep = json.dumps({**REFT_ROW, "item_id": "svamp_8", field: "HERE"}).replace('"HERE"', _deep(levels))
    rows = [good, deep, good.replace("svamp_7", "svamp_9")]
    said: list[str] = []
    for kind, text, row in (("reft_json", f"[{', '.join(rows)}]\n", "row 2"), ("jsonl", "\n".join(rows), "line 2")):
        path = write(tmp_path, f"set.{kind}", text)
        names = {"answer_field": "answer_value", "id_field": "item_id", "cot_field": "answer_cot"}
        source = SourceConfig(kind=kind, path=path, **names)
        assert [problem.id for problem in read_problems(source, "drop", said.append)] == ["svamp_7", "svamp_9"]
        assert f"1 of 3 rows cannot be used and are dropped (data.bad_rows)\n  {path}, {row}: " in said[-1]
        if levels > 1000:
            assert said[-1].endswith("nested too deeply to be read")


def test_a_file_that_is_no_list_and_nested_too_deeply_is_named(tmp_path: Path) -> None:
    source = SourceConfig(kind="reft_json", path=write(tmp_path, "set", '{"a": ' + "[" * 200_000))
    with pytest.raises(ValueError, match=r"set: nested too deeply"):
        read_problems(source)


@pytest.mark.parametrize(("good", "shown"), [(1, 20), (0, 3)])
def test_so_many_bad_rows_are_listed_and_none_may_be_all(tmp_path: Path, good: int, shown: int) -> None:
    rows = [{"question": "q", "answer": "what?"}] * 24 + [{"question": "q", "answer": 1}] * good
    source = layout_file(tmp_path, *rows)
    with pytest.raises(ValueError) as refused:
        read_problems(source)
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[1:-1]] == [f"  {source.path}, line {i + 1}" for i in range(shown)]
    assert lines[-1] == f"  and {24 - shown} more"
    if not good:
        with pytest.raises(ValueError, match="none of the 24 rows can be used"):
            read_problems(source, "drop")


def test_the_kind_of_answer_is_read_off_the_first_row_that_has_one(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": answer} for answer in (None, "so\n#### b", "so\n#### C")]
    problems = read_problems(layout_file(tmp_path, *rows), "drop", lambda _: None)
    assert [(problem.answer, problem.answer_kind) for problem in problems] == [("b", "choice"), ("C", "choice")]


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 9))
def test_chains_of_thought_are_limited_to_the_first(tmp_path_factory, having: list[bool], limit: int) -> None:
    rows = [{"question": f"q{i}", "answer": i, "cot": "so" if has else None} for i, has in enumerate(having)]
    problems = read_problems(layout_file(tmp_path_factory.mktemp("some"), *rows, cot_limit=limit))
    kept, left = [], limit or 99
    for has in having:
        kept.append(has and left > 0)
        left -= has
    assert [problem.cot is not None for problem in problems] == kept
    assert len(problems) == len(rows)


# Splits

questions = st.lists(st.text(st.sampled_from("abC 1?é"), min_size=1, max_size=6), max_size=30)


def as_problems(texts: list[str]) -> list[Problem]:
    return [Problem(f"p_{i}", text, "1") for i, text in enumerate(texts)]


@given(texts=questions, more=questions, low=st.floats(0, 1), high=st.floats(0, 1))
def test_split_depends_on_each_question_alone(texts, more, low: float, high: float) -> None:
    problems = as_problems(texts)
    train, dev = split_dev(problems, low)
    assert sorted(train + dev, key=lambda problem: int(problem.id[2:])) == problems
    assert not shared_questions(train, dev)
    assert split_dev(as_problems(texts + more), low)[1][: len(dev)] == dev
    smaller, larger = sorted((low, high))
    assert set(split_dev(problems, smaller)[1]) <= set(split_dev(problems, larger)[1])
    assert split_dev(problems, 0.0) == (problems, [])
    assert split_dev(problems, 1.0) == ([], problems)


def test_split_is_the_published_hash() -> None:
    # printf 'howmany' | sha256sum begins 1e8b.
    problem = Problem("p", "How many?", "1")
    assert split_dev([problem], 0x1E8B / 0x10000) == ([problem], [])
    assert split_dev([problem], 0x1E8C / 0x10000) == ([], [problem])


def test_split_takes_about_its_share() -> None:
    dev = split_dev(as_problems([f"question {i}" for i in range(4000)]), 0.1)[1]
    assert abs(len(dev) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_questions_are_the_same_by_letters_and_digits() -> None:
    a = as_problems(["Bob - s 2 cars ?", "Bob's 3 cars?", "Ünder 5"])
    b = as_problems(["bobs 2 CARS", "under 5"])
    assert shared_questions(a, b) == ["p_0"]
    assert shared_questions(b, a) == ["p_0"]
    assert is_within(a, a)
    assert is_within(a[:1], b)
    assert not any(is_within(*pair) for pair in ((a, b), ([], b), (a[:1], [])))


# The real files


@pytest.mark.parametrize(
    ("name", "rows", "kind", "with_cot"),
    [
        ("svamp_nl.json", 3076, "number", True),
        ("svamp_python_sdp.json", 3043, "number", True),
        ("svamp_test_set.json", 1000, "number", False),
        ("gsm8k_test_set.json", 1319, "number", False),
        ("mathqa_test_set.json", 1605, "choice", False),
        ("mathqa-numeric_test_set.json", 1605, "number", False),
    ],
)
def test_published_row_counts(real_data, name: str, rows: int, kind: str, with_cot: bool) -> None:
    problems = read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/{name}"))
    assert len(problems) == rows
    assert {problem.answer_kind for problem in problems} == {kind}
    assert all((problem.cot is not None) == with_cot for problem in problems)


def test_gsm8k_read_from_its_lines_is_the_references_file(real_data) -> None:
    ours = read_problems(SourceConfig(kind="gsm8k", path=f"{real_data}/gsm8k_test.jsonl"))
    theirs = read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/gsm8k_test_set.json"))
    assert [(p.id, p.answer) for p in ours] == [(p.id, p.answer) for p in theirs]
    # They differ in no-break spaces, which the reference made blanks.
    assert [p.question.split() for p in ours] == [p.question.split() for p in theirs]
    train = read_problems(SourceConfig(kind="gsm8k", path=f"{real_data}/gsm8k_train.jsonl"))
    assert len(train) == 7473
    assert not any("<<" in (p.cot or "") or "####" in (p.cot or "") for p in train)
    assert shared_questions(train, ours) == []


def test_mathqa_read_from_its_release_is_the_references_file(real_data) -> None:
    """The release's own test.json is not at hand: its row 2 by hand, and the split that is, which has the same form."""
    theirs = read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/mathqa_test_set.json"))
    assert {p.id: p.question for p in theirs}["mathqa_2"] == STATIONS_QUESTION
    ours = read_problems(SourceConfig(kind="mathqa", path=f"{real_data}/mathqa_dev.json"))
    assert len(ours) == 4475
    assert not any(p.cot is None or p.cot.startswith('"') for p in ours)
    lines = re.compile(r"[^\n]*\S\n(a \) .*|\['a \) .*', 'e \) .*'\])")
    for problems in (ours, theirs):
        assert all(lines.fullmatch(p.question) and p.answer_kind == "choice" for p in problems)
        assert any("['a ) " in p.question for p in problems)


def test_published_duplicates_and_overlaps(real_data) -> None:
    read = {
        name: read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/{name}.json"))
        for name in ("svamp_nl", "svamp_python_sdp", "svamp_test_set", "mathqa_test_set")
    }
    repeats = {name: len(ps) - len({question_key(p.question) for p in ps}) for name, ps in read.items()}
    assert repeats == {"svamp_nl": 210, "svamp_python_sdp": 209, "svamp_test_set": 0, "mathqa_test_set": 1}
    for name in ("svamp_nl", "svamp_python_sdp"):
        assert shared_questions(read[name], read["svamp_test_set"]) == []
        train, dev = split_dev(read[name], 0.1)
        assert len(train) + len(dev) == len(read[name])
        assert shared_questions(train, dev) == []
    assert "".join(sorted({p.answer for p in read["mathqa_test_set"]})) == "abcde"
