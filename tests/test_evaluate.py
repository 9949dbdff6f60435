"""`python -m reft_jax.evaluate`: what it says of a model and of a file of samples."""

import json
import subprocess
import sys

import pytest

from reft_jax.evaluate import main
from reft_jax.samples.file import settings_path
from reft_jax.samples.statistics import mean_interval
from tests.runs import complete, read


def write(path, questions, **settings):
    """A file of samples: for each question its gold answer and the values of its samples, right where they equal it."""
    rest = {"question": "q", "completion": "c"}
    rows = [
        {"id": f"q_{i}", "sample": j, "gold": gold, "value": value, **rest}
        | {"outcome": "correct" if str(value) == gold else "wrong"}
        for i, (gold, values) in enumerate(questions)
        for j, value in enumerate(values)
    ]
    rows.sort(key=lambda row: -row["sample"])  # not in the order of the samples
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings:
        settings_path(path).write_text(json.dumps({"lines": len(rows), **settings}))
    return str(path)


QUESTIONS = [("7", [7, 3, 3, 7]), ("b", ["b", "none", "b", "a"]), ("5", [None, "nan", 4, 5])]


def shown(capsys):
    return [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]


def test_questions_without_an_answer_do_not_vote(tmp_path, capsys):
    """They are left out of a file that has others, and a file that has no others is refused."""
    file = write(tmp_path / "f.jsonl", [("7", [7, 3]), ("", [None, None])])
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    rows = [{**row, "answer_kind": "none" if row["gold"] == "" else "number"} for row in rows]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--samples", file, "--k", "1"]) == 0
    lines = shown(capsys)
    assert lines[0].endswith("f.jsonl: 1 questions")
    assert any(line.startswith("pass@1 50.0") for line in lines)
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["gold"] == ""))
    assert main(["--samples", file]) == 2
    assert "none of its questions has a gold answer, so that no sample is right or wrong" in capsys.readouterr().err


def test_voting_and_passing_from_a_file(tmp_path, capsys):
    out = tmp_path / "out.json"
    main(["--samples", write(tmp_path / "f.jsonl", QUESTIONS), "--k", "1", "2", "4", "--json", str(out)])
    made = json.loads(out.read_text())
    assert (made["questions"], made["left_out"]) == (3, 0)
    scores = {
        "pass@1": [2 / 4, 2 / 4, 1 / 4],
        "maj@1": [2 / 4, 2 / 4, 1 / 4],
        "pass@2": [5 / 6, 5 / 6, 1 / 2],
        "maj@2": [1 / 2, 1.0, 0.0],  # 7 3 | 3 7: first seen wins; b none | b a; none nan | 4 5
        "pass@4": [1.0, 1.0, 1.0],
        "maj@4": [1.0, 1.0, 0.0],  # nan was seen first
    }
    assert set(made["results"]) == set(scores)
    for name, values in scores.items():
        result = made["results"][name]
        assert result["value"] == pytest.approx(sum(values) / 3), name
        assert result["interval"] == pytest.approx(mean_interval(values)), name
    lines = shown(capsys)
    assert lines[0].endswith("f.jsonl: 3 questions")
    low, high = mean_interval(scores["pass@1"])
    assert f"pass@1 41.7 {100 * low:.1f} to {100 * high:.1f}" in lines


def test_questions_that_were_too_long_to_be_asked_are_not_solved(tmp_path, capsys):
    main(["--samples", write(tmp_path / "f.jsonl", [("7", [7, 7])], left_out=["x", "y", "z"])])
    lines = shown(capsys)
    assert lines[0].endswith("f.jsonl: 4 questions, 3 left out")
    assert sum("25.0" in line for line in lines) == 4, "maj and pass at 1 and 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "3"], "--k 3: question `q_1` has 2 samples; k must be 1 or more and every question needs k samples"),
        (["--k", "0"], "--k 0: question `q_"),
        (["--json"], "--json"),
        (["runs/x"], "give a CHECKPOINT (or --config FILE), or --samples FILE and its --k"),
    ],
)
def test_evaluate_refuses_wrong_arguments(tmp_path, capsys, arguments, message):
    file = write(tmp_path / "f.jsonl", [("7", [7, 7, 7]), ("8", [8, 8])])
    try:
        code = main(["--samples", file, *arguments])
    except SystemExit as left:  # the parser's own
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_evaluate_names_a_missing_file_of_samples(tmp_path, capsys):
    assert main(["--samples", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_samples_are_read_without_jax(tmp_path):
    path = write(tmp_path / "f.jsonl", QUESTIONS)
    blocked = "import sys; sys.modules.update(dict.fromkeys(['jax', 'flax', 'numpy', 'transformers', 'torch']))\n"
    script = blocked + f"from reft_jax.evaluate import main; main(['--samples', {path!r}])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pass@4" in done.stdout


def test_a_checkpoint_reads_as_its_run_read_it(finished, tmp_path):
    """The accuracy on test in the run's summary, and each of the completions in its records."""
    run_dir, _ = finished
    expected = json.loads((run_dir / "summary.json").read_text())["rl_best"]
    checkpoint = str(run_dir / "checkpoints/rl_best")
    complete([checkpoint, "--json", str(tmp_path / "out.json")], command="evaluate")
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["results"] == {"accuracy": {"value": expected["accuracy"], "interval": expected["interval"]}}
    assert (made["questions"], made["split"]) == (expected["total"], "test")
    assert made["checkpoint"] == str((run_dir / "checkpoints/rl_best").resolve())

    out = tmp_path / "greedy.jsonl"
    complete([checkpoint, str(out), "--split", "test", "--samples", "1", "--temperature", "0"], command="sample")
    told = [r for r in read(run_dir, "evaluations") if r["split"] == "test" and r["model"] == "rl_best"]
    greedy = [json.loads(line) for line in out.read_text().splitlines()]
    assert greedy == [
        {**{k: r[k] for k in row if k in r}, "sample": 0, "log_prob": row["log_prob"]} for r, row in zip(told, greedy)
    ]
    assert len(greedy) == len(told)


def test_figures_that_cannot_be_written_are_an_error_of_one_line(tmp_path, capsys):
    file = write(tmp_path / "f.jsonl", [("7", [7, 7, 7])])
    assert main(["--samples", file, "--json", str(tmp_path / "none" / "x.json")]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 2] No such file or directory")
