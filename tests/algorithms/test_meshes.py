"""One computation, many meshes: SFT, PPO and sampling on one device, on eight in every shape, and in two processes.

Rows have unequal lengths and some are filler. Run as a script, this file is one of the two processes.
"""

import dataclasses
import faulthandler
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from reft_jax.algorithms import ppo, sft
from reft_jax.algorithms.rollout import Rollout, SamplingParams, build_layout
from reft_jax.algorithms.train_state import TrainState
from reft_jax.config import LoraConfig, ModelConfig, OptimizerConfig, RlConfig, SupervisedConfig
from reft_jax.data.batches import PromptBatch, Sequences
from reft_jax.models.hf import configs as family_configs
from reft_jax.models.hf.configs import ConfigFields
from reft_jax.parallel.sharding import fake_cpu_devices, to_global, to_host
from tests.devices import mesh
from tests.generation import build_generate

pytestmark = pytest.mark.compiles

SHAPES = [(1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2), (1, 1, 8), (8, 1, 1)]  # data, fsdp, tensor
ONE, MIXED = (1, 1, 1), (2, 2, 2)
B, PROMPT, RESPONSE, VOCAB = 16, 5, 6, 21
TEMPERATURE, STEPS, PAD = 0.9, 8, 3
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 4,
    },
    "gpt2": {"n_embd": 32, "n_inner": 24, "n_layer": 2, "n_head": 8},
    "codegen": {"n_embd": 32, "n_inner": 24, "n_layer": 2, "n_head": 8, "rotary_dim": 2},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed, wherever it is."""

    family: str = "llama"
    dtype: Any = "float64"
    steps: int = 3
    microbatches: int = 2
    critic: Any = "shared"
    lora: int = 0

    @property
    def model(self) -> ModelConfig:
        fields = ConfigFields(Path(self.family), {"vocab_size": VOCAB, **FIELDS[self.family]})
        decoder = dataclasses.replace(getattr(family_configs, self.family)(fields), vocab_multiple=8, max_positions=24)
        lora = LoraConfig(rank=self.lora)
        return ModelConfig(decoder=decoder, lora=lora, dtype=self.dtype, param_dtype=self.dtype, logits_chunk=24)

    @property
    def optimizer(self) -> OptimizerConfig:
        """Its epsilon is large, else Adam makes whole steps of the rounding of gradients that are 0."""
        return OptimizerConfig(
            learning_rate=2**-6,
            lr_warmup_fraction=0.0,
            beta1=0.8,
            beta2=0.9,
            eps=1e-3,
            weight_decay=0.1,
            max_grad_norm=0.3,
        )

    @property
    def sft(self) -> SupervisedConfig:
        return SupervisedConfig(batch_size=B, microbatch_size=B // self.microbatches, optimizer=self.optimizer)

    @property
    def rl(self) -> RlConfig:
        sizes = {"rollout_batch_size": B, "minibatch_size": B, "microbatch_size": B // self.microbatches}
        return RlConfig(
            critic=self.critic, kl_coef=0.3, vf_coef=0.7, value_clip_range=1.0, optimizer=self.optimizer, **sizes
        )


def place(host: Any, abstract: Any) -> Any:
    return to_global(host, jax.tree.map(lambda x: x.sharding, abstract))


def draw(abstract: Any, noise: float = 0.0) -> Any:
    """Random host arrays, biases and value head too: the same wherever they go, but for some noise."""
    base, other = np.random.default_rng(1), np.random.default_rng(2)
    normal = lambda x: 0.4 * base.normal(size=x.shape) + noise * other.normal(size=x.shape)
    return jax.tree.map(lambda x: normal(x).astype(x.dtype), abstract)


def make_rows() -> Sequences:
    """Every prompt length from 1 to P and response length from 1 to R; rows 4, 11 and 15 are filler."""
    rng = np.random.default_rng(0)
    filler = np.isin(np.arange(B), (4, 11, 15))
    prompts = np.where(filler, 1, rng.permutation(np.arange(B) % PROMPT) + 1).astype(np.int32)
    lengths = np.where(filler, 0, rng.permutation(np.arange(B) % RESPONSE) + 1).astype(np.int32)
    tokens, responses = np.zeros((B, PROMPT + RESPONSE), np.int32), np.zeros((B, RESPONSE), np.int32)
    for i, (p, r) in enumerate(zip(prompts, lengths)):
        tokens[i, : p + r] = rng.integers(0, VOCAB, p + r) * bool(r)
        responses[i, :r] = tokens[i, p : p + r]
    return Sequences(tokens, prompts, responses, lengths)


def make_rollout(dtype: Any) -> tuple[Rollout, np.ndarray, np.ndarray]:
    """A rollout, with log-probs from nowhere, its rewards, and which rows are right."""
    rows, rng = make_rows(), np.random.default_rng(3)
    log_probs = -3 * rows.response_mask * rng.random((B, RESPONSE))
    rewards = np.where(rows.response_lengths > 0, rng.choice([0.0, 0.1, 1.0], B), 0)
    rollout = Rollout(rows, log_probs.astype(dtype), rows.response_lengths < RESPONSE)
    return rollout, rewards.astype(dtype), rewards == 1


# Training


def begin(abstract: TrainState, noise: float = 0.0) -> TrainState:
    """A state at step 0."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    return place(zeros.replace(params=draw(abstract.params, noise)), abstract)


