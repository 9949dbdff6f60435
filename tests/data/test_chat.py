"""Prompts and targets of a chat template against `apply_chat_template`: of forms that published templates have, written
here in other words, and of a real tokenizer; over real questions where they are at hand."""

import dataclasses
import json
import re

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reft_jax.config import Config, DataConfig, SourceConfig, TemplateConfig
from reft_jax.data.audit.tokens import look_at_tokens, tokenise
from reft_jax.data.chat import bos_warning, filled, with_templates, with_worked_examples
from reft_jax.data.encoding import encode_completions, encode_examples, encode_prompts, reserved
from reft_jax.data.problem_sets import encode_for_training
from reft_jax.data.prompts import few_shot_prefix, generation_prompt, program_header, prompt_text, target_text
from reft_jax.data.readers import read_problems
from reft_jax.data.tokenizers import load_tokenizer, special_ids
from reft_jax.problem import Problem
from reft_jax.training.startup import prompt_lines

CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)
QWEN25 = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system{{ '\n' }}You help.<|im_end|>{{ '\n' }}{%- endif -%}"
    + CHATML
)
QWEN3 = (  # an assistant's last answer stands behind its thoughts, or behind none; an older one's are left out
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "{%- set parts = m.content.split('</think>') -%}{%- set said = parts[-1].lstrip('\n') -%}"
    "{%- set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' -%}"
    "<|im_start|>assistant{{ '\n' }}"
    "{%- if loop.last -%}<think>{{ '\n' }}{{ thought }}{{ '\n' }}</think>{{ '\n\n' }}{%- endif -%}"
    "{{ said }}<|im_end|>{{ '\n' }}"
    "{%- else -%}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}<think>{{ '\n\n' }}</think>{{ '\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
LLAMA32 = (
    "{{- bos_token -}}"
    "{%- if date_string is not defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}"
    "{%- if messages[0].role == 'system' -%}"
    "{%- set told = messages[0].content | trim -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set told = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "<|start_header_id|>system<|end_header_id|>{{ '\n\n' }}Today: {{ date_string }}{{ '\n\n' }}{{ told }}<|eot_id|>"
    "{%- for m in rest -%}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' }}{{ m.content | trim }}<|eot_id|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{%- endif -%}"
)
GEMMA = (
    "{{- bos_token -}}"
    "{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    "{%- for m in messages -%}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}{{ '\n' }}"
    "{{ m.content | trim }}<end_of_turn>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<start_of_turn>model{{ '\n' }}{%- endif -%}"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)
FORMS = {
    "qwen2.5": (QWEN25, {}, "<|im_end|>"),
    "qwen2.5 system": (QWEN25, {"system": "Reason step by step, {{ then }} answer in \\boxed{}."}, "<|im_end|>"),
    "qwen3": (QWEN3, {}, "<|im_end|>"),
    "qwen3 thinking": (QWEN3, {"variables": {"enable_thinking": True}}, "<|im_end|>"),
    "qwen3 not thinking": (QWEN3, {"variables": {"enable_thinking": False}, "system": "Be brief."}, "<|im_end|>"),
    "llama3.2": (LLAMA32, {"variables": {"date_string": "26 Jul 2024"}}, "<|eot_id|>"),
    "llama3.2 system": (LLAMA32, {"variables": {"date_string": "1 May 2025"}, "system": " Be brief. "}, "<|eot_id|>"),
    "gemma": (GEMMA, {}, "<end_of_turn>"),
}
TRIGGERED = {"answer_trigger": "\nSo it is \\boxed{", "answer_suffix": "}."}
LONG = {"max_prompt": 10**6, "overlong": "error"}


