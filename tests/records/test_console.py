"""What is printed, letter for letter where it is plain, and by its last frame where it is a terminal's."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from reft_jax.records.console import SHOWN, ProgressDisplay, closing_table, print_closing_table
from reft_jax.records.metrics import METRICS


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _plain(run: Callable[[ProgressDisplay, Clock], None], show: bool = True) -> str:
    """What `run` prints into a file, narrow so that any breaking of lines would show."""
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=40, force_terminal=False)
    with ProgressDisplay(console=console, clock=clock, show=show) as progress:
        run(progress, clock)
    return file.getvalue()


def _terminal(run: Callable[[ProgressDisplay], None], width: int, show: bool = True) -> str:
    """What `run` sends to a terminal, control sequences included."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, force_interactive=True, legacy_windows=False)
    with ProgressDisplay(console=console, show=show) as progress:
        run(progress)
    return file.getvalue()


def _last_lines(output: str, count: int) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-count:]


def test_plain_lines_come_every_few_seconds_and_at_the_end_of_a_stage() -> None:
    def run(progress: ProgressDisplay, clock: Clock) -> None:
        progress.message("[bold] of 2 devices :smile:, a line that is longer than the console is wide")
        progress.stage("sft", 4)
        for step in range(1, 5):
            clock.now += 1
            progress.advance(step, {"sft/loss": 2 / step, "run/epoch": 1.0})
        progress.stage("rl", 100)
        for step in range(1, 6):
            clock.now += 20 if step == 1 else 4
            fields = {"reward/mean": 0.5, "reward/correct": 0.4375, "throughput/rollout_tokens_per_s": 12345.0}
            progress.advance(step, fields | ({"eval/accuracy": 1 / 3} if step == 3 else {}))

    assert _plain(run) == (
        "[bold] of 2 devices :smile:, a line that is longer than the console is wide\n"
        "sft 1/4  ETA --:--  loss 2.000\n"
        "sft 4/4  ETA 0:00  loss 0.500\n"
        "rl 1/100  ETA --:--  reward 0.500  right 43.8%  12.3k tok/s\n"
        # 97 steps of 4 s are left; the first, which took 20 s, is not counted.
        "rl 3/100  ETA 6:28  reward 0.500  right 43.8%  dev 33.3%  12.3k tok/s\n"
        # The accuracy stays until there is a newer one.
        "rl 5/100  ETA 6:20  reward 0.500  right 43.8%  dev 33.3%  12.3k tok/s\n"
    )


def test_time_left_counts_the_steps_of_this_process_only() -> None:
    def run(progress: ProgressDisplay, clock: Clock) -> None:
        progress.stage("rl", 1000, done=900)
        progress.advance(901, {})
        clock.now += 90
        progress.advance(902, {})
        clock.now += 3600
        progress.advance(904, {})

    assert _plain(run) == (
        "rl 901/1000  ETA --:--\n"
        "rl 902/1000  ETA 2:27:00\n"  # 98 steps of 90 s
        "rl 904/1000  ETA 32:48:00\n"  # 96 steps of (90 + 3600) / 3 s
    )


def test_a_stage_without_fields_or_with_one_step_is_a_line() -> None:
    def run(progress: ProgressDisplay, clock: Clock) -> None:
        progress.stage("sft", 1)
        progress.advance(1, {})

    assert _plain(run) == "sft 1/1  ETA 0:00\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (999.4, "999"), (999.6, "1.0k"), (99_960.0, "100.0k"), (999_949.0, "999.9k"), (2.5e6, "2.5M")],
)
def test_tokens_per_second(value: float, shown: str) -> None:
    assert SHOWN["throughput/train_tokens_per_s"](value) == f"{shown} tok/s"


def test_every_metric_shown_exists() -> None:
    assert set(SHOWN) <= set(METRICS)


def test_a_terminal_keeps_one_line_for_each_stage() -> None:
    def run(progress: ProgressDisplay) -> None:
        progress.stage("sft", 2)
        progress.advance(1, {"sft/loss": 1.5})
        progress.advance(2, {"sft/loss": 0.5})
        progress.message("[bold] warm-up done")
        progress.stage("rl", 300, done=290)
        progress.message("begins")
        progress.advance(291, {"reward/mean": 0.5, "eval/accuracy": 0.25, "rl/sequence_kl": 2.0})

    output = _terminal(run, width=100)
    sft, rl = _last_lines(output, 2)
    assert re.fullmatch(r"sft \S{8} 2/2 +ETA 0:00 +loss 0\.500 *", sft)
    assert re.fullmatch(r"rl +\S{8} 291/300 ETA --:-- reward 0\.500  dev 25\.0%  kl 2\.00 *", rl)
    assert "[bold] warm-up done" in output
    assert re.search(r"rl +\S{8} 290/300 ETA --:--", "\n".join(_last_lines(output, 99))), "a resumed bar begins at 0"


def test_a_narrow_terminal_cuts_the_last_metrics_only() -> None:
    def run(progress: ProgressDisplay) -> None:
        progress.stage("rl", 300)
        progress.advance(300, {"reward/mean": 0.5, "eval/accuracy": 0.25, "rl/sequence_kl": 2.0})

    (line,) = _last_lines(_terminal(run, width=48), 1)
    assert re.fullmatch(r"rl \S{8} 300/300 ETA 0:00 reward 0\.500  d\S* ?… *", line)


