"""What the audit says of problem files: by hand on a few rows, against the run's own refusals, and against slow loops.

The tokenizer here has one token a character, and one for a line break with the blanks that follow, so that lengths can
be counted by hand and a prompt that ends in a line break parts a token.
"""

import collections
import dataclasses
import importlib
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.config import (
    Config,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    RewardConfig,
    SftConfig,
    TemplateConfig,
    load_config,
)
from reft_jax.data.__main__ import audit, main
from reft_jax.data.audit.texts import (
    SAME,
    broken_headers,
    other_headers,
    other_statements,
    repeats,
    shared,
    spread,
    wrong_chains,
)
from reft_jax.data.audit.tokens import changed, look_at_tokens, parted, tokenise, unknown
from reft_jax.data.encoding import encode_examples, encode_prompts
from reft_jax.data.problem_sets import encode_for_sampling, encode_for_training, read_problem_sets
from reft_jax.problem import Problem
from reft_jax.reward.pool import ProgramRunner

ALPHABET = "\n !\"#'()*+-/0123456789:=?QRTWabcdefghijklmnopqrstuvwxyzAS_,."
TEMPLATES = TemplateConfig()


def build_tokenizer(*, lower: bool = False) -> PreTrainedTokenizerFast:
    tokens = ["<eos>", "<unk>", *ALPHABET, *("\n" + " " * n for n in range(1, 9))]
    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n *|[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    if lower:
        characters.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def runner():
    with ProgramRunner(workers=1, timeout=5.0, memory=256) as pool:
        yield pool


def program(question: str, *lines: str) -> str:
    return "\n    ".join(["def solution():", f'"""{question}"""', *lines])


def config(**data) -> Config:
    return Config(model=ModelConfig(tokenizer="embedded"), data=DataConfig(**data))


def lengths_of(report: dict, what: str) -> list[int]:
    return [int(re.match(r"\d+", row["detail"])[0]) for row in found(report, what)]


def found(report: dict, what: str, split: str = "file") -> list[dict]:
    return [
        row
        for finding in report["findings"]
        if (finding["set"], finding["what"]) == (split, what)
        for row in finding["rows"]
    ]


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(tmp_path, capsys):
    """Runs the command; returns its exit status, its report and what it printed."""

    def run(*arguments: str):
        path = tmp_path / "report.json"
        path.unlink(missing_ok=True)
        status = main([*arguments, "--json", str(path)])
        return status, json.loads(path.read_text(encoding="utf-8")), capsys.readouterr().out

    return run


# Texts and answers


def test_a_file_by_hand(tmp_path, tokenizer, command) -> None:
    tokenizer.save_pretrained(tmp_path / "characters")
    rows = [
        {"question": "1 + 1 ?", "answer": "2", "cot": program("1 + 1 ?", "return 1 + 1")},
        {"question": "2 + 2 ?", "answer": "4", "cot": program("2 + 2 ?", "return 2 + 3")},
        {"question": "1+1?", "answer": "3", "cot": program("1+1?", "return x")},
        {"question": "1+1?", "answer": "2", "cot": program("one and one", "return '2'")},
    ]
    path = write(tmp_path / "f.jsonl", *rows)
    other = write(tmp_path / "t.jsonl", {"question": "2 + 2 ?", "answer": 4}, {"question": "1 - 1?", "answer": 0})
    arguments = [path, "--kind", "jsonl", "--test", other]
    status, report, printed = command(*arguments)
    assert (status, report["tokenizer"], report["cot"]) == (0, None, "program")
    held = report["sets"]["file"]
    assert (held["rows"], held["with_cot"], held["without_cot"]) == (4, 4, 0)
    assert held["answer_kinds"] == {"number": 4}
    assert held["characters"]["question"] == {"mean": 5.5, "p50": 4, "p90": 7, "p99": 7, "max": 7}
    assert report["sets"]["test"]["with_cot"] == 0
    assert {(f["set"], f["what"]): [(r["id"], r["detail"]) for r in f["rows"]] for f in report["findings"]} == {
        ("file", "target does not give its own answer"): [
            ("f_1", "gold 4, gives 5"),
            ("f_2", "gold 3, error: NameError: name 'x' is not defined"),
        ],
        ("file", "program begins otherwise than its forced header"): [("f_3", "'1+1?\"\"\"\\n' is 'one and one\"'")],
        ("file", "question asked before, same text"): [("f_3", "as `f_2`, answer 2 instead of 3")],
        ("file", "question asked before, same letters and digits"): [
            ("f_2", "as `f_0`, answer 3 instead of 2"),
            ("f_3", "as `f_0`"),
        ],
        ("file", "question of test, same text"): [("f_1", "as `t_0`")],
        ("file", "question of test, same letters and digits"): [
            ("f_0", "as `t_1`"),
            ("f_1", "as `t_0`"),
            ("f_2", "as `t_1`"),
            ("f_3", "as `t_1`"),
        ],
    }
    assert "f_2  gold 3, error: NameError: name 'x' is not defined" in printed
    assert "name one with --tokenizer" in printed

    status, report, printed = command(*arguments, "--tokenizer", str(tmp_path / "characters"), "--show", "1")
    assert status == 0
    tokens = report["sets"]["file"]["tokens"]
    # One token a character but for line breaks with their indentation, which are one; and the end token.
    prompts = [len("Question:\n1 + 1 ?\nAnswer reasoning:\n"), len("Question:\n1+1?\nAnswer reasoning:\n")]
    targets = [len(row["cot"].replace("\n    ", "\n")) + 1 for row in rows]
    assert (tokens["prompt"]["max"], tokens["prompt"]["p50"]) == tuple(prompts)
    assert tokens["target"]["max"] == max(targets)
    assert tokens["target"]["mean"] == round(sum(targets) / 4, 1)
    assert tokens["row"]["max"] == prompts[0] + targets[1]
    assert tokens["sampling_prompt"]["max"] == prompts[0] + len('def solution():\n"""1 + 1 ?"""\n')
    assert "row, tokens" in printed
    assert "and 1 more; --show 0 shows all" in printed
    # The header ends in a line break that belongs to the indentation of the line after it.
    parts = found(report, "training row begins with other tokens than its forced header")
    assert [(row["id"], row["detail"]) for row in parts] == [(f"f_{i}", r"'\n' is '\n    '") for i in range(3)]


def test_prose_that_states_another_answer(command, tmp_path) -> None:
    rows = [
        {"question": "a?", "answer": "2", "cot": "Therefore, the answer is <2>."},
        {"question": "b?", "answer": "2", "cot": "Therefore, the answer is <4>. No. Therefore, the answer is <3>."},
        {"question": "c?", "answer": "2", "cot": "It is 5."},
    ]
    path = write(tmp_path / "f.jsonl", *rows)
    status, report, printed = command(path, "--kind", "jsonl")
    assert (status, report["cot"], report["sets"]["file"]["stated"]) == (0, "text", 2)
    assert found(report, "prose states another answer") == [{"id": "f_1", "detail": "gold 2, states 3"}]
    assert "state an answer" in printed
    status, report, _ = command(path, "--kind", "jsonl", "--stated_after", "It is", "Therefore, the answer is")
    assert [row["id"] for row in found(report, "prose states another answer")] == ["f_1", "f_2"]
    letters = [Problem("p", "q\na ) 1", "c", "choice", f"{text}") for text in ("answer : c .", "answer is b", "c")]
    assert other_statements(letters, ("answer :", "answer is"), RewardConfig()) == [("p", "gold c, states 'b'")]


@pytest.mark.parametrize(
    "stated",
    [
        "The answer is {}.",
        "so the answer is: {}",
        "Answer: {}",
        "So we get \\boxed{{{}}}.",
        "a\n#### {}",
        "\\fbox{{{}}}",
    ],
)
def test_prose_states_an_answer_in_more_than_one_way(command, tmp_path, stated) -> None:
    rows = [{"question": f"{i}?", "answer": "5", "cot": stated.format(i)} for i in (5, 6)]
    _, report, _ = command(write(tmp_path / "f.jsonl", *rows), "--kind", "jsonl")
    assert found(report, "prose states another answer") == [{"id": "f_1", "detail": "gold 5, states 6"}]


def test_left_out_turns_are_a_finding(command, tmp_path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "5"},
    ]
    path = write(tmp_path / "f.jsonl", {"messages": turns})
    fields = ["--data.train.question_field", "messages[1].content", "--data.train.answer_field", "messages[2].content"]
    status, report, _ = command(path, "--kind", "jsonl", *fields)
    what = "other turns of its conversation are left out"
    assert (status, found(report, what)) == (0, [{"id": "f_0", "detail": "`messages[0]` (system)"}])


