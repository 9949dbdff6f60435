"""Stories of the embedded problems: sentences of `generated_text` strung together, and the solution they call for.

`generated` draws its problems from the families here and annotates them.
"""

import dataclasses
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

from reft_jax.data.embedded.wording import BOXES, ITEMS, NAMES, PLACES, PRONOUNS, SENTENCES

T = TypeVar("T")

OPERATIONS: dict[str, Callable[[Any, Any], int | Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}


# Python keeps `Random.random()` the same for a seed in every version, but promises nothing for `choice` or `randint`.
def draw_number(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[draw_number(rng, 0, len(options) - 1)]


def pick_weighted(rng: random.Random, weights: Mapping[T, int]) -> T:
    return pick(rng, [option for option, weight in weights.items() for _ in range(weight)])


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation; its operands are numbers or earlier steps. A solution is a tree of steps, the last is its root."""

    op: str
    left: "int | Step"
    right: "int | Step"

    def values(self) -> list[int | Fraction]:
        """Values of all steps in the order of the program; the last one is the answer."""
        left, right = (x.values() if isinstance(x, Step) else [] for x in (self.left, self.right))
        operands = [values[-1] if values else x for values, x in ((left, self.left), (right, self.right))]
        return [*left, *right, OPERATIONS[self.op](*operands)]


Amount = int | Step


class Story:
    """A question in the making: who and what it is about, and the sentences so far."""

    def __init__(self, rng: random.Random) -> None:
        name, items = pick(rng, NAMES), pick(rng, ITEMS)
        self.rng = rng
        self.sentences: list[str] = []
        self.words = {
            "name": name,
            "friend": pick(rng, [x for x in NAMES if PRONOUNS[x] != PRONOUNS[name]]),
            "He": PRONOUNS[name],
            "items": items,
            "goods": pick(rng, [x for x in ITEMS if x != items]),
            "boxes": pick(rng, BOXES),
            "place": pick(rng, PLACES),
        }

    def tell(self, kind: str) -> Amount:
        """Adds a sentence and returns the amount it speaks of."""
        sentence = SENTENCES[kind]
        number, groups = draw_number(self.rng, sentence.low, sentence.high), draw_number(self.rng, 2, 9)
        wording = pick(self.rng, sentence.wordings)
        self.sentences.append(wording.format(**self.words, number=number, groups=groups))
        return Step("*", groups, number) if sentence.in_groups else number

    def change(self, amount: Amount, kind: str) -> Step:
        """Adds a sentence that changes an amount, or relates another one to it, and returns the result."""
        return Step(SENTENCES[kind].op, amount, self.tell(kind))


def _running_total(story: Story) -> Amount:
    events = {"gain": 27, "loss": 27, "gain of groups": 16, "loss of groups": 16, "doubling": 7, "halving": 7}
    total = story.tell(pick_weighted(story.rng, {"possession": 7, "possession of groups": 3}))
    for _ in range(pick_weighted(story.rng, {1: 5, 2: 4, 3: 1})):
        total = story.change(total, pick_weighted(story.rng, events))
    if pick_weighted(story.rng, {"share?": 2, "left?": 8}) == "share?":
        return story.change(total, "share?")
    story.tell("left?")
    return total


def _comparison(story: Story) -> Amount:
    plots = {
        ("", "friend with more?"): 2,
        ("", "together?"): 4,
        ("friend gains", "friend?"): 1,
        ("friend loses", "friend?"): 1,
        ("friend gains", "together?"): 2,
        ("friend loses", "together?"): 2,
    }
    event, ending = pick_weighted(story.rng, plots)
    amount = story.tell("possession")
    others = story.change(amount, pick(story.rng, ("more", "fewer", "times", "half")))
    if event:
        others = story.change(others, event)
    if ending == "friend with more?":
        return story.change(others, ending)
    story.tell(ending)
    return Step("+", amount, others) if ending == "together?" else others


def _money(story: Story) -> Amount:
    plots = {
        ("", "change?"): 5,
        ("fare", "cost?"): 5,
        ("second purchase", "change?"): 4,
        ("second purchase", "cost?"): 4,
        ("second purchase", "split?"): 2,
    }
    extra, ending = pick_weighted(story.rng, plots)
    cost = story.tell("purchase")
    if extra:
        cost = story.change(cost, extra)
    if ending == "split?":
        return story.change(cost, ending)
    if ending == "change?":
        cost = Step("-", story.tell("purse"), cost)
    story.tell(ending)
    return cost


def one_step(story: Story, beginning: str, event: str, ending: str) -> Amount:
    """One of the problems of `SIMPLE`."""
    amount = story.tell(beginning)
    if event:
        amount = story.change(amount, event)
    if ending:
        story.tell(ending)
    return amount


# Families of `train` and `test` in percent; all their problems have two to four steps.
FAMILIES = {_running_total: 55, _comparison: 22, _money: 23}
# Beginning, event and ending of the simpler problems of `pretrain`; all have one step.
SIMPLE = (
    ("any possession", "gain", "left?"),
    ("any possession", "loss", "left?"),
    ("any possession", "doubling", "left?"),
    ("any possession", "halving", "left?"),
    ("any possession", "share?", ""),
    ("any possession", "more", "friend?"),
    ("any possession", "fewer", "friend?"),
    ("any possession", "times", "friend?"),
    ("any possession", "half", "friend?"),
    ("possession of groups", "", "left?"),
    ("purchase", "", "cost?"),
)
