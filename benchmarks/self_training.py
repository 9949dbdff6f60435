"""What offline self-training does on the embedded problems, from a finished quickstart run: a row of docs/study.md.

    python -m benchmarks.self_training --run runs/seeds/seed-11 [--samples 8]

As in the paper: the warm-up model samples each training question, the unique correct programs join the annotated ones,
and the base model (here: the pretrain stage, run again) is fine-tuned on both. Dev and test are the run's own. The
package's own commands do it, one after the other; each continues where it was interrupted.
"""

import subprocess
import sys
from pathlib import Path

import jsonargparse

from reft_jax.config import load_config


def command(module: str, *arguments: object, allowed: tuple[int, ...] = (0,)) -> None:
    """Runs a command of the package, which may end with the `allowed` exit codes."""
    done = subprocess.run([sys.executable, "-m", f"reft_jax.{module}", *map(str, arguments)])
    if done.returncode not in allowed:
        raise SystemExit(done.returncode)


def main(run: Path, samples: int = 8, epochs: int = 6) -> None:
    """Samples, selects, fine-tunes, and prints the accuracy on test.

    Args:
        run: folder of a finished run of the quickstart.
        samples: completions of the warm-up model for each training question; all unique correct ones are used.
        epochs: passes over annotated and sampled programs.
    """
    out = run.with_name(run.name + "-self-training")
    sampled, data = out.with_name(out.name + "-samples.jsonl"), out.with_name(out.name + ".jsonl")
    config = load_config(["--config", str(run / "config.yaml")])
    command("sample", run / "checkpoints/warmup", sampled, "--split", "train", "--samples", samples)
    gold = ["--gold.kind", config.data.train.kind, "--gold.path", config.data.train.path]
    command("select", sampled, data, "--limit", 0, *gold)
    overrides: dict[str, object] = {"seed": config.seed, "run_dir": out, "rl.epochs": 0}
    overrides |= {"data.train.kind": "jsonl", "data.train.path": data, "sft.evaluate_every": 1}
    overrides |= {f"sft.{key}": epochs for key in ("schedule_epochs", "warmup_epoch", "stop_epoch")}
    # A sampled program may be longer than every annotated one, by what a completion has room for.
    buckets = config.sft.response_buckets
    overrides["sft.response_buckets"] = [*buckets, max(buckets) + config.generation.max_new_tokens]
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", value)]
    command("train", "--config", "configs/quickstart.yaml", *arguments)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