def test_prose_is_read_behind_the_answer_trigger() -> None:
    good = Problem("good", "q", "1,005", cot="so")
    # A line break in the published answer ends the line that is read.
    templates = TemplateConfig(answer_trigger=" => ")
    read = lambda problems, rules: wrong_chains(problems, "text", templates, RewardConfig(rules=rules), None)
    assert read([good], "lenient") == []
    assert read([good], "reference") == [("good", "gold 1,005, no_answer")]
    assert read([dataclasses.replace(good, cot=None)], "lenient") == []


def test_programs_that_fail_say_why(runner) -> None:
    bodies = ["return 5", "return None", "return 1 / 0", "return 7.001"]
    problems = [Problem(str(i), "q", "7", cot=program("q", body)) for i, body in enumerate(bodies)]
    assert wrong_chains(problems, "program", TEMPLATES, RewardConfig(), runner) == [
        ("0", "gold 7, gives 5"),
        ("1", "gold 7, no_answer: returned a NoneType"),
        ("2", "gold 7, error: ZeroDivisionError: division by zero"),
    ]


def test_headers(runner) -> None:
    questions = ['He said "no"', 'a """ b', "back\\slash", "a \\", "plain", 'say "no".']
    problems = [Problem(question, question, "7", cot=program(question, "return 7")) for question in questions]
    broken = [identity for identity, _ in broken_headers(problems, TEMPLATES, "reference")]
    assert broken == ['He said "no"', 'a """ b', "a \\"]
    # An oracle: these are the annotated programs that do not run, since they begin with the same header.
    failed = wrong_chains(problems, "program", TEMPLATES, RewardConfig(rules="reference"), runner)
    assert [identity for identity, _ in failed] == broken
    # Lenient rules leave the docstring out where it is no Python.
    assert broken_headers(problems, TEMPLATES, "lenient") == []
    assert wrong_chains(problems, "program", TEMPLATES, RewardConfig(), runner) == []
    assert other_headers(problems, TEMPLATES) == []
    cut = Problem("p", "long", "1", cot="def solution():")
    assert other_headers([cut, dataclasses.replace(cut, cot=None)], TEMPLATES) == [("p", "'\\n    \"\"\"long' is ''")]


