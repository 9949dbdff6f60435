"""Time of an SFT step and of PPO's phases, and of the same work in torch where it is installed.

    python -m benchmarks.throughput [--embed_dim 256 ...] [--pinned true]

The model is a fresh Llama of the given shape; responses never end early, so that both sides do the same work. Torch's
side is transformers' `generate` and an eager training step of the same loss, on the GPU where JAX has one (set
XLA_PYTHON_CLIENT_MEM_FRACTION=0.4, so that both find room); with bfloat16 it samples with a copy of the weights in that
type and trains under autocast. Both sides take turns, and figures are medians; a machine's noise touches both, so only
their ratio is worth quoting. `pinned` keeps both on one CPU core and counts its seconds, the least of all turns.
"""

import contextlib
import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jsonargparse
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from reft_jax.algorithms.rollout import SamplingParams
from reft_jax.algorithms.steps import steps
from reft_jax.algorithms.train_state import copy_params, init_params, init_state, make_optimizer
from reft_jax.config import (
    Config,
    DecoderConfig,
    Dtype,
    GenerationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Remat,
    RlConfig,
    SftConfig,
)
from reft_jax.data.batches import PromptBatch
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest
from reft_jax.parallel.sharding import batch_shardings, make_mesh, to_global
from reft_jax.training.model import Model
from reft_jax.training.slots import respond


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured: a Llama, and a rollout of PPO."""

    vocab_size: int = 8192
    """Tokens of the vocabulary."""
    embed_dim: int = 256
    """Width of the residual stream."""
    num_layers: int = 6
    """Blocks."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads."""
    mlp_dim: int = 768
    """Hidden features of the MLP."""
    batch: int = 32
    """Completions of an iteration."""
    microbatch: int = 8
    """Completions per forward and backward pass."""
    prompt: int = 64
    """Tokens of every prompt."""
    response: int = 64
    """Tokens of every response."""
    dtype: Dtype = "float32"
    """Compute type; parameters are float32."""
    scan_layers: bool = False
    """Loop over the layers in training."""
    remat: Remat = "none"
    """What the backward pass computes again; torch's side recomputes whole layers unless it is `none`."""
    repeats: int = 5
    """Measured calls of each phase, after one that is not."""


def model_config(shape: Shape) -> ModelConfig:
    """The Llama of a shape."""
    head_dim = shape.embed_dim // shape.num_heads
    decoder = DecoderConfig(
        vocab_size=shape.vocab_size,
        embed_dim=shape.embed_dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
        mlp_dim=shape.mlp_dim,
        tie_embeddings=True,
    )
    return ModelConfig(decoder=decoder, dtype=shape.dtype, scan_layers=shape.scan_layers, remat=shape.remat)


Phases = dict[str, Callable[[], None]]
"""Pieces of work by name, each of which waits for its own end."""
PHASES = ("sft", "rollout", "experience", "update")


def measure(sides: Mapping[str, Phases], repeats: int, pinned: bool) -> dict[str, dict[str, float]]:
    """Seconds of each side's phases; of each phase, the sides take turns.

    Args:
        sides: what is compared.
        repeats: turns, after one that is not measured.
        pinned: least CPU seconds of the process, instead of the median by the clock.
    """
    clock, best = (time.process_time, min) if pinned else (time.perf_counter, statistics.median)
    found: dict[str, dict[str, float]] = {side: {} for side in sides}
    for phase in PHASES:
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(1 + repeats):
            for side, phases in sides.items():
                start = clock()
                phases[phase]()
                times[side].append(clock() - start)
        for side, all_of_them in times.items():
            found[side][phase] = best(all_of_them[1:])
    return found


def jax_phases(shape: Shape, mesh: Mesh) -> tuple[Phases, float]:
    """The phases in this package, and the seconds that compiling all of them took."""
    model = model_config(shape)
    policy = Policy(model, mesh)
    rl = RlConfig(
        rollout_batch_size=shape.batch,
        minibatch_size=shape.batch,
        microbatch_size=shape.microbatch,
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", lr_warmup_fraction=0.0),
    )
    config = Config(
        model=model,
        sft=SftConfig(
            batch_size=shape.batch,
            microbatch_size=shape.microbatch,
            optimizer=rl.optimizer,
            prompt_buckets=(shape.prompt,),
            response_buckets=(shape.response,),
        ),
        rl=rl,
        generation=GenerationConfig(prompt_buckets=(shape.prompt,), max_new_tokens=shape.response),
    )
    ids = SpecialIds(pad=0, eos=-1, ends=(-1,))  # never drawn
    compiled = CompiledSteps(steps(config, mesh, ids=ids))
    worker = Model(config=config, mesh=mesh, ids=ids, compiled=compiled, stop=StopRequest())
    start = time.perf_counter()
    experience_step, update_step = (compiled.get(name, shape.prompt) for name in ("experience", "update"))
    sft_step = compiled.get("sft", shape.prompt, shape.response)
    layout = compiled.get("layout") if "layout" in compiled else lambda params: params
    for reach in worker.sampling.reaches:
        compiled.get("decode", reach)
    compiled.get("prefill", shape.prompt)
    compilation = time.perf_counter() - start

    params = init_params(policy, mesh, jax.random.key(0), value_head=True)
    reference = copy_params({"decoder": params["decoder"]})
    rng = np.random.default_rng(0)
    prompts = PromptBatch(
        tokens=rng.integers(0, shape.vocab_size, (shape.batch, shape.prompt), dtype=np.int32),
        lengths=np.full(shape.batch, shape.prompt, np.int32),
        problem=np.arange(shape.batch, dtype=np.int32),
        sample=np.zeros(shape.batch, np.int32),
    )

    def sample() -> Any:
        rollout = respond(worker, layout(reference), prompts, 0, SamplingParams())
        return to_global(rollout, batch_shardings(rollout, mesh))

    rollout = sample()
    verdicts = np.ones(shape.batch, np.float32), np.ones(shape.batch, bool)
    verdicts = to_global(verdicts, batch_shardings(verdicts, mesh))

    def score() -> Any:
        return jax.block_until_ready(experience_step(params, reference, rollout, *verdicts)[0])

    experience = score()
    fresh = lambda start: init_state(copy_params(start), make_optimizer(rl.optimizer, 1000), mesh)
    states = {"update": fresh(params), "sft": fresh(reference)}
    rows = np.arange(shape.batch, dtype=np.int32)

    def update() -> None:
        states["update"], metrics = update_step(states["update"], experience, rows)
        jax.block_until_ready(metrics)

    def learn() -> None:
        states["sft"], metrics = sft_step(states["sft"], rollout.sequences)
        jax.block_until_ready(metrics)

    return {"sft": learn, "rollout": sample, "experience": score, "update": update}, compilation