def build_tokenizer(template: str | None, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A token a byte, but two line breaks are one; special tokens, and `<think>`, which is not special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "ĊĊ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    lines = pre_tokenizers.Split(Regex(r"\n+"), "isolated")  # as Qwen's
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens(["<think>", "</think>"])
    if adds_bos:
        bos = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<bos>")
    made.chat_template = template
    return made


@pytest.mark.parametrize("token", SPECIAL)
def test_a_text_that_would_be_read_as_a_special_token_is_refused(token: str) -> None:
    tokenizer, templates = build_tokenizer(QWEN25), TemplateConfig()
    asked, taught = (Problem(name, f"a{q}b?", "5", cot=f"c{c}d") for name, q, c in (("x", token, ""), ("y", "", token)))
    plain = Problem("z", "a < | im_end | >?", "5", cot="<think>c</think>")
    assert reserved([asked, plain, taught], tokenizer) == [
        ("x", f"question: {token}"),
        ("y", f"chain of thought: {token}"),
    ]
    with pytest.raises(ValueError, match=rf"1 of 2 .*`x` \(question: {re.escape(token)}\); write them otherwise"):
        encode_prompts([asked, plain], tokenizer, templates, "text", **LONG)
    with pytest.raises(ValueError, match=r"`y` \(chain of thought"):
        encode_examples([taught], tokenizer, templates, "text", **LONG, max_response=999, stage="sft")
    assert len(encode_prompts([taught, plain], tokenizer, templates, "text", **LONG)[0]) == 2  # asks without its chain


def test_a_special_block_may_stand_in_a_chain_of_thought_alone() -> None:
    tokenizer = build_tokenizer(QWEN25)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<thought>", "</thought>"]})
    text = "<thought>so</thought>"
    assert reserved([Problem("a", "why?", "5", cot=text)], tokenizer) == []
    assert reserved([Problem("b", text, "5")], tokenizer) == [("b", "question: </thought>, <thought>")]


@pytest.fixture(scope="module")
def problems(request) -> list[Problem]:
    """200 of GSM8K where it is at hand, else made up."""
    try:
        folder = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        odd = (
            "{{ x }}",
            "{% if %}",
            "½ é 你好",
            'a "b"\n\nc\\n',
            "<b>",
            "def f():\n    return 1",
            "$5 | 6",
            "{question}",
        )
        texts = [f" {odd[i % 8]} and {i} {odd[i // 25]}? " for i in range(200)]
        return [Problem(f"p{i}", text, str(i), cot=f"{text}\n\nis {i}.") for i, text in enumerate(texts)]
    return read_problems(SourceConfig(kind="gsm8k", path=f"{folder}/gsm8k_train.jsonl", limit=200))


def messages(problem: Problem, templates: TemplateConfig, answer: str | None = None) -> list[dict[str, str]]:
    told = [{"role": "system", "content": templates.system}] if templates.system else []
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [*told, {"role": "user", "content": problem.question.strip()}, *said]


def ids(tokenizer, conversation, templates: TemplateConfig, *, ask: bool) -> list[int]:
    options = {"add_generation_prompt": ask, "tokenize": True, "return_dict": False, **templates.variables}
    return tokenizer.apply_chat_template(conversation, **options)


def check(tokenizer, problems: list[Problem], templates: TemplateConfig, end: str) -> None:
    """Prompts, and prompts with targets, are the tokens of the tokenizer's own template, up to the end of the turn."""
    used, end_id = filled(templates, tokenizer, "text"), tokenizer.convert_tokens_to_ids(end)
    prompts, _ = encode_prompts(problems, tokenizer, used, "text", **LONG)
    examples, _ = encode_examples(problems, tokenizer, used, "text", **LONG, max_response=10**6, stage="sft")
    assert special_ids(tokenizer, target_end=used.target_end).ends == tuple(
        dict.fromkeys([end_id, tokenizer.eos_token_id])
    )
    answers = [p.cot.strip() + templates.answer_trigger + p.answer + templates.answer_suffix for p in problems]
    assert answers == [target_text(problem, used, "text") for problem in problems]
    asked = ids(tokenizer, [messages(problem, templates) for problem in problems], templates, ask=True)
    told = [messages(problem, templates, answer) for problem, answer in zip(problems, answers)]
    answered = ids(tokenizer, told, templates, ask=False)
    for prompt, example, theirs, whole in zip(prompts, examples, asked, answered, strict=True):
        assert prompt.tokens.tolist() == example.prompt.tolist() == theirs
        row = example.prompt.tolist() + example.response.tolist()
        assert row == whole[: len(row)]
        assert row[-1] == end_id
        assert end_id not in example.response[:-1]
        assert tokenizer.decode(whole[len(row) :]).strip() == ""


@pytest.mark.parametrize("form", FORMS)
def test_prompts_and_targets_are_those_of_the_template(form, problems):
    template, settings, end = FORMS[form]
    check(build_tokenizer(template), problems, TemplateConfig(kind="chat", **settings, **TRIGGERED), end)


def test_prompts_and_targets_are_those_of_a_real_tokenizer(real_model, problems):
    """With SmolLM2's byte pairs, whose BOS token begins each turn; the files at hand have no template."""
    tokenizer = load_tokenizer(str(real_model), "main")
    tokenizer.chat_template = QWEN25
    check(tokenizer, problems, TemplateConfig(kind="chat"), "<|im_end|>")
    check(tokenizer, problems, TemplateConfig(kind="chat", system="Be brief.", **TRIGGERED), "<|im_end|>")


def test_a_date_is_the_same_every_day():
    """A template that asks for today is rendered as with the day of the docs."""
    tokenizer, problem = build_tokenizer(LLAMA32), Problem("p", "1 + 1 ?", "2")
    used = filled(TemplateConfig(kind="chat"), tokenizer, "text")
    fixed = tokenizer.apply_chat_template(
        messages(problem, used), tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    assert prompt_text(problem, used) == fixed


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("qwen3", "qwen3 thinking")])
def test_the_header_of_a_program_stands_behind_the_prompt(form):
    template, settings, end = FORMS[form]
    problem = Problem("p", "What is {question} 1 + 1 ?", "2", cot="def solution():\n    return 2")
    templates, tokenizer = TemplateConfig(kind="chat", **settings), build_tokenizer(template)
    used = filled(templates, tokenizer, "program")
    asked = tokenizer.decode(ids(tokenizer, messages(problem, templates), templates, ask=True))
    assert generation_prompt(problem, used, "program") == asked + program_header(problem, templates)
    (row,), _ = encode_examples([problem], tokenizer, used, "program", **LONG, max_response=99, stage="sft")
    assert tokenizer.decode(row.response) == problem.cot + end
    (judged,), _ = encode_completions([problem], ["abc"], tokenizer, used, max_length=999, overlong="error", stage="x")
    assert tokenizer.decode(judged.tokens) == asked + "abc"


