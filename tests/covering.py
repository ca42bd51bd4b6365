"""Few cases that try every pair of choices, where all combinations would be too many."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def covering(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return cases, one choice an axis, so that any two choices of two axes meet in some case.

    Greedy: of a few cases drawn around a pair not yet covered, the one that covers most.
    """
    names, draw = list(axes), random.Random(0)
    sizes = [len(axes[name]) for name in names]
    missing = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(names)), 2)
        for a, b in itertools.product(range(sizes[i]), range(sizes[j]))
    }
    cases = []
    while missing:
        i, a, j, b = min(missing)
        drawn = []
        for _ in range(60):
            case = [draw.randrange(size) for size in sizes]
            case[i], case[j] = a, b
            drawn.append(case)
        covered = [
            {(i, c[i], j, c[j]) for i, j in itertools.combinations(range(len(c)), 2)} & missing
            for c in drawn
        ]
        best = max(range(len(drawn)), key=lambda k: len(covered[k]))
        missing -= covered[best]
        cases.append({n: axes[n][c] for n, c in zip(names, drawn[best], strict=True)})
    return cases
