"""Which scorers of reasoning-gym run what a model wrote: hostile answers to every task, each in a contained worker.

    python -m benchmarks.scorers [--tasks countdown n_queens]

Answers are code in the forms that scorers take: alone, in a list, and behind the task's own gold answer. Nothing of
them runs: the worker refuses code before Python executes it (`reft_jax/reward/scorers.py`), and its refusal is what
shows that a scorer had handed it over. A last answer, an endless power, is sent to these scorers, and ends at the
worker's limit of time. There is no way to send them to a scorer outside of a worker.
"""

import sys
from collections.abc import Mapping, Sequence

import jsonargparse
import rich.console
import rich.table

from reft_jax.problem import TaskItem
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult
from reft_jax.reward.scorers import items

CODE = "__import__('os').getpid()"
FORMS = ("{code}", "[{code}]", "{gold} + 0 * {code}", "[[{code}]]", "{{{code}: 1}}")
ENDLESS = ("9**9**9**9", "{gold} + 0 * 9**9**9**9", "[9**9**9**9]")
NAMES = {"forbidden": "handed over and refused", "timeout": "ended by the limit of time"}


def all_tasks() -> list[str]:
    """Every task that needs no parameters."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def probe(
    golds: Mapping[TaskItem, str], forms: Sequence[str], runner: ProgramRunner
) -> dict[TaskItem, list[ProgramResult]]:
    """What came of the hostile answers to each item, which has a gold answer or an empty one."""
    pairs = [(item, form.format(code=CODE, gold=gold or "0")) for item, gold in golds.items() for form in forms]
    found: dict[TaskItem, list[ProgramResult]] = {item: [] for item in golds}
    for (item, _), result in zip(pairs, runner.scores(pairs)):
        found[item].append(result)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tasks whose scorers run answers, and counts; returns 1 if an answer was scored as right."""
    parser = jsonargparse.ArgumentParser(prog="python -m benchmarks.scorers", description=__doc__)
    parser.add_argument("--tasks", nargs="+", type=str, default=[], help="some tasks; default: all")
    tasks = parser.parse_args(arguments).tasks or all_tasks()
    golds = {TaskItem(name, "{}", row["entry"]): row["answer"] for name in tasks for row in items(name, {}, 0, 1)}
    with ProgramRunner(2, 1.0, 512) as runner:
        found = probe(golds, FORMS, runner)
        running = {item: golds[item] for item in golds if any(r.outcome == "forbidden" for r in found[item])}
        endless = probe(running, ENDLESS, runner)
    table = rich.table.Table("task", f"`{CODE}`", "`9**9**9**9`")
    for item, ends in endless.items():
        table.add_row(item.name, *(NAMES.get(_worst(results), "scored as wrong") for results in (found[item], ends)))
    rich.console.Console().print(table)
    results = [result for some in (*found.values(), *endless.values()) for result in some]
    errors = [item.name for item, some in found.items() if any(result.outcome == "error" for result in some)]
    right = [result for result in results if result.value == 1]
    print(f"{len(running)} of {len(tasks)} scorers hand an answer's code to Python.")
    print(f"{len(right)} of {len(results)} hostile answers scored 1.")
    print(f"Scorers that raise on one: {', '.join(errors) or 'none'}.")
    return int(bool(right))


def _worst(results: Sequence[ProgramResult]) -> str:
    """The outcome that says most."""
    outcomes = {result.outcome for result in results}
    return next((outcome for outcome in NAMES if outcome in outcomes), "ok")


if __name__ == "__main__":
    sys.exit(main())
