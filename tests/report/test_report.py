"""`python -m reft_jax.report`: its numbers against other computations of them, its size, and texts that mean harm."""

import base64
import collections
import hashlib
import html.parser
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from reft_jax.config import Config, to_dict
from reft_jax.report import curves, folder
from reft_jax.report.__main__ import main, names_of
from reft_jax.report.behaviour import Group, failures, groups, lengths, signs
from reft_jax.report.completions import browser, embedded
from reft_jax.report.curves import Lines, lines_of, mean_lines, methods, thinned
from reft_jax.report.folder import Completion, Moment, read_run
from reft_jax.report.page import LIMIT, SCRIPTS, report_page
from reft_jax.report.results import against_first, mean_results, pairing, phases, results, settings, status
from tests.report.made_run import MODELS, RL, SFT, lines, make_run

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>document.title = 'taken'</script><!--<img src=x onerror=\"alert(1)\">{{script}}\u2028&amp;"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


def read(path: Path) -> folder.RunFolder:
    return read_run(path, path.name)


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: the scripts and their content, all other elements, and the text outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.elements: collections.Counter[str] = collections.Counter()
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data

    @property
    def data(self) -> dict:
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == "data"]
        return json.loads(text)


# The final table


def test_results_against_the_records_and_scipy(made):
    records = [r for r in lines(made, "evaluations") if r["split"] == "test"]
    right = {name: {r["id"]: r["outcome"] == "correct" for r in records if r["model"] == name} for name in MODELS}
    found = results(read(made))
    assert [row.model for row in found] == ["warm-up", "SFT continued", "SFT best on dev", "ReFT (PPO) best on dev"]
    for row, name in zip(found, MODELS):
        correct, total = sum(right[name].values()), len(right[name])
        assert (row.split, row.correct, row.total, row.accuracy) == ("test", correct, total, correct / total)
        interval = binomtest(correct, total).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
        if name == "warmup":
            assert row.pairing is None
            continue
        gained = sum(right[name][key] and not right["warmup"][key] for key in right[name])
        lost = sum(right["warmup"][key] and not right[name][key] for key in right[name])
        assert row.pairing is not None
        assert (row.pairing.gained, row.pairing.lost) == (gained, lost)
        assert row.pairing.gained + row.pairing.both == correct
        assert row.pairing.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_a_real_run_has_the_figures_of_its_summary(finished):
    """Also what the records alone say of costs, which an unfinished run is shown by."""
    path, _ = finished
    summary = json.loads((path / "summary.json").read_text())
    run = read(path)
    spent = curves.costs(run)
    for row, (name, facts) in zip(results(run), summary.items(), strict=True):
        assert (row.accuracy, row.correct, row.total) == (facts["accuracy"], facts["correct"], facts["total"])
        assert [row.low, row.high] == pytest.approx(facts["interval"])
        assert (row.examples, row.seconds) == (facts["examples"], facts["seconds"])
        assert row.dev_accuracy == facts["dev_accuracy"]
        step = {"warmup": 54, "sft": 66}.get(name) or facts["step"]
        assert spent[step] == pytest.approx((facts["examples"], facts["seconds"]))
    assert run.best == {name: summary[name]["step"] for name in ("sft_best", "rl_best")}
    page = report_page([run])
    assert len(page.encode()) < 5e6
    assert Page(page).data["browser"]["shown"][0]["of_questions"] == 20


def test_questions_that_only_one_was_asked_and_those_without_gold_are_no_pairs():
    make = lambda identity, outcome: Completion(
        Moment("test", "m", 1), identity, "q", "1", "", outcome, 0.0, "", None, 1, True, "", {}
    )
    before = [make("a", "correct"), make("b", "wrong"), make("c", "error"), make("d", "no_gold"), make("x", "correct")]
    after = [make("a", "wrong"), make("b", "correct"), make("c", "correct"), make("d", "no_gold"), make("y", "correct")]
    found = pairing(before, after)
    assert found is not None
    assert (found.gained, found.lost, found.both, found.neither, found.p_value) == (2, 1, 0, 0, 1.0)
    assert pairing(before[3:4], after[3:4]) is None


