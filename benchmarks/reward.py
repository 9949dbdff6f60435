"""Programs a second of the reward's runner, beside a fresh `pebble.ProcessPool(8)` a call, as the reference runs them.

    python -m benchmarks.reward [--data svamp_python_sdp.json] [--workers 2]

Without `--data`, the programs are those of the embedded problems. Three sets are made of them: as annotated, those that
are arithmetic alone, and with an import in front, so that every program needs the sandbox. Sizes matter too: a fresh
pool a call costs the same for 4 programs as for 256. Every program is made unique, so that nothing is saved by
running equal ones once. Calls of the two alternate, and the median is printed.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonargparse
import pebble
import rich.console
import rich.table

from reft_jax.data.embedded.problems import generate_problems
from reft_jax.reward.arithmetic import evaluate
from reft_jax.reward.pool import ProgramRunner

SIZES = (4, 32, 256, 3043)  # the last: all of SVAMP's, or as many as there are


def read_programs(data: str) -> list[str]:
    """Annotated programs: of a file in the reference's layout, else of the embedded problems."""
    if data:
        programs = [row["answer_cot"] for row in json.loads(Path(data).read_text(encoding="utf-8"))]
    else:
        programs = [problem.cot or "" for problem in generate_problems("train")]
    return [f"{program}\n# {number}" for number, program in enumerate(programs[: SIZES[-1]])]


def solve(program: str) -> float:
    """What a worker of the reference's pool does with a program."""
    names: dict[str, Callable[[], float]] = {}
    exec(program, names)
    return float(names["solution"]())


def with_fresh_pool(programs: Sequence[str]) -> list[float | None]:
    """One call of the reference: a pool of 8 processes made for it, 10 seconds for a program."""
    results: list[float | None] = []
    with pebble.ProcessPool(max_workers=8) as pool:
        answers = pool.map(solve, programs, timeout=10).result()
        while True:
            try:
                results.append(next(answers))
            except StopIteration:
                return results
            except Exception:  # whatever a program raises
                results.append(None)


def seconds(call: Callable[[Sequence[str]], object], programs: Sequence[str]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call(programs)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = jsonargparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=str, default="", help="file in the reference's layout")
    parser.add_argument("--workers", type=int, default=2, help="our processes")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each kind and size")
    options = parser.parse_args()
    programs = read_programs(options.data)
    table = rich.table.Table("programs", "a call", "ours /s", "fresh pool /s", "ratio")
    with ProgramRunner(options.workers, 10.0, 1024, sandbox="contained") as runner:
        print(f"containment: {', '.join(runner.start())}")
        ours = lambda texts: runner.run(texts, "lenient")
        sets = {
            "as annotated": programs,
            "arithmetic alone": [program for program in programs if evaluate(program, "lenient")],
            "all in the sandbox": ["import math\n" + program for program in programs],
        }
        for name, texts in sets.items():
            ours(texts[:64])  # all workers are up
            for size in (*SIZES[:-1], len(texts)):
                pairs = [
                    (seconds(ours, texts[:size]), seconds(with_fresh_pool, texts[:size]))
                    for _ in range(options.repeats)
                ]
                mine, theirs = (statistics.median(column) for column in zip(*pairs))
                row = f"{size:,}", f"{size / mine:,.0f}", f"{size / theirs:,.0f}", f"{theirs / mine:.1f}"
                table.add_row(name, *row)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
