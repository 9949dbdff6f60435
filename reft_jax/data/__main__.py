"""`python -m reft_jax.data FILE --kind gsm8k`, or `--config FILE`: what is in problem files, and what is wrong with it.

With `--config` it looks at all that a run would read, split and cut as the run would; with a file, at that file. It
counts rows, chains of thought and answers, measures them in characters and tokens, and names the rows that cannot be
used by their place, and by id those that are longer than the buckets, hold what the tokenizer cannot represent, have a
chain of thought that does not give their own answer, or ask what another row or the test set asks. Exit status: 0 fine,
1 a run would end on it, 2 could not be read.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from rich.console import Console

from reft_jax.config import (
    CommandParser,
    Config,
    CotKind,
    PretrainConfig,
    SourceConfig,
    SupervisedConfig,
    load_config,
    to_dict,
)
from reft_jax.config.invocation import program
from reft_jax.data.audit.report import show
from reft_jax.data.audit.texts import Finding, contents, look_at_texts
from reft_jax.data.audit.tokens import look_at_tokens, token_counts, tokenise
from reft_jax.data.buckets import automatic, buckets_of, with_buckets
from reft_jax.data.chat import with_templates
from reft_jax.data.readers import CheckedRows, check_rows, require_problems, sources, split_sets
from reft_jax.data.tokenizers import model_tokenizer
from reft_jax.files import user_path
from reft_jax.problem import Problem
from reft_jax.reward.parse import likely_cot
from reft_jax.reward.pool import ProgramRunner

STATED_AFTER = {"mathqa": ("answer :", "answer is")}
"""What stands before the answer that annotations in prose state themselves, by kind of source."""
STATED_ELSEWHERE = ("the answer is", "The answer is", "answer:", "Answer:", "####", "\\boxed{")
"""The same for other kinds: SVAMP's, and what else is usual."""
_NO_RUN = "--run_dir=unused"  # what a run must have, and a look at its data does not need
_NO_TOKENIZER = "--model.tokenizer=embedded"  # nor a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at what `arguments` (or the command line) say and prints the report.

    Returns:
        0; 1 where a run would end on what was found; 2 where files or settings are wrong.
    """
    words, parser = list(sys.argv[1:] if arguments is None else arguments), _parser()
    file = words.pop(0) if words and not words[0].startswith("-") else ""
    own, rest = parser.parse_known_args(words, argparse.Namespace(file=file))
    if file and not own.kind:
        parser.error(f"--kind says how {file} is read: one of {', '.join(_kinds())}")
    if file and own.kind == "reasoning_gym":
        parser.error(
            f"--kind reasoning_gym makes its questions itself and reads no file: leave {file} out, and give "
            "--config FILE with data.train: {kind: reasoning_gym, name: TASK, limit: N}"
        )
    if not file and not _names(rest, "--config"):
        parser.error("name a file of problems first, or the config of a run with --config FILE")
    config = load_config(_settings(own, rest), prog=parser.prog)
    given = tuple(rest) + (("--model.tokenizer",) if own.tokenizer else ()) + (("--data.cot",) if own.cot else ())
    try:
        checked = read_sources(config, as_file=bool(file))
        sets = {name: rows.problems for name, rows in checked.items()}
        sets = sets if file else split_sets(config, sets)
        if file:
            config = suited(config, sets["file"], keep_cot=_names(given, "--config", "--data.cot"))
        with_tokens = _names(given, "--config", "--model.")
        report = audit(sets, config, with_tokens=with_tokens, stated_after=own.stated_after)
        report["findings"] = bad_rows(checked, config) + report["findings"]
        if own.json:
            user_path(own.json).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(report, Console(highlight=False), own.show)
    return int(any(finding["stops"] for finding in report["findings"]))


def audit(
    sets: dict[str, list[Problem]], config: Config, *, with_tokens: bool, stated_after: Sequence[str]
) -> dict[str, Any]:
    """The whole report as plain data, as it goes to JSON.

    Args:
        sets: problems by split, that of one file being `file`.
        config: of the run, or defaults around the file.
        with_tokens: whether to load the tokenizer and measure with it.
        stated_after: see `audit.other_statements`; empty takes what is known for `data.train.kind`.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        RuntimeError: programs cannot be run here.
    """
    data, reward = config.data, config.reward
    name = (config.model.tokenizer or config.model.path) if with_tokens else None
    tokenizer = model_tokenizer(config.model) if name else None
    made: dict[str, list[int]] = {}
    if tokenizer is not None:
        config = with_templates(config, tokenizer)
        auto = automatic(config)
        if auto and config.model.path:  # the model is not read: it is taken to have room for all rows
            roomy = dataclasses.replace(config.model.decoder, max_positions=2**31 - 1)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=roomy))
        config = with_buckets(config, tokenizer, sets)
        made = {".".join(key): list(buckets_of(config, key)) for key in auto}
        data = config.data
    elif data.templates.kind == "chat":
        raise ValueError("data.templates.kind is chat: name the tokenizer that has the template by --tokenizer")
    stated_after = stated_after or STATED_AFTER.get(data.train.kind, STATED_ELSEWHERE)
    sets = {split: problems for split, problems in sets.items() if problems}
    trained = trained_splits(config)
    held = {split: contents(problems, stated_after) for split, problems in sets.items()}
    limits = reward.workers, reward.program_timeout_s, reward.program_memory_mb
    with ProgramRunner(*limits, deadline=reward.batch_deadline_s, sandbox=reward.sandbox) as runner:
        found = look_at_texts(sets, set(trained), data.cot, data.templates, reward, runner, stated_after)
    if tokenizer is not None:
        tokenised = {split: tokenise(problems, config, tokenizer) for split, problems in sets.items()}
        for split, texts in tokenised.items():
            held[split]["tokens"] = token_counts(texts)
        sampled = [split for split in sets if split != "pretrain"]
        found += look_at_tokens(tokenised, trained, sampled, config, tokenizer)
    if "file" not in sets and (config.sft.schedule_epochs or config.rl.epochs) and not {"train", "dev"} <= set(sets):
        what = f"too few problems to train on and for dev, see data.dev_fraction ({data.dev_fraction})"
        found.append(Finding("train", what, [], len(sets.get("train", [])), stops=True))
    return {
        "cot": data.cot,
        "sources": {"train": to_dict(data.train), "test": to_dict(data.test)},
        "tokenizer": name,
        "stated_after": list(stated_after),
        "sets": held,
        "buckets": made,
        "findings": [finding.record() for finding in found],
    }


def trained_splits(config: Config) -> dict[str, tuple[str, SupervisedConfig]]:
    """The splits that are learned from, with the name and the settings of the supervised stage that does."""
    sft = {split: ("sft", config.sft) for split in ("train", "file") if config.learns_annotations}
    return sft | ({"pretrain": ("pretrain", config.pretrain)} if config.pretrain.epochs else {})


def read_sources(config: Config, *, as_file: bool) -> dict[str, CheckedRows]:
    """All that a run reads, see `readers.sources`; or `data.train` alone, as `file`, and `data.test` if there is one.

    Raises:
        FileNotFoundError, ValueError: as `check_rows`, or no row of a source can be used.
    """
    named = sources(config)
    if as_file:
        named = {"file": named["train"]} | {name: named[name] for name in ("test",) if name in named}
    optional = config.reward.by_functions_alone
    checked = {name: check_rows(source, config.data.answer, gold_optional=optional) for name, source in named.items()}
    for name, source in named.items():
        require_problems(source, checked[name])
    return checked


def bad_rows(checked: dict[str, CheckedRows], config: Config) -> list[dict[str, Any]]:
    """The findings on rows that cannot be used, on which a run ends or which it drops, and on those used in part."""
    policy = config.data.bad_rows
    what = "cannot be used" + (": dropped" if policy == "drop" else "")
    found = [
        Finding(name, what, [(row.place, row.what) for row in rows.bad], rows.total, stops=policy == "error")
        for name, rows in checked.items()
    ]
    turns = "other turns of its conversation are left out"
    found += [Finding(name, turns, list(rows.partial), rows.total) for name, rows in checked.items()]
    return [finding.record() for finding in found if finding.rows]


def suited(config: Config, problems: Sequence[Problem], *, keep_cot: bool) -> Config:
    """The config for one file: what its chains of thought are is read off them, and without any there is no SFT."""
    chains = [problem.cot for problem in problems if problem.cot is not None]
    data = config.data if keep_cot else dataclasses.replace(config.data, cot=likely_cot(chains))
    sft = config.sft if chains else dataclasses.replace(config.sft, schedule_epochs=0)
    return dataclasses.replace(config, data=data, sft=sft, pretrain=PretrainConfig())


def _names(arguments: Sequence[str], *starts: str) -> bool:
    return any(argument.startswith(starts) for argument in arguments)


def _kinds() -> tuple[str, ...]:
    return get_args(get_type_hints(SourceConfig)["kind"])[1:]


def _settings(own: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The config's command line: what a file does without first, what the user says, what the file says last."""
    settings = [_NO_RUN, *rest]
    if own.file:
        settings = ([] if _names(rest, "--config", "--model") else [_NO_TOKENIZER]) + settings
        settings += ["--data.train.kind", own.kind, "--data.train.path", own.file]
    settings += ["--data.test.kind", own.kind, "--data.test.path", own.test] if own.file and own.test else []
    settings += ["--model.tokenizer", own.tokenizer] if own.tokenizer else []
    return settings + (["--data.cot", own.cot] if own.cot else [])


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=program("data"),
        usage="%(prog)s FILE --kind KIND [options]\n       %(prog)s --config FILE [options]",
        description="Says what problem files hold, and what a run would refuse, cut or learn wrongly of it.",
        epilog=f"All other arguments are those of `{program('train')}`: --config FILE, and dotted overrides, such as "
        "--data.train.question_field, which --help-all shows. Without a config, buckets are the paper's: 1024 and 300 "
        "(sampling) tokens.",
        allow_abbrev=False,
    )
    parser.add_argument("--kind", choices=_kinds(), help="layout of FILE, or of what hub id or generated split it is")
    parser.add_argument("--test", default="", help="another file of this kind, to look for questions of FILE in")
    parser.add_argument("--cot", choices=get_args(CotKind), help="what chains of thought are; else read off them")
    parser.add_argument("--tokenizer", default="", help="directory or hub id; lengths are told in tokens too")
    parser.add_argument("--stated_after", nargs="+", default=(), help="strings before the answer that prose states")
    parser.add_argument("--show", type=int, default=5, help="rows shown of each finding; 0 shows all; default: 5")
    parser.add_argument("--json", default="", help="file that everything is written to, all ids included")
    return parser


if __name__ == "__main__":
    sys.exit(main())
