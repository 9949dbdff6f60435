"""`python -m reft_jax.preflight --config FILE --target a100:1x1x8`: does a run fit devices that are not here?

It compiles the real steps of the config for the target, in the largest bucket of each, and needs neither the hardware
nor weights, data or network: the model's shape comes from its `config.json`. It says how much memory each phase of the
run takes, what moves between devices, and what to change where it does not fit. These are the compiler's facts, not a
run's: speed and numerics stay open. Exit status: 0 fits, 1 does not, 2 could not tell.
"""

import argparse
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from reft_jax.config import Config, load_config
from reft_jax.preflight.devices import FORMS, Target, missing_wheels, parse_target
from reft_jax.preflight.report import assess, show

SHAPES = Path(__file__).parents[2] / "configs" / "models"
"""Holds `<organisation>/<name>/config.json` of models by their hub id."""


WIDTH = 110
"""Columns that the tables take."""


class CannotTellError(Exception):
    """Why there is no answer."""


def main(args: Sequence[str] | None = None) -> int:
    """Compiles what `args` (or the command line) say, prints the answer, and returns the exit status."""
    parser = _parser()
    own, rest = parser.parse_known_args(args)
    config = load_config(rest)
    notes = Console(stderr=True)
    try:
        target = parse_target(own.target, own.memory_gb)
        shaped = with_model_directory(config, own.model_config)
        if command := missing_wheels(target):
            raise CannotTellError(f"compiling for {own.target} needs wheels that are not installed here: {command}")
        report = compile_all(shaped, target, notes)
    except (CannotTellError, ValueError) as error:
        notes.print(f"could not tell: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    report["model"]["path"] = config.model.path
    show(report, Console(width=max(WIDTH, Console().width)))  # a narrower one would cut the names of the steps
    if own.json:
        Path(own.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["fits"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reft_jax.preflight",
        description="Compiles the steps of a run for devices that are not here, and says whether they fit.",
        epilog="All other arguments are those of `python -m reft_jax.train`: --config FILE, and dotted overrides.",
        allow_abbrev=False,
    )
    parser.add_argument("--target", required=True, help=f"devices: {FORMS}")
    parser.add_argument("--memory_gb", type=float, default=0.0, help="10^9 bytes that a device has free for the run")
    parser.add_argument("--model_config", default="", help="config.json of a model that configs/models lacks")
    parser.add_argument("--json", default="", help="file that all figures are written to")
    return parser


def with_model_directory(config: Config, model_config: str) -> Config:
    """The config with `model.path` a directory that has the model's `config.json`.

    Raises:
        ValueError: there is none; says which there are.
    """
    path = config.model.path
    if not path and not model_config:
        return config
    if model_config:
        directory = Path(model_config).parent
        if Path(model_config).name != "config.json" or not Path(model_config).is_file():
            raise ValueError(f"--model_config {model_config}: there is no such file, or it is not called config.json")
    else:
        directory = Path(path).expanduser() if Path(path).expanduser().is_dir() else SHAPES / path
    if not (directory / "config.json").is_file():
        known = sorted(str(found.parent.relative_to(SHAPES)) for found in SHAPES.glob("*/*/config.json"))
        raise ValueError(
            f"model.path {path!r} is neither a directory with a config.json nor one of {', '.join(known)}: "
            "name its config.json with --model_config FILE"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(directory)))


def compile_all(config: Config, target: Target, notes: Console) -> dict[str, Any]:
    """Plans, compiles each step in a process of its own, and assesses what came of it.

    Raises:
        CannotTellError: a process failed; has its message.
    """
    plan = in_subprocess(config, target, "")[0]
    measures = {}
    for number, step in enumerate(plan["steps"], start=1):
        started = time.monotonic()
        with notes.status(f"compiling {step} for {target.name} ({number} of {len(plan['steps'])})"):
            measures[step], stderr = in_subprocess(config, target, step)
        measures[step]["findings"] = list(known_lines(stderr))
        if not notes.is_terminal:
            notes.print(f"compiled {step} for {target.name} in {time.monotonic() - started:.0f} s", highlight=False)
    return assess(config, target, plan, measures)


def in_subprocess(config: Config, target: Target, step: str) -> tuple[dict[str, Any], str]:
    """What `preflight_steps` says of a step (or the plan) in a process with the target's environment, and its stderr.

    Raises:
        CannotTellError: it failed; has its message.
    """
    process = subprocess.run(
        [sys.executable, "-m", "reft_jax.preflight.steps"],
        input=pickle.dumps((config, target, step)),
        capture_output=True,
        env=os.environ | target.environment(),
    )
    stderr = process.stderr.decode(errors="replace")
    if process.returncode:
        last = "\n".join(stderr.strip().splitlines()[-20:])
        raise CannotTellError(f"{step or 'the plan'} for {target.name} failed ({process.returncode}):\n{last}")
    result = json.loads(process.stdout.splitlines()[-1])
    if "error" in result:
        raise CannotTellError(result["error"])
    return result, stderr


def known_lines(stderr: str) -> Iterator[str]:
    """What the compiler said on its standard error that costs memory or time, one line for each kind."""
    replicated = re.findall(r"Involuntary full rematerialization.*", stderr)
    if replicated:
        places = dict.fromkeys(re.findall(r'op_name="([^"]*)"', "\n".join(replicated)))
        yield (
            f"{len(replicated)} arrays are replicated on every device to change their layout (involuntary full "
            f"rematerialization){', such as ' + next(iter(places)) if places else ''}"
        )
    for wanted, needed in re.findall(r"Can't reduce memory use below (\S+).*only reduced to (\S+)", stderr)[:1]:
        yield f"the compiler recomputes all it can to stay below {wanted}, and still needs {needed}"


if __name__ == "__main__":
    sys.exit(main())
