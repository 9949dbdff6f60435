"""`python -m reft_jax.preflight --config FILE --target a100:1x1x8`: does a run fit devices that are not here?

It compiles the real steps of the config for the target, in the largest bucket of each, and needs neither the hardware
nor weights, data or network: the model's shape comes from its `config.json`. It says how much memory each phase of the
run takes, what moves between devices, what to change where it does not fit, and by the target's data sheet how long it
will take. All but the last are the compiler's facts; numerics stay open. Exit status: 0 fits, 1 does not, 2 could not
tell.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from reft_jax.config import CommandParser, Config, load_config
from reft_jax.config.files import SHIPPED
from reft_jax.config.invocation import program
from reft_jax.data.buckets import automatic
from reft_jax.files import user_path
from reft_jax.preflight.bill import Lengths
from reft_jax.preflight.devices import FORMS, Target, missing_wheels, parse_target
from reft_jax.preflight.report import assess, show

SHAPES = SHIPPED / "models"
"""Holds `<organisation>/<name>/config.json` of models by their hub id."""


WIDTH = 110
"""Columns that the tables take."""


class CannotTellError(Exception):
    """Why there is no answer."""


def main(args: Sequence[str] | None = None) -> int:
    """Compiles what `args` (or the command line) say, prints the answer, and returns the exit status."""
    parser = _parser()
    own, rest = parser.parse_known_args(args)
    if not own.target:
        parser.error(f"--target is required: {FORMS}")
    notes = Console(stderr=True)
    try:
        if not 0 <= own.memory_gb < math.inf:
            raise ValueError(f"--memory_gb is {own.memory_gb}: it must be 0, which takes what is known, or more")
        if own.json and not user_path(own.json).absolute().parent.is_dir():
            raise ValueError(f"--json {own.json}: there is no such folder to write to")
        target = parse_target(own.target, own.memory_gb)
        config = load_config(["--run_dir=unused", *rest], prog=parser.prog)  # nothing is written
        if auto := [".".join(key) for key in automatic(config)]:
            raise ValueError(
                f"{', '.join(auto)}: auto is made of the data's lengths, and no data is read here; give lengths, such "
                "as those that a run, and `python -m reft_jax.data --config FILE`, print"
            )
        shaped = with_model_directory(config, own.model_config)
        if command := missing_wheels(target):
            raise CannotTellError(f"compiling for {own.target} needs wheels that are not installed here: {command}")
        mean = Lengths(*own.mean_tokens) if own.mean_tokens else None
        report = compile_all(shaped, target, notes, isolate=own.isolate, problems=own.problems, mean=mean)
    except (CannotTellError, ValueError) as error:
        notes.print(f"could not tell: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    report["model"]["path"] = config.model.path
    show(report, Console(width=max(WIDTH, Console().width)))  # a narrower one would cut the names of the steps
    if own.json:
        user_path(own.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["fits"] else 1


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=program("preflight"),
        description="Compiles the steps of a run for devices that are not here, and says whether they fit.",
        epilog=f"All other arguments are those of `{program('train')}`: --config FILE, and dotted overrides, which "
        "--help-all shows.",
        allow_abbrev=False,
    )
    parser.add_argument("--target", default="", help=f"devices: {FORMS}")
    parser.add_argument(
        "--memory_gb",
        type=float,
        default=0.0,
        help="10^9 bytes that a device has free; default: what is known of it",
    )
    parser.add_argument("--model_config", default="", help="config.json of a model that the package does not know")
    parser.add_argument("--json", default="", help="file that all figures are written to; default: none")
    parser.add_argument("--problems", type=_positive, default=0, help="to train on, for the hours of the whole run")
    parser.add_argument(
        "--mean_tokens",
        type=_positive,
        nargs=2,
        metavar=("PROMPT", "RESPONSE"),
        help="of a row on average, for the estimate of time; default: those of the largest buckets",
    )
    parser.add_argument("--isolate", action="store_true", help="compile each step in a process of its own")
    return parser


def _positive(text: str) -> int:
    """A whole number that is more than 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number that is more than 0")
    return int(text)


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


def compile_all(
    config: Config,
    target: Target,
    notes: Console,
    *,
    isolate: bool = False,
    problems: int = 0,
    mean: Lengths | None = None,
) -> dict[str, Any]:
    """Plans, compiles all steps in one process, or each in its own, and assesses what came of it.

    Raises:
        CannotTellError: a process failed; has its message.
    """
    rest = in_subprocess(config, target, () if isolate else None)
    plan, _ = next(rest)
    names, measures = list(plan["steps"]), {}
    for number, step in enumerate(names, start=1):
        started = time.monotonic()
        with notes.status(f"compiling {step} for {target.name} ({number} of {len(names)})"):
            if isolate:
                _, (measures[step], stderr) = in_subprocess(config, target, (step,))
            else:
                measures[step], stderr = next(rest)
        measures[step]["findings"] = list(known_lines(stderr))
        if not notes.is_terminal:
            notes.print(f"compiled {step} for {target.name} in {time.monotonic() - started:.0f} s", highlight=False)
    return assess(config, target, plan, measures, problems=problems, mean=mean)


def in_subprocess(config: Config, target: Target, names: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields what `preflight.steps` says in a process with the target's environment, each with what came on its stderr.

    Args:
        config: with `model.path` a directory.
        target: the devices.
        names: steps to compile after the plan; None compiles all.

    Raises:
        CannotTellError: it failed; has its message.
    """
    ahead, place = ["the plan", *(names or ())], 0
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "reft_jax.preflight.steps"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | target.environment(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # why it has died is told below
                pickle.dump((config, target, names), process.stdin)
                process.stdin.close()
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise CannotTellError(answer["error"])
                if names is None and "steps" in answer:
                    ahead += answer["steps"]
                said = os.pread(
                    stderr.fileno(), os.fstat(stderr.fileno()).st_size - place, place
                )  # the child writes on
                place += len(said)
                del ahead[0]
                yield answer, said.decode(errors="replace")
            if code := process.wait():
                said = os.pread(stderr.fileno(), os.fstat(stderr.fileno()).st_size - place, place)
                last = "\n".join(said.decode(errors="replace").strip().splitlines()[-20:])
                raise CannotTellError(f"{ahead[0]} for {target.name} failed ({code}):\n{last}")
        finally:
            process.kill()


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
