"""The reward model's steps against rows computed one by one, Adam written out in numpy, and transformers.

Everything but the comparison with transformers is float64, so that what differs is wrong. There is a filler row.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from reft_jax.algorithms.classification import build_classify, build_step
from reft_jax.algorithms.train_state import abstract_params, init_parts, init_state, make_optimizer
from reft_jax.config import LoraConfig, ModelConfig, RewardModelConfig
from reft_jax.data.samples import LabelledRows
from reft_jax.models.classifier import Classifier, class_logits
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf.load import decoder_config, load_decoder_params
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import batch_shardings, to_global, to_host
from tests.algorithms.test_updates import MODEL, OPTIMIZER, STEPS, Adam, assert_trees_close
from tests.devices import mesh
from tests.tiers import few

pytestmark = pytest.mark.compiles

B, LENGTH, VOCAB = 8, 9, 21
LENGTHS = np.array([9, 1, 5, 8, 2, 7, 3, 1], np.int32)
LABELS = np.array([1, 0, 0, 1, 1, 0, 0, -1], np.int32)
CONFIG = RewardModelConfig(batch_size=B, microbatch_size=B, row_buckets=(LENGTH,), optimizer=OPTIMIZER)
GOLDEN = Path(__file__).parents[1] / "models" / "golden"


@pytest.fixture(autouse=True)
def float64(request):
    with jax.enable_x64("torch" not in request.fixturenames):
        yield


def make_rows(padding: int = 0) -> LabelledRows:
    """Random rows; what pads them is random too, another for each `padding`."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (B, LENGTH))
    other = np.random.default_rng(padding + 1).integers(0, VOCAB, (B, LENGTH))
    seen = np.arange(LENGTH) < LENGTHS[:, None]
    return LabelledRows(np.where(seen, tokens, other).astype(np.int32), LENGTHS, LABELS)


@functools.cache
def host_params():
    shapes = jax.eval_shape(Classifier(MODEL).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape), nn.meta.unbox(shapes))


def on_mesh(params: Any, where: Any) -> Any:
    abstract = abstract_params(Classifier(MODEL, where), where, value_head=False)
    return to_global(params, jax.tree.map(lambda x: x.sharding, abstract))


def naive_logits(params: Any) -> list[jax.Array]:
    """Scores [2] of each row, by itself and without padding."""
    decoder = Decoder(dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, tie_embeddings=True)))
    rows, found = make_rows(), []
    for tokens, length in zip(rows.tokens, rows.lengths):
        hidden, _ = decoder.apply({"params": params["decoder"]}, tokens[None, :length], jnp.arange(length)[None])
        found.append(hidden[0, -1] @ params["class_head"]["kernel"])
    return found


# The step


@functools.cache
def steps(microbatch: int, shape=(1, 1), padding: int = 0):
    """(state, metrics of each step) after two steps on one batch, on the host."""
    where = mesh(*shape)
    config = dataclasses.replace(CONFIG, microbatch_size=microbatch)
    step, _ = build_step(MODEL, config, where, total_steps=STEPS, length=LENGTH)
    state = init_state(on_mesh(host_params(), where), make_optimizer(OPTIMIZER, STEPS), where)
    batch = to_global(make_rows(padding), batch_shardings(make_rows(), where))
    metrics = []
    for _ in range(2):
        state, new = step(state, batch)
        metrics.append(to_host(new))
    return to_host(state), metrics


def test_a_step_equals_adam_on_the_mean_over_rows():
    def loss(params):
        logits = naive_logits(params)
        right = sum(jnp.argmax(x) == y for x, y in zip(logits, LABELS))
        rows = [jnp.log(jnp.sum(jnp.exp(x))) - x[y] for x, y in zip(logits, LABELS) if y >= 0]
        return sum(rows) / 7, right

    adam, (state, metrics) = Adam(host_params()), steps(B)
    value_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for k in range(2):
        (value, right), gradient = value_and_gradient(adam.params)
        norm = adam.step(gradient)
        assert metrics[k]["loss"] == pytest.approx(float(value), rel=1e-12)
        assert metrics[k]["accuracy"] == pytest.approx(int(right) / 7, rel=1e-12)
        assert metrics[k]["optimizer/gradient_norm"] == pytest.approx(norm, rel=1e-10)
        assert metrics[k]["optimizer/learning_rate"] == pytest.approx(OPTIMIZER.learning_rate * (1 - k / STEPS))
    assert_trees_close(state.params, adam.params, 1e-10)
    assert state.step == 2


def test_microbatches_add_up_to_the_batch():
    (whole, metrics), (parts, own) = steps(B), steps(1)
    assert_trees_close(parts, whole, 1e-12)
    assert_trees_close(own, metrics, 1e-12)


def test_eight_devices_equal_one():
    (one, metrics), (eight, own) = steps(4), steps(4, shape=(4, 2))
    assert_trees_close(eight, one, 1e-9)
    assert_trees_close(own, metrics, 1e-9)