def torch_phases(shape: Shape) -> Phases:
    """The same phases with transformers: `generate`, scoring by policy and reference, and optimizer steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    compute = torch.autocast(device, torch.bfloat16, enabled=shape.dtype == "bfloat16")
    torch.set_float32_matmul_precision("high")  # TF32 where there is one, as XLA has it
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.embed_dim,
        intermediate_size=shape.mlp_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config).eval().to(torch.device(device))
    sampler = copy.deepcopy(model).to(torch.bfloat16) if shape.dtype == "bfloat16" else model
    if shape.remat != "none":
        model.gradient_checkpointing_enable()
        model.train()  # it has no dropout; checkpointing works in training alone
    head = torch.nn.Linear(shape.embed_dim, 1).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-6)
    prompts = torch.randint(1, shape.vocab_size, (shape.batch, shape.prompt), device=device)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": shape.response, "min_new_tokens": shape.response}

    def sample() -> Any:
        with torch.no_grad():
            rows = sampler.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        wait()
        return rows

    rows = sample()

    def forward(tokens: Any) -> tuple[Any, Any]:
        with compute:
            hidden = model.model(tokens, use_cache=False).last_hidden_state[:, shape.prompt - 1 : -1]
            logits = model.lm_head(hidden)
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        return log_probs.gather(-1, tokens[:, shape.prompt :, None])[..., 0], head(hidden.float())[..., 0]

    def score() -> None:
        with torch.no_grad():
            for part in (*rows.split(shape.microbatch), *rows.split(shape.microbatch)):  # policy, then reference
                forward(part)
        wait()

    with torch.no_grad():
        old = torch.cat([forward(part)[0] for part in rows.split(shape.microbatch)])

    def update() -> None:
        optimizer.zero_grad()
        for part, before in zip(rows.split(shape.microbatch), old.split(shape.microbatch)):
            log_probs, values = forward(part)
            ratio = torch.exp(log_probs - before)
            loss = torch.max(-ratio, -ratio.clamp(0.8, 1.2)).mean() + 5 * 0.5 * (values - 1).square().mean()
            (loss * len(part) / shape.batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait()

    def learn() -> None:
        optimizer.zero_grad()
        for part in rows.split(shape.microbatch):
            (-forward(part)[0].mean() * len(part) / shape.batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait()

    return {"sft": learn, "rollout": sample, "experience": score, "update": update}


def table(shape: Shape, ours: Mapping[str, float], theirs: Mapping[str, float] | None) -> Table:
    """A row for each phase; tokens are prompt and response, but for the rollout, where only the response counts."""
    found = Table(title=f"{shape.batch} x ({shape.prompt} + {shape.response}) tokens, {jax.devices()[0].device_kind}")
    for heading in ("phase", "seconds", "tokens/s", "torch seconds", "torch / ours"):
        found.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in PHASES:
        tokens = shape.batch * (shape.response if phase == "rollout" else shape.prompt + shape.response)
        torch_cells = (f"{theirs[phase]:.3f}", f"{theirs[phase] / ours[phase]:.2f}") if theirs else ("", "")
        found.add_row(phase, f"{ours[phase]:.3f}", f"{tokens / ours[phase]:,.0f}", *torch_cells)
    return found


def compare(shape: Shape, pinned: bool) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds of each side's phases, torch's where it is installed, and those that compiling ours took."""
    mesh = make_mesh(MeshConfig(), jax.devices())
    ours, compilation = jax_phases(shape, mesh)
    sides = {"ours": ours}
    with contextlib.suppress(ImportError):
        sides["torch"] = torch_phases(shape)
    return measure(sides, shape.repeats, pinned), compilation


def pin() -> None:
    """Keeps this process on the last of its cores; to be called before JAX has made its threads."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main(shape: Shape = Shape(), pinned: bool = False) -> None:
    """Measures and prints.

    Args:
        shape: what is measured.
        pinned: on one CPU core, in CPU seconds.
    """
    if pinned:
        pin()
    found, compilation = compare(shape, pinned)
    Console().print(table(shape, found["ours"], found.get("torch")))
    Console().print(f"compiling ours took {compilation:.1f} s")


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.auto_cli(main, as_positional=False)