def test_what_a_template_writes_before_an_answer_is_taught_once():
    """An annotation that was sampled has it already; judged is the answer without it."""
    tokenizer = build_tokenizer(QWEN3)
    used = filled(TemplateConfig(kind="chat"), tokenizer, "text")
    block = "<think>\n\n</think>\n\n"
    targets = []
    for cot in ("two", block + "two"):
        problem = Problem("p", "1 + 1 ?", "2", cot=cot)
        (row,), _ = encode_examples([problem], tokenizer, used, "text", **LONG, max_response=99, stage="sft")
        targets.append(tokenizer.decode(row.response))
    assert targets == [block + "two" + used.answer_trigger + "2<|im_end|>"] * 2
    assert target_text(Problem("p", "?", "2", cot="two"), used, "text") == "two" + used.answer_trigger + "2"


THOUGHT = "<think>\n1 and 1\n\nare 2.\n</think>\n\ntwo"
ROWS = {
    "a block": THOUGHT,
    "a block written otherwise": "<think>1 and 1</think>two",
    "an empty block": "<think>\n\n</think>\n\ntwo",
    "text before the block": "Well. " + THOUGHT,
    "two blocks": THOUGHT + THOUGHT,
    "an end of a block": "1 and 1 </think> two",
    "a beginning of a block": "<think> two",
    "a block in the middle": "First.\n<think>\n1 and 1\n</think>\n\ntwo",
}
TAUGHT = {
    "qwen3": {"a block", "an empty block", "a beginning of a block"},
    "qwen3 thinking": {"a block", "an empty block", "a beginning of a block"},
    "qwen3 not thinking": {"a beginning of a block"},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_thoughts_of_their_own_are_the_template_s_or_refused(form, tmp_path):
    """Read from a file, as a run reads them."""
    template, settings, end = FORMS[form]
    tokenizer, file = build_tokenizer(template), tmp_path / "rows.jsonl"
    taught = set()
    for name, cot in ROWS.items():
        file.write_text(json.dumps({"question": "1 + 1 ?", "cot": cot, "answer": "2"}))
        problems = read_problems(SourceConfig(kind="jsonl", path=str(file)))
        try:
            check(tokenizer, problems, TemplateConfig(kind="chat", **settings), end)
            taught.add(name)
        except ValueError as error:
            told = str(error)
            assert told.startswith("1 of 1 chains of thought would be taught otherwise than the chat template of")
            assert "problem `rows_0`" in told
            assert "Write them as the template does" in told
            assert told.count("\n") < 4
    assert taught == TAUGHT.get(form, set(ROWS))


def test_rows_that_the_template_renders_otherwise_can_be_dropped():
    tokenizer, said = build_tokenizer(QWEN3), []
    problems = [Problem(name, "1 + 1 ?", "2", cot=cot) for name, cot in ROWS.items()]
    data = DataConfig(cot="text", templates=TemplateConfig(kind="chat"), bad_rows="drop")
    config = with_templates(Config(data=data), tokenizer)
    rows = encode_for_training(problems, config, tokenizer, "sft", config.sft, said.append)
    assert {problems[row.problem].id for row in rows} == TAUGHT["qwen3"]
    (told,) = said
    assert told.startswith("sft: 5 of 8 chains of thought are not as the chat template renders them and are dropped")
    strict = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_rows="error"))
    odd = [problem for problem in problems if problem.id not in TAUGHT["qwen3"]]
    for rows, settings in ((problems, strict), (odd, config)):
        with pytest.raises(ValueError, match=r"(?s)5 of \d chains of thought .* or data\.bad_rows to drop"):
            encode_for_training(rows, settings, tokenizer, "sft", config.sft, said.append)