def supervised(case: Case, where: Mesh) -> Any:
    """The state after `case.steps` steps on one batch, and the metrics of each."""
    step, args = sft.build_step(case.model, case.sft, where, total_steps=STEPS, prompt=PROMPT, response=RESPONSE)
    step, state = step.lower(*args).compile(), begin(args[0])
    batch, metrics = place(make_rows(), args[1]), []
    for _ in range(case.steps):
        state, new = step(state, batch)
        metrics.append(new)
    return {"state": state, "metrics": metrics}


def reinforced(case: Case, where: Mesh) -> Any:
    """The experience of a rollout; the state after `case.steps` updates on it by a policy that has moved on."""
    sizes = {"temperature": TEMPERATURE, "prompt": PROMPT, "response": RESPONSE}
    score, args = ppo.build_experience(case.model, case.rl, where, **sizes)
    rollout = make_rollout(case.dtype)
    starts = (draw(args[0]), draw(args[1], 0.1), *rollout)
    experience, scored = score.lower(*args).compile()(*place(starts, args))
    step, args = ppo.build_update(case.model, case.rl, where, total_steps=STEPS, **sizes)
    step, state = step.lower(*args).compile(), begin(args[0], noise=0.05)
    order, metrics = np.random.default_rng(4).permutation(B).astype(np.int32), []
    for _ in range(case.steps):
        state, new = step(state, experience, order)
        metrics.append(new)
    arrays = ("log_probs", "values", "advantages", "returns")
    visible = {name: getattr(experience, name) * experience.sequences.response_mask for name in arrays}
    return {"experience": visible, "scored": scored, "state": state, "metrics": metrics}


def trained(case: Case, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """All that SFT and PPO end with, by path, on the host of every process."""
    results = {"sft": supervised(case, mesh(*shape)), "rl": reinforced(case, mesh(*shape))}
    several = jax.process_count() > 1
    on_host = multihost_utils.process_allgather(results, tiled=True) if several else to_host(results)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree.leaves_with_path(on_host)}