questions = st.lists(st.sampled_from(["a1", "A 1", "a-1!", "b", "B\nx", "b\ny", "é", "É"]), max_size=12)


@given(first=questions, second=questions, kind=st.sampled_from(["number", "choice"]), how=st.sampled_from(list(SAME)))
def test_repeats_and_shared_are_what_all_pairs_say(first, second, kind, how) -> None:
    def equal(a: str, b: str) -> bool:
        if how == "same text":
            return a == b
        if how == "same but for options" and kind == "choice":
            a, b = ("\n".join(text.split("\n")[:-1] or [text]) for text in (a, b))
        return re.sub(r"[\W_]", "", a.lower()) == re.sub(r"[\W_]", "", b.lower())

    make = lambda name, texts: [Problem(f"{name}{i}", text, "ab"[i % 2]) for i, text in enumerate(texts)]
    a, b = make("a", first), make("b", second)
    a, b = (
        [dataclasses.replace(p, answer_kind=kind, answer="c" if kind == "choice" else "1") for p in ps] for ps in (a, b)
    )
    pairs = [(i, next((j for j in range(i) if equal(first[i], first[j])), None)) for i in range(len(first))]
    assert repeats(a, SAME[how]) == [(f"a{i}", f"as `a{j}`") for i, j in pairs if j is not None]
    across = [
        (i, next((j for j, other in enumerate(second) if equal(text, other)), None)) for i, text in enumerate(first)
    ]
    assert shared(a, b, SAME[how]) == [(f"a{i}", f"as `b{j}`") for i, j in across if j is not None]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_spread_is_the_sorted_list_read_off(lengths) -> None:
    ordered = sorted(lengths)
    held = spread(lengths)
    for share in (50, 90, 99):
        assert held[f"p{share}"] == ordered[math.ceil(share * len(ordered) / 100) - 1]
    assert held["max"] == ordered[-1]
    assert held["mean"] == pytest.approx(sum(ordered) / len(ordered), abs=0.051)
    assert spread([]) is None