def test_runs_are_paired_with_the_first_on_the_questions_that_they_share(tmp_path):
    paths = [make_run(tmp_path / f"seed{seed}", seed=seed, test=20 + seed) for seed in (1, 2)]
    other = make_run(tmp_path / "other", ask=" Really?")
    right = [
        {r["id"]: r["outcome"] == "correct" for r in lines(path, "evaluations") if r["model"] == "rl_best"}
        for path in paths
    ]
    found, none = against_first([read(path) for path in (*paths, other)])
    assert found is not None
    assert found.gained == sum(right[1][key] and not right[0][key] for key in right[0])
    assert found.lost == sum(right[0][key] and not right[1][key] for key in right[0])
    assert found.gained + found.lost + found.both + found.neither == 21
    assert none is None, "its questions are others"


def test_time_by_phase_adds_up_to_the_time_at_work(made):
    found = {(phase.stage, phase.phase): phase.seconds for phase in phases(read(made))}
    records = lines(made, "metrics")
    seconds = lambda stage: sum(r["time/step_s"] for r in records if r["stage"] == stage and "time/step_s" in r)
    assert found["SFT", "steps"] == pytest.approx(seconds("sft"))
    assert found["reinforcement", "sampling"] == pytest.approx(0.4 * RL)
    assert found["reinforcement", "evaluations on dev"] == pytest.approx(0.5 * RL / 5)
    assert sum(found.values()) == pytest.approx(20 * 60)  # by the clock of run.json


def test_settings_are_those_that_are_not_the_defaults(tmp_path):
    one = make_run(tmp_path / "one", settings={"rl.kl_coef": 0.5})
    other = make_run(tmp_path / "other", settings={"rl.kl_coef": Config().rl.kl_coef, "no.longer": [1]})
    found = {setting.key: setting for setting in settings([read(one), read(other)])}
    assert found["rl.kl_coef"].values == ["0.5", json.dumps(to_dict(Config())["rl"]["kl_coef"])]
    assert found["rl.kl_coef"].differs
    assert (found["seed"].values, found["seed"].differs) == (["1", "1"], False)
    assert found["no.longer"].values == ["null", "[1]"]
    assert "run_dir" not in found
    assert "rl.algorithm" not in found, "that is the default"


# Curves


def test_lines_have_the_recorded_values_and_zeros_where_an_outcome_did_not_occur(made):
    records = [r for r in lines(made, "metrics") if r["stage"] == "rl" and "reward/mean" in r]
    own = lines_of(read(made), 1000)["rl"]
    assert own.step == list(range(1, RL + 1))
    assert own.values["reward/mean"] == [r["reward/mean"] for r in records]
    assert own.values["reward/outcome_error"] == [r.get("reward/outcome_error", 0.0) for r in records]
    assert any("reward/outcome_error" not in r for r in records), "or nothing was tested"
    assert own.values["rl/explained_variance"][:2] == [None, 0.5], "NaN is no number"
    warmup = next(r for r in lines(made, "metrics") if r["step"] == 20)
    assert own.sequences[0] == warmup["run/examples"] + records[0]["run/examples"]
    before = sum(1 + step / 100 for step in range(1, 21))
    assert own.seconds[0] == pytest.approx(before + 1 + 41 / 100)


def test_dev_lines_part_at_the_warm_up(made):
    own = lines_of(read(made), 1000)
    assert own["dev_sft"].step == [10, 20, 30, 40]
    assert own["dev_rl"].step == [20, 45, 50, 55, 60], "reinforcement goes on from the warm-up"
    assert own["dev_rl"].values["eval/accuracy"][0] == own["dev_sft"].values["eval/accuracy"][1]


@pytest.mark.parametrize(("count", "points"), [(10, 10), (11, 10), (99, 10), (100, 7), (3, 1)])
def test_thinning_keeps_means_and_the_last_point(count, points):
    values = np.random.default_rng(count).normal(size=count)
    made = Lines(list(range(count)), list(range(count)), list(range(count)), {"m": list(values)}, 1)
    found = thinned(made, points)
    size = math.ceil(count / points)
    assert len(found.step) <= points
    assert found.step[-1] == count - 1
    assert found.mean_of == size
    assert found.values["m"] == pytest.approx([values[i : i + size].mean() for i in range(0, count, size)])


