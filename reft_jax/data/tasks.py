"""Problems of reasoning-gym's tasks: item i is a function of the task, its parameters, the seed and i alone.

Most tasks make it of seed + i, so that neighbouring seeds share items. `acre` and mixtures go by the number of items
too.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from reft_jax.config import SourceConfig
from reft_jax.problem import Problem, TaskItem

_COMMAND = ("-P", "-m", "reft_jax.reward.scorers")
_ROOT = str(Path(__file__).parents[2])  # where the command finds the package


def read_tasks(source: SourceConfig) -> list[Problem]:
    """The first `source.limit` items of the task `source.name`, made by a process of its own.

    Gold answers are the items' own, empty where a task has none: there may be others, and the task's scorer judges.

    Raises:
        ValueError: reasoning-gym is not installed, or has no such task or parameters; the message is its own.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError("a source's kind is reasoning_gym, which is not installed: pip install 'reft_jax[gym]'")
    asked = {"name": source.name, "config": source.config, "seed": source.seed, "size": source.limit}
    path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    made = subprocess.run(
        [sys.executable, *_COMMAND, json.dumps(asked)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONPATH": path},
    )
    if made.returncode:
        told = (made.stderr.strip().splitlines() or [f"it ended with {made.returncode}"])[-1]
        given = f"`name: {source.name}`" + (f" with `config: {json.dumps(source.config)}`" if source.config else "")
        raise ValueError(f"reasoning_gym cannot make {given}: {told}")
    rows = map(json.loads, made.stdout.splitlines())
    config = json.dumps(source.config, sort_keys=True)
    return [
        Problem(
            f"{source.name}_{source.seed + i}",
            row["question"],
            row["answer"],
            "scored",
            item=TaskItem(source.name, config, row["entry"]),
        )
        for i, row in enumerate(rows)
    ]
