"""The decoder with weights read from Hugging Face files against torch: small random models, and a real one.

Without torch the logits that it gave (`make_golden.py`) are still checked.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from reft_jax.config import ModelConfig
from reft_jax.models.decoder import Decoder, empty_cache, rope_frequencies
from reft_jax.models.hf.load import decoder_config, load_decoder_params
from tests.tiers import few

pytestmark = pytest.mark.compiles

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
FAMILIES = ("llama", "gpt2")
"""Those that `make test` tries."""
NEXT = ("codegen", "olmo2", "opt", "qwen3")
"""Those that CI tries besides where the tensors of a family are all that is its own."""
LENGTHS = np.array([12, 7, 3])
SEEN = np.arange(12) < LENGTHS[:, None]  # [B, T] which tokens are not padding
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 12))  # padding too is random: nothing may depend on it


def load(directory: Path, **kwargs) -> tuple[ModelConfig, dict]:
    config = ModelConfig(decoder=decoder_config(directory), **kwargs)
    return config, load_decoder_params(directory, config)


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, params: dict, tokens) -> jax.Array:
    """Logits [B, T, V]."""
    variables, model = {"params": params}, Decoder(config)
    hidden, _ = model.apply(variables, jnp.asarray(tokens), jnp.arange(tokens.shape[1])[None])
    return model.apply(variables, hidden, method="logits")


def log_prob_sum(config: ModelConfig, params: dict) -> tuple[jax.Array, jax.Array]:
    """Sum of the log-probs of all tokens but the first of each row, padding left out; and the logits."""
    logits = forward(config, params, TOKENS)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(log_probs * SEEN[:, 1:]), logits


def assert_close(actual, expected, tolerance: float, scale: float | None = None, name: str = "") -> None:
    """Within `tolerance` of the largest entry of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    worst, scale = np.abs(actual - expected).max(), scale or np.abs(expected).max()
    assert worst <= tolerance * scale, f"{name} differs by {worst / scale:.1e} of its largest entry"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="live parity needs torch")