def test_runs_of_other_seeds_are_one_method_with_their_mean(tmp_path):
    paths = [make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2, 3)]
    paths.append(make_run(tmp_path / "short", seed=4, rl=10))
    paths.append(make_run(tmp_path / "other", settings={"rl.kl_coef": 0.5}))
    runs = [read(path) for path in paths]
    found = methods(runs)
    assert [method.runs for method in found] == [[0, 1, 2, 3], [4]]
    assert found[0].name == f"ReFT (PPO), rl.kl_coef {Config().rl.kl_coef}: mean of 4"
    assert found[0].short == f"rl.kl_coef {Config().rl.kl_coef}"
    assert found[1].name == "other"
    rewards = [[r["reward/mean"] for r in lines(path, "metrics") if "reward/mean" in r][:10] for path in paths[:4]]
    mean = mean_lines(runs[:4], 1000)["rl"]
    assert mean.step == list(range(1, 11)), "as far as all of them have come"
    assert mean.values["reward/mean"] == pytest.approx(np.mean(rewards, axis=0))
    (row,) = [row for row in mean_results(runs[:3]) if row.model.startswith("ReFT")]
    own = [json.loads((path / "summary.json").read_text())["rl_best"]["accuracy"] for path in paths[:3]]
    assert (row.accuracy, row.low, row.high, row.runs) == (pytest.approx(np.mean(own)), min(own), max(own), 3)


# Behaviour


def test_failures_are_all_counted_by_cause(made):
    run = read(made)
    shown = groups(run)
    assert [group.name for group in shown] == [
        *["warm-up on test", "ReFT (PPO) best on dev on test"],
        *["sampled, first recorded (iteration 1)", f"sampled, last recorded (iteration {RL})", "sampled, all recorded"],
    ]
    test = [r for r in lines(made, "evaluations") if r["split"] == "test"]
    rollouts = lines(made, "rollouts")
    columns = [
        *([r for r in test if r["model"] == name] for name in ("warmup", "rl_best")),
        *([r for r in rollouts if r["step"] == SFT + iteration] for iteration in (1, RL)),
        rollouts,
    ]

    def cause(record):
        kind = record.get("detail", "").split(":")[0]
        return f"error: {kind}" if record["outcome"] == "error" else record["outcome"]

    for failure in failures(run):
        assert failure.counts == [sum(cause(r) == failure.cause for r in column) for column in columns]
        assert 0 < len(failure.examples) <= 3
        assert all(run.completions[place].cause == failure.cause for place in failure.examples)
    wrong = sum(r["outcome"] != "correct" for column in columns for r in column)
    assert sum(sum(failure.counts) for failure in failures(run)) == wrong


def test_signs_of_a_group_by_hand():
    make = lambda text, outcome, value, reward, suspicious=None, ended=True: Completion(
        Moment("test", "m", 1), text, "q", "1", text, outcome, reward, value, suspicious, 4, ended, "", {}
    )
    own = [
        make("x", "correct", "7", 1.0, True),
        make("x", "wrong", "7", 0.1, False),
        make("y", "wrong", "8", 0.3, ended=False),
        make("z", "no_answer", "", 0.2),
    ]
    found = signs(Group("g", own))
    assert (found.correct, found.suspicious, found.cut, found.tokens) == (0.25, 0.5, 0.25, 4.0)
    assert found.unearned == pytest.approx(0.2)
    assert (found.commonest, found.commonest_share, found.distinct) == ("7", 0.5, 0.75)


def test_classes_of_length_hold_all_and_part_no_length(made):
    run = read(made)
    for group in groups(run):
        found = lengths(group)
        assert sum(one.count for one in found) == len(group.completions)
        assert sum(one.correct for one in found) == sum(c.correct for c in group.completions)
        assert all(one.high < other.low for one, other in itertools.pairwise(found))
        for one in found:
            held = [c.tokens for c in group.completions if one.low <= c.tokens <= one.high]
            assert (one.count, one.mean) == (len(held), pytest.approx(np.mean(held)))
        assert len(found) <= 8


