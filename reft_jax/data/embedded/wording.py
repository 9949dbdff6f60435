"""The wording of the embedded problems, as data: names, things, and sentences with the arithmetic they stand for.

`generated_stories` strings the sentences together and fills their fields; the tokenizer of `generated` has its
vocabulary from here, so that every question that could be drawn is covered. A question begins with a word, never with a
number, and ends with "?". The two people of a story differ in gender, so that "He" and "She" are never in doubt.
"""

import dataclasses
import re

PRONOUNS = {
    **dict.fromkeys(("Ben", "Kofi", "Leo", "Max", "Omar", "Raj", "Sam", "Tom"), "He"),
    **dict.fromkeys(("Ana", "Eva", "Ivy", "Lily", "Mia", "Nina", "Yuki", "Zoe"), "She"),
}
NAMES = tuple(PRONOUNS)
ITEMS = (
    *("apples", "beads", "books", "cakes", "cards", "coins", "cups", "eggs"),
    *("keys", "lemons", "marbles", "pens", "roses", "shells", "stamps", "toys"),
)
BOXES = ("bags", "baskets", "boxes", "crates", "jars", "packs")
PLACES = ("garden", "park", "room", "school", "street")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence in several wordings, and what it does to the amount that the story is about.

    Attributes:
        wordings: templates with the fields {name} and {friend} (`NAMES`), {He} (the pronoun of {name}), {items} and
            {goods} (`ITEMS`), {boxes}, {place}, {number} and {groups}.
        op: operation on the amount so far; empty where the sentence has none to change.
        low, high: range of {number}.
        in_groups: the operand is {groups} times {number}, not {number} alone; {groups} is 2 to 9.
    """

    wordings: tuple[str, ...]
    op: str = ""
    low: int = 2
    high: int = 60
    in_groups: bool = False


_POSSESSION = (
    "{name} has {number} {items}.",
    "{name} owns {number} {items}.",
    "{name} starts with {number} {items}.",
    "At first {name} has {number} {items}.",
    "{name} keeps {number} {items} at home.",
)

SENTENCES = {
    # Running totals.
    "possession": Sentence(_POSSESSION, low=10, high=99),
    "possession of groups": Sentence(
        (
            "{name} has {groups} {boxes} with {number} {items} each.",
            "{name} owns {groups} {boxes} of {number} {items}.",
            "{name} keeps {number} {items} in each of {groups} {boxes}.",
        ),
        high=20,
        in_groups=True,
    ),
    "gain": Sentence(
        (
            "{He} buys {number} more {items}.",
            "{He} finds {number} {items}.",
            "Then {name} gets {number} more.",
            "{friend} gives {number} {items} to {name}.",
            "{name} gets {number} {items} from {friend}.",
        ),
        "+",
    ),
    "loss": Sentence(
        (
            "{He} gives {number} {items} to {friend}.",
            "{He} loses {number} of them.",
            "{He} sells {number} {items}.",
            "{friend} takes {number} {items} away.",
            "Then {number} of them break.",
        ),
        "-",
    ),
    "gain of groups": Sentence(
        (
            "{He} buys {groups} {boxes} of {number} {items}.",
            "{friend} brings {groups} {boxes} with {number} {items} each.",
            "{He} gets {number} {items} a day for {groups} days.",
            "Each of {groups} friends gives {name} {number} {items}.",
        ),
        "+",
        high=20,
        in_groups=True,
    ),
    "loss of groups": Sentence(
        (
            "{He} gives {number} {items} to each of {groups} friends.",
            "{He} sells {groups} {boxes} with {number} {items} each.",
            "{He} uses {number} {items} a day for {groups} days.",
            "Each of {groups} friends takes {number} {items}.",
        ),
        "-",
        high=9,
        in_groups=True,
    ),
    "doubling": Sentence(("The number of {items} doubles.", "Then {name} has twice as many."), "*", high=2),
    "halving": Sentence(("{He} gives half of them away.", "Half of the {items} get lost."), "/", high=2),
    "share?": Sentence(
        (
            "{He} shares them equally among {number} friends. How many does each get?",
            "{He} puts them into {number} {boxes}. How many are in each?",
        ),
        "/",
        high=9,
    ),
    "left?": Sentence(
        (
            "How many {items} does {name} have now?",
            "How many {items} are left?",
            "How many {items} remain?",
            "How many does {name} have left?",
        )
    ),
    # Comparisons.
    "more": Sentence(
        ("{friend} has {number} more {items} than {name}.", "Compared with {name}, {friend} has {number} more."), "+"
    ),
    "fewer": Sentence(
        ("{friend} has {number} fewer {items} than {name}.", "Compared with {name}, {friend} has {number} less."), "-"
    ),
    "times": Sentence(
        (
            "{friend} has {number} times as many {items} as {name}.",
            "The {items} of {friend} are {number} times those of {name}.",
        ),
        "*",
        high=6,
    ),
    "half": Sentence(("{friend} has half as many {items} as {name}.",), "/", high=2),
    "friend gains": Sentence(("Then {friend} buys {number} more.", "{friend} finds {number} {items}."), "+", high=20),
    "friend loses": Sentence(("Then {friend} loses {number}.", "{friend} sells {number} {items}."), "-", high=20),
    "friend?": Sentence(("How many {items} does {friend} have now?",)),
    "friend with more?": Sentence(("How many {items} does {friend} have with {number} more?",), "+", high=20),
    "together?": Sentence(
        (
            "How many {items} do they have together?",
            "How many {items} do {name} and {friend} have?",
            "What is the total number of {items}?",
        )
    ),
    # Money.
    "purchase": Sentence(
        (
            "{name} buys {groups} {items} for {number} dollars each.",
            "{name} orders {groups} {items} at {number} dollars each.",
            "At {number} dollars each {name} takes {groups} {items}.",
        ),
        high=20,
        in_groups=True,
    ),
    "second purchase": Sentence(
        (
            "{He} also buys {groups} {goods} for {number} dollars each.",
            "{He} also orders {groups} {goods} at {number} dollars each.",
        ),
        "+",
        high=20,
        in_groups=True,
    ),
    "fare": Sentence(
        ("{He} also pays {number} dollars for the bus.", "The {boxes} cost {number} dollars more."), "+", high=20
    ),
    "purse": Sentence(("{He} had {number} dollars.", "{name} pays with {number} dollars."), low=30, high=99),
    "change?": Sentence(("How many dollars are left?", "What is the change?")),
    "split?": Sentence(("The cost is shared equally by {number} people. How much does each pay?",), "/", high=4),
    "cost?": Sentence(("What is the total cost?", "How many dollars does {name} pay?", "How much does {name} spend?")),
    # The simpler problems.
    "any possession": Sentence(_POSSESSION, high=180),
    # A number that has nothing to do with it.
    "distraction": Sentence(
        (
            "{friend} is {number} years old.",
            "There are {number} chairs in the {place}.",
            "{name} lives in house {number}.",
            "{friend} has {number} {goods}.",
        )
    ),
}


def question_words() -> set[str]:
    """Every word that a question can contain."""
    templates = " ".join(wording for sentence in SENTENCES.values() for wording in sentence.wordings)
    literals = re.findall("[A-Za-z]+", re.sub(r"\{\w+\}", " ", templates))
    return {*literals, *NAMES, *PRONOUNS.values(), *ITEMS, *BOXES, *PLACES}