def torch_model(torch, directory: Path, dtype: str = "float32"):
    """The model of transformers; in float64 its norms and rotary tables are made to be what the type promises.

    transformers computes RMSNorm in float32 whatever the type, and so does everyone the rotary tables: these
    are given ours (float32 then checks them), so that 1e-10 can be asked of all else.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    if dtype != "float64":
        return model
    d = decoder_config(directory)

    def tables(x, position_ids):
        angle = jnp.asarray(position_ids.numpy(), jnp.float32)[..., None] * rope_frequencies(d)[None, None]
        sin, cos = (torch.tensor(np.asarray(table)).double() for table in (jnp.sin(angle), jnp.cos(angle)))
        return (sin, cos) if d.rope_interleaved else (cos.repeat(1, 1, 2), sin.repeat(1, 1, 2))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                m.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.variance_epsilon)
            )
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = tables
    return model


@pytest.mark.parametrize("case", few(CASES, FAMILIES))
def test_logits_equal_those_that_torch_gave(case):
    expected = np.load(GOLDEN / case / "expected.npz")
    config, params = load(GOLDEN / case)
    assert_close(forward(config, params, expected["tokens"]), expected["logits"], 1e-5)


@pytest.mark.parametrize("case", few(CASES, FAMILIES))
def test_cached_decoding_gives_the_logits_that_torch_gave(case):
    """Prompts of 5 and 2 tokens in one padded prefill, then 7 tokens one at a time, each row at its own place."""
    expected = np.load(GOLDEN / case / "expected.npz")
    (config, params), tokens, lengths = load(GOLDEN / case), expected["tokens"], np.array([5, 2])
    slots = lengths[:, None] + np.arange(-1, 7)  # of the last token of the prompt, and of those after it
    take = lambda x: np.take_along_axis(x, slots.reshape(2, 8, *(1,) * (x.ndim - 2)), axis=1)
    variables, model = {"params": params}, Decoder(config)

    @jax.jit
    def cached(prompt, rest):
        hidden, cache = model.apply(variables, prompt, jnp.arange(5)[None], empty_cache(config, 2, 12))
        last = jnp.take_along_axis(hidden, jnp.asarray(lengths)[:, None, None] - 1, axis=1)

        def step(cache, inputs):
            token, position = inputs
            hidden, cache = model.apply(variables, token[:, None], position[:, None], cache)
            return cache, hidden[:, 0]

        after = jax.lax.scan(step, cache, (rest.T, jnp.asarray(slots[:, 1:].T)))[1].swapaxes(0, 1)
        return model.apply(variables, jnp.concatenate([last, after], axis=1), method="logits")

    assert_close(cached(tokens[:, :5], take(tokens)[:, 1:]), take(expected["logits"]), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("case", few(CASES, FAMILIES))
def test_logits_and_gradients_equal_torch(case, dtype, tolerance, torch, tmp_path):
    """Unpadded, right-padded and left-padded rows of torch's against our contiguous ones; gradients of the summed
    log-prob with respect to every weight. Torch's gradients are written to a file and read as if they were weights.
    """
    model = torch_model(torch, GOLDEN / case, dtype)
    with torch.no_grad():
        unpadded = model(torch.tensor(TOKENS)).logits.numpy()
        shifted = np.stack([np.roll(row, 12 - n) for row, n in zip(TOKENS, LENGTHS)])
        mask = torch.tensor(SEEN[:, ::-1].copy()).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        left = model(torch.tensor(shifted), attention_mask=mask, position_ids=positions).logits.numpy()
    right = model(torch.tensor(TOKENS), attention_mask=torch.tensor(SEEN).long()).logits
    chosen = right[:, :-1].log_softmax(-1).gather(2, torch.tensor(TOKENS)[:, 1:, None])[..., 0]
    (chosen * torch.tensor(SEEN)[:, 1:]).sum().backward()
    save_file({n: p.grad.numpy() for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / case / "config.json", tmp_path)

    with jax.enable_x64(dtype == "float64"):
        config, params = load(GOLDEN / case, dtype=dtype, param_dtype=dtype)
        _, expected = load(tmp_path, dtype=dtype, param_dtype=dtype)
        gradient = jax.jit(  # compiled without optimisation: it runs once
            jax.grad(lambda p: log_prob_sum(config, p), has_aux=True),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        actual, logits = gradient(params)
        logits, actual, expected = jax.device_get((logits, actual, expected))
    assert_close(logits, unpadded, tolerance, name="unpadded")
    assert_close(logits[SEEN], right.detach().numpy()[SEEN], tolerance, name="right-padded")
    assert_close(logits[SEEN], left[SEEN[:, ::-1]], tolerance, name="left-padded")
    flat = {jax.tree_util.keystr(p, simple=True, separator="/"): g for p, g in jax.tree.leaves_with_path(expected)}
    for path, gradient in jax.tree.leaves_with_path(actual):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Without rotation softmax cancels a key bias, and its gradient of 0 gives no scale of its own.
        scale = np.abs(flat[name.replace("attn/k/bias", "attn/q/bias")]).max()
        assert_close(gradient, flat[name], tolerance, scale=float(scale), name=name)


@pytest.mark.parametrize("case", few(CASES, FAMILIES))
def test_bfloat16_is_as_close_to_float32_as_torchs_is(case, torch):
    """Logits of bf16 compute with float32 weights: within 4 % of the largest, and no worse than torch by half."""
    with torch.no_grad():
        exact = torch_model(torch, GOLDEN / case)(torch.tensor(TOKENS)).logits.numpy()
        theirs = torch_model(torch, GOLDEN / case, "bfloat16")(torch.tensor(TOKENS)).logits.float().numpy()
    config, params = load(GOLDEN / case, dtype="bfloat16")
    ours = np.asarray(forward(config, params, TOKENS))
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2))
    assert_close(ours, exact, 0.04)
    assert error(ours) <= 1.5 * error(theirs)


NEW_TOKENS = 64
PROMPT = "Question:\n{}\nAnswer reasoning:\n"


@pytest.fixture(scope="module")
def real(real_model, real_data):
    """Directory of a real model, and real questions."""
    rows = json.loads((real_data / "svamp_test_set.json").read_text(encoding="utf-8"))
    return real_model, [PROMPT.format(row["question"]) for row in rows[:20]]


def greedy(config: ModelConfig, params: dict, prompts: list[list[int]]) -> np.ndarray:
    """The likeliest NEW_TOKENS tokens after each prompt [B, NEW_TOKENS], through the cache."""
    lengths = jnp.array([len(p) for p in prompts])
    width = int(lengths.max())
    tokens = jnp.array([p + [0] * (width - len(p)) for p in prompts])
    model = Decoder(config)

    @jax.jit
    def run(params):
        variables = {"params": params}
        best = lambda hidden: jnp.argmax(model.apply(variables, hidden, method="logits"), axis=-1)
        cache = empty_cache(config, len(prompts), width + NEW_TOKENS)
        hidden, cache = model.apply(variables, tokens, jnp.arange(width)[None], cache)
        first = best(jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0])

        def step(carry, i):
            token, cache = carry
            hidden, cache = model.apply(variables, token[:, None], (lengths + i)[:, None], cache)
            return (best(hidden[:, 0]), cache), token

        return jax.lax.scan(step, (first, cache), jnp.arange(NEW_TOKENS))[1].T

    return np.asarray(run(params))


@pytest.mark.ci
def test_real_weights_give_torchs_logits(real, torch):
    from transformers import AutoTokenizer

    directory, questions = real
    tokens = np.array([AutoTokenizer.from_pretrained(directory)(questions[0])["input_ids"]])
    with torch.no_grad():
        expected = torch_model(torch, directory)(torch.tensor(tokens)).logits
    config, params = load(directory)
    assert_close(forward(config, params, tokens), expected, 1e-5)


@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.long)])
def test_real_weights_continue_as_torch_does(count, real, torch):
    """Greedy tokens are equal, or differ first where torch's two best logits are within 1e-4."""
    from transformers import AutoTokenizer

    directory, questions = real
    tokenizer, model = AutoTokenizer.from_pretrained(directory), torch_model(torch, directory)
    prompts = [tokenizer(question)["input_ids"] for question in questions[:count]]
    config, params = load(directory)
    ours = greedy(config, params, prompts)
    for prompt, row in zip(prompts, ours):
        text = torch.tensor([prompt + row.tolist()])
        with torch.no_grad():  # what torch says at each place, given our tokens: the same question, in one pass
            best = model(text).logits[0, len(prompt) - 1 : -1].topk(2)
        differs = np.flatnonzero(best.indices[:, 0].numpy() != row)
        gaps = (best.values[:, 0] - best.values[:, 1]).numpy()
        assert differs.size == 0 or gaps[differs[0]] < 1e-4, f"token {differs[0]}: torch leads by {gaps[differs[0]]}"
