"""States: NamedTuples (or tuples) of tensors, nested like the modules they belong to.

A state is a value. Layers take one and return the next; shapes and dtypes never change, batch comes
first, and nothing is written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def map_state(fn: Callable[..., Tensor], state: State, *rest: State) -> State:
    """Apply fn leaf by leaf to states of equal structure."""
    if isinstance(state, Tensor):
        return fn(state, *rest)  # type: ignore[return-value]  # a tensor is a state
    trees: Any = (state, *rest)
    kids: list[Any] = [map_state(fn, *kid) for kid in zip(*trees, strict=True)]
    kind: Any = type(state)
    return kind(*kids) if hasattr(kind, "_fields") else kind(kids)  # type: ignore[no-any-return]


def leaves(state: Any) -> list[Tensor]:
    """Return the tensors of a state in order."""
    return [state] if isinstance(state, Tensor) else [leaf for kid in state for leaf in leaves(kid)]


def from_leaves(like: State, tensors: Iterable[Tensor]) -> State:
    """Return tensors as a state of the structure of another, whose leaves they replace in order.

    Raises:
        ValueError: If their count is another, or but for the batch a shape.
    """
    given, wanted = list(tensors), leaves(like)
    shapes = [[tuple(x.shape[1:]) for x in part] for part in (given, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"a state of {shapes[0]} came where {shapes[1]} belongs")
    rest = iter(given)
    return map_state(lambda _: next(rest), like)


def where(mask: Tensor, a: State, b: State) -> State:
    """Take rows of a where mask (batch,) is True, rows of b elsewhere."""
    return map_state(lambda x, y: torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y), a, b)
