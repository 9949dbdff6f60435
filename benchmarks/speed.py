"""Writes docs/speed.md: this package beside torch and transformers on one CPU core, as ratios.

    python -m benchmarks.speed [--out docs/speed.md]

Both sides do the same work in the same process and take turns, see `benchmarks.throughput`; each figure is the least
CPU seconds of its turns, and what is worth quoting is the ratio. Takes some ten minutes.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jsonargparse

from benchmarks.runs import processor
from benchmarks.throughput import Shape, compare, pin

UPDATES = 2
"""Passes over an iteration's completions in `PPO iteration`, as the paper makes."""

SHAPES = {
    "width 256, 4 layers": Shape(
        vocab_size=1024, embed_dim=256, num_layers=4, batch=16, microbatch=8, prompt=64, response=128, repeats=6
    ),
    "the quickstart's model": Shape(
        vocab_size=120,
        embed_dim=64,
        num_layers=3,
        num_heads=2,
        num_kv_heads=2,
        mlp_dim=256,
        batch=256,
        microbatch=8,
        prompt=72,
        response=20,
        repeats=6,
    ),
    "SmolLM2-135M's shape": Shape(
        vocab_size=49152,
        embed_dim=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        mlp_dim=1536,
        batch=4,
        microbatch=4,
        prompt=64,
        response=32,
        repeats=2,
    ),
}
WORK = {
    "SFT step": {"sft": 1},
    "sampling": {"rollout": 1},
    "scoring by policy and reference": {"experience": 1},
    "PPO update": {"update": 1},
    f"PPO iteration, {UPDATES} inner epochs": {"rollout": 1, "experience": 1, "update": UPDATES},
}
"""Rows of a table: how often each phase is part of the work."""

HEAD = """# Speed

Written by `python -m benchmarks.speed`. Both sides do the same work in one process, kept on one core, and take turns; a
figure is the least CPU seconds of its turns. Other machines have other figures, and one that others share has noise:
quote the ratios. Torch's side is transformers' `generate`, and an eager step of the same loss; responses never end
early. `python -m benchmarks.throughput` compares any other shape, and accelerators; `python -m benchmarks.gpu` is what
to run on a GPU.

"""


def lines_of(name: str, shape: Shape, seconds: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yields a section: what was measured, and a table."""
    yield f"## {name[0].upper()}{name[1:]}"
    yield ""
    yield (
        f"{shape.batch} rows of {shape.prompt} + {shape.response} tokens, {shape.microbatch} at a time in training; "
        f"{shape.num_layers} layers of width {shape.embed_dim}, {shape.vocab_size:,} tokens, {shape.dtype}."
    )
    yield ""
    yield "| work | CPU seconds | torch's | torch's / ours |"
    yield "|---|---|---|---|"
    for work, parts in WORK.items():
        ours, theirs = (sum(seconds[side][part] * n for part, n in parts.items()) for side in ("ours", "torch"))
        yield f"| {work} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |"
    yield ""


def document(measured: Mapping[str, tuple[Shape, Mapping[str, Mapping[str, float]]]]) -> str:
    """docs/speed.md of what was measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    body = [line for name, (shape, seconds) in measured.items() for line in lines_of(name, shape, seconds)]
    return HEAD + "\n".join([f"{processor()}, one core; {versions}.", "", *body]).rstrip() + "\n"


def main(out: str = "docs/speed.md", only: Sequence[str] = tuple(SHAPES)) -> None:
    """Measures and writes.

    Args:
        out: the document.
        only: names of the shapes to measure.
    """
    pin()
    measured: dict[str, tuple[Shape, Mapping[str, Mapping[str, float]]]] = {}
    for name in only:
        measured[name] = SHAPES[name], compare(SHAPES[name], pinned=True)[0]
        if "torch" not in measured[name][1]:
            raise SystemExit("torch is not installed: pip install -e '.[torch]'")
        Path(out).write_text(document(measured), encoding="utf-8")
        print(f"{out}: {name} written", flush=True)


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.auto_cli(main, as_positional=False)
