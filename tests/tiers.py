"""Which of many cases `make test` runs, and which CI; the others are for the long tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], here: Collection[Any], *, ci: Collection[Any] | None = None) -> list[Any]:
    """The cases as parameters, marked `ci` but for those named `here`; with a list for `ci`, all others are `long`."""
    listed = list(cases)
    assert all(case in listed for case in (*here, *(ci or ()))), "a case that is named is there"
    other = lambda case: pytest.mark.ci if ci is None or case in ci else pytest.mark.long
    return [pytest.param(case, marks=() if case in here else other(case)) for case in listed]
