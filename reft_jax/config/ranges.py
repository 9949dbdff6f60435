"""Ranges that stand at the field of a number or a path: `learning_rate: NonNegativeFloat = 1e-5`.

To a type checker and at run time these are plain numbers and strings. `validation` reads the range off the field, the
help and `docs/settings.md` show it. jsonargparse's types of the same names are not used: they let infinity pass, stop
at the first fault, and make numbers of classes that YAML cannot write.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal


@dataclasses.dataclass(frozen=True, repr=False)
class Range:
    """What a value must be: in words, to go after "it must be", and as a test.

    Besides, floats must be finite and whole numbers less than 2^31: they count what fits into a computer.
    """

    words: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.words


def _is_weight(value: Any) -> bool:
    """Whether `value` is a finite number, or has one as `weight`, and besides nothing but whether it is `contained`."""
    if isinstance(value, dict):
        known = set(value) <= {"weight", "contained"} and isinstance(value.get("contained", False), bool)
        return known and _is_weight(value.get("weight"))
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


PositiveInt = Annotated[int, Range("more than 0", lambda x: x > 0)]
TwoOrMore = Annotated[int, Range("2 or more", lambda x: x >= 2)]
NonNegativeInt = Annotated[int, Range("0 or more", lambda x: x >= 0)]
Seed = Annotated[int, Range("0 or more and less than 2147483648", lambda x: 0 <= x < 2**31)]
MeshAxis = Annotated[int, Range("more than 0, or -1", lambda x: x > 0 or x == -1)]
FiniteFloat = Annotated[float, Range("finite", math.isfinite)]
PositiveFloat = Annotated[float, Range("more than 0", lambda x: x > 0)]
NonNegativeFloat = Annotated[float, Range("0 or more", lambda x: x >= 0)]
ClosedUnitInterval = Annotated[float, Range("between 0 and 1", lambda x: 0 <= x <= 1)]
HalfOpenUnitInterval = Annotated[float, Range("0 or more and less than 1", lambda x: 0 <= x < 1)]
Probability = Annotated[float, Range("more than 0 and at most 1", lambda x: 0 < x <= 1)]
Temperature = Annotated[float, Range("0.001 or more", lambda x: x >= 1e-3)]  # float32 logits stay finite
GreedyOrTemperature = Annotated[float, Range("0, or 0.001 or more", lambda x: x == 0 or x >= 1e-3)]
OpenUnitInterval = Annotated[float, Range("between 0 and 1, without the ends", lambda x: 0 < x < 1)]
AutoPositiveFloat = Annotated[float | Literal["auto"], Range("more than 0, or auto", lambda x: x == "auto" or x > 0)]
AutoUnitInterval = Annotated[
    float | Literal["auto"], Range("between 0 and 1, or auto", lambda x: x == "auto" or 0 <= x <= 1)
]
DualClip = Annotated[float, Range("0, or more than 1", lambda x: x == 0 or x > 1)]
AUTO = (-(2**31),)  # no length, and nothing that a person writes, as 0 is
"""Buckets that are made of the data's lengths; written `auto`."""
Buckets = Annotated[
    tuple[int, ...],
    Range("one or more lengths, each more than 0, or auto", lambda x: x == AUTO or (bool(x) and min(x) > 0)),
]
StopTexts = Annotated[
    tuple[str, ...],
    Range("no empty texts, and none with U+FFFD", lambda x: all(text and "\ufffd" not in text for text in x)),
]
TRACKERS = ("tensorboard", "wandb", "trackio")
Trackers = Annotated[
    tuple[str, ...],
    Range(f"some of {', '.join(TRACKERS)}, each once", lambda x: set(x) <= set(TRACKERS) and len(set(x)) == len(x)),
]
ProjectName = Annotated[
    str, Range("one or more characters, and none of / \\ # ? % :", lambda x: x and not set(x) & set("/\\#?%:"))
]
IdRanges = Annotated[
    tuple[tuple[int, int], ...], Range("pairs, each 0 or more and ascending", lambda x: all(0 <= a < b for a, b in x))
]
TemplateVariables = Annotated[
    dict[str, bool | int | float | str],
    Range("no infinite numbers", lambda x: not any(isinstance(v, float) and not math.isfinite(v) for v in x.values())),
]
RewardFunctions = Annotated[
    dict[str, float | dict[str, bool | float]],
    Range("finite, or {weight: 1, contained: true}", lambda x: all(map(_is_weight, x.values()))),
]

_HERE = Range("a path on this machine, no URL (mount what is elsewhere)", lambda x: "://" not in x)
_ALL_HERE = Range("paths on this machine, no URLs", lambda x: not any("://" in path for path in x))
_MODEL = Range("a folder on this machine or a hub id, no URL", lambda x: "://" not in x)
LocalPath = Annotated[str, _HERE]
LocalPaths = Annotated[tuple[str, ...], _ALL_HERE]
ModelPath = Annotated[str, _MODEL]


def range_of(field: "dataclasses.Field[Any]") -> Range | None:
    """The range that stands at a field, if one does."""
    return next((note for note in getattr(field.type, "__metadata__", ()) if isinstance(note, Range)), None)


def is_path(field: "dataclasses.Field[Any]") -> bool:
    """Whether the field is one of the three types of paths above."""
    return range_of(field) in (_HERE, _ALL_HERE, _MODEL)
