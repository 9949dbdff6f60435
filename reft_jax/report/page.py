"""All that a report says, as one HTML file: the data as JSON, and what renders it."""

import base64
import dataclasses
import datetime
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import reft_jax
from reft_jax.records.console import ALGORITHMS
from reft_jax.report.behaviour import failures, groups, lengths, signs
from reft_jax.report.completions import browser, embedded, key
from reft_jax.report.curves import charts, lines_of, marks, methods, points_of
from reft_jax.report.folder import RunFolder
from reft_jax.report.results import against_first, mean_results, phases, results, settings, status, votes

LIMIT = 4_900_000
"""Bytes of a page, at most: what is left of them by all else is the completions'."""


SCRIPTS = ("elements", "curves", "completions", "tokens", "tables", "page")
"""The parts of the page's own script, in order."""


def report_page(runs: Sequence[RunFolder], samples: Sequence[Path] = (), *, live_seconds: float = 0) -> str:
    """The page about some runs.

    Args:
        runs: as read now.
        samples: files that `reft_jax.sample` wrote.
        live_seconds: after so many seconds the page loads itself again; 0 is never.

    Raises:
        FileNotFoundError, ValueError: a file of samples cannot be read.
    """
    data, wanted = _data(runs, samples)
    names = ", ".join(run.name for run in runs)
    # One script, whose names are nobody else's.
    own = "\n".join(["(() => {", '"use strict";', *(_asset(f"{name}.js") for name in SCRIPTS), "})();"])
    scripts = {"uplot": _asset("uPlot.iife.min.js"), "script": own}
    parts = {
        "title": html.escape(f"{names} · reft_jax report"),
        "refresh": f'<meta http-equiv="refresh" content="{live_seconds:g}">' if live_seconds else "",
        "hashes": " ".join(_hash(script) for script in scripts.values()),
        "style": _asset("uPlot.min.css") + _asset("page.css"),
        **scripts,
    }
    frame = _filled(parts | {"data": embedded(data)})
    data["browser"] = dataclasses.asdict(browser(runs, LIMIT - len(frame.encode()), wanted))
    return _filled(parts | {"data": embedded(data)})


def _data(runs: Sequence[RunFolder], samples: Sequence[Path]) -> tuple[dict[str, Any], set[tuple[str, str, str]]]:
    """What the page shows but for the completions, and the questions whose completions are examples in it."""
    points = points_of(len(runs))
    lines = [lines_of(run, points) for run in runs]
    shown, wanted = [], set()
    for run, own in zip(runs, lines):
        failed, grouped = failures(run), groups(run)
        wanted |= {key(run.completions[place]) for failure in failed for place in failure.examples}
        scored = [completion for completion in run.completions if completion.scored]
        ends = [each.moment for each in (*scored[:1], *scored[-1:])]
        wanted |= {key(completion) for completion in scored if completion.moment in ends}
        shown.append(
            {
                "name": run.name,
                "folder": str(run.path),
                "status": status(run),
                "algorithm": ALGORITHMS.get(run.algorithm, run.algorithm),
                "finished": run.summary is not None,
                "info": {
                    name: run.info.get(name)
                    for name in ("command", "versions", "python", "platform", "commit", "dirty")
                },
                "attempts": run.info.get("attempts", []),
                "changes": run.info.get("changes", []),
                "results": [_plain(result) for result in results(run)],
                "test_best": run.chosen_on_test,
                "phases": [_plain(phase) for phase in phases(run)],
                "lines": {group: _plain(part) for group, part in own.items()},
                "marks": [_plain(mark) for mark in marks(run)],
                "groups": [{"name": group.name, "count": len(group.completions)} for group in grouped],
                "failures": [{"cause": failure.cause, "counts": failure.counts} for failure in failed],
                "signs": [_plain(signs(group)) for group in grouped],
                "lengths": [
                    {"name": group.name, "classes": [_plain(one) for one in lengths(group)]} for group in grouped
                ],
                "left_out": run.left_out,
            }
        )
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    found = {
        "version": reft_jax.__version__,
        "made": made,
        "runs": shown,
        "methods": [
            _plain(method) | {"results": [_plain(row) for row in mean_results([runs[i] for i in method.runs])]}
            for method in methods(runs)
        ],
        "charts": [_plain(chart) for chart in charts(lines)],
        "against_first": [None if pair is None else _plain(pair) for pair in against_first(runs)],
        "settings": [_plain(setting) | {"differs": setting.differs} for setting in settings(runs)],
        "votes": [_plain(votes(path)) for path in samples],
        "browser": None,
    }
    return found, wanted


def _plain(value: Any) -> Any:
    """A dataclass as plain data, its numbers with as many digits as can be seen."""
    return _rounded(dataclasses.asdict(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def _asset(name: str) -> str:
    return resources.files("reft_jax.report").joinpath("assets", name).read_text(encoding="utf-8")


def _filled(parts: Mapping[str, str]) -> str:
    """The page's HTML with its parts; in one pass, so that what stands in a part is text and no place for another."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def _hash(script: str) -> str:
    """The source expression of a script in a content security policy: no other script runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
