"""What offline self-training does on the embedded problems, from a finished quickstart run: the README's last row.

    python -m benchmarks.self_training --run runs/seeds/seed-11 [--samples 8]

As in the paper: the warm-up model samples each training question, the unique correct programs join the annotated ones,
and the base model (here: the pretrain stage, run again) is fine-tuned on both. Dev and test are the run's own.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jsonargparse
import numpy as np

from reft_jax.config import load_config
from reft_jax.data.batches import evaluation_batches
from reft_jax.processes import StopRequest
from reft_jax.rollout import Sampling
from reft_jax.run import Run
from reft_jax.sharding import batch_shardings, to_global
from reft_jax.startup import open_run, prepare


def sample_correct(run: Run, warmup: Path, samples: int) -> dict[str, list[str]]:
    """Unique correct programs of the warm-up model for each training question, by problem id."""
    config = run.config
    params = run.sampling_params(run.foreign_params(str(warmup)))
    programs = run.generate("rollout", config.evaluation.batch_size, Sampling(config.generation.temperature))
    found: dict[str, list[str]] = {}
    for i in range(samples):
        for batch in evaluation_batches(
            run.prompts["train"],
            batch_size=config.evaluation.batch_size,
            prompt_buckets=config.generation.prompt_buckets,
            pad_id=run.ids.pad,
        ):
            batch = dataclasses.replace(batch, sample=np.full_like(batch.sample, i))
            program = programs[(batch.tokens.shape[1],)]
            inputs = to_global(batch, batch_shardings(batch, run.mesh))
            rollout = program(params, inputs, np.int32(config.seed), np.int32(-2))
            for completion in run.judge(rollout, run.problems["train"], batch.problem):
                texts = found.setdefault(completion.problem.id, [])
                if completion.verdict.outcome == "correct" and completion.text not in texts:
                    texts.append(completion.text)
    return found


def write_training_set(run: Run, found: dict[str, list[str]], path: Path) -> int:
    """Annotated and sampled programs as JSONL, dev's questions included as they were; returns the number of rows."""
    rows = []
    for problem in (*run.problems["train"], *run.problems["dev"]):
        for i, cot in enumerate([problem.cot, *found.get(problem.id, [])]):
            rows.append({"id": f"{problem.id}_{i}", "question": problem.question, "answer": problem.answer, "cot": cot})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main(run: Path, samples: int = 8, epochs: int = 6) -> None:
    """Samples, fine-tunes, and prints the accuracy on test.

    Args:
        run: folder of a finished run of the quickstart.
        samples: completions of the warm-up model for each training question.
        epochs: passes over annotated and sampled programs.
    """
    out = run.with_name(run.name + "-self-training")
    own = ["--config", str(run / "config.yaml"), "--run_dir", str(run.with_name(run.name + "-samples"))]
    config, tokenizer = prepare(load_config(own))
    with open_run(config, tokenizer, StopRequest()) as sampling:
        data = out.with_suffix(".jsonl")
        rows = write_training_set(sampling, sample_correct(sampling, run / "checkpoints/warmup", samples), data)
    print(f"{rows} programs for {len(sampling.problems['train']) + len(sampling.problems['dev'])} questions")
    overrides: dict[str, object] = {"seed": config.seed, "run_dir": out, "rl.epochs": 0}
    overrides |= {"data.train.kind": "jsonl", "data.train.path": data, "sft.evaluate_every": 1}
    overrides |= {f"sft.{key}": epochs for key in ("schedule_epochs", "warmup_epoch", "stop_epoch")}
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    train = [sys.executable, "-m", "reft_jax.train", "--config", "configs/quickstart.yaml"]
    subprocess.run([*train, *arguments], check=True)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