def test_the_audit_names_rows_that_the_template_renders_otherwise():
    tokenizer = build_tokenizer(QWEN3)
    problems = [Problem(name, "1 + 1 ?", "2", cot=cot) for name, cot in ROWS.items()]
    config = with_templates(Config(data=DataConfig(cot="text", templates=TemplateConfig(kind="chat"))), tokenizer)
    texts = {"train": tokenise(problems, config, tokenizer)}
    found = look_at_tokens(texts, {"train": ("sft", config.sft)}, [], config, tokenizer)
    (finding,) = [finding for finding in found if "template" in finding.what]
    assert finding.stops
    assert {name for name, _ in finding.rows} == set(ROWS) - TAUGHT["qwen3"]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_filled_in_stays_as_it_is(form):
    """A run keeps its strings, and its commands fill them in again."""
    template, settings, _ = FORMS[form]
    tokenizer = build_tokenizer(template)
    for bos in ("auto", True, False):
        used = filled(TemplateConfig(kind="chat", bos=bos, **settings), tokenizer, "text")
        assert filled(used, tokenizer, "text") == used
        assert used.instruction.count("<bos>") == (bos is True or (bos == "auto" and "bos_token" in template))
    assert json.loads(json.dumps(dataclasses.asdict(used))) == dataclasses.asdict(used)


