"""Sampling by slots: the host's decisions against devices made of numpy, and real slots against one program."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.algorithms.rollout import TOKENS_A_CALL, Admission, Limits, SamplingParams, admission_size, reaches
from reft_jax.algorithms.steps import steps
from reft_jax.algorithms.train_state import init_params
from reft_jax.config import Config, DecoderConfig, EvaluationConfig, GenerationConfig, ModelConfig, RlConfig, SftConfig
from reft_jax.data.batches import PromptBatch
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest
from reft_jax.parallel.sharding import batch_shardings, to_global, to_host
from reft_jax.training import slots
from reft_jax.training.model import Model
from reft_jax.training.slots import respond
from tests.devices import mesh
from tests.generation import build_generate

PAD, EOS, OTHER_END = 0, 1, 2


def batch_of(lengths: list[int], samples: int, width: int, filler: int = 0) -> PromptBatch:
    """Prompts of some lengths, each `samples` times, and rows of filler."""
    rng = np.random.default_rng(0)
    rows = np.repeat(lengths + [1] * filler, samples)
    count = len(lengths) + filler
    tokens = np.repeat(rng.integers(3, 19, (count, width)).astype(np.int32), samples, axis=0)
    tokens[np.arange(width) >= rows[:, None]] = PAD
    problem = np.where(np.arange(count) < len(lengths), np.arange(count) + 100, -1)
    return PromptBatch(
        tokens=tokens,
        lengths=rows.astype(np.int32),
        problem=np.repeat(problem, samples).astype(np.int32),
        sample=np.tile(np.arange(samples, dtype=np.int32), count),
    )


# The host alone


class NumpyDevices:
    """Devices whose rows say what `responses` has for (problem, sample); all that they are asked is checked."""

    def __init__(self, prompts: PromptBatch, responses: dict[tuple[int, int], list[int]], blocks: int, size: int):
        self.responses, self.blocks, self.size = responses, blocks, size
        self.prompt = {
            int(problem): row[:length] for problem, row, length in zip(prompts.problem, prompts.tokens, prompts.lengths)
        }
        self.begun: list[tuple[int, int]] = []
        self.read = 0  # prompts that were computed, used or not
        self.turns = 0
        self.over: Any = None

    def get(self, name: str, *sizes: int) -> Any:
        return functools.partial(getattr(self, name), *sizes)

    def slots(self):
        return {}  # (problem, sample) and tokens so far, by slot

    def prefill(self, width: int, params, slots, new: Admission, seed, step, how):
        entries = len(new.slot) // self.blocks
        first = np.zeros(len(new.slot), np.int32)
        for entry, slot in enumerate(new.slot):
            if slot == self.size:
                continue
            block, row = entry // entries, (int(new.problem[entry]), int(new.sample[entry]))
            place = block * self.size + int(slot)
            assert 0 <= slot < self.size
            if place in slots:
                row_before, drawn = slots[place]
                said = self.responses[row_before]
                assert drawn == len(said) or (self.over and self.over([], said[:drawn])), "a row that goes on"
            source = block * (len(new.tokens) // self.blocks) + int(new.source[entry])
            assert new.source[entry] < len(new.tokens) // self.blocks
            assert new.tokens.shape[1] == width
            np.testing.assert_array_equal(new.tokens[source, : new.lengths[source]], self.prompt[row[0]])
            slots[place] = [row, 1]
            first[entry] = self.responses[row][0]
            self.begun.append(row)
        self.read += len(new.tokens)
        return slots, first, first / 100

    def decode(self, reach: int, params, slots, seed, step, how):
        tokens = np.full((self.blocks * self.size, TOKENS_A_CALL), 9, np.int32)  # nothing that ends
        for place, (row, drawn) in slots.items():
            said = self.responses[row][drawn : drawn + TOKENS_A_CALL]
            tokens[place, : len(said)] = said
            if said:
                assert len(self.prompt[row[0]]) + drawn - 1 + len(said) <= reach, "a token beyond what is read"
            slots[place][1] += len(said)
        self.turns += 1
        return slots, tokens, tokens / 100


def flown(
    prompts: PromptBatch, lengths: list[int], *, size: int, blocks: int, samples: int, longest: int, over: Any = None
):
    """A rollout by the host alone, its devices, and what each row should say."""
    rng = np.random.default_rng(len(lengths))
    responses = {}
    for problem, sample, length in zip(prompts.problem.tolist(), prompts.sample.tolist(), itertools.cycle(lengths)):
        said = rng.integers(3, 19, min(length, longest)).tolist()
        responses[problem, sample] = said if length > longest else [*said[:-1], EOS if length % 2 else OTHER_END]
    devices = NumpyDevices(prompts, responses, blocks, size)
    devices.over = over
    buckets = (4, prompts.tokens.shape[1])
    positions = max(buckets) + longest
    sampling = SimpleNamespace(
        slots=size * blocks,
        blocks=blocks,
        limits=Limits(longest, (EOS, OTHER_END)),
        wide=np.dtype(np.float64),
        admission=lambda samples: admission_size(size, samples),
        positions=positions,
        reaches=reaches(positions, "cpu"),
        policy=SimpleNamespace(layout="training"),
        step=lambda name, how, samples=1: name,
    )
    config = SimpleNamespace(seed=0, generation=SimpleNamespace(prompt_buckets=buckets))
    ids = SpecialIds(pad=PAD, eos=EOS, ends=(EOS, OTHER_END))
    model: Any = SimpleNamespace(config=config, mesh=mesh(), ids=ids, compiled=devices, sampling=sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "to_global", lambda tree, _: tree)
        return respond(model, {}, prompts, 0, SamplingParams(), samples, over), devices, responses


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_each_row_is_sampled_once_and_says_what_its_slot_said(data):
    prompt_lengths = data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=25))
    samples, longest = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=40))
    size, blocks = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    filler = data.draw(st.integers(0, 3))
    prompts = batch_of(prompt_lengths, samples, 9, filler)
    rollout, devices, expected = flown(prompts, lengths, size=size, blocks=blocks, samples=samples, longest=longest)
    real = [(p, s) for p, s in zip(prompts.problem.tolist(), prompts.sample.tolist()) if p >= 0]
    assert sorted(devices.begun) == sorted(real)
    for row, key in enumerate(zip(prompts.problem.tolist(), prompts.sample.tolist())):
        said = expected[key] if key[0] >= 0 else []
        start = prompts.lengths[row]
        assert rollout.sequences.response_lengths[row] == len(said)
        assert rollout.ended[row] == (not said or said[-1] in (EOS, OTHER_END))
        rest = [PAD] * (longest - len(said))
        assert rollout.sequences.responses[row].tolist() == [*said, *rest]
        assert rollout.sequences.tokens[row].tolist() == [
            *prompts.tokens[row, :start],
            *said,
            *rest,
            *[PAD] * (9 - start),
        ]
        np.testing.assert_array_equal(rollout.log_probs[row], [*(token / 100 for token in said), *map(float, rest)])


def test_slots_that_end_are_filled_again():
    """Responses of one to 64 tokens: in batches, each row would take as long as the longest of its batch."""
    prompts = batch_of([3] * 512, 1, 4)
    lengths = np.random.default_rng(1).integers(1, 65, 509).tolist()
    _, devices, expected = flown(prompts, lengths, size=32, blocks=2, samples=1, longest=64)
    tokens = [len(said) for said in expected.values()]
    by_batch = sum(64 * max(tokens[i : i + 64]) for i in range(0, 512, 64))
    spent = 64 * TOKENS_A_CALL * devices.turns
    assert spent < 1.35 * sum(tokens)
    assert by_batch > 1.9 * sum(tokens)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_row_that_is_over_by_what_it_says_makes_room(data):
    """Rows in which 7 has been said are over; what is kept is a beginning of what they would say, to the call's end."""
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=20))
    prompts = batch_of([data.draw(st.integers(1, 9)) for _ in range(data.draw(st.integers(1, 20)))], 1, 9)
    sizes = {"size": data.draw(st.integers(1, 8)), "blocks": data.draw(st.integers(1, 2)), "samples": 1, "longest": 50}
    asked: list[tuple[int, ...]] = []

    def over(prompt, response) -> bool:
        asked.append(tuple(prompt))
        return 7 in list(response)

    rollout, devices, expected = flown(prompts, lengths, **sizes, over=over)
    assert sorted(devices.begun) == sorted(expected)
    for row, said in enumerate(expected.values()):
        kept = rollout.sequences.response_lengths[row]
        assert rollout.sequences.responses[row, :kept].tolist() == said[:kept]
        assert rollout.ended[row] == (kept == len(said) and said[-1] in (EOS, OTHER_END))
        place = said.index(7) + 1 if 7 in said else len(said)
        whole_calls = 1 + -(-max(place - 1, 0) // TOKENS_A_CALL) * TOKENS_A_CALL  # the first token is the prefill's
        assert kept == min(len(said), whole_calls if 7 in said else len(said))
    real = {tuple(row[:length].tolist()) for row, length in zip(prompts.tokens, prompts.lengths)}
    assert {tuple(map(int, prompt)) for prompt in asked if len(prompt)} <= real


@pytest.mark.parametrize(("samples", "most"), [(8, 32), (1, 256)])
def test_samples_of_a_question_share_its_prefill(samples, most):
    prompts = batch_of([3, 5, 7, 9] * 8, 8, 9)
    _, devices, _ = flown(prompts, [20], size=64, blocks=1, samples=samples, longest=30)
    assert devices.read == most


@pytest.mark.parametrize(("slots", "samples"), [(1, 1), (4, 8), (32, 1), (32, 4), (64, 8), (256, 100), (7, 3)])
def test_a_call_of_prefill_fills_what_it_may(slots, samples):
    prompts, rows = admission_size(slots, samples)
    assert 1 <= prompts <= rows <= slots
    assert prompts == 1 or prompts * samples <= rows


# Real slots

DECODER = DecoderConfig(
    vocab_size=19,
    vocab_multiple=8,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    mlp_dim=32,
    initializer_range=0.5,
)
MODEL = ModelConfig(decoder=DECODER, dtype="float64", param_dtype="float64")
PROMPT, LONGEST, COUNT = 9, 150, 12


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def model_of(shape: tuple[int, int], slots: int, samples: int, how: SamplingParams) -> Model:
    config = Config(
        model=MODEL,
        sft=SftConfig(schedule_epochs=0),
        rl=dataclasses.replace(RlConfig(epochs=0), samples_per_question=samples),
        evaluation=EvaluationConfig(top_k=how.top_k, top_p=how.top_p),
        generation=GenerationConfig(prompt_buckets=(4, PROMPT), max_new_tokens=LONGEST, slots=slots),
        seed=11,
    )
    ids, where = SpecialIds(pad=PAD, eos=EOS, ends=(EOS,)), mesh(*shape)
    compiled = CompiledSteps(steps(config, where, ids=ids))
    return Model(config=config, mesh=where, ids=ids, compiled=compiled, stop=StopRequest())


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("shape", "slots", "samples", "how"),
    [
        ((1, 1), 3, 1, SamplingParams()),
        ((1, 1), 8, 4, SamplingParams(temperature=0.7)),
        pytest.param((1, 1), 5, 1, SamplingParams(temperature=0), marks=pytest.mark.ci),
        pytest.param((1, 1), 6, 1, SamplingParams(top_k=5, top_p=0.8), marks=pytest.mark.ci),
        pytest.param((4, 2), 1, 1, SamplingParams(), marks=pytest.mark.ci),
        ((2, 1), 4, 4, SamplingParams()),
    ],
    ids=["few", "shared", "greedy", "filtered", "copied weights", "split weights"],
)
def test_any_slots_say_what_one_program_says(wide, shape, slots, samples, how):
    """In float64, to the last token and 1e-12: a slot for each row and all responses in one go, or slots in turns."""
    prompts = batch_of([1, 3, 9, 4, 4, 8, 2, 9, 5, 1, 3, 7][: COUNT // samples], samples, PROMPT, filler=0)
    step, _ = build_generate(
        MODEL,
        mesh(),
        batch=COUNT,
        prompt=PROMPT,
        max_new_tokens=LONGEST,
        sampling=how,
        eos=EOS,
        pad=PAD,
        scan_layers=True,
    )
    key = jax.random.key(0)
    alone = init_params(Policy(MODEL, mesh()), mesh(), key, value_head=False)
    expected = to_host(step(alone, to_global(prompts, batch_shardings(prompts, mesh())), np.int32(11), np.int32(5)))
    model = model_of(shape, slots, samples, how)
    params = init_params(Policy(MODEL, model.mesh), model.mesh, key, value_head=False)
    params = model.compiled.get("layout")(params) if "layout" in model.compiled else params
    found = respond(model, params, prompts, 5, how, samples)
    lengths = expected.sequences.response_lengths
    assert lengths.min() < 40
    assert how.temperature == 0 or len(set(lengths.tolist())) > 4, "rows end at several places"
    jax.tree.map(np.testing.assert_array_equal, found.sequences, expected.sequences)
    np.testing.assert_array_equal(found.ended, expected.ended)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-12, rtol=0)
    calls = model.compiled._compiled
    assert sum(name.startswith("decode") for name, _ in calls) > 1, "the cache is read in more than one length"