def test_a_terminal_is_given_back_when_the_run_fails() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, legacy_windows=False)

    def fail() -> None:
        with ProgressDisplay(console=console) as progress:
            progress.stage("rl", 300)
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        fail()
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1


def test_other_processes_are_silent() -> None:
    def run(progress: ProgressDisplay, clock: Clock | None = None) -> None:
        progress.message("hello")
        progress.stage("rl", 1)
        progress.advance(1, {"reward/mean": 0.5})

    assert _plain(run, show=False) == ""
    assert _terminal(run, width=80, show=False) == ""


def test_closing_table() -> None:
    summary = {
        "rl_best": {
            "accuracy": 1.0,
            "interval": [0.9801, 1.0],
            "examples": 123456,
            "seconds": 3599.6,
            "algorithm": "ppo",
        },
        "warmup": {"accuracy": 0.604, "interval": (0.55, 0.6604), "examples": 800, "seconds": 12.2},
        "sft_best": {"accuracy": 0.0, "interval": [0.0, 0.02], "examples": 4000, "seconds": 60.0, "step": 9},
        "another": {},
    }
    file = io.StringIO()
    print_closing_table(summary, Console(file=file, width=80, force_terminal=False))
    assert [line.strip() for line in file.getvalue().splitlines()] == [
        "Accuracy on test",
        "┏━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━┓",
        "┃ model                  ┃ accuracy % ┃ 95 % interval ┃ trained on ┃ seconds ┃",
        "┡━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━┩",
        "│ warm-up                │       60.4 │  55.0 to 66.0 │        800 │      12 │",
        "│ SFT best on dev        │        0.0 │    0.0 to 2.0 │      4,000 │      60 │",
        "│ ReFT (PPO) best on dev │      100.0 │ 98.0 to 100.0 │    123,456 │   3,600 │",
        "└────────────────────────┴────────────┴───────────────┴────────────┴─────────┘",
    ]


def test_the_table_says_what_was_chosen_on_test() -> None:
    facts = {"accuracy": 0.5, "interval": [0.4, 0.6], "examples": 1, "seconds": 1.0}
    chosen = {**facts, "test_best": True}
    summary = {"warmup": facts, "sft_best": chosen, "rl_best": {**chosen, "algorithm": "grpo"}}
    file = io.StringIO()
    print_closing_table(summary, Console(file=file, width=80, force_terminal=False))
    printed = " ".join(file.getvalue().split())
    names = ["warm-up", "SFT test-best", "GRPO test-best"]
    assert re.findall(r"│ ([\w ()-]+) │ 50.0", printed) == names, "only PPO is ReFT"
    assert "test-best: chosen on the test set itself, so that the accuracy is too high" in printed


def test_the_table_has_rewards_where_there_is_no_accuracy() -> None:
    facts = {"examples": 1, "seconds": 1.0}
    chosen = {**facts, "dev_reward": 1.25, "algorithm": "grpo"}
    for own, title, warmup in (
        ({}, "Mean reward on dev (there is no test set)", ""),
        ({"reward": -0.5}, "test", "-0.500"),
    ):
        file = io.StringIO()
        summary = {"warmup": {**facts, **own}, "rl_best": {**chosen, **own}}
        print_closing_table(summary, Console(file=file, width=80, force_terminal=False))
        printed = " ".join(file.getvalue().split())
        assert title in printed
        assert re.findall(r"│ ([\w -]+?) │ ([-\d.]*) ?│ 1", printed) == [
            ("warm-up", warmup),
            ("GRPO best on dev", warmup or "1.250"),
        ]
        assert "accuracy" not in printed.lower()


def test_a_model_without_its_accuracy_is_an_error() -> None:
    with pytest.raises(KeyError, match="interval"):
        closing_table({"warmup": {"accuracy": 0.5, "examples": 1, "seconds": 1.0}})


@pytest.mark.parametrize("live", [False, True])
def test_the_log_has_plain_lines_with_times_whatever_the_console_is(tmp_path, live) -> None:
    path, clock = tmp_path / "log.txt", Clock()
    for _ in range(2):  # a run that goes on appends
        console = Console(file=io.StringIO(), width=40, force_terminal=live, force_interactive=live)
        with ProgressDisplay(console=console, clock=clock, log=path) as progress:
            progress.message("two lines,\nhalf of a pair: \ud83d")
            progress.stage("sft", 3)
            for step in (1, 2, 3):
                clock.now += 1
                progress.advance(step, {"sft/loss": 2 / step})
    lines = path.read_text().splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ .+", line) for line in lines)
    said = [line.partition(" ")[2] for line in lines]
    first = ["two lines,", r"half of a pair: \ud83d"]
    last = "sft 3/3  ETA 0:00  loss 0.667"
    assert said == [*first, "sft 1/3  ETA --:--  loss 2.000", last, *first, "sft 1/3  ETA --:--  loss 2.000", last]


def test_a_process_that_is_silent_writes_no_log(tmp_path) -> None:
    with ProgressDisplay(show=False, log=tmp_path / "log.txt") as progress:
        progress.message("nobody")
    assert not (tmp_path / "log.txt").exists()
