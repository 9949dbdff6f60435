"""Kills a run twenty times, at random moments in everything that it does, and says where each kill struck."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.runs import ITERATIONS, SFT_STEPS, read

KILLS = 20
SEED = 5
LONGEST = {"step": 0.5, "between": 1.5, "evaluating": 0.05, "saving": 0.05, "reading": 3.0}  # seconds to wait then


def moments() -> list[tuple[str, int]]:
    """Twenty pairs of what the run is to be doing and the step that it has then recorded, in order of the steps.

    `saving` waits for an unfinished checkpoint after that step, `evaluating` for the step before an evaluation,
    `between` for the end of SFT; `step` is a moment within the half second that follows.
    """
    draw = random.Random(SEED)
    anywhere = [("step", draw.randrange(1, SFT_STEPS)) for _ in range(6)]
    in_ppo = [("step", SFT_STEPS + draw.randrange(1, ITERATIONS)) for _ in range(5)]
    saving = [("saving", step) for step in (17, 35, 53, SFT_STEPS - 1, SFT_STEPS + 1)]
    evaluating = [("evaluating", 24), ("evaluating", SFT_STEPS + 3)]
    return sorted(
        [*anywhere, *in_ppo, *saving, *evaluating, ("between", SFT_STEPS), ("between", SFT_STEPS)], key=by_step
    )


def by_step(moment: tuple[str, int]) -> int:
    return moment[1]


def recorded(run_dir: Path) -> int:
    """The last training step in the records; a line that is just being written does not count."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = path.read_text().rpartition("\n")[0].splitlines()
    return max((int(line.split(",", 1)[0].split()[1]) for line in lines if '"optimizer/' in line), default=0)


def unfinished(run_dir: Path) -> list[str]:
    return [path.name for path in (run_dir / "checkpoints/resume").glob("*tmp*")]


def kill_twenty_times(
    launch: Callable[[], subprocess.Popen], members: Callable[[Path], dict[int, int]], run_dir: Path
) -> None:
    """Starts the run again and again, kills all its processes each time, and lets it end at last.

    Args:
        launch: starts it, by a launcher that ends when its processes have.
        members: ids of the run's processes.
        run_dir: its folder.
    """
    draw = random.Random(SEED + 1)
    plan = moments()
    assert len(plan) == KILLS
    for number, (doing, step) in enumerate(plan, 1):
        saved = max(resume_points(run_dir), default=0)
        launcher, deadline = launch(), time.monotonic() + 600
        if saved == SFT_STEPS + ITERATIONS:
            doing, step = "reading", saved
        else:
            step = max(step, saved + 1)
        begun = False  # records after the last resume point are cut off first, and do not count
        while not begun or recorded(run_dir) < step or (doing == "saving" and not unfinished(run_dir)):
            begun = begun or (bool(members(run_dir)) and recorded(run_dir) <= saved)
            assert launcher.poll() is None, launcher.communicate()[0]
            assert time.monotonic() < deadline, (doing, step)
            time.sleep(0.002)
        time.sleep(draw.uniform(0, LONGEST[doing]))
        left = unfinished(run_dir)
        for identity in members(run_dir).values():
            os.kill(identity, signal.SIGKILL)
        launcher.communicate(timeout=120)
        assert not members(run_dir)
        assert not (run_dir / "summary.json").exists(), f"kill {number} ({doing}, {step}) came too late"
        last = read_last(run_dir)
        print(f"kill {number:2}: {doing:10} planned at step {step:2}, last record {last}", *left, flush=True)
    launcher = launch()
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output


def resume_points(run_dir: Path) -> list[int]:
    return [int(path.name) for path in (run_dir / "checkpoints/resume").glob("*") if path.name.isdigit()]


def read_last(run_dir: Path) -> str:
    """Step and kind of the newest whole record."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    if not text.endswith("\n"):
        return f"torn after {recorded(run_dir)}"
    record = read(run_dir, "metrics")[-1]
    return f"{record['step']} ({record['stage']}{', evaluation' if 'eval/accuracy' in record else ''})"