# Completions and the page


def test_a_small_run_has_all_its_completions(made):
    run = read(made)
    found = browser([run], 10**6)
    counts = {"test": 30 * len(MODELS), "dev": 12 * (SFT // 10 + RL // 5), "train": 8 * RL}
    assert {own.split: own.completions for own in found.shown} == counts
    assert all(own.completions == own.of_completions and own.questions == own.of_questions for own in found.shown)
    records = [*lines(made, "evaluations"), *lines(made, "rollouts")]
    asked = collections.Counter(
        (r["id"], r["question"], r["completion"], r["outcome"], r.get("detail", "")) for r in records
    )
    shown = collections.Counter(
        (identity, question, found.texts[row[7]], found.outcomes[row[1]], row[8])
        for _, identity, question, _, rows in found.questions
        for row in rows
    )
    assert shown == asked
    roles = {(moment.split, moment.role): moment.label for moment in found.moments if moment.role != "during"}
    assert roles["test", "before"] == "warm-up"
    assert roles["test", "after"] == "ReFT (PPO) best on dev"
    assert roles["dev", "before"] == "SFT epoch 2, warm-up"
    assert roles["dev", "after"].startswith("iteration ")


def test_ten_thousand_long_completions_fit_and_the_rest_is_said(tmp_path):
    """Each is long, some texts grow when they are escaped, and every example of a failure is there."""
    path = make_run(tmp_path / "large", test=2000, dev=150, sampled=20, text="x < y \u00e9\u2028" * 100)
    run = read(path)
    assert len(run.completions) > 9000
    began = time.monotonic()
    text = report_page([run])
    assert time.monotonic() - began < 60
    assert 0.9 * LIMIT < len(text.encode()) < 5e6
    data = Page(text).data
    for own in data["browser"]["shown"]:
        assert 0 < own["questions"] < own["of_questions"]
    assert sum(own["of_completions"] for own in data["browser"]["shown"]) == len(run.completions)
    assert data["runs"][0]["groups"][0]["count"] == 2000, "numbers are of all of them"
    shown = {(row[0], question[1]) for question in data["browser"]["questions"] for row in question[4]}
    moments = run.moments
    for failure in failures(run):
        for place in failure.examples:
            one = run.completions[place]
            assert (moments.index(one.moment), one.id) in shown


def test_a_sample_is_of_questions_and_the_same_for_all_runs(tmp_path):
    runs = [read(make_run(tmp_path / f"seed{seed}", seed=seed)) for seed in (1, 2)]
    found = browser(runs, 30_000)
    assert 3 < len(found.questions) < 100
    for split, _, _, _, rows in found.questions:
        of_run = collections.Counter(found.moments[row[0]].run for row in rows)
        if split != "train":
            assert of_run[0] == of_run[1] == (4 if split == "test" else 8)


def test_hostile_texts_end_no_script_and_come_back_as_they_were(tmp_path):
    path = make_run(tmp_path / "run<b>&", text=HOSTILE, ask=HOSTILE, settings={"data.name": HOSTILE})
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "command": HOSTILE}))
    text = report_page([read(path)])
    page = Page(text)
    assert len(page.scripts) == 3
    assert page.elements["img"] == page.elements["b"] == 0
    assert text.count("</script>") == 3
    assert text.count("<!--") == 0
    assert page.data["runs"][0]["info"]["command"] == HOSTILE
    assert page.data["browser"]["texts"][0].endswith(HOSTILE)
    assert page.data["browser"]["questions"][0][2].endswith(HOSTILE)


def test_no_script_of_the_page_makes_html_of_texts():
    own = "".join((ROOT / f"reft_jax/report/assets/{name}.js").read_text() for name in SCRIPTS)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in own


@pytest.mark.parametrize("value", [HOSTILE, "\U0001f600", "\\", '"', {"</script>": [1.5, None, HOSTILE]}])
def test_embedded_values_are_json_that_ends_no_script(value):
    text = embedded(value)
    assert json.loads(text) == value
    assert "<" not in text
    assert not {"\u2028", "\u2029"} & set(text)


