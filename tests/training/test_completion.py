"""From sampled tokens to text and verdicts: nothing is lost at the seam between prompt and response."""

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.algorithms.rollout import TOKENS_A_CALL, Rollout
from reft_jax.config import DataConfig
from reft_jax.data.batches import Sequences
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.problem import Problem
from reft_jax.reward.functions import RewardFunction
from reft_jax.reward.verdicts import Verdict
from reft_jax.training.completion import (
    Completion,
    columns,
    function_means,
    holds_stop,
    judge,
    per_token,
    read_responses,
    response_texts,
    summarise,
)
from reft_jax.training.evaluation import Evaluation
from reft_jax.training.reinforcement import reward_metrics


def stripping_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama's: a blank is part of the word after it, and decoding drops the one at the start of a text."""
    words = ["<eos>", *("▁" + word for word in ["what", "is", "it", "two", "and", "three"]), "s", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def make_rollout(prompts: list[list[int]], responses: list[list[int]], eos: int, pad: int) -> Rollout:
    """Rows as the sampler leaves them; a response without `eos` at its end was cut."""
    batch, width = len(prompts), max(map(len, prompts))
    longest = max(map(len, responses))
    tokens, padded = np.full((batch, width + longest), pad, np.int32), np.full((batch, longest), pad, np.int32)
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        tokens[i, : len(prompt) + len(response)] = [*prompt, *response]
        padded[i, : len(response)] = response
    lengths = [np.array([len(row) for row in rows], np.int32) for rows in (prompts, responses)]
    ended = np.array([not row or row[-1] == eos for row in responses])
    return Rollout(Sequences(tokens, lengths[0], padded, lengths[1]), np.zeros(padded.shape), ended)


def test_texts_keep_the_blank_at_the_seam_and_lose_the_end_token():
    tokenizer = stripping_tokenizer()
    ids = lambda text: [tokenizer.convert_tokens_to_ids(token) for token in text.split()]
    prompts = [ids("▁what ▁is ▁it"), ids("▁what"), ids("▁two"), ids("▁two")]
    responses = [[*ids("▁two ▁and ▁three"), 0], [*ids("s ."), 0], ids("▁and ▁two"), [0]]
    rollout = make_rollout(prompts, responses, eos=0, pad=0)
    prompt_texts, texts = response_texts(tokenizer, rollout.sequences, rollout.ended)
    assert prompt_texts == ["what is it", "what", "two", "two"]
    assert texts == [" two and three", "s.", " and two", ""]
    assert tokenizer.decode(responses[0][:-1]) == "two and three", "decoded alone, the blank is lost"


def test_special_tokens_that_are_content_stay_in_completions():
    """Only what ends a response and what pads it is no part of the text: cut by hand in ids, the rest is decoded."""
    tokenizer = stripping_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"], "pad_token": "<pad>"})
    ids = lambda text: [tokenizer.convert_tokens_to_ids(token) for token in text.split()]
    responses = [[*ids("<think> ▁two </think> ▁three"), 0], ids("<think> ▁and <pad>")]
    prompts = [ids("<think> ▁what ▁is ▁it")] * 2
    rollout = make_rollout(prompts, responses, eos=0, pad=tokenizer.pad_token_id)
    prompt_texts, texts = response_texts(tokenizer, rollout.sequences, rollout.ended)
    assert prompt_texts == ["<think> what is it"] * 2
    assert texts == ["<think> two</think> three", "<think> and"]


PROBLEMS = [
    Problem("a", "Ann has 6 apples.", "6"),
    Problem("b", "Bob has 7 books.", "7"),
    Problem("c", "Cleo has 9 cups.", "9"),
]


@pytest.mark.parametrize("cot", ["program", "text"])
def test_judge_pairs_rows_with_their_problems_and_leaves_filler_out(cot):
    tokenizer, asked = load_tokenizer("embedded", "main"), []
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    bodies = ["    result = 9 * 1\n    return result", "    result = 6", "    result = 7 - 6\n    return result"]
    assert [tokenizer.decode(encode(body)) for body in bodies] == bodies
    responses = [[*encode(bodies[0]), eos], encode(bodies[1]), [*encode(bodies[2]), eos], []]
    rollout = make_rollout([encode("\nAnswer reasoning:\n")] * 3 + [[pad]], responses, eos, pad)

    def verdicts(problems, texts):
        asked.extend(zip(problems, texts))
        return [Verdict(0.1 * i, "wrong", float(i)) for i in range(len(texts))]

    rows = np.array([2, 0, 2, -1])
    completions = judge(rollout, PROBLEMS, rows, tokenizer=tokenizer, data=DataConfig(cot=cot), verdicts=verdicts)
    header = 'def solution():\n    """{}"""\n' if cot == "program" else ""
    problems = [PROBLEMS[2], PROBLEMS[0], PROBLEMS[2]]
    texts = [header.format(problem.question) + body for problem, body in zip(problems, bodies)]
    assert asked == list(zip(problems, texts))
    assert [(c.problem, c.text, c.verdict.value) for c in completions] == list(zip(problems, texts, (0.0, 1.0, 2.0)))
    assert [c.tokens for c in completions] == [len(response) for response in responses[:3]]
    assert [c.ended for c in completions] == [True, False, True]


def test_a_response_ends_at_a_stop_text():
    """What stands before it is judged; tokens and log-prob are those up to the one that completes it, ids too."""
    tokenizer, given = stripping_tokenizer(), {}
    ids = lambda text: [tokenizer.convert_tokens_to_ids(token) for token in text.split()]
    responses = [ids("▁two ▁and ▁three ▁and"), [*ids("▁two ▁and"), 0], ids("▁two ▁three"), ids("▁two ▁and"), []]
    rollout = make_rollout([ids("▁what ▁is")] * 4 + [[0]], responses, eos=0, pad=0)
    rollout.log_probs[0, :4] = [-1, -2, -4, -8]

    def own(**arguments):
        given.update(arguments)
        return [0.0] * 4

    completions = judge(
        rollout,
        PROBLEMS,
        np.array([0, 1, 2, 0, -1]),
        tokenizer=tokenizer,
        data=DataConfig(cot="text"),
        verdicts=lambda problems, texts: [Verdict(0.0, "no_answer", None)] * 4,
        functions=[RewardFunction("own", "x.own", 1.0, own)],
        stop=["three and", " an"],
    )
    assert [c.text for c in completions] == given["completions"] == [" two", " two", " two three", " two"]
    assert [c.ended for c in completions] == [True, True, False, True]
    assert [c.tokens for c in completions] == [2, 2, 2, 2]
    assert given["completion_ids"] == [ids("▁two ▁and")] * 2 + [ids("▁two ▁three"), ids("▁two ▁and")]
    assert [c.log_prob for c in completions] == [-3, 0, 0, 0]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes that are characters together, and a token with the end of a text and the beginning of the next."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *letters, "aĊ", "ĊĊ", "Ċb", "Ãĥ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def falling_back_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 2's: characters that have no token are bytes, of which a broken one spoils its neighbours."""
    tokens = ["<eos>", "▁a", "a", "b", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


TOKENIZERS = {"bytes": byte_tokenizer(), "falling back": falling_back_tokenizer()}
LIKELY = ["a", "b", "aĊ", "ĊĊ", "Ċb", "Ċ", "Ãĥ", "Ã", "¤", "▁a", "▁", "<0x0A>", "<0xC3>", "<0xA4>", "<0x61>", "<eos>"]


def read_slowly(tokenizer, prompt, response, stop):
    """(tokens kept, text, whether it was cut): beginnings are decoded one by one, until one holds a stop text."""
    seam, text = len(tokenizer.decode(prompt)), ""
    for length in range(1, len(response) + 1):
        content = [token for token in response[:length] if token != tokenizer.pad_token_id]
        text = tokenizer.decode([*prompt, *content])[seam:]
        starts = [i for i in range(len(text)) if text[i:].startswith(tuple(stop))]
        if starts:
            return length, text[: starts[0]], True
    return len(response), text, False


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_responses_are_read_as_by_decoding_every_beginning(name, data):
    """A stop text over several tokens, in the middle of one, at the very end, in bytes, or beside broken ones."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.convert_tokens_to_ids([token for token in LIKELY if token in tokenizer.get_vocab()])
    rows = st.lists(st.sampled_from(ids), min_size=1, max_size=9)
    prompt = [token for token in data.draw(rows) if token] or [tokenizer.convert_tokens_to_ids("a")]
    responses = data.draw(st.lists(rows, min_size=1, max_size=3))
    text = st.sampled_from(["\n", "a\n", "ä"]) | st.text("ab\näà ", min_size=1, max_size=3)
    stop = data.draw(st.lists(text, min_size=1, max_size=2))
    rollout = make_rollout([prompt] * len(responses), responses, eos=0, pad=0)
    rollout.log_probs[:] = -1
    cut, _, texts = read_responses(tokenizer, rollout, stop)
    for row, response in enumerate(responses):
        length, text, was_cut = read_slowly(tokenizer, prompt, response[: len(response) - rollout.ended[row]], stop)
        length += 0 if was_cut else int(rollout.ended[row])
        assert (cut.sequences.response_lengths[row], texts[row]) == (length, text)
        assert cut.ended[row] == (was_cut or rollout.ended[row])
        assert cut.log_probs[row].tolist() == [-1] * length + [0] * (cut.log_probs.shape[1] - length)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_sampling_may_end_where_a_stop_text_is_seen(name, data):
    """Responses that are ended after the call of `decode` in which it appeared are read as those that went on."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.convert_tokens_to_ids([token for token in LIKELY[:-1] if token in tokenizer.get_vocab()])
    prompt = np.array(data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=5)))
    response = np.array(data.draw(st.lists(st.sampled_from(ids), min_size=12, max_size=40)))
    stop = data.draw(st.lists(st.text("ab\näà ", min_size=1, max_size=3), min_size=1, max_size=2))
    calls = [*range(1, len(response), TOKENS_A_CALL), len(response)]
    last = next((n for n in calls if holds_stop(tokenizer, stop, prompt, response[:n])), len(response))
    whole, early = (make_rollout([prompt.tolist()], [response[:n].tolist()], eos=-1, pad=0) for n in (None, last))
    (whole, _, text), (early, _, same) = (read_responses(tokenizer, rollout, stop) for rollout in (whole, early))
    assert text == same
    assert whole.sequences.response_lengths == early.sequences.response_lengths
    assert whole.ended == early.ended
    event("ended early" if last < len(response) else "went on")


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_texts_of_tokens_are_the_response(name, data):
    """Also where a character has several; a text that holds none is decoded otherwise with what follows."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.convert_tokens_to_ids([token for token in LIKELY if token in tokenizer.get_vocab()])
    prompt, response = ([tokenizer.convert_tokens_to_ids("a")], data.draw(st.lists(st.sampled_from(ids), min_size=1)))
    rollout = make_rollout([prompt], [response], eos=0, pad=0)
    problem = Problem(id="p", question="q", answer="1")
    completion = Completion(problem, "", Verdict(0, "wrong", None), 0, tokens=len(response), ended=False)
    scores = {"value": np.full((1, len(response) + 2), 0.123456)}
    found = per_token(tokenizer, rollout, 0, completion, scores, DataConfig(cot="text"))
    assert len(found["text"]) == len(response)
    assert found["value"] == [0.123] * len(response)
    whole = tokenizer.decode([*prompt, *response], clean_up_tokenization_spaces=False)
    if "\ufffd" not in whole:
        assert "".join(found["text"]) == whole[len(tokenizer.decode(prompt)) :]


def test_own_reward_functions_get_what_was_sampled_and_the_datas_columns():
    tokenizer, given = stripping_tokenizer(), {}
    ids = lambda text: [tokenizer.convert_tokens_to_ids(token) for token in text.split()]
    prompts = [ids("▁what ▁is"), ids("▁what"), ids("▁two"), [0]]
    responses = [[*ids("▁two"), 0], ids("▁and ▁two"), [0], []]
    rollout = make_rollout(prompts, responses, eos=0, pad=0)
    asked = [
        Problem("a", "What is?", "2", columns={"level": 3, "answer": "#### 2"}),
        Problem("b", "What?", "5", cot="2 and 3", columns={"level": 1, "topic": "sums"}),
    ]

    def own(**arguments):
        given.update(arguments)
        return [0.5, None, 2.0]

    completions = judge(
        rollout,
        asked,
        np.array([0, 1, 0, -1]),
        tokenizer=tokenizer,
        data=DataConfig(cot="program"),
        verdicts=lambda problems, texts: [Verdict(0.1, "wrong", 1.0)] * 3,
        functions=[RewardFunction("own", "x.own", -2.0, own)],
    )
    assert given == {
        "prompts": ["what is", "what", "two"],
        "completions": [" two", " and two", ""],
        "completion_ids": responses[:3],
        "id": ["a", "b", "a"],
        "question": ["What is?", "What?", "What is?"],
        "answer": ["#### 2", None, "#### 2"],  # the data's own column, not ours
        "cot": [None, "2 and 3", None],
        "gold": [2, 5, 2],
        "level": [3, 1, 3],
        "topic": [None, "sums", None],
    }
    assert [c.reward for c in completions] == pytest.approx([0.1 - 1.0, 0.1, 0.1 - 4.0])
    assert [c.record()["functions"] for c in completions] == [{"own": 0.5}, {"own": None}, {"own": 2.0}]
    assert function_means(completions) == {"reward/function/own": 1.25}


def test_records_and_shares():
    raised = "ZeroDivisionError: <object at 0x7f00ab12cd34>"
    make = lambda outcome, tokens, ended, suspicious=None: Completion(
        PROBLEMS[1],
        "x",
        Verdict(0.1, outcome, 3.0, suspicious, detail=raised * (outcome == "error")),
        0.1,
        tokens,
        ended,
    )
    none = {
        f"outcome_{outcome}": 0.0 for outcome in ("no_answer", "no_gold", "timeout", "memory", "forbidden", "deadline")
    }
    completions = [make("wrong", 4, True), make("error", 9, False), make("wrong", 2, True), make("correct", 5, True)]
    assert summarise(completions) == {
        "outcome_wrong": 0.5,
        "outcome_error": 0.25,
        "outcome_correct": 0.25,
        **none,
        "truncated": 0.25,
        "length_mean": 5.0,
    }
    assert completions[1].record() == {
        "id": "b",
        "question": "Bob has 7 books.",
        "gold": "7",
        "answer_kind": "number",
        "completion": "x",
        "reward": 0.1,
        "outcome": "error",
        "value": 3.0,
        "detail": "ZeroDivisionError: <object at 0x...>",  # its address is another in every process
        "suspicious": None,
        "tokens": 9,
        "ended": False,
    }
    assert "detail" not in completions[0].record()
    suspects = [make("correct", 1, True, True), make("wrong", 1, True, False), make("wrong", 1, True)]
    assert summarise(suspects)["suspicious"] == pytest.approx(1 / 3)


def test_models_are_chosen_by_accuracy_reward_or_a_function_of_the_users():
    make = lambda outcome, reward, said: Completion(
        PROBLEMS[0], "x", Verdict(0.0, outcome, None), reward, 1, ended=True, functions={"tone": said}
    )
    evaluation = Evaluation([make("correct", 3.0, 1.0), make("wrong", 0.0, None), make("wrong", 0.0, 4.0)], total=4)
    assert evaluation.figures("accuracy") == {"accuracy": 0.25}
    assert evaluation.figures("reward") == {"reward": 1.0, "accuracy": 0.25}
    assert evaluation.figures("tone") == {"tone": 2.5, "accuracy": 0.25}
    assert evaluation.metrics("eval")["eval/function/tone"] == 2.5
    silent = Evaluation([make("wrong", 0.0, None)], total=1)
    with pytest.raises(ValueError, match="select_by is tone: it said None of every completion"):
        silent.figures("tone")


def test_accuracy_is_of_the_problems_with_an_answer_and_is_left_out_where_none_has_one():
    """One of two is right, a third was too long to be asked; those without an answer count for the reward alone."""
    make = lambda kind, outcome, reward: Completion(
        Problem("p", "q", "", kind), "x", Verdict(0.0, outcome, None), reward, 1, ended=True
    )
    free = [make("none", "no_gold", 2.0), make("none", "error", 4.0)]
    mixed = Evaluation([make("number", "correct", 0.0), make("number", "wrong", 0.0), *free], total=3)
    assert mixed.figures("reward") == {"reward": 1.5, "accuracy": pytest.approx(1 / 3)}
    assert mixed.metrics("eval")["eval/accuracy"] == pytest.approx(1 / 3)
    assert reward_metrics(mixed.completions)["reward/correct"] == 0.5
    alone = Evaluation(free, total=0)
    assert alone.figures("reward") == {"reward": 3.0}
    assert {name: value for name, value in alone.metrics("eval").items() if value or "outcome" not in name} == {
        "eval/reward_mean": 3.0,
        "eval/outcome_no_gold": 0.5,
        "eval/outcome_error": 0.5,
        "eval/truncated": 0.0,
    }
    assert "reward/correct" not in reward_metrics(free)
    assert columns([completion.problem for completion in free])["gold"] == [None, None]