def test_padding_and_filler_never_matter():
    (one, metrics), (other, own) = steps(B), steps(B, padding=7)
    assert np.any(make_rows().tokens != make_rows(7).tokens)
    assert_trees_close(other, one, 1e-14)
    assert_trees_close(own, metrics, 1e-14)


def test_a_step_donates_its_state_and_compiles_once():
    where = mesh()
    step, args = build_step(MODEL, CONFIG, where, total_steps=STEPS, length=LENGTH)
    compiled = step.lower(*args).compile()
    state = init_state(on_mesh(host_params(), where), make_optimizer(OPTIMIZER, STEPS), where)
    batch = to_global(make_rows(), batch_shardings(make_rows(), where))
    new, _ = compiled(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    compiled(new, batch)
    narrow = jax.tree.map(lambda x: x[:4], make_rows())
    with pytest.raises(TypeError, match="compiled"):
        compiled(new, to_global(narrow, batch_shardings(narrow, where)))


# Scoring


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_scores_are_the_probability_of_the_second_class(shape):
    where, rows = mesh(*shape), make_rows(3)
    score, _ = build_classify(MODEL, where, batch=B, length=LENGTH)
    batch = to_global((rows.tokens, rows.lengths), batch_shardings((rows.tokens, rows.lengths), where))
    found = to_host(score(on_mesh(host_params(), where), *batch))
    expected = [np.exp(x[1]) / np.sum(np.exp(x)) for x in map(np.asarray, jax.jit(naive_logits)(host_params()))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Parameters


def test_a_classifier_has_neither_output_projection_nor_adapters():
    adapted = dataclasses.replace(MODEL, lora=LoraConfig(rank=2))
    params = abstract_params(Classifier(adapted, mesh(4, 2)), mesh(4, 2), value_head=False)
    policy = abstract_params(Policy(adapted, mesh(4, 2)), mesh(4, 2), value_head=False)
    assert set(params) == {"decoder", "class_head"}
    assert set(policy["decoder"]) - set(params["decoder"]) == {"lm_head"}
    same = {name: policy["decoder"][name] for name in params["decoder"]}
    assert jax.tree.map(lambda x: (x.shape, x.sharding), same) == jax.tree.map(
        lambda x: (x.shape, x.sharding), params["decoder"]
    )
    assert params["class_head"]["kernel"].shape == (16, 2)
    assert params["class_head"]["kernel"].sharding.spec[0] == "fsdp"


def test_a_fresh_head_is_normal():
    wide = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, embed_dim=4096, num_layers=1))
    classifier = Classifier(wide, mesh())
    abstract = abstract_params(classifier, mesh(), value_head=False)
    head = init_parts(classifier, mesh(), jax.random.key(0), {"class_head": abstract["class_head"]})
    kernel = np.asarray(head["class_head"]["kernel"])
    assert np.std(kernel) == pytest.approx(wide.decoder.initializer_range, rel=0.05)
    assert np.mean(kernel) == pytest.approx(0, abs=0.02)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="live parity needs torch")


@pytest.mark.parametrize("case", few(["llama", "gpt2", "opt", "qwen2"], ["gpt2"]))
def test_transformers_computes_the_same(torch, case):
    """Scores and gradients of its sequence classifier, which finds the last token by the padding id."""
    from transformers import AutoModelForSequenceClassification

    pad, lengths, labels = 60, np.array([12, 7, 3], np.int32), np.array([1, 0, 1])
    tokens = np.random.default_rng(0).integers(3, pad, (3, 12)).astype(np.int32)
    tokens[np.arange(12) >= lengths[:, None]] = pad
    model = AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / case, num_labels=2, pad_token_id=pad, dtype=torch.float32
    ).eval()
    shape = model.score.weight.shape
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    model.score.weight.data = torch.tensor(weight)
    mask = torch.tensor(np.arange(12) < lengths[:, None]).long()
    out = model(torch.tensor(tokens).long(), attention_mask=mask, labels=torch.tensor(labels))
    out.loss.backward()

    config = ModelConfig(decoder=decoder_config(GOLDEN / case))
    decoder = load_decoder_params(GOLDEN / case, config)
    params = {
        "decoder": {name: tree for name, tree in decoder.items() if not name.startswith("lm_head")},
        "class_head": {"kernel": jnp.asarray(weight.T)},
    }

    def loss(params):
        logits = class_logits(Classifier(config), params, jnp.asarray(tokens), jnp.asarray(lengths))
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(3), labels]), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert float(value) == pytest.approx(out.loss.item(), rel=1e-4)
    given = model.get_input_embeddings().weight.grad.numpy()
    expected = np.asarray(gradient["decoder"]["embed"])[: len(given)]
    np.testing.assert_allclose(given, expected, atol=1e-4 * np.abs(expected).max())
    head = np.asarray(gradient["class_head"]["kernel"]).T
    np.testing.assert_allclose(model.score.weight.grad.numpy(), head, atol=1e-4)
