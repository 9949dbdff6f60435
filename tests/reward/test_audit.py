"""The audit of a file of completions: `python -m reft_jax.reward FILE.jsonl`."""

import json
import subprocess
import sys

import pytest

from reft_jax.config import TemplateConfig
from reft_jax.reward.__main__ import main

TRIGGER = TemplateConfig().answer_trigger


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prose(identity, gold, answer):
    return {"id": identity, "gold": gold, "completion": "So it is." + TRIGGER + answer}


def shown(capsys):
    """What was printed, each line's blanks and borders as one blank."""
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.replace("│", " ").split()) for line in lines]


def status(arguments):
    """The command's exit status, whether `main` returns it or the parser of the command line leaves with it."""
    try:
        return main(arguments)
    except SystemExit as left:
        return left.code


def test_both_rules_stand_side_by_side_and_their_disagreements_below(tmp_path, capsys):
    rows = [prose("a", "18", "18"), prose("b", 18.0, "$18.00"), prose("c", "18", "17"), prose("d", "c", "(C)")]
    main([write(tmp_path / "f.jsonl", rows)])
    lines = shown(capsys)
    assert "4 completions, read as prose" in lines[0]
    assert {
        "correct 3 1",
        "wrong 1 2",
        "no_answer 0 1",
        "share right 75.00% 25.00%",
        "mean reward 0.7750 0.3000",
    } <= set(lines)
    assert "The rules disagree in 2 of 4 rows:" in lines
    assert "line 2, b: gold 18.0, lenient correct 18.0, reference no_answer None" in lines
    assert "line 4, d: gold c, lenient correct 'c', reference wrong '(c)'" in lines


def test_programs_are_recognised_and_run(tmp_path, capsys):
    bodies = ["return 6 * 7", "return '42 apples'", "return 1 / 0", "x = 42\n\n    return x"]
    rows = [{"gold": "42", "completion": f"def solution():\n    {body}"} for body in bodies]
    main([write(tmp_path / "f.jsonl", rows), "--show", "1"])
    lines = shown(capsys)
    assert "4 completions, read as programs" in lines[0]
    assert {"correct 3 1", "error 1 1", "no_answer 0 2"} <= set(lines)
    assert (
        "line 2, 2: gold 42, lenient correct '42 apples', reference no_answer None" not in lines
    )  # the number, not the text
    assert "line 2, 2: gold 42, lenient correct 42, reference no_answer None" in lines
    assert "and 1 more; --show 0 shows all" in lines


def test_a_line_ends_at_its_line_break_alone(tmp_path, capsys):
    """JSON may hold other characters at which Python's `splitlines` ends a line."""
    path = tmp_path / "f.jsonl"
    path.write_text(
        '{"gold": "5", "completion": "It is\u2028so.' + json.dumps(TRIGGER)[1:-1] + '5"}\n', encoding="utf-8"
    )
    assert main([str(path)]) == 0
    assert "correct 1 1" in shown(capsys)


def test_fields_and_rewards_can_be_named(tmp_path, capsys):
    rows = [{"answer": "5", "text": "5 thousand"}]
    options = ["--completion_field", "text", "--gold_field", "answer", "--answer_trigger", "", "--reward.wrong", "0.3"]
    main([write(tmp_path / "f.jsonl", rows), *options])
    assert "mean reward 0.3000 0.0000" in shown(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.jsonl: holds no rows"),
        ("{\n", "f.jsonl, line 1: not JSON"),
        ("completion,gold\n5,5\n", r"f.jsonl is a table (CSV): make it JSON Lines (data of `kind: jsonl`):"),
        ('[{"completion": "5", "gold": "5"}]', "f.jsonl is one JSON list: make it JSON Lines"),
        ("\n[1]\n", "f.jsonl, line 2: should be a JSON object, is a list"),
        ('{"gold": "5"}\n', "f.jsonl, line 1: field `completion` is missing; there are gold"),
        ('{"gold": [5], "completion": ""}\n', "f.jsonl, line 1: field `gold` is a list"),
        ('{"id": "q_7", "gold": "five", "completion": ""}\n', "f.jsonl, line 1: gold answer 'five' is not a finite"),
    ],
)
def test_reward_audit_names_what_is_wrong_in_its_file(tmp_path, capsys, text, message):
    (tmp_path / "f.jsonl").write_text(text)
    assert main([str(tmp_path / "f.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_reward_audit_names_every_gold_answer_that_cannot_be_read(tmp_path, capsys):
    golds = ["five", "5", "2x", "\u22485"]
    path = write(tmp_path / "f.jsonl", [{"gold": gold, "completion": ""} for gold in golds])
    assert main([str(path)]) == 2
    told = capsys.readouterr().err
    assert [n for n in range(1, 5) if f"f.jsonl, line {n}: gold answer" in told] == [1, 3, 4]


def test_a_missing_file_and_a_bad_setting_are_named(tmp_path, capsys):
    for arguments, word in (
        ([str(tmp_path / "none.jsonl")], "none.jsonl"),
        ([str(tmp_path), "--reward.workers", "0"], "reward.workers is 0: it must be more than 0"),
    ):
        assert status(arguments) == 2
        assert word in capsys.readouterr().err


def test_it_is_a_command_without_jax(tmp_path):
    path = write(tmp_path / "f.jsonl", [prose("a", "18", "18")])
    blocked = "import sys; sys.modules.update(dict.fromkeys(['jax', 'flax', 'transformers', 'torch']))\n"
    script = blocked + f"from reft_jax.reward.__main__ import main; main([{path!r}])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "1 completions, read as prose" in done.stdout