# Tokens


known = st.text(st.sampled_from("ab1 "), min_size=1, max_size=12).map(str.strip).filter(bool)
texts = st.one_of(known, known, known, known, st.just("5 €"))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    prompt=st.integers(33, 40),
    response=st.integers(30, 40),
    sampling=st.integers(33, 40),
    overlong=st.sampled_from(["error", "drop", "truncate"]),
)
def test_it_says_that_a_run_stops_where_a_run_stops(tokenizer, rows, prompt, response, sampling, overlong) -> None:
    """The oracle is the run itself: what encodes a run's rows raises on them, or counts what it cut and dropped."""
    problems = [Problem(f"p{i}", question, "1", cot=cot) for i, (question, cot) in enumerate(rows)]
    sft = SftConfig(prompt_buckets=(16, prompt), response_buckets=(response,))
    generation = GenerationConfig(prompt_buckets=(sampling,))
    made = Config(data=DataConfig(cot="text", overlong=overlong), sft=sft, generation=generation)
    findings = look_at_tokens(
        {"train": tokenise(problems, made, tokenizer)}, {"train": ("sft", sft)}, ["train"], made, tokenizer
    )
    settings = {"tokenizer": tokenizer, "templates": TEMPLATES, "cot": "text", "overlong": overlong}
    try:
        _, trained = encode_examples(problems, max_prompt=prompt, max_response=response, stage="sft", **settings)
        _, sampled = encode_prompts(problems, max_prompt=sampling, **settings)
        encode_for_training(problems, made, tokenizer, "sft", sft, lambda _: None)
        encode_for_sampling(problems, made, tokenizer, "train", lambda _: None)
    except ValueError as error:  # names rows, or says that all were dropped
        refused = set(re.findall(r"`(p\d)`", str(error))) or {problem.id for problem in problems}
    else:
        refused = set()
    named = {identity for finding in findings if finding.stops for identity, _ in finding.rows}
    assert refused <= named
    assert bool(refused) == bool(named)
    if not refused:
        counts = collections.Counter({finding.what: len(finding.rows) for finding in findings})
        fate = {"error": "", "drop": ": dropped", "truncate": ": cut"}[overlong]
        assert counts[f"longer than sft.prompt_buckets, {prompt}{fate}"] == trained.prompts
        assert counts[f"longer than sft.response_buckets, {response}{fate}"] == trained.targets
        assert counts[f"longer than generation.prompt_buckets, {sampling}{fate}"] == sampled.prompts


def test_what_the_tokenizer_does_not_know_is_shown(tokenizer) -> None:
    made = config(cot="text")
    problems = [Problem("odd", "5 € and 6 €, é?", "1", cot="one"), Problem("even", "5?", "1", cot="one")]
    kind = tokenise(problems, made, tokenizer)["sampling_prompt"]
    assert unknown(kind, tokenizer) == [("odd", "'€', 'é'")]
    assert changed(kind, tokenizer) == []
    lower = build_tokenizer(lower=True)
    assert changed(tokenise(problems, made, lower)["sampling_prompt"], lower) == [
        ("even", "'Question:\\n5?' is 'question:\\n5?'")
    ]


def test_a_header_without_the_line_break_parts_no_token(tokenizer) -> None:
    problems = [Problem("p", "1 + 1 ?", "2", cot=program("1 + 1 ?", "return 2"))]
    assert parted(tokenise(problems, config(), tokenizer), tokenizer) == [("p", r"'\n' is '\n    '")]
    whole = config(templates=TemplateConfig(program_header='def solution():\n    """{question}"""'))
    assert parted(tokenise(problems, whole, tokenizer), tokenizer) == []


def test_an_annotation_that_could_not_be_sampled(tokenizer) -> None:
    """What is forced need not be sampled."""
    problem = Problem("p", "1 + 1 ?", "2", cot=program("1 + 1 ?", "return 2"))
    body = len("return 2") + 1 + 1  # the break before it is one token of the target; the end token is another
    for longest in (body - 2, body - 1, body):
        made = dataclasses.replace(config(), generation=GenerationConfig(max_new_tokens=longest))
        sets = {"dev": tokenise([problem], made, tokenizer)}
        what = [finding.what for finding in look_at_tokens(sets, {}, ["dev"], made, tokenizer)]
        assert (f"annotation longer than generation.max_new_tokens, {longest}" in what) == (longest < body - 1)


