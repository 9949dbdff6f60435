"""Tokens a second of PPO's phases, how an iteration's time splits, and the same work in torch where it is installed.

    python -m benchmarks.throughput [--embed_dim 256 ...]

The model is a fresh Llama of the given shape; responses never end early, so that both sides do the same work. Torch's
side is transformers' `generate` and an eager training step of the same loss, on the GPU where JAX has one (set
XLA_PYTHON_CLIENT_MEM_FRACTION=0.4, so that both find room); with bfloat16 it samples with a copy of the weights in that
type and trains under autocast. Figures are medians; a machine's noise touches both sides, so only their ratio is worth
quoting.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jsonargparse
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from reft_jax.algorithms.ppo import build_experience, build_update
from reft_jax.algorithms.rollout import SamplingParams, build_generate, build_layout, needs_layout
from reft_jax.algorithms.train_state import copy_params, init_params, init_state, make_optimizer
from reft_jax.config import (
    DecoderConfig,
    Dtype,
    GenerationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Remat,
    RlConfig,
)
from reft_jax.data.batches import PromptBatch
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import batch_shardings, make_mesh, to_global


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


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of `work`, which must wait for its own end."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_jax(shape: Shape, mesh: Mesh) -> dict[str, float]:
    """Seconds of an iteration's phases in this package; `compile` is all programs together."""
    model = model_config(shape)
    policy = Policy(model, mesh)
    rl = RlConfig(
        rollout_batch_size=shape.batch,
        minibatch_size=shape.batch,
        microbatch_size=shape.microbatch,
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", lr_warmup_fraction=0.0),
    )
    start = time.perf_counter()
    sizes: dict[str, Any] = {"prompt": shape.prompt}
    generate = _compile(
        build_generate(
            model,
            mesh,
            **sizes,
            batch=shape.batch,
            max_new_tokens=shape.response,
            sampling=SamplingParams(),
            eos=-1,  # never drawn
            pad=0,
            scan_layers=GenerationConfig.scan_layers,
        )
    )
    sizes |= {"response": shape.response, "temperature": 1.0}
    experience_step = _compile(build_experience(model, rl, mesh, **sizes))
    update_step = _compile(build_update(model, rl, mesh, **sizes, total_steps=1000))
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
    prompts = to_global(prompts, batch_shardings(prompts, mesh))
    layout = _compile(build_layout(model, mesh, "auto")) if needs_layout(model, mesh, "auto") else lambda params: params
    sample = lambda: jax.block_until_ready(generate(layout(reference), prompts, np.int32(0), np.int32(0)))
    rollout = sample()
    rewards = to_global(np.ones(shape.batch, np.float32), batch_shardings(np.ones(shape.batch), mesh))
    score = lambda: jax.block_until_ready(experience_step(params, reference, rollout, rewards)[0])
    experience = score()
    state = [init_state(copy_params(params), make_optimizer(rl.optimizer, 1000), mesh)]
    rows = np.arange(shape.batch, dtype=np.int32)

    def update() -> None:
        state[0], metrics = update_step(state[0], experience, rows)
        jax.block_until_ready(metrics)

    phases = {"rollout": sample, "experience": score, "update": update}
    return {
        "compile": compilation,
        **{name: median_seconds(work, shape.repeats) for name, work in phases.items()},
    }


def _compile(built: tuple[Any, tuple[Any, ...]]) -> Any:
    jitted, args = built
    return jitted.lower(*args).compile()


def measure_torch(shape: Shape) -> dict[str, float]:
    """Seconds of the same phases with transformers: `generate`, scoring by policy and reference, one optimizer step."""
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

    phases = {"rollout": sample, "experience": score, "update": update}
    return {name: median_seconds(work, shape.repeats) for name, work in phases.items()}


def report(shape: Shape, ours: dict[str, float], theirs: dict[str, float] | None) -> Table:
    """A row for each phase; tokens are prompt and response, but for the rollout, where only the response counts."""
    table = Table(title=f"{shape.batch} x ({shape.prompt} + {shape.response}) tokens, {jax.devices()[0].device_kind}")
    for heading in ("phase", "seconds", "share", "tokens/s", "torch seconds", "torch / ours"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    phases = ("rollout", "experience", "update")
    whole = sum(ours[phase] for phase in phases)
    for phase in phases:
        tokens = shape.batch * (shape.response if phase == "rollout" else shape.prompt + shape.response)
        torch_cells = (f"{theirs[phase]:.3f}", f"{theirs[phase] / ours[phase]:.2f}") if theirs else ("", "")
        cells = (f"{ours[phase]:.3f}", f"{ours[phase] / whole:.0%}", f"{tokens / ours[phase]:,.0f}")
        table.add_row(phase, *cells, *torch_cells)
    table.caption = f"compiling all three took {ours['compile']:.1f} s"
    return table


def main(shape: Shape = Shape()) -> None:
    """Measures and prints.

    Args:
        shape: what is measured.
    """
    mesh = make_mesh(MeshConfig(), jax.devices())
    ours = measure_jax(shape, mesh)
    try:
        theirs = measure_torch(shape)
    except ImportError:
        theirs = None
    Console().print(report(shape, ours, theirs))


if __name__ == "__main__":
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.auto_cli(main, as_positional=False)