BAD = {
    "no template": (None, {}, r"has no chat template: take that of the instruct model, .* chat_template\.jinja"),
    "thoughts that are opened": (
        CHATML.replace("assistant{{ '\n' }}", "assistant{{ '\n' }}<think>{{ '\n' }}"),
        {},
        r"does not keep the prompt once it is answered: .*set data.templates.variables",
    ),
    "a question that is changed": (
        CHATML.replace("m.content", "m.content | upper"),
        {},
        "does not render a question as it is",
    ),
    "a question that is left out": (CHATML.replace("m.content", "''"), {}, "does not render a question as it is"),
    "an answer that is changed": (
        CHATML.replace("m.content", "m.content.split('\n')[0] if m.role == 'assistant' else m.content"),
        {},
        "does not render an answer as it is",
    ),
    "no end": (CHATML.replace("<|im_end|>", ""), {}, "ends an answer with '\\\\n', in which there is no special token"),
    "a system message": (GEMMA, {"system": "Be brief."}, r"does not render a system message .*: no system role"),
    "a lost system message": (
        "{%- set messages = messages[-2:] if messages[-1].role == 'assistant' else messages[-1:] -%}" + CHATML,
        {"system": "Be brief."},
        "leaves data.templates.system out",
    ),
    "a variable": (
        QWEN3,
        {"variables": {"enable_thought": False}},
        "names enable_thought: the chat .* has no",
    ),
    "a string": (QWEN25, {"instruction": "Q: "}, "data.templates.instruction is 'Q: ', and with .*: leave it out"),
}


@pytest.mark.parametrize("case", BAD)
def test_templates_that_do_not_suit_are_refused_by_name(case):
    template, settings, said = BAD[case]
    with pytest.raises(ValueError, match=f"(?s){said}"):
        filled(TemplateConfig(kind="chat", **settings), build_tokenizer(template), "text")


def test_a_program_does_not_begin_with_thoughts():
    with pytest.raises(ValueError, match=r"begins an answer with '<think>.*enable_thinking: false"):
        filled(TemplateConfig(kind="chat"), build_tokenizer(QWEN3), "program")


@pytest.mark.parametrize("form", FORMS)
def test_worked_examples_are_turns_of_the_chat(form):
    """The prompt is the conversation with them, to the token; an answer is taught and ends as without."""
    template, settings, _ = FORMS[form]
    tokenizer = build_tokenizer(template)
    asked, *shown = [Problem(f"p{i}", f" What is {i} + {i} ?\n", str(2 * i), cot=f"{i} twice.") for i in range(3)]
    plain = Config(data=DataConfig(cot="text", templates=TemplateConfig(kind="chat", **settings, **TRIGGERED)))
    used = with_templates(plain, tokenizer)
    config = with_worked_examples(used, tokenizer, shown, "unused")
    without = dataclasses.replace(plain.data.templates, system="")
    said = [f"{problem.cot}\nSo it is \\boxed{{{problem.answer}}}." for problem in shown]
    conversation = [message for pair in zip(shown, said) for message in messages(pair[0], without, pair[1])]
    whole = messages(asked, plain.data.templates)
    expected = ids(tokenizer, [*whole[:-1], *conversation, whole[-1]], plain.data.templates, ask=True)
    (row,), _ = encode_prompts([asked], tokenizer, config.data.templates, "text", **LONG)
    assert row.tokens.tolist() == expected
    same = dataclasses.replace(config.data.templates, instruction=used.data.templates.instruction)
    assert same == used.data.templates
    assert with_worked_examples(config, tokenizer, shown, "unused") == config, "once, however often"


def test_a_worked_example_that_the_template_changes_is_refused():
    templates = TemplateConfig(kind="chat", variables={"enable_thinking": False})
    used = with_templates(Config(data=DataConfig(cot="text", templates=templates)), build_tokenizer(QWEN3))
    thinking = Problem("p", "1 + 1", "2", cot="<think>\nhm\n</think>\n\ntwo")
    with pytest.raises(ValueError, match=r"does not keep worked example 1 as it is: '<think>.*left out"):
        with_worked_examples(used, build_tokenizer(QWEN3), [thinking], "")


