"""Batches: encoding against a vocabulary small enough to do by hand, padding against slow loops, order as properties.

The tokenizer is that of `characters`.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.config import ModelConfig, SourceConfig, TemplateConfig
from reft_jax.data.batches import (
    annotations,
    bucket,
    epoch_order,
    evaluation_batches,
    prompt_batch,
    sequence_batch,
    step_indices,
    steps_per_epoch,
    training_batch,
    training_prompts,
)
from reft_jax.data.encoding import Example, OverlongCount, Prompt, encode_examples, encode_prompts
from reft_jax.data.prompts import generation_prompt, prompt_text, target_text
from reft_jax.data.readers import read_problems
from reft_jax.data.tokenizers import SpecialIds, load_tokenizer, model_tokenizer, special_ids
from reft_jax.problem import Problem
from tests.data.characters import EOS, TEMPLATES, ids

PROBLEMS = [
    Problem("first", "1 + 1 ?", "2", cot="two"),
    Problem("second", "longer than the first ?", "3", cot="as it should be"),
    Problem("third", "short ?", "4", cot="four"),
]


# Encoding


def test_examples_are_prompt_and_target_and_end(tokenizer) -> None:
    limits = {"max_prompt": 99, "max_response": 99, "overlong": "error", "stage": "sft"}
    examples, count = encode_examples(PROBLEMS, tokenizer, TEMPLATES, "text", **limits)
    assert [(e.problem, e.prompt.tolist(), e.response.tolist()) for e in examples] == [
        (0, ids("Q1 + 1 ?:"), [*ids("two=2"), EOS]),
        (1, ids("Qlonger than the first ?:"), [*ids("as it should be=3"), EOS]),
        (2, ids("Qshort ?:"), [*ids("four=4"), EOS]),
    ]
    assert {e.prompt.dtype for e in examples} | {e.response.dtype for e in examples} == {np.dtype(np.int32)}
    assert count == OverlongCount()
    programs, _ = encode_examples(PROBLEMS, tokenizer, TEMPLATES, "program", **limits)
    assert programs[0].prompt.tolist() == ids("Q1 + 1 ?:")  # no forced header in training
    assert programs[0].response.tolist() == [*ids("two"), EOS]
    assert encode_examples([], tokenizer, TEMPLATES, "text", **limits) == ([], OverlongCount())


def test_prompts_have_the_forced_header(tokenizer) -> None:
    prompts, count = encode_prompts(PROBLEMS[:1], tokenizer, TEMPLATES, "program", max_prompt=99, overlong="error")
    assert [(p.problem, p.tokens.tolist()) for p in prompts] == [(0, ids("Q1 + 1 ?:#1 + 1 ?\n"))]
    assert count == OverlongCount()
    (text,), _ = encode_prompts(PROBLEMS[:1], tokenizer, TEMPLATES, "text", max_prompt=99, overlong="error")
    assert text.tokens.tolist() == ids("Q1 + 1 ?:")


@pytest.mark.parametrize(
    ("max_prompt", "max_response", "message"),
    [
        (10, 99, r"1 of 3 rows .* 10 tokens of `warmup\.prompt_buckets`: `second` \(25 tokens\).*largest bucket 25"),
        (99, 6, r"2 of 3 rows .* 6 tokens of `warmup\.response_buckets`: `second` \(18 tokens\), `third` \(7 tokens\)"),
    ],
)
def test_too_long_is_an_error_that_names_the_rows_and_the_key(tokenizer, max_prompt, max_response, message) -> None:
    with pytest.raises(ValueError, match=message):
        encode_examples(
            PROBLEMS,
            tokenizer,
            TEMPLATES,
            "text",
            max_prompt=max_prompt,
            max_response=max_response,
            overlong="error",
            stage="warmup",
        )
    if max_prompt == 10:
        with pytest.raises(ValueError, match=r"`generation\.prompt_buckets`: `second`"):
            encode_prompts(PROBLEMS, tokenizer, TEMPLATES, "text", max_prompt=max_prompt, overlong="error")


def test_too_long_can_be_dropped(tokenizer) -> None:
    limits = {"max_prompt": 10, "max_response": 6, "overlong": "drop", "stage": "sft"}
    examples, count = encode_examples(PROBLEMS, tokenizer, TEMPLATES, "text", **limits)
    assert [e.problem for e in examples] == [0]
    assert count == OverlongCount(prompts=1, targets=2, dropped=2)
    prompts, count = encode_prompts(PROBLEMS, tokenizer, TEMPLATES, "text", max_prompt=10, overlong="drop")
    assert [p.problem for p in prompts] == [0, 2]
    assert count == OverlongCount(prompts=1, dropped=1)


def test_too_long_can_be_cut_where_it_hurts_least(tokenizer) -> None:
    limits = {"max_prompt": 10, "max_response": 6, "overlong": "truncate", "stage": "sft"}
    examples, count = encode_examples(PROBLEMS, tokenizer, TEMPLATES, "text", **limits)
    assert [(e.prompt.tolist(), e.response.tolist()) for e in examples] == [
        (ids("Q1 + 1 ?:"), [*ids("two=2"), EOS]),
        (ids("e first ?:"), ids("as it ")),
        (ids("Qshort ?:"), ids("four=4")),  # one too long: the end token goes
    ]
    assert count == OverlongCount(prompts=1, targets=2)
    prompts, _ = encode_prompts(PROBLEMS, tokenizer, TEMPLATES, "program", max_prompt=12, overlong="truncate")
    assert prompts[1].tokens.tolist() == ids("the first ?\n")


def test_text_without_tokens_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"`odd`.*no tokens for all of 'Q2 € now:'.*<unk>"):
        encode_prompts([Problem("odd", "2 € now", "2")], tokenizer, TEMPLATES, "text", max_prompt=99, overlong="drop")


def test_a_problem_without_a_chain_of_thought_is_refused(tokenizer) -> None:
    limits = {"max_prompt": 99, "max_response": 99, "overlong": "drop", "stage": "sft"}
    with pytest.raises(ValueError, match="`bare` has no chain of thought"):
        encode_examples([*PROBLEMS, Problem("bare", "1 ?", "1")], tokenizer, TEMPLATES, "program", **limits)


def test_special_ids(tokenizer) -> None:
    assert special_ids(tokenizer) == SpecialIds(pad=EOS, eos=EOS, ends=(EOS,))
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="q")
    assert special_ids(without) == SpecialIds(pad=ids("q")[0], eos=ids("q")[0], ends=(ids("q")[0],))
    assert special_ids(tokenizer, (7, EOS, 9)).ends == (EOS, 7, 9)
    without.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        special_ids(without)


def test_embedded_tokenizer_by_name() -> None:
    chosen = special_ids(load_tokenizer("embedded", "main"))
    assert chosen.pad != chosen.eos


def test_a_tokenizer_that_is_not_there_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, message in (
        (str(tmp_path), f"no tokenizer can be read from the folder {tmp_path}; name one by model.tokenizer"),
        (str(tmp_path / "nothing"), f"there is no folder {tmp_path}/nothing$"),
        ("./nothing", "there is no folder ./nothing$"),
        ("~/nothing/here", "there is no folder ~/nothing/here$"),
        ("a/b/c", "there is no folder a/b/c$"),
        ("nobody/nothing-here", "there is no folder nobody/nothing-here, and .*hf download nobody/nothing-here"),
    ):
        for model in (ModelConfig(tokenizer=name), ModelConfig(path=name)):
            key = "model.tokenizer" if model.tokenizer else "model.path"
            with pytest.raises(FileNotFoundError, match=f"^{key}: {message}") as error:
                model_tokenizer(model)
            assert "hf download" in message or len(str(error.value).splitlines()) == 1


# Padding

lengths = st.integers(1, 12)
PROMPT_BUCKETS = (4, 8, 12)
RESPONSE_BUCKETS = (6, 12)


@st.composite
def example_lists(draw, min_size: int = 1):
    """Examples of random tokens; the padding id is among them."""
    shapes = draw(st.lists(st.tuples(lengths, lengths), min_size=min_size, max_size=20))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [
        Example(i, rng.integers(0, 3, prompt, dtype=np.int32), rng.integers(0, 3, response, dtype=np.int32))
        for i, (prompt, response) in enumerate(shapes)
    ]


def prompts_of(examples: list[Example]) -> list[Prompt]:
    return [Prompt(example.problem, example.prompt) for example in examples]


@given(examples=example_lists(), filler=st.integers(0, 3), pad=st.integers(0, 4))
def test_sequence_batch_holds_its_rows_and_filler(examples, filler: int, pad: int) -> None:
    order = list(range(len(examples)))[::-1]
    batch = sequence_batch(examples, order, len(examples) + filler, PROMPT_BUCKETS, RESPONSE_BUCKETS, pad)
    prompt_width = min(b for b in PROMPT_BUCKETS if all(len(e.prompt) <= b for e in examples))
    response_width = min(b for b in RESPONSE_BUCKETS if all(len(e.response) <= b for e in examples))
    assert batch.tokens.shape == (len(examples) + filler, prompt_width + response_width)
    assert batch.responses.shape == (len(examples) + filler, response_width)
    for row, example in enumerate(reversed(examples)):
        prompt, response = example.prompt.tolist(), example.response.tolist()
        whole = prompt + response
        assert batch.tokens[row].tolist() == whole + [pad] * (prompt_width + response_width - len(whole))
        assert batch.responses[row].tolist() == response + [pad] * (response_width - len(response))
        assert (batch.prompt_lengths[row], batch.response_lengths[row]) == (len(prompt), len(response))
        assert batch.response_mask[row].tolist() == [True] * len(response) + [False] * (response_width - len(response))
    for row in range(len(examples), len(examples) + filler):
        assert (batch.prompt_lengths[row], batch.response_lengths[row]) == (1, 0)
        assert set(batch.tokens[row].tolist()) | set(batch.responses[row].tolist()) == {pad}
        assert not batch.response_mask[row].any()
    assert all(leaf.dtype == np.int32 for leaf in jax.tree.leaves(batch))


@pytest.mark.compiles
def test_the_mask_is_the_same_on_a_device() -> None:
    examples = [Example(i, np.ones(1, np.int32), np.zeros(i + 1, np.int32)) for i in range(3)]
    batch = sequence_batch(examples, range(3), 4, (1,), (4,), 0)
    on_device = jax.jit(lambda batch: batch.response_mask)(batch)
    np.testing.assert_array_equal(on_device, np.tri(4, 4, dtype=bool) & (np.arange(4) < 3)[:, None])
    np.testing.assert_array_equal(on_device, batch.response_mask)


@given(examples=example_lists(), filler=st.integers(0, 2), samples=st.integers(1, 3))
def test_prompt_batch_is_question_major(examples, filler: int, samples: int) -> None:
    prompts = [dataclasses.replace(prompt, problem=100 + prompt.problem) for prompt in prompts_of(examples)]
    batch = prompt_batch(prompts, range(len(prompts)), len(prompts) + filler, PROMPT_BUCKETS, 7, samples)
    rows = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    assert len(batch.tokens) == samples * (len(prompts) + filler)
    for row, (prompt, sample) in enumerate(rows):
        assert batch.tokens[row, : batch.lengths[row]].tolist() == prompt.tokens.tolist()
        assert set(batch.tokens[row, batch.lengths[row] :].tolist()) <= {7}
        assert (batch.problem[row], batch.sample[row]) == (prompt.problem, sample)
    assert set(batch.problem[len(rows) :].tolist()) <= {-1}
    assert set(batch.lengths[len(rows) :].tolist()) <= {1}
    assert all(leaf.dtype == np.int32 for leaf in jax.tree.leaves(batch))


def test_bucket() -> None:
    assert [bucket(length, (8, 2, 4)) for length in (0, 2, 3, 4, 5, 8)] == [2, 2, 4, 4, 8, 8]
    with pytest.raises(ValueError, match=r"9 tokens fit none of the buckets \(8, 2, 4\)"):
        bucket(9, (8, 2, 4))


def test_more_rows_than_the_batch_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 rows for a batch of 2"):
        prompt_batch([Prompt(0, np.ones(1, np.int32))] * 3, range(3), 2, (1,), 0)


# Order


def test_order_is_fixed_for_good() -> None:
    # If these change, old runs no longer resume on the data they would have seen: do not update, repair.
    assert epoch_order(42, 0, 10).tolist() == [0, 1, 4, 2, 6, 8, 5, 9, 7, 3]
    assert epoch_order(42, 1, 10).tolist() == [7, 3, 4, 2, 5, 9, 6, 8, 0, 1]
    assert epoch_order(43, 0, 10).tolist() == [8, 0, 7, 1, 9, 6, 5, 4, 2, 3]


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 1000), n=st.integers(0, 200))
def test_order_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert sorted(epoch_order(seed, epoch, n).tolist()) == list(range(n))


def test_order_is_uniform_enough() -> None:
    first = np.bincount([epoch_order(0, epoch, 5)[0] for epoch in range(2000)], minlength=5)
    assert np.sum((first - 400) ** 2 / 400) < 23.5  # chi-square, 4 degrees of freedom, p = 1e-4


@given(n=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 9), epoch=st.integers(0, 5))
def test_batches_of_an_epoch_are_its_order(n: int, batch_size: int, seed: int, epoch: int) -> None:
    steps = steps_per_epoch(n, batch_size)
    seen = [step_indices(seed, epoch * steps + i, n, batch_size).tolist() for i in range(steps)]
    assert [i for rows in seen for i in rows] == epoch_order(seed, epoch, n).tolist()
    assert all(len(rows) == batch_size for rows in seen[:-1])
    assert 1 <= len(seen[-1]) <= batch_size


@settings(max_examples=50)
@given(examples=example_lists(), batch_size=st.integers(1, 8), samples=st.integers(1, 3))
def test_an_epoch_shows_everything_once(examples, batch_size: int, samples: int) -> None:
    steps = steps_per_epoch(len(examples), batch_size)
    shown, asked = [], []
    for step in range(steps, 2 * steps):
        batch = training_batch(
            examples,
            seed=3,
            step=step,
            batch_size=batch_size,
            prompt_buckets=PROMPT_BUCKETS,
            response_buckets=RESPONSE_BUCKETS,
            pad_id=0,
        )
        assert len(batch.tokens) == batch_size
        shown += [
            (tokens[: p + r].tolist(), p)
            for tokens, p, r in zip(batch.tokens, batch.prompt_lengths.tolist(), batch.response_lengths.tolist())
            if r
        ]
        prompts = training_prompts(
            prompts_of(examples),
            seed=3,
            step=step,
            batch_size=batch_size,
            samples_per_question=samples,
            prompt_buckets=PROMPT_BUCKETS,
            pad_id=0,
        )
        asked += [pair for pair in zip(prompts.problem.tolist(), prompts.sample.tolist()) if pair[0] >= 0]
    order = epoch_order(3, 1, len(examples)).tolist()
    chosen = [examples[i] for i in order]
    assert shown == [([*e.prompt.tolist(), *e.response.tolist()], len(e.prompt)) for e in chosen]
    assert asked == [(i, sample) for i in order for sample in range(samples)]


def test_annotations_stand_by_their_rows_and_are_cut_where_prompt_and_target_together_reach_the_limit() -> None:
    examples = {
        problem: Example(problem, np.full(prompt, 7, np.int32), np.arange(10, 10 + target, dtype=np.int32))
        for problem, prompt, target in [(0, 3, 5), (2, 6, 4), (3, 9, 2)]
    }
    rows = np.array([2, 0, 1, 3, 2, -1], np.int32)  # 1 was dropped, -1 is filler
    for limit, kept in {0: [4, 5, 0, 2, 4, 0], 8: [2, 5, 0, 0, 2, 0], 7: [1, 4, 0, 0, 1, 0]}.items():
        batch = annotations(examples, rows, limit=limit, prompt_buckets=[9], response_buckets=[5], pad_id=0)
        assert batch.response_lengths.tolist() == kept
        assert batch.prompt_lengths[[0, 1, 3, 4]].tolist() == [6, 3, 9, 6]
        for row, length in enumerate(kept):
            assert batch.responses[row, :length].tolist() == list(range(10, 10 + length))


@given(examples=example_lists(min_size=0), batch_size=st.integers(1, 8))
def test_evaluation_asks_everything_once_by_length(examples, batch_size: int) -> None:
    batches = list(
        evaluation_batches(prompts_of(examples), batch_size=batch_size, prompt_buckets=PROMPT_BUCKETS, pad_id=0)
    )
    rows = [
        (problem, tokens[:length].tolist())
        for batch in batches
        for problem, tokens, length in zip(batch.problem.tolist(), batch.tokens, batch.lengths.tolist())
        if problem >= 0
    ]
    assert sorted(rows) == [(e.problem, e.prompt.tolist()) for e in examples]
    assert [len(tokens) for _, tokens in rows] == sorted((len(e.prompt) for e in examples), reverse=True)
    assert {batch.tokens.shape[0] for batch in batches} <= {batch_size}


# A real tokenizer and real problems


def test_the_unknown_tokens_own_string_is_no_hole() -> None:
    """As GPT-2 has it: `<|endoftext|>` in a template is that token; what is lacking is a hole beside it."""
    words = {word: i for i, word in enumerate(["<|endoftext|>", "what", "is", "it"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")),
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    templates = TemplateConfig("what <|endoftext|> ", " <|endoftext|>")
    encode = lambda question: encode_prompts(
        [Problem("p", question, "1")], tokenizer, templates, "text", max_prompt=9, overlong="error"
    )
    np.testing.assert_array_equal(encode("is it")[0][0].tokens, [1, 0, 2, 3, 0])
    with pytest.raises(ValueError, match="problem `p`: the tokenizer has no tokens for all of"):
        encode("is that")


def test_token_boundaries_of_smollm2(real_model, real_data) -> None:
    """Where training rows and generation prompts part, and why.

    Prompt and target meet at a newline in both. But the forced header, tokenised as one string, ends in the token
    newline, while in a training row that newline is one token with the indentation after it. So with the default
    header the model continues from a boundary that it never saw in SFT; without its final newline it does not.
    """
    tokenizer = load_tokenizer(str(real_model), "main")
    chosen = special_ids(tokenizer)
    assert chosen.pad == chosen.eos
    problems = read_problems(SourceConfig(kind="reft_json", path=f"{real_data}/svamp_python_sdp.json", limit=200))
    problem = next(p for p in problems if p.cot and f'"""{p.question}"""\n' in p.cot)

    def row(templates: TemplateConfig) -> tuple[list[int], list[int]]:
        limits = {"max_prompt": 1024, "overlong": "error"}
        (example,), _ = encode_examples(
            [problem], tokenizer, templates, "program", max_response=1024, stage="sft", **limits
        )
        (prompt,), _ = encode_prompts([problem], tokenizer, templates, "program", **limits)
        assert example.response[-1] == chosen.eos
        whole = [*example.prompt.tolist(), *example.response.tolist()]
        text = prompt_text(problem, templates) + target_text(problem, templates, "program")
        assert tokenizer.decode(whole[:-1]) == text
        assert tokenizer.decode(prompt.tokens) == generation_prompt(problem, templates, "program")
        return whole, prompt.tokens.tolist()

    whole, prompt = row(TemplateConfig())
    shared = len(prompt) - 1
    assert prompt[:shared] == whole[:shared]
    assert tokenizer.convert_ids_to_tokens([prompt[shared], whole[shared]]) == ["Ċ", "ĊĠĠĠ"]

    whole, prompt = row(TemplateConfig(program_header='def solution():\n    """{question}"""'))
    assert prompt == whole[: len(prompt)]
