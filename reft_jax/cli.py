"""`reft COMMAND ...`: every command of the package under one name, as `python -m reft_jax.COMMAND` has it."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import reft_jax

COMMANDS = {
    "init": "write a config and example rows for your own model and data",
    "train": "train a model: warm-up, reinforcement, one reading of the test set",
    "sample": "sample completions of a set of problems",
    "evaluate": "measure accuracy: of a checkpoint, or of a file of samples",
    "probe": "say whether reinforcement will help a checkpoint, before it is paid for",
    "report": "write one HTML page about runs: results, curves, what the model said before and after",
    "select": "make training data out of the right samples of a file",
    "reward-model": "train a reward model, and choose among samples by it",
    "export": "write a checkpoint as a Hugging Face directory",
    "data": "say what problem files hold, and what a run would refuse, cut or learn wrongly of it",
    "reward": "say what the reward makes of a file of completions",
    "preflight": "say whether a run fits devices that are not here",
}
"""What each command does, in the order of a project."""


def overview() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = "".join(f"  {name:{width}}  {does}\n" for name, does in COMMANDS.items())
    return (
        f"usage: reft COMMAND ...\n\nReFT: fine-tuning by reinforcement, in JAX.\n\n{lines}\n"
        "`reft COMMAND --help` has the options of a command. First steps: reft train --config quickstart"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Hands over to a command, of which alone anything is imported; 2 where there is none of that name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if given[0] in ("--version", "version"):
        print(f"reft_jax {reft_jax.__version__}")
        return 0
    command, *rest = given
    name = command.replace("_", "-")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        meant = f": did you mean `reft {close[0]}`?" if close else ": `reft --help` lists them"
        print(f"error: {command} is no command of reft{meant}", file=sys.stderr)
        return 2
    return importlib.import_module(f"reft_jax.{_module(name)}").main(rest)


def _module(name: str) -> str:
    """`reft_jax.X` is a module, or a package that `python -m` would run by its `__main__`."""
    packages = ("data", "preflight", "report", "reward", "reward-model")
    return name.replace("-", "_") + (".__main__" if name in packages else "")


if __name__ == "__main__":
    sys.exit(main())