def test_bos_begins_prompts_once_where_it_is_wanted():
    tokenizer, plain = build_tokenizer(None), build_tokenizer(None, adds_bos=False)
    problem = Problem("p", "1 + 1", "2", cot="two")
    bos = tokenizer.bos_token_id
    rows = {}
    for wanted in ("auto", True, False):
        used = filled(TemplateConfig(bos=wanted), tokenizer, "text")
        (row,), _ = encode_prompts([problem], tokenizer, used, "text", **LONG)
        rows[wanted] = row.tokens.tolist()
        assert bool(bos_warning(used, tokenizer)) == (wanted == "auto")
        assert bos_warning(used, plain) == ""
    assert (
        rows["auto"]
        == rows[False]
        == tokenizer(prompt_text(problem, TemplateConfig()), add_special_tokens=False)["input_ids"]
    )
    assert rows[True] == tokenizer(prompt_text(problem, TemplateConfig()))["input_ids"] == [bos, *rows[False]]
    used = filled(TemplateConfig(bos=True), tokenizer, "text")
    shown = with_worked_examples(Config(data=DataConfig(cot="text", templates=used)), tokenizer, [problem], "\n\n")
    assert (
        shown.data.templates.instruction
        == "<bos>" + few_shot_prefix([problem], TemplateConfig(), "text", "\n\n") + TemplateConfig().instruction
    )
    (row,), _ = encode_prompts([problem], tokenizer, shown.data.templates, "text", **LONG)
    assert row.tokens.tolist().count(bos) == 1 == row.tokens.tolist().index(bos) + 1
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"data.templates.bos is yes, and tokenizer .* names no BOS token"):
        filled(TemplateConfig(bos=True), tokenizer, "text")


def test_the_audit_and_the_lines_at_the_start_see_the_same_tokens():
    tokenizer = build_tokenizer(LLAMA32)
    problem = Problem("p", "1 + 1 ?", "2", cot="two")
    data = DataConfig(cot="text", templates=TemplateConfig(kind="chat", bos=True))
    config = with_templates(Config(data=data), tokenizer)
    (row,), _ = encode_examples(
        [problem], tokenizer, config.data.templates, "text", **LONG, max_response=99, stage="sft"
    )
    (prompt,), _ = encode_prompts([problem], tokenizer, config.data.templates, "text", **LONG)
    texts = tokenise([problem], config, tokenizer)
    lengths = {name: kind.lengths for name, kind in texts.items()}
    assert lengths == {
        "prompt": [len(row.prompt)],
        "target": [len(row.response)],
        "sampling_prompt": [len(prompt.tokens)],
    }
    (line,) = prompt_lines(config, tokenizer, {"dev": [problem]}, {"train": [], "dev": [prompt]})
    shown = repr(prompt_text(problem, config.data.templates))
    assert line == f"prompt of dev's `p`, {len(prompt.tokens)} tokens, answers end with '<|eot_id|>': {shown}"
    plain = with_templates(Config(), tokenizer)
    (prompt,), _ = encode_prompts([problem], tokenizer, plain.data.templates, "text", **LONG)
    _, warning = prompt_lines(plain, tokenizer, {"dev": [problem]}, {"dev": [prompt]})
    assert "begins texts with '<bos>'" in warning


def test_a_hand_written_end_is_a_special_token():
    tokenizer = build_tokenizer(None)
    templates = TemplateConfig(target_end="\n<|im_end|>")
    (row,), _ = encode_examples(
        [Problem("p", "1 + 1", "2", cot="two")], tokenizer, templates, "text", **LONG, max_response=99, stage="sft"
    )
    assert tokenizer.decode(row.response) == "two\nTherefore, the answer is: 2\n<|im_end|>"
    found = special_ids(tokenizer, [3], templates.target_end)
    assert (found.eos, found.ends) == (row.response[-1], (row.response[-1], tokenizer.eos_token_id, 3))
    with pytest.raises(ValueError, match=r"target_end is '###': it must end with a special token"):
        special_ids(tokenizer, target_end="###")