# The command


@pytest.fixture
def settings_file(tmp_path):
    """A run on the embedded problems, with changes."""

    def make(**changes) -> str:
        made = {
            "run_dir": "unused",
            "model": {"tokenizer": "embedded"},
            "data": {
                "train": {"kind": "generated", "path": "train", "limit": 60},
                "test": {"kind": "generated", "path": "test", "limit": 20},
                "dev_fraction": 0.2,
            },
            "sft": {"prompt_buckets": [48], "response_buckets": [56]},
            "generation": {"prompt_buckets": [96], "max_new_tokens": 56},
        }
        for key, value in changes.items():
            made[key] = made.get(key, {}) | value
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(made), encoding="utf-8")
        return str(path)

    return make


def test_it_looks_at_what_a_run_reads(settings_file, command) -> None:
    path = settings_file()
    status, report, printed = command("--config", path)
    sizes = {split: held["rows"] for split, held in report["sets"].items()}
    assert status == 0
    assert sizes["train"] + sizes["dev"] == 60
    assert sizes["test"] == 20
    assert (report["tokenizer"], report["cot"]) == ("embedded", "program")
    # About a quarter of the embedded annotations has a slip, on purpose; those of the test set have none.
    slips = found(report, "target does not give its own answer", "train")
    assert 0.1 < len(slips) / sizes["train"] < 0.4
    assert not found(report, "target does not give its own answer", "test")
    assert not any(finding["stops"] for finding in report["findings"])
    assert "pretrain" not in printed
    status, report, _ = command(
        "--config",
        path,
        "--pretrain.epochs",
        "1",
        *["--pretrain.source.kind", "generated"],
        *["--pretrain.source.path", "pretrain", "--pretrain.source.limit", "30"],
    )
    assert report["sets"]["pretrain"]["rows"] == 30


def test_a_file_is_looked_at_with_the_settings_of_a_config(settings_file, tmp_path, command) -> None:
    """What it is read by, the tokenizer and the test set come from the config; the file is not split."""
    asked = write(tmp_path / "asked.jsonl", {"question": "1?", "answer": 1}, {"question": "q" * 40, "answer": 2})
    model = {"path": str(tmp_path / "characters"), "tokenizer": ""}
    path = settings_file(model=model, generation={"prompt_buckets": [60]})
    build_tokenizer().save_pretrained(tmp_path / "characters")
    status, report, _ = command(asked, "--kind", "jsonl", "--config", path, "--cot", "text")
    assert {split: held["rows"] for split, held in report["sets"].items()} == {"file": 2, "test": 20}
    assert report["tokenizer"] == str(tmp_path / "characters")
    assert status == 1
    assert [row["id"] for row in found(report, "longer than generation.prompt_buckets, 60")] == ["asked_1"]
    tokenizer = ["--model.path", str(tmp_path / "characters")]
    assert command(asked, "--kind", "jsonl", *tokenizer)[1]["tokenizer"] == str(tmp_path / "characters")


@pytest.mark.parametrize(
    ("changes", "what", "split"),
    [
        ({"generation": {"prompt_buckets": [60]}}, "longer than generation.prompt_buckets, 60", "test"),
        ({"sft": {"response_buckets": [40]}}, "longer than sft.response_buckets, 40", "train"),
        ({"sft": {"prompt_buckets": [20]}}, "longer than sft.prompt_buckets, 20", "train"),
        ({"data": {"templates": {"instruction": "Frage: "}}}, "sampling prompt: no tokens for", "dev"),
        (
            {"data": {"train": {"kind": "generated", "path": "train", "limit": 1}}},
            "too few problems to train on and for dev, see data.dev_fraction (0.2)",
            "train",
        ),
    ],
)
def test_audit_says_what_would_stop_a_run_and_exits_with_it(settings_file, command, changes, what, split) -> None:
    from reft_jax.data.tokenizers import load_tokenizer

    path = settings_file(**changes)
    status, report, printed = command("--config", path)
    assert status == 1
    assert any(f["stops"] and (f["set"], f["what"]) == (split, what) for f in report["findings"])
    assert "yes" in printed

    made, embedded = load_config(["--config", path]), load_tokenizer("embedded", "")
    with pytest.raises(ValueError):  # the run's own words  # noqa: PT012
        problems = read_problem_sets(made, lambda _: None)
        for name in ("train", "dev", "test"):
            encode_for_sampling(problems[name], made, embedded, name, lambda _: None)
        encode_for_training(problems["train"], made, embedded, "sft", made.sft, lambda _: None)