@functools.cache
def on_one_device(case: Case) -> dict[str, np.ndarray]:
    results = trained(case, ONE)
    assert all(np.all(np.isfinite(x)) for x in results.values())
    idle = [name for name, x in results.items() if "/mu/" in name and not np.any(x)]
    assert all(name.endswith("critic/lm_head") for name in idle), "all parameters but this have a gradient"
    assert 0 < results["rl/metrics/0/rl/clip_fraction"] < 1, "some ratios are clipped, and some are not"
    return results


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Every array within `tolerance` of the largest entry of the expected one."""
    assert got.keys() == expected.keys()
    wrong = {}
    for name, x in expected.items():
        # Softmax does not see what a bias adds to all keys: a gradient of 0 has no scale but that of its neighbour.
        scale = np.abs(expected[name.replace("attn/k/bias", "attn/q/bias")]).max()
        assert (got[name].shape, got[name].dtype) == (x.shape, x.dtype), name
        error = np.abs(got[name] - x).max()
        if not error <= tolerance * scale:
            wrong[name] = f"{error / max(scale, 1e-300):.1e}"
    assert not wrong


def without_moments(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x for name, x in results.items() if "opt_state" not in name}


def without_params(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first moment of a first step is the gradient, clipped and times 0.2; parameters are what Adam made of it."""
    dropped = ("state/params", "/nu/", "/count")
    return {name: x for name, x in results.items() if not any(part in name for part in dropped)}


def label(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def families_and_shapes() -> list[Any]:
    """All pairs; Llama and GPT-2 on a mixed mesh are run by CI."""
    pairs = [(family, shape) for family in FIELDS for shape in SHAPES]
    ci = [("llama", MIXED), ("gpt2", MIXED)]
    marks = lambda pair: pytest.mark.ci if pair in ci else pytest.mark.long
    return [pytest.param(*pair, id=f"{pair[0]}-{label(pair[1])}", marks=marks(pair)) for pair in pairs]


@pytest.mark.parametrize(
    ("family", "shape"),
    families_and_shapes(),
)
def test_three_updates_end_with_the_parameters_of_one_device(family, shape):
    with jax.enable_x64(True):
        case = Case(family)
        assert_close(without_moments(trained(case, shape)), without_moments(on_one_device(case)), 1e-9)


@pytest.mark.parametrize(("family", "shape"), families_and_shapes())
def test_losses_log_probs_and_gradients_in_float32_are_those_of_one_device_in_float64(family, shape):
    case = Case(family, "float32", steps=1, microbatches=1)
    got = without_params(trained(case, shape))
    with jax.enable_x64(True):
        truth = without_params(on_one_device(dataclasses.replace(case, dtype="float64")))
    assert_close(got, {name: x.astype(got[name].dtype) for name, x in truth.items()}, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"lora": 2, "critic": "separate"}, id="both", marks=pytest.mark.ci),
        pytest.param({"lora": 2}, id="lora", marks=pytest.mark.long),
        pytest.param({"critic": "separate"}, id="critic", marks=pytest.mark.long),
    ],
)
def test_adapters_and_a_critic_of_its_own_are_those_of_one_device(change):
    with jax.enable_x64(True):
        case = Case(**change)
        assert_close(without_moments(trained(case, MIXED)), without_moments(on_one_device(case)), 1e-9)


# Sampling


GREEDY, SAMPLED = SamplingParams(temperature=0), SamplingParams(temperature=TEMPERATURE)


