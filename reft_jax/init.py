"""`python -m reft_jax.init DIR`: a config for your own model and data, and example rows of both kinds.

DIR gets `config.yaml`, `text.jsonl` (chains of thought in prose) and `program.jsonl` (Python programs). Fill the files,
name the model, and train.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reft_jax.config import CommandParser
from reft_jax.config.invocation import named, program, shell_line, short_path
from reft_jax.files import user_path, write_whole

ROWS = {
    "text.jsonl": [
        {
            "question": "Ann has 3 boxes of 12 pencils and gives 5 pencils away. How many has she left?",
            "cot": "3 boxes of 12 are 3 * 12 = 36 pencils. Without 5 these are 36 - 5 = 31.",
            "answer": "31",
        },
        {
            "question": "A train runs at 80 km/h for 2.5 hours. How many km is that?",
            "cot": "At 80 km an hour, 2.5 hours are 80 * 2.5 = 200 km.",
            "answer": "200",
        },
    ],
    "program.jsonl": [
        {
            "question": "Ann has 3 boxes of 12 pencils and gives 5 pencils away. How many has she left?",
            "cot": "def solution():\n"
            '    """Ann has 3 boxes of 12 pencils and gives 5 pencils away. How many has she left?"""\n'
            "    pencils = 3 * 12\n"
            "    result = pencils - 5\n"
            "    return result",
            "answer": "31",
        },
        {
            "question": "A train runs at 80 km/h for 2.5 hours. How many km is that?",
            "cot": "def solution():\n"
            '    """A train runs at 80 km/h for 2.5 hours. How many km is that?"""\n'
            "    result = 80 * 2.5\n"
            "    return result",
            "answer": "200",
        },
    ],
}
"""Rows as `kind: jsonl` reads them, by file."""

CONFIG = """\
# ReFT on your own model and data. Every other key, with its text and default: {train} --help-all
run_dir: {run_dir}  # models and records; the same command with the same run_dir continues
model:
  path: Qwen/Qwen2.5-0.5B-Instruct  # a folder or hub id of a Llama, Mistral, Qwen2, Qwen3, GPT-2, OPT or CodeGen
  dtype: bfloat16  # what is computed in; leave it out on a CPU
data:
  cot: text  # chains of thought in prose; `program` for Python programs, as in program.jsonl
  train: {{kind: jsonl, path: {train_file}}}  # question, cot and answer in each row; also question_field: ...
  test: {{kind: none}}  # as train; read once, at the end
  dev_fraction: 0.1  # of train, to choose among checkpoints; two rows are too few, some hundreds do
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
evaluation: {{batch_size: 64}}
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
    print(f"{folder}: {', '.join(files(folder))}\nNext, when they are yours:")
    print(f"  {shell_line('data', ['--config', config])}   # what a run would read, and what is wrong with it")
    print(f"  {shell_line('train', ['--config', config])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