def test_rows_without_a_chain_of_thought_are_told_where_annotations_are_learned(tmp_path, command) -> None:
    rows = [
        {"question": f"q{i}?", "answer": i, "cot": None if i == 2 else program(f"q{i}?", f"return {i}")}
        for i in range(4)
    ]
    path = write(tmp_path / "f.jsonl", *rows)
    status, report, _ = command(path, "--kind", "jsonl")
    told = "no chain of thought: for reinforcement alone"
    assert status == 0
    assert found(report, told) == [{"id": "f_2", "detail": ""}]
    status, report, _ = command(path, "--kind", "jsonl", "--sft.schedule_epochs", "0")
    assert (status, found(report, told)) == (0, [])
    imitation = ("--sft.schedule_epochs", "0", "--rl.algorithm", "self_training")
    status, report, _ = command(path, "--kind", "jsonl", *imitation)
    assert (status, found(report, told)) == (0, [{"id": "f_2", "detail": ""}])
    status, report, _ = command(path, "--kind", "jsonl", *imitation, "--rl.self_training.gold_weight", "0")
    assert (status, found(report, told)) == (0, [])
    status, _, printed = command(write(tmp_path / "g.jsonl", rows[2]), "--kind", "jsonl")
    assert status == 0, "nothing to train on is no finding in a file of questions"
    assert "Nothing to report." in printed


def test_rows_that_cannot_be_used_are_findings(settings_file, tmp_path, command) -> None:
    """The rest is looked at. A run says the same: it ends on them, or goes on with what was looked at."""
    rows = [{"question": f"q{i}?", "answer": [1, "one", None][i % 3], "cot": "so"} for i in range(60)]
    path = write(tmp_path / "f.jsonl", *rows)
    status, report, printed = command(path, "--kind", "jsonl")
    assert (status, report["sets"]["file"]["rows"]) == (1, 20)
    assert f"{path}, line 2  field `answer`: " in printed
    assert "and 35 more; --show 0 shows all" in printed

    build_tokenizer().save_pretrained(tmp_path / "characters")
    model = {"path": str(tmp_path / "characters"), "tokenizer": ""}
    for policy, stops, what in (("error", True, "cannot be used"), ("drop", False, "cannot be used: dropped")):
        data = {"train": {"kind": "jsonl", "path": path}, "dev_fraction": 0.2, "bad_rows": policy, "cot": "text"}
        made = settings_file(model=model, data={**data, "test": {"kind": "none"}})
        status, report, _ = command("--config", made)
        (finding,) = [found for found in report["findings"] if found["what"] == what]
        assert (status, finding["stops"], finding["set"], finding["total"]) == (int(stops), stops, "train", 60)
        assert [row["id"] for row in finding["rows"]] == [f"{path}, line {i + 1}" for i in range(60) if i % 3]
        sizes = [report["sets"][split]["rows"] for split in ("train", "dev")]
        lines = [f"  {row['id']}: {row['detail']}" for row in finding["rows"][:20]] + ["  and 20 more"]
        said: list[str] = []
        if stops:
            with pytest.raises(ValueError, match="40 of 60 rows cannot be used") as refused:
                read_problem_sets(load_config(["--config", made]), said.append)
            assert str(refused.value).split("\n")[1:] == lines
        else:
            sets = read_problem_sets(load_config(["--config", made]), said.append)
            assert [len(sets[split]) for split in ("train", "dev")] == sizes
            assert said[0].split("\n")[1:] == lines


