"""`python -m reft_jax.select SAMPLES.jsonl OUT.jsonl`: training data from the right ones of a file of samples.

With `--gold.kind` and `--gold.path`, the data that was sampled, it makes the set of offline self-training (ReFT,
section 4.2): the gold chains of thought and, for every question, some of its own right ones. Without, it makes the
annotations of questions that had none. OUT is what `data.train.kind: jsonl` reads; train on it with `rl.epochs` 0.
"""

import collections
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from reft_jax.config import BadRows, CotKind, SettingsParser, SourceConfig, TemplateConfig
from reft_jax.config.invocation import program
from reft_jax.config.paths import with_absolute_paths
from reft_jax.config.validation import range_errors, refuse
from reft_jax.data.readers import read_problems
from reft_jax.files import user_path, write_whole
from reft_jax.problem import Problem, annotated
from reft_jax.reward.parse import likely_cot
from reft_jax.samples.file import Sample, read_samples, read_settings

SelectionRules = Literal["paper", "reference"]


class Row(NamedTuple):
    """A line of training data."""

    id: str
    question: str
    answer: str
    cot: str


def select(
    samples: Sequence[Sample],
    gold: Sequence[Problem] = (),
    *,
    limit: int = 10,
    rules: SelectionRules = "paper",
    seed: int = 42,
    cot: CotKind = "program",
    answer_trigger: str = TemplateConfig().answer_trigger,
) -> list[Row]:
    """The gold rows, then for each question of the samples its chosen chains of thought, and its gold one again.

    A problem of the gold data without a chain of thought has no row; its samples are chosen from like the others'.

    Right completions are stripped and those that are another's text dropped, the first staying; of these `limit` are
    chosen. The gold chain of thought follows where none of the chosen is the same text, so that with the row of the
    gold file it stands twice, as in the reference.

    Prose ends in a line with the answer, which the data code appends to every chain of thought: it is cut off here.

    Args:
        samples: of any problems.
        gold: the problems with their annotations that the training set begins with, those sampled among them; where it
            is empty, samples alone are chosen.
        limit: of each question; 0 takes all.
        rules: which `limit`: drawn at random by `seed` (`paper`), or the first (`reference`).
        seed: of the draw, in which no question depends on another.
        cot: what the completions are.
        answer_trigger: the template's string before the answer of prose.

    Raises:
        ValueError: naming the problem: its question is another in `gold`, or it is not there; or nothing in `gold` has
            a chain of thought.
    """
    by_problem: dict[str, list[Sample]] = collections.defaultdict(list)
    for sample in samples:
        by_problem[sample.id].append(sample)
    problems = {problem.id: problem for problem in gold}
    rows = [Row(problem.id, problem.question, problem.answer, _gold_cot(problem)) for problem in annotated(gold)]
    if gold and not rows:
        raise ValueError(
            f"none of the {len(gold):,} problems of the gold data has a chain of thought: leave --gold out to select "
            "samples alone"
        )
    for identity, own in by_problem.items():
        chosen = choose(unique_right(own, cot, answer_trigger), limit, rules, f"{seed}/{identity}")
        question, answer = own[0].question, own[0].gold
        rows += [Row(f"{identity}/sample_{number}", question, answer, text) for text, number in chosen.items()]
        if gold:
            problem = problems.get(identity)
            if problem is None or problem.question != question:
                fault = "is not in" if problem is None else "has another question in"
                raise ValueError(f"problem `{identity}` of the samples {fault} the gold data: give what was sampled")
            if problem.cot is not None and (text := _gold_cot(problem)) not in chosen:
                rows.append(Row(f"{identity}/gold", question, answer, text))
    return rows


def unique_right(samples: Sequence[Sample], cot: CotKind, answer_trigger: str) -> dict[str, int]:
    """The different chains of thought among the right completions, each with the number of the first that has it."""
    found: dict[str, int] = {}
    for sample in sorted(samples, key=lambda sample: sample.sample):
        text = sample.completion if cot == "program" else sample.completion.rpartition(answer_trigger)[0]
        if sample.correct and text.strip():
            found.setdefault(text.strip(), sample.sample)
    return found


def choose(texts: Mapping[str, int], limit: int, rules: SelectionRules, seed: str) -> dict[str, int]:
    """`limit` of the texts in their old order: the first, or those of the smallest hash with the seed; 0 takes all."""
    kept = list(texts)
    if limit and rules == "paper":
        kept.sort(key=lambda text: hashlib.sha256(f"{seed}/{text}".encode()).digest())
    kept = kept[: limit or None]
    return {text: number for text, number in texts.items() if text in set(kept)}


def _gold_cot(problem: Problem) -> str:
    return (problem.cot or "").strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Selects as `arguments` (or the command line) say; returns 2 where files or settings are wrong, else 0."""
    parser = SettingsParser(prog=program("select"), description=__doc__)
    parser.add_argument("samples", type=str, help="file that `reft_jax.sample` wrote")
    parser.add_argument("out", type=str, help="JSONL file of training data to write")
    parser.add_argument(
        "--limit", type=int, default=10, help="chains of thought of each question, 0 or more; 0 takes all"
    )
    parser.add_argument(
        "--rules", type=SelectionRules, default="paper", help="drawn at random, or (reference) the first ones"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the draw")
    parser.add_argument("--bad_rows", type=BadRows, default="error", help="of the gold data: as data.bad_rows of a run")
    parser.add_class_arguments(SourceConfig, "gold")
    options = parser.instantiate(parser.parse_args(arguments))
    source = with_absolute_paths(options.gold)
    try:
        refuse(range_errors(source, "gold."))
        path, out = user_path(options.samples), user_path(options.out)
        if options.limit < 0:
            raise ValueError(f"--limit is {options.limit}: it must be 0, which takes all, or more")
        if out.exists() and any(other.exists() and out.samefile(other) for other in (path, Path(source.path or path))):
            raise ValueError(f"{out} is what is read: name another file to write")
        if out.exists() and out.stat().st_size:
            raise ValueError(f"{out} is not empty: name a fresh file")
        data = (read_settings(path) or {}).get("data") or {"cot": None}
        samples = list(read_samples(path))
        trigger = data.get("templates", {}).get("answer_trigger", TemplateConfig().answer_trigger)
        gold = read_problems(source, options.bad_rows) if source.kind != "none" else []
        rows = select(
            samples,
            gold,
            limit=options.limit,
            rules=options.rules,
            seed=options.seed,
            cot=data["cot"] or likely_cot([sample.completion for sample in samples]),
            answer_trigger=trigger,
        )
        if not rows:
            raise ValueError(f"{path} has no right completion: there is nothing to select")
        write_whole(out, "".join(json.dumps(row._asdict()) + "\n" for row in rows))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    right = len({sample.id for sample in samples if sample.correct})
    given = len(annotated(gold))
    asked, again = len({sample.id for sample in samples}), sum(row.id.endswith("/gold") for row in rows[given:])
    parts = [f"{given:,} of the gold data"] * bool(gold)
    parts.append(f"{len(rows) - given - again:,} right samples ({right:,} of {asked:,} questions have one)")
    parts += [f"{again:,} of the gold data once more, beside the samples of their questions"] * bool(again)
    print(f"{out}: {len(rows):,} rows: {', '.join(parts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
