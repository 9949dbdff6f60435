"""The embedded problems: word problems with programs, made on the spot, and the small tokenizer that reads them.

They stand in for a data set and a tokenizer where nothing can be downloaded. Past this module nobody can tell: problems
are `Problem`s in SVAMP's P-CoT format, the tokenizer is a Hugging Face one.

The annotation of `train` is imperfect by design. It imitates annotators who do steps in their head (55 % write every
step, 25 % skip each step before the last with probability one half, 20 % skip all of them and write numbers that the
question does not contain) and who slip: 25 % of the programs get one wrong operation or operand. A model made by
imitation inherits that; reinforcement on the answers, which are right, need not. The noise was chosen with that
comparison in view, which whoever shows results on these problems should say. The programs of `test` and `pretrain` are
right and written in full.

Programs, and not prose, because a model that small cannot calculate: the interpreter does, and what is left to learn is
which numbers go where. Questions have at most 34 tokens: they stand twice in every row, and the time goes with them.
"""

import functools
import random
import re
from collections.abc import Callable, Container, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.config import TemplateConfig
from reft_jax.data.embedded.stories import (
    FAMILIES,
    OPERATIONS,
    SIMPLE,
    Amount,
    Step,
    Story,
    draw_number,
    one_step,
    pick,
    pick_weighted,
)
from reft_jax.data.embedded.wording import question_words
from reft_jax.problem import Problem

TEST_SIZE, TRAIN_SIZE, PRETRAIN_SIZE = 1000, 2500, 12_800
WRONG_PROGRAMS = 0.25
DISTRACTED_QUESTIONS = 0.38  # drawn; about 0.3 are left, since they are more often too long
LARGEST_NUMBER = 199
MAX_QUESTION_TOKENS = 34

# A token is a piece of the templates or of a program's frame, else a word, number or sign with the space before it.
_FRAME = (
    TemplateConfig().instruction,
    TemplateConfig().cot_trigger,
    *TemplateConfig().program_header.split("{question}"),
    "    a =",
    "    result =",
    "\n    b =",
    "\n    c =",
    "\n    result =",
    "\n    return result",
)
_TOKEN = "|".join((*map(re.escape, _FRAME), " ?[A-Za-z]+", " ?[0-9]+", " [-+*/]", "[.,?]"))

Line = tuple[str, str, str]  # left operand, operation, right operand


def _draw(
    rng: random.Random, family: Callable[[Story], Amount], *, steps: Container[int], distracted: float
) -> tuple[str, Step]:
    """Draws stories of a family until one is within the limits; returns its question and solution."""
    while True:
        story = Story(rng)
        solution = family(story)
        if rng.random() < distracted:
            story.tell("distraction")
            story.sentences.insert(draw_number(rng, 0, len(story.sentences) - 2), story.sentences.pop())
        question = " ".join(story.sentences)
        if (
            isinstance(solution, Step)
            and len(values := solution.values()) in steps
            and all(v.denominator == 1 and 1 <= v <= LARGEST_NUMBER for v in values)
            and len(re.findall(_TOKEN, question)) <= MAX_QUESTION_TOKENS
        ):
            return question, solution


def _numbers(question: str) -> tuple[str, ...]:
    return tuple(re.findall("[0-9]+", question))


@functools.cache
def _draw_stories() -> dict[tuple[str, ...], tuple[str, Step]]:
    """Questions and solutions of `test`, then `train`, by the numbers of the question."""
    rng = random.Random(1)
    stories: dict[tuple[str, ...], tuple[str, Step]] = {}
    while len(stories) < TEST_SIZE + TRAIN_SIZE:
        family = pick_weighted(rng, FAMILIES)
        question, solution = _draw(rng, family, steps=(2, 3, 4), distracted=DISTRACTED_QUESTIONS)
        stories.setdefault(_numbers(question), (question, solution))
    return stories