def test_numbers_that_json_cannot_hold_are_told_by_name():
    assert json.loads(embedded([math.nan, math.inf])) == ["nan", "inf"]


def test_no_other_script_than_the_pages_own_may_run(made):
    page = report_page([read(made)])
    own = [text for attributes, text in Page(page).scripts if "id" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in page
    assert "default-src 'none'" in page


# Runs that are not whole


def test_an_interrupted_run_is_shown_as_far_as_it_is(tmp_path):
    path = make_run(tmp_path / "run", finished=False)
    for name in ("metrics", "evaluations", "rollouts"):
        with (path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 61, "sta')  # a line that is being written
    run = read(path)
    assert status(run) == f"not finished: iteration {RL}, step {SFT + RL}"
    found = results(run)
    assert {row.split for row in found} == {"dev"}
    assert found[0].model == "warm-up"
    dev = {r["step"]: r["eval/accuracy"] for r in lines_without_the_last(path) if "eval/accuracy" in r}
    chosen = int((path / "checkpoints/rl_best").readlink().name.rpartition("_")[2])
    by_name = {row.model: row for row in found}
    assert by_name["ReFT (PPO) best on dev"].accuracy == dev[chosen]
    assert by_name["ReFT (PPO) best on dev"].examples == 16 * 20 + 32 * (chosen - SFT)
    if chosen != SFT + RL:
        assert by_name["latest"].accuracy == dev[SFT + RL]
    assert Page(report_page([run])).data["runs"][0]["finished"] is False


def test_a_run_that_is_in_its_sft_has_its_newest_evaluation(tmp_path):
    found = results(read(make_run(tmp_path / "run", finished=False, rl=0, seed=7)))
    assert [row.model for row in found] == ["warm-up", "SFT continued", "SFT best on dev"]
    path = make_run(tmp_path / "other", finished=False, rl=0, seed=7)
    shutil.rmtree(path / "checkpoints")
    text = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(line for line in text if json.loads(line)["step"] <= 10))
    (row,) = results(read(path))
    assert (row.model, row.split, row.when, row.examples) == ("latest", "dev", "SFT epoch 1", 160)
    assert row.seconds == pytest.approx(sum(1 + step / 100 for step in range(1, 11)))


def lines_without_the_last(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()[:-1]]


def test_runs_without_reinforcement_or_test_set_or_records(tmp_path):
    sft = read(make_run(tmp_path / "sft", rl=0))
    assert [row.model for row in results(sft)] == ["warm-up", "SFT continued", "SFT best on dev"]
    assert "rl" not in lines_of(sft, 100)
    assert "dev_rl" not in lines_of(sft, 100)
    untested = read(make_run(tmp_path / "untested", test=0))
    assert {row.split for row in results(untested)} == {"dev"}
    assert results(untested)[-1].pairing is not None
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("seed: 3\n")
    begun = read(tmp_path / "begun")
    assert status(begun) == "no step is recorded yet"
    for runs in ([sft], [untested], [begun], [sft, untested, begun]):
        assert len(Page(report_page(runs)).data["runs"]) == len(runs)


def test_evaluations_are_spread_and_the_chosen_ones_kept(made, monkeypatch):
    monkeypatch.setattr(folder, "MOMENTS", 4)
    run = read(made)
    steps = sorted({moment.step for moment in run.moments if moment.split == "dev"})
    assert {20, *run.best.values(), 10, SFT + RL} <= set(steps)
    assert run.left_out == 8 - len(steps)


# The command


def test_the_command_writes_one_file_and_says_where(made, tmp_path, capsys):
    samples = tmp_path / "samples.jsonl"
    rows = [
        {"id": f"q{i}", "sample": j, "question": "q", "gold": "7", "completion": "c", "value": value}
        | {"outcome": "correct" if value == 7 else "wrong"}
        for i, values in enumerate([(7, 7, 3, 7), (3, 3, 7, 7), (1, 2, 3, 4)])
        for j, value in enumerate(values)
    ]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "page.html"
    assert main([str(made), "--out", str(out), "--samples", str(samples)]) == 0
    assert out.as_uri() in capsys.readouterr().out
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["page.html", "samples.jsonl"]
    (vote,) = Page(out.read_text()).data["votes"]
    assert vote["questions"] == 3
    assert [k for k, *_ in vote["rows"]] == [1, 2, 4]
    *_, (_, maj, every) = vote["rows"]
    assert (maj[0], every[0]) == pytest.approx((1 / 3, 2 / 3)), "3 of q1 came first; some sample of q0 and q1 is right"


def test_a_live_page_loads_itself_again_until_the_run_is_finished(made, tmp_path, monkeypatch):
    path, out = shutil.copytree(made, tmp_path / "run", symlinks=True), tmp_path / "page.html"
    summary = (path / "summary.json").read_text()
    (path / "summary.json").unlink()
    refreshed = []

    def sleep(seconds):
        refreshed.append('<meta http-equiv="refresh" content="7">' in out.read_text())
        assert seconds == 7
        if len(refreshed) == 2:
            (path / "summary.json").write_text(summary)

    monkeypatch.setattr("reft_jax.report.__main__.time.sleep", sleep)
    assert main([str(path), "--out", str(out), "--live", "--every", "7"]) == 0
    assert refreshed == [True, True]
    assert "refresh" not in out.read_text().partition("<title>")[0]
    assert Page(out.read_text()).data["runs"][0]["finished"] is True


def test_a_live_page_that_is_interrupted_loads_itself_no_more(tmp_path, monkeypatch):
    path, out = make_run(tmp_path / "run", finished=False), tmp_path / "page.html"

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("reft_jax.report.__main__.time.sleep", interrupt)
    assert main([str(path), "--out", str(out), "--live"]) == 0
    assert "refresh" not in out.read_text().partition("<title>")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/none"], "there is no folder {run}/none: name the run_dir of a run"),
        (
            ["{run}/checkpoints"],
            "{run}/checkpoints is no folder of a run, it has neither config.yaml nor metrics.jsonl",
        ),
        (["{run}", "{run}/"], "{run} is given twice"),
        (["{run}", "--out", "{run}/metrics.jsonl"], "--out is {run}/metrics.jsonl: the page is HTML"),
        (["{run}", "--out", "{run}/none/page.html"], "there is no such folder to write to"),
        (["{run}", "--every", "0.5"], "--every is 0.5: it must be 1 second or more"),
        (["{run}", "--samples", "{run}/none.jsonl"], "there is no file {run}/none.jsonl"),
    ],
)
def test_what_is_refused(made, tmp_path, capsys, arguments, message):
    given = [argument.format(run=made) for argument in arguments]
    assert main([*given, *([] if "--out" in given else ["--out", str(tmp_path / "page.html")])]) == 2
    assert message.format(run=made) in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("metrics", '{"step": 1', "line 1: not JSON"),
        ("metrics", '{"step": 1}', "line 1: field `stage` is missing"),
        ("metrics", '{"step": 1, "stage": "rl", "reward/mean": "much"}', "line 1: could not convert"),
        ("evaluations", '{"split": "dev"}', "line 1: field `step` is missing"),
        ("evaluations", '{"step": 1, "split": "all"}', "line 1: field `split` is 'all', and neither dev nor test"),
        ("rollouts", '{"step": 1, "id": 5}', "line 1: field `id` is missing, or no text"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(tmp_path, capsys, name, line, message):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert f"{tmp_path / name}.jsonl, {message}" in capsys.readouterr().err


def test_runs_are_called_by_what_tells_them_apart():
    assert names_of([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert names_of([Path("/a/x/run"), Path("/a/y/run"), Path("/z")]) == ["x/run", "y/run", "/z"]


def test_a_report_needs_no_jax(made, tmp_path):
    code = f"""
import sys
from reft_jax.report.__main__ import main
assert main([{str(made)!r}, "--out", {str(tmp_path / "page.html")!r}]) == 0
assert not {{"jax", "numpy", "transformers"}} & sys.modules.keys(), sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
