"""`python -m reft_jax.init DIR`: a config for your own model and data, and example rows of both kinds.

DIR gets `config.yaml`, `text.jsonl` (chains of thought in prose) and `program.jsonl` (Python programs), each with 60
rows that are made up, to try a run on. Put your own in their place, name the model, and train.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reft_jax.config import CommandParser
from reft_jax.config.invocation import named, program, shell_line, short_path
from reft_jax.files import user_path, write_whole


def _rows(number: int) -> dict[str, dict[str, str]]:
    """A made-up problem, with its chain of thought in prose and as a program, by file."""
    boxes, each, away, hours = 2 + number % 7, 6 + number % 5, 3 + number % 4, 2 + number % 3
    total, speed = boxes * each, 40 + 5 * number
    question, prose, steps, answer = (
        (
            f"Ann has {boxes} boxes of {each} pencils and gives {away} pencils away. How many has she left?",
            f"{boxes} boxes of {each} are {boxes} * {each} = {total} pencils. Without {away} these are {total} - "
            f"{away} = {total - away}.",
            f"pencils = {boxes} * {each}\n    result = pencils - {away}",
            total - away,
        ),
        (
            f"A train runs at {speed} km/h for {hours} hours. How many km is that?",
            f"At {speed} km an hour, {hours} hours are {speed} * {hours} = {speed * hours} km.",
            f"result = {speed} * {hours}",
            speed * hours,
        ),
    )[number % 2]
    program = f'def solution():\n    """{question}"""\n    {steps}\n    return result'
    chains = {"text.jsonl": prose, "program.jsonl": program}
    return {name: {"question": question, "cot": cot, "answer": str(answer)} for name, cot in chains.items()}


ROWS = {name: [_rows(number)[name] for number in range(60)] for name in ("text.jsonl", "program.jsonl")}
"""Rows as `kind: jsonl` reads them, by file: enough to train on and for dev, and all made up."""

CONFIG = """\
# ReFT on your own model and data. Every other key, with its text and default: {train} --help-all
run_dir: {run_dir}  # models and records; the same command with the same run_dir continues
model:
  path: Qwen/Qwen2.5-0.5B-Instruct  # folder, hub id: Llama, Mistral, Qwen2, Qwen3, SmolLM3, OLMo2, GPT-2, OPT, CodeGen
  dtype: bfloat16  # what is computed in; leave it out on a CPU
data:
  cot: text  # chains of thought in prose; `program` for Python programs, as in program.jsonl
  templates: strings  # prompts of the paper; `chat` asks a chat model by its tokenizer's own chat template
  train: {{kind: jsonl, path: {train_file}}}  # question, cot and answer in each row; also question_field: ...
  test: {{kind: none}}  # as train; read once, at the end
  dev_fraction: 0.1  # of train, to choose among checkpoints; some hundreds of rows do
  overlong: drop  # rows longer than the longest bucket are left out, and counted
sft:  # the warm-up
  schedule_epochs: 3
  warmup_epoch: 2  # reinforcement starts from here, and is measured against going on to stop_epoch
  stop_epoch: 3
  batch_size: 48
  microbatch_size: 8  # rows at once: lower it if memory is short; 0 is the whole batch
  prompt_buckets: [128, 256]  # lengths in tokens that rows are padded to
  response_buckets: [256, 512]
rl: {{epochs: 20, rollout_batch_size: 64, minibatch_size: 32, microbatch_size: 8, check_tolerance: 0.05}}
generation: {{prompt_buckets: [128, 256], max_new_tokens: 400}}
reward: {{correct: 1.0, wrong: 0.1, no_answer: 0.0}}  # what an answer earns
"""


def files(folder: Path) -> dict[str, str]:
    """What is written, by name; paths in the config are absolute, so that it works from anywhere.

    Args:
        folder: where, from the root.
    """
    quoted = lambda path: json.dumps(str(path), ensure_ascii=False)
    config = CONFIG.format(
        train=program("train"), run_dir=quoted(folder / "run"), train_file=quoted(folder / "text.jsonl")
    )
    rows = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in ROWS.items()}
    return {"config.yaml": config, **rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files; returns 2 where the folder holds something or cannot be written, else 0."""
    parser = CommandParser(prog=program("init"), description=named(str(__doc__)), allow_abbrev=False)
    parser.add_argument("dir", help="folder to write, not there yet or empty")
    try:
        folder = user_path(parser.parse_args(arguments).dir).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there and not an empty folder: name a fresh one")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files(folder).items():
            write_whole(folder / name, text)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = short_path(folder / "config.yaml")
    print(
        f"{folder}: {', '.join(files(folder))}\nThe rows are made up, to try a run on: put yours in their place. "
        "model.path names a model of the hub: give the\nfolder of one that is here by --model.path FOLDER. Next:"
    )
    print(f"  {shell_line('data', ['--config', config])}   # what a run would read, and what is wrong with it")
    print(f"  {shell_line('train', ['--config', config])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
