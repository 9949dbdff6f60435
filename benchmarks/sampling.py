"""Samples of a model's own questions, of the lengths that it gives them, beside transformers' `generate`.

    python -m benchmarks.sampling RUN_DIR/checkpoints/warmup [--questions 1000] [--samples 8] [--split train]

Both sides have the same weights, questions, temperature 1 and longest response, on one CPU core. Transformers gets its
best batches: prompts by length, samples of a question by `num_return_sequences`, and of several sizes the one that is
quickest, each tried on every tenth question. Figures are CPU seconds, without compiling, reading and judging.
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import pin
from reft_jax.algorithms.rollout import SamplingParams
from reft_jax.config import Split, config_parser
from reft_jax.data.batches import prompt_batches
from reft_jax.data.encoding import Prompt
from reft_jax.export import export
from reft_jax.sample import drawing, lines_together
from reft_jax.training.model_source import open_model, read_source

SIZES = (8, 32, 128, 512)
"""Rows of a batch of transformers'."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one side took, and gave."""

    seconds: float
    rows: int
    tokens: int

    @property
    def pace(self) -> float:
        """Rows a CPU second."""
        return self.rows / self.seconds


def ours(checkpoint: str, split: Split, questions: int, samples: int) -> tuple[Measured, list[Prompt], int, list[int]]:
    """(what it took, the prompts, the longest response, the tokens that end one)."""
    parser = config_parser("benchmarks.sampling", "")
    source, _ = read_source(parser, [], [checkpoint], split)
    source = drawing(source, samples, 1.0, 0, 1.0)
    with open_model(source) as (sampler, params):
        prompts, generation = sampler.prompts[split][:questions], sampler.config.generation
        weights = sampler.sampling_params(params)

        def sample() -> Measured:
            batches = prompt_batches(
                prompts,
                samples=samples,
                batch_size=lines_together(sampler),
                prompt_buckets=generation.prompt_buckets,
                pad_id=sampler.model.ids.pad,
            )
            rows = tokens = 0
            started = time.process_time()
            for batch in batches:
                rollout = sampler.rollout(weights, batch, 0, SamplingParams(), samples)
                rows += int(np.sum(batch.problem >= 0))
                tokens += int(np.sum(rollout.sequences.response_lengths))
            return Measured(time.process_time() - started, rows, tokens)

        sample()  # compiles
        return sample(), prompts, generation.max_new_tokens, list(sampler.model.ids.ends)


def theirs(
    checkpoint: str, prompts: Sequence[Prompt], samples: int, longest: int, ends: list[int]
) -> dict[int, Measured]:
    """What transformers takes for these prompts, by rows of a batch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        export(Path(checkpoint), Path(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": longest}
    by_length = sorted((np.asarray(prompt.tokens) for prompt in prompts), key=len, reverse=True)

    def sample(size: int) -> Measured:
        rows = tokens = 0
        started = time.process_time()
        together = max(1, size // samples)
        for first in range(0, len(by_length), together):
            group = by_length[first : first + together]
            width = len(group[0])
            ids = np.stack([np.pad(each, (width - len(each), 0), constant_values=ends[0]) for each in group])
            mask = np.stack([np.arange(width) >= width - len(each) for each in group])
            given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask, dtype=torch.long)}
            with torch.no_grad():
                out = model.generate(
                    **given, **options, num_return_sequences=samples, eos_token_id=ends, pad_token_id=ends[0]
                ).numpy()[:, width:]
            ended = np.isin(out, ends)
            rows += len(out)
            tokens += int(np.sum(np.where(ended.any(1), ended.argmax(1) + 1, out.shape[1])))
        return Measured(time.process_time() - started, rows, tokens)

    return {size: sample(size) for size in SIZES}


def main(checkpoint: str, questions: int = 1000, samples: int = 8, split: Split = "train") -> None:
    """Measures and prints.

    Args:
        checkpoint: folder of RUN_DIR/checkpoints.
        questions: how many of the split are asked.
        samples: of each.
        split: whose questions.
    """
    pin()
    own, prompts, longest, ends = ours(checkpoint, split, questions, samples)
    others = theirs(checkpoint, prompts[::10], samples, longest, ends)
    found = Table(title=f"{own.rows:,} completions, {own.tokens / own.rows:.1f} tokens on average, at most {longest}")
    for heading in ("", "rows a CPU second", "tokens of a row", "ours / this"):
        found.add_column(heading, justify="right" if heading else "left")
    sides = {"reft_jax": own, **{f"transformers, {size} rows": each for size, each in others.items()}}
    for name, each in sides.items():
        cells = (f"{each.pace:.1f}", f"{each.tokens / each.rows:.1f}", f"{own.pace / each.pace:.2f}")
        found.add_row(name, *cells)
    Console().print(found)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=True)