COMMANDS = {
    "data": ["{}", "--kind", "jsonl"],
    "reward": ["{}"],
    "evaluate": ["--samples", "{}"],
    "select": ["{}", "{}.out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_half_of_a_surrogate_pair_is_the_same_row_to_every_command(tmp_path, capsys, command) -> None:
    """And what looks like it is none: separators at which Python ends a line, a byte order mark, CRLF, an emoji."""
    said = "so" + TEMPLATES.answer_trigger + "1"
    sample = {"id": "a", "sample": 0, "gold": "1", "completion": said, "outcome": "correct", "value": 1, "answer": 1}
    texts = (
        json.dumps({**sample, "question": "Q\u2028\x85"}, ensure_ascii=False),
        json.dumps({**sample, "question": "Q \ud83d"}),
    )
    emoji = json.dumps({**sample, "id": "b", "question": "\U0001f600"})
    assert r"\ud83d\ude00" in emoji
    run = importlib.import_module(f"reft_jax.{command}" + (".__main__" if command in ("data", "reward") else "")).main
    path = tmp_path / "f.jsonl"
    path.write_bytes(f"\ufeff{texts[0]}\r\n{emoji}\r\n".encode())
    arguments = [argument.format(path) for argument in COMMANDS[command]]
    assert run(arguments) == 0
    Path(f"{path}.out").unlink(missing_ok=True)
    path.write_bytes(f"\ufeff{texts[0]}\r\n{emoji}\r\n{texts[1]}".encode())
    assert run(arguments) == (1 if command == "data" else 2)
    output = capsys.readouterr()
    told = re.sub(r"\s+", " ", output.out + output.err)
    assert re.search(re.escape(f"{path}, line 3") + r":? field `question`: '\\ud83d', its character 3, is half", told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a file of problems first, or the config of a run"),
        (["f.jsonl"], "--kind says how f.jsonl is read: one of reft_json, gsm8k, mathqa"),
        (["f.jsonl", "--kind", "csv"], "invalid choice: 'csv'"),
        (["f.jsonl", "--kind", "jsonl", "--rl.kl_coef", "-1"], "rl.kl_coef is -1"),
        (["nowhere.jsonl", "--kind", "jsonl"], "nowhere.jsonl`: a source of kind `jsonl` is a file on this machine"),
        (["f.jsonl", "--kind", "jsonl"], "f.jsonl, line 1: field `answer` is missing"),
        (
            ["f.jsonl", "--kind", "jsonl", "--data.train.answer_field", "a", "--tokenizer", "nowhere"],
            "error: model.tokenizer: there is no folder nowhere, and",
        ),
    ],
)
def test_audit_names_files_that_it_cannot_read(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(Path("f.jsonl"), {"question": "q", "a": 1})
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert message in capsys.readouterr().err


# The real files


@pytest.mark.ci
def test_what_is_published_of_the_real_files_is_found(real_data) -> None:
    """The counts of svamp_python_sdp and svamp_nl that were taken by other programs."""
    from reft_jax.config import SourceConfig
    from reft_jax.data.readers import read_problems

    read = lambda name: read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/{name}"))
    sets = {"file": read("svamp_python_sdp.json"), "test": read("svamp_test_set.json")}
    report = audit(sets, config(cot="program"), with_tokens=False, stated_after=())
    assert {finding["what"]: len(finding["rows"]) for finding in report["findings"]} == {
        "program begins otherwise than its forced header": 37,
        "question asked before, same text": 9,
        "question asked before, same letters and digits": 209,
    }
    sets["file"] = read("svamp_nl.json")
    theirs = ("Therefore, the answer is",)
    report = audit(sets, config(cot="text"), with_tokens=False, stated_after=theirs)
    assert report["sets"]["file"]["stated"] == 3067
    report = audit(sets, config(cot="text"), with_tokens=False, stated_after=())
    assert report["sets"]["file"]["stated"] == len(sets["file"])  # nine more begin otherwise
    assert [row["id"] for row in found(report, "prose states another answer")] == ["svamp_929", "svamp_2000"]
    repeated = found(report, "question asked before, same letters and digits")
    assert len(repeated) == 210
    assert [row["detail"] for row in repeated if "instead of" in row["detail"]] == [
        "as `svamp_993`, answer 3.33333 instead of 3.333"
    ]

    mathqa = read_problems(SourceConfig(kind="mathqa", path=f"{real_data}/mathqa_dev.json"))
    report = audit(
        {"file": mathqa, "test": read("mathqa_test_set.json")}, config(cot="text"), with_tokens=False, stated_after=()
    )
    assert len(found(report, "question asked before, same but for options")) == 17
    assert len(found(report, "question of test, same but for options")) == 8
