"""Which of many cases `make test` runs; the others are CI's."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], here: Collection[Any]) -> list[Any]:
    """The cases as parameters, marked `ci` but for those named `here`."""
    listed = list(cases)
    assert all(case in listed for case in here), "a case that is named is there"
    return [pytest.param(case, marks=() if case in here else pytest.mark.ci) for case in listed]