def _draw_simple_stories(taken: Container[tuple[str, ...]]) -> dict[str, Step]:
    """Solutions of `pretrain` by question, without those whose numbers are taken."""
    rng = random.Random(2)
    stories: dict[str, Step] = {}
    while len(stories) < PRETRAIN_SIZE:
        beginning, event, ending = pick(rng, SIMPLE)
        family = functools.partial(one_step, beginning=beginning, event=event, ending=ending)
        question, solution = _draw(rng, family, steps=(1,), distracted=0.0)
        if _numbers(question) not in taken:
            stories[question] = solution
    return stories


def _lines(solution: Step, rng: random.Random, in_head: float) -> list[Line]:
    """Writes a solution down; each step before the last is done in the head with probability `in_head`."""
    lines: list[Line] = []

    def operand(amount: Amount) -> str:
        if not isinstance(amount, Step):
            return str(amount)
        if rng.random() < in_head:
            return str(amount.values()[-1])
        write(amount)
        return "abc"[len(lines) - 1]

    def write(step: Step) -> None:
        lines.append((operand(step.left), step.op, operand(step.right)))

    write(solution)
    return lines


def _annotated_lines(question: str, solution: Step, rng: random.Random) -> list[Line]:
    """Writes a solution down as one of the annotators would who skip steps and slip."""
    in_head = pick_weighted(rng, {0.0: 11, 0.5: 5, 1.0: 4})
    lines = _lines(solution, rng, in_head)
    if rng.random() < WRONG_PROGRAMS:
        slips = [
            (i, wrong)
            for i, (left, op, right) in enumerate(lines)
            for wrong in (
                *((left, other, right) for other in OPERATIONS if other != op),
                *((other, op, right) for other in _numbers(question) if left.isdigit() and other != left),
                *((left, op, other) for other in _numbers(question) if right.isdigit() and other != right),
            )
        ]
        i, lines[i] = pick(rng, slips)
    return lines


def _program(question: str, lines: Sequence[Line]) -> str:
    names = (*"abc"[: len(lines) - 1], "result")
    body = "".join(f"    {name} = {' '.join(line)}\n" for name, line in zip(names, lines))
    return TemplateConfig().program_header.format(question=question) + body + "    return result"


def generate_problems(split: Literal["train", "test", "pretrain"]) -> list[Problem]:
    """Makes one split of the embedded problems, the same on every platform and Python version.

    `test` (1,000) and `train` (2,500; a dev split is still to be carved from it) have two to four steps and are running
    totals (55 %), comparisons (22 %) or about money (23 %); three in ten contain an irrelevant number. No two of them
    have the same numbers in the same order. `pretrain` (12,800) has one-step problems, all of different text and none
    with the numbers of a problem of `train` or `test`. The value of every step is whole, 1 to 199.
    """
    stories = _draw_stories()
    if split == "pretrain":
        drawn = list(_draw_simple_stories(taken=stories).items())
    else:
        drawn = list(stories.values())[:TEST_SIZE] if split == "test" else list(stories.values())[TEST_SIZE:]
    rng = random.Random(3)
    problems = []
    for i, (question, solution) in enumerate(drawn):
        lines = _annotated_lines(question, solution, rng) if split == "train" else _lines(solution, rng, in_head=0.0)
        answer = str(solution.values()[-1])
        problems.append(Problem(f"generated_{split}_{i}", question, answer, cot=_program(question, lines)))
    return problems


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Makes the tokenizer of the embedded problems and the default templates, in Hugging Face's format.

    One token is a word, a number (0 to 199) or a sign with the space before it, a punctuation mark, or a whole piece of
    the templates or of a program's frame: about 27 tokens a question, 10 a program's body. Anything else is `<unk>`.
    No token crosses from prompt to target or from the forced header to the body, so that tokenising them apart or
    together is the same; decoding concatenates.
    """
    words = question_words()
    tokens = {
        *_FRAME,
        *".,?",
        *(f" {word}" for word in (*words, *OPERATIONS, *"abc", *range(LARGEST_NUMBER + 1))),
        *(word for word in words if word[0].isupper()),  # without the space at the beginning of a question
    }
    vocabulary = {token: i for i, token in enumerate(("<pad>", "<eos>", "<unk>", *sorted(tokens)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