@functools.cache
def sampled(shape: tuple[int, int, int], weights: Any, sampling: SamplingParams, eos: int) -> Rollout:
    """Responses to the prompts of `make_rows`, by a model that is trained on the same mesh."""
    rows, where, model = make_rows(), mesh(*shape), Case(dtype="float32").model
    lengths = {"prompt": PROMPT, "max_new_tokens": 2 * RESPONSE}
    how = {"sampling": sampling, "eos": eos, "pad": PAD, "scan_layers": True, "weight_layout": weights}
    generate, args = build_generate(model, where, batch=B, **lengths, **how)
    problem = np.where(rows.response_lengths > 0, np.arange(B) // 2, -1).astype(np.int32)
    prompts = PromptBatch(rows.tokens[:, :PROMPT], rows.prompt_lengths, problem, (np.arange(B) % 2).astype(np.int32))
    layout, trained = build_layout(model, where, weights)
    params = layout.lower(*trained).compile()(place(draw(trained[0]), trained[0]))
    return to_host(generate.lower(*args).compile()(params, place(prompts, args[1]), np.int32(5), np.int32(2)))


@functools.cache
def end_token(sampling: SamplingParams) -> int:
    """A token that ends some responses in the middle and is missing in others."""
    responses = sampled(ONE, "replicated", sampling, -1).sequences.responses[make_rows().response_lengths > 0]
    first = lambda token: np.where(np.any(responses == token, axis=1), np.argmax(responses == token, axis=1), 99)
    return max(range(VOCAB), key=lambda token: len(set(first(token))) * np.any(first(token) == 99))


def marks_of(shape: tuple[int, int, int], weights: str, how: SamplingParams) -> Any:
    if how.temperature and (shape, weights) == (MIXED, "sharded"):
        return ()
    return pytest.mark.ci if how.temperature or shape == MIXED else pytest.mark.long


def layouts() -> list[Any]:
    """Without fsdp, weights that are split and weights that are copied lie alike."""
    pairs = [(shape, weights) for shape in SHAPES for weights in ("sharded", "replicated")]
    pairs = [pair for pair in pairs if pair[0][1] > 1 or pair[1] == "sharded"]
    return [
        pytest.param(
            *(shape, weights, how),
            id=f"{label(shape)}-{weights}-{'sampled' if how.temperature else 'greedy'}",
            marks=marks_of(shape, weights, how),
        )
        for shape, weights in pairs
        for how in (GREEDY, SAMPLED)
    ]


@pytest.mark.parametrize(("shape", "weights", "sampling"), layouts())
def test_responses_and_their_log_probs_are_those_of_one_device(shape, weights, sampling):
    eos = end_token(sampling)
    one, eight = sampled(ONE, "replicated", sampling, eos), sampled(shape, weights, sampling, eos)
    lengths = one.sequences.response_lengths
    assert len(set(lengths)) > 3
    assert not np.all(one.ended)
    for x, y in zip(jax.tree.leaves((eight.sequences, eight.ended)), jax.tree.leaves((one.sequences, one.ended))):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(eight.log_probs, one.log_probs, rtol=0, atol=1e-5)


# Two processes


ROOT = Path(__file__).parents[2]
LIMIT = 240  # seconds that a process may take


def start_process(
    number: int, port: int, shape: tuple[int, ...], folder: Path, cache: str
) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.algorithms.test_meshes", *map(str, (number, port, *shape, folder))]
    with (folder / f"{number}.txt").open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def be_a_process(number: int, port: int, shape: tuple[int, int, int], folder: Path) -> None:
    """Half of the computation, on four devices; process 0 writes the results."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)  # whatever becomes of the test, this ends
    fake_cpu_devices(4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
    results = trained(Case(), shape)
    if number == 0:
        np.savez(folder / "results.npz", **results)


@pytest.mark.parametrize(
    "shape", [pytest.param(MIXED, marks=pytest.mark.ci), pytest.param((1, 4, 2), marks=pytest.mark.long)], ids=label
)
def test_two_processes_end_with_the_parameters_of_one_device(shape, tmp_path, compilation_cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start_process(number, port, shape, tmp_path, compilation_cache) for number in range(2)]
    try:
        for number, process in enumerate(processes):
            assert process.wait(LIMIT + 30) == 0, (tmp_path / f"{number}.txt").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with jax.enable_x64(True), np.load(tmp_path / "results.npz") as results:
        assert_close(without_moments(dict(results)), without_moments(on_one_device(Case())), 1e-9)


if __name__ == "__main__":
    number, port, *shape = map(int, sys.argv[1:-1])
    be_a_process(number, port, tuple(shape), Path(sys.argv[-1]))
