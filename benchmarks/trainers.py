"""An iteration of GRPO beside other trainers: same model, questions, lengths and core, each in an environment of its own.

    python -m benchmarks.trainers --model DIR --trl TRL/bin/python --tunix TUNIX/bin/python

DIR is a Hugging Face directory of a small Llama; the pythons are of environments that have `trl` and `google-tunix`.
An iteration samples, judges, and makes one update, without a KL, in float32. Every trainer asks a reward function once an
iteration, and that function is the clock: what is compared are the CPU seconds from one call to the next, the least of
some, after the first two, in which things are compiled. A side that fails is shown with its last line.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

@dataclasses.dataclass(frozen=True)
class Work:
    """What each side does."""

    model: str
    """Hugging Face directory."""
    questions: int = 8
    """Of an iteration."""
    samples: int = 4
    """Of a question."""
    new_tokens: int = 48
    """Of a response; few end before."""
    iterations: int = 6
    """The first two do not count."""

    @property
    def rows(self) -> int:
        """Completions of an iteration."""
        return self.questions * self.samples

    def prompts(self) -> list[str]:
        """Questions of more than as many iterations."""
        first = "Tom has {} apples and buys {} more. He gives {} of them to his sister. How many apples has he now?"
        return [first.format(7 + i, 5 + 2 * i, 3 + i) for i in range(2 * self.questions * self.iterations)]


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """Half of the completions are right: what they learn is not looked at."""
    with open(os.environ["CLOCK"], "a", encoding="utf-8") as clock:
        clock.write(json.dumps([len(completions), time.process_time()]) + "\n")
    return [float(i % 2) for i in range(len(completions))]


def ours(work: Work) -> None:
    """This package."""
    from reft_jax.train import main

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": str(i), "question": text, "answer": "1"} for i, text in enumerate(work.prompts())]
        (Path(folder) / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings: dict[str, Any] = {
            "run_dir": f"{folder}/run",
            "model.path": work.model,
            "data.train.kind": "jsonl",
            "data.train.path": f"{folder}/train.jsonl",
            "data.dev_fraction": 0.05,
            "data.cot": "text",
            "data.templates.instruction": "{question}",
            "data.templates.cot_trigger": "",
            "sft.schedule_epochs": 0,
            "rl.algorithm": "grpo",
            "rl.kl_coef": 0,
            "rl.epochs": 1,
            "rl.rollout_batch_size": work.questions,
            "rl.samples_per_question": work.samples,
            "rl.minibatch_size": work.rows,
            "rl.microbatch_size": work.rows,
            "rl.update_epochs": 1,
            "generation.prompt_buckets": "auto",
            "generation.max_new_tokens": work.new_tokens,
            "reward.correct": 0,
            "reward.wrong": 0,
            "reward.functions": json.dumps({"benchmarks.trainers.reward": 1}),
            "logging.rollouts_every": 0,
        }
        main([text for key, value in settings.items() for text in (f"--{key}", str(value))])


def trl(work: Work) -> None:
    """TRL's GRPOTrainer."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=work.rows,
            num_generations=work.samples,
            max_completion_length=work.new_tokens,
            max_steps=work.iterations,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            model_init_kwargs={"dtype": "float32"},
        )
        rows = datasets.Dataset.from_dict({"prompt": work.prompts()})
        GRPOTrainer(model=work.model, reward_funcs=reward, args=config, train_dataset=rows).train()
