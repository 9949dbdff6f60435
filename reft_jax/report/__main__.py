"""`python -m reft_jax.report RUN [RUN...] --out report.html`: what there is to see of runs, as one page.

It opens in a browser from the disk: no server, no network. It has the final table with intervals, each model paired
against the warm-up; curves; what the model said to the same question before and after; failures, signs of reward
hacking, length against correctness; settings, versions and time. Runs that differ in their seed alone are one method
with a mean. A run that is not finished is shown as far as it is. The page has less than 5 MB: where not all completions
fit, it has those of a sample of the questions, and says so.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reft_jax.config import SettingsParser
from reft_jax.config.invocation import program, short_path
from reft_jax.files import user_path, write_whole
from reft_jax.report.folder import RunFolder, read_run
from reft_jax.report.page import report_page

ENDING = ".html"


def names_of(paths: Sequence[Path]) -> list[str]:
    """What the runs are called: the end of their paths that tells them apart.

    Raises:
        ValueError: a run is given twice.
    """
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError(f"{next(str(p) for p, own in zip(paths, whole) if whole.count(own) > 1)} is given twice")
    length = next(n for n in range(1, max(map(len, whole)) + 1) if len({own[-n:] for own in whole}) == len(whole))
    return [str(Path(*own[-length:])) for own in whole]


def write(paths: Sequence[Path], samples: Sequence[Path], out: Path, live_seconds: float = 0) -> list[RunFolder]:
    """Writes the page about the runs as they are now, which it returns; one that is live loads itself again.

    Raises:
        OSError, ValueError: see `read_run`, `report_page` and `files.replacing`.
    """
    runs = [read_run(path, name) for path, name in zip(paths, names_of(paths))]
    live = live_seconds if any(run.summary is None for run in runs) else 0
    write_whole(out, report_page(runs, samples, live_seconds=live))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes as `arguments` (or the command line) say; returns 2 where files or settings are wrong, else 0."""
    parser = SettingsParser(prog=program("report"), description=__doc__)
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=str, default=f"report{ENDING}", help="file to write, over one that is there")
    parser.add_argument(
        "--samples", type=str, nargs="+", default=[], metavar="FILE", help="files of samples: majority votes and pass@k"
    )
    parser.add_argument("--live", action="store_true", help="write it again until all runs are finished, or Ctrl-C")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from one writing to the next, 1 or more")
    options = parser.parse_args(arguments)
    try:
        paths, samples, out = (
            [user_path(r) for r in options.runs],
            [user_path(f) for f in options.samples],
            user_path(options.out),
        )
        if out.suffix != ENDING:
            raise ValueError(f"--out is {options.out}: the page is HTML, name a file that ends in {ENDING}")
        if not options.every >= 1:
            raise ValueError(f"--every is {options.every:g}: it must be 1 second or more")
        if not out.absolute().parent.is_dir():
            raise FileNotFoundError(f"--out {options.out}: there is no such folder to write to")
        runs = write(paths, samples, out, options.every * options.live)
        print(f"{short_path(out)}: {out.stat().st_size / 1e6:.1f} MB, {out.absolute().as_uri()}", flush=True)
        try:
            while options.live and any(run.summary is None for run in runs):
                time.sleep(options.every)
                runs = write(paths, samples, out, options.every)
        except KeyboardInterrupt:
            write(paths, samples, out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
