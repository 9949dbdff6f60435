"""Which scorers of reasoning-gym run what a model wrote: hostile answers to every task, each in a contained worker.

    python -m benchmarks.scorers [--tasks countdown n_queens]

Answers are code in the forms that scorers take: alone, in a list, and behind the task's own gold answer. Nothing of
them runs: the worker refuses code before Python executes it (`reft_jax/reward/scorers.py`), and its refusal is what
shows that a scorer had handed it over. A last answer, an endless power, is sent to these scorers, and ends at the
worker's limit of time. There is no way to send them to a scorer outside of a worker.
"""

import sys
from collections.abc import Sequence

import jsonargparse
import rich.console
import rich.table

from reft_jax.config import SourceConfig
from reft_jax.data.tasks import read_tasks
from reft_jax.problem import Problem, TaskItem
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult

CODE = "__import__('os').getpid()"
FORMS = ("{code}", "[{code}]", "{gold} + 0 * {code}", "[[{code}]]", "{{{code}: 1}}")
ENDLESS = ("9**9**9**9", "{gold} + 0 * 9**9**9**9", "[9**9**9**9]")
NAMES = {"forbidden": "handed over and refused", "timeout": "ended by the limit of time"}


def all_tasks() -> list[str]:
    """Every task that needs no parameters."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def answers(problem: Problem, forms: Sequence[str]) -> list[tuple[TaskItem, str]]:
    """The item of a problem with each hostile answer."""
    assert problem.item is not None
    return [(problem.item, form.format(code=CODE, gold=problem.answer)) for form in forms]


def probe(problems: Sequence[Problem], forms: Sequence[str], runner: ProgramRunner) -> dict[str, list[ProgramResult]]:
    """What came of the hostile answers to each task, by its name."""
    pairs = [pair for problem in problems for pair in answers(problem, forms)]
    found: dict[str, list[ProgramResult]] = {}
    for (item, _), result in zip(pairs, runner.scores(pairs)):
        found.setdefault(item.name, []).append(result)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tasks whose scorers run answers, and counts; returns 1 if an answer was scored as right."""
    parser = jsonargparse.ArgumentParser(prog="python -m benchmarks.scorers", description=__doc__)
    parser.add_argument("--tasks", nargs="+", type=str, default=[], help="some tasks; default: all")
    tasks = parser.parse_args(arguments).tasks or all_tasks()
    problems = [read_tasks(SourceConfig(kind="reasoning_gym", name=name, limit=1))[0] for name in tasks]
    with ProgramRunner(2, 1.0, 512) as runner:
        found = probe(problems, FORMS, runner)
        running = [problem for problem in problems if any(r.outcome == "forbidden" for r in found[problem.id[:-2]])]
        endless = probe(running, ENDLESS, runner)
    table = rich.table.Table("task", f"`{CODE}`", "`9**9**9**9`")
    for name, ends in endless.items():
        table.add_row(name, *(NAMES.get(_worst(results), "scored as wrong") for results in (found[name], ends)))
    rich.console.Console().print(table)
    results = [result for some in (*found.values(), *endless.values()) for result in some]
    errors = [name for name, some in found.items() if any(result.outcome == "error" for result in some)]
    right = [result for result in results if result.value == 1]
    print(f"{len(running)} of {len(tasks)} scorers hand an answer's code to Python; of {len(results)} hostile answers")
    print(f"{len(right)} scored 1. Scorers that raise on one: {', '.join(errors) or 'none'}.")
    return int(bool(right))


def _worst(results: Sequence[ProgramResult]) -> str:
    """The outcome that says most."""
    outcomes = {result.outcome for result in results}
    return next((outcome for outcome in NAMES if outcome in outcomes), "ok")


if __name__ == "__main__":
    sys.exit(main())
