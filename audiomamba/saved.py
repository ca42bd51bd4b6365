"""Streams on disk: where they stand and how they are drawn, to go on from later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from audiomamba.audio import naming
from audiomamba.engine.choice import Weights
from audiomamba.engine.place import Draw, Place, joined, parted
from audiomamba.files import replacing
from audiomamba.guard import Guard
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_whole
from audiomamba.saved_header import FORMAT, check
from audiomamba.state import from_leaves, leaves


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file of streams holds.

    Attributes:
        draw: How they are drawn; `draw.first` is the number of the first.
        places: Where each stands.
        made: Samples made of each, without its prompt.
        nats: Minus the log-likelihood of these, of each.
        weights: Of the engine that made them.
        guard: When they are taken back.
    """

    draw: Draw
    places: Sequence[Place]
    made: int
    nats: Sequence[float]
    weights: Weights = "float32"
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights is {self.weights!r}")


def write(path: str | Path, network: WaveformModel, saved: Saved) -> None:
    """Write streams as safetensors; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    state = joined(saved.places)
    tensors = {f"state.{i}": _real(x).cpu().contiguous() for i, x in enumerate(state)}
    tensors["position"] = torch.tensor([place.position for place in saved.places])
    tensors["previous"] = torch.tensor([place.previous for place in saved.places])
    tensors["nats"] = torch.tensor(list(saved.nats), dtype=torch.float64)
    facts = {
        "weights_sha256": weights_sha256(network),
        "seed": saved.draw.seed,
        "first": saved.draw.first,
        "made": saved.made,
        "sampling": asdict(saved.draw.sampling),
        "weights": saved.weights,
        "guard": None if saved.guard is None else asdict(saved.guard),
    }
    plain = methodcaller("item")  # of NumPy's numbers
    metadata = {"format": FORMAT, "facts": json.dumps(facts, default=plain)}
    with naming(Path(path)), replacing(path) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))


def size(network: WaveformModel) -> int:
    """Return how many bytes a stream takes in a file."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(network.initial_state(1)))


def read(path: str | Path, network: WaveformModel) -> Saved:
    """Read streams that `write` wrote with the same model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, is damaged, of another version or of another model.
    """
    check(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with _damage_of(path):
        facts = json.loads(metadata["facts"])
        theirs = facts["weights_sha256"]
    _check_model(path, theirs, network)
    with _damage_of(path):
        like = leaves(network.initial_state(1))
        state = [_as(tensors[f"state.{i}"], leaf) for i, leaf in enumerate(like)]
        from_leaves(like, state)  # compares shapes
        _check_counts(state, tensors, facts["made"])
        positions, previous = tensors["position"].tolist(), tensors["previous"].tolist()
        return Saved(
            draw=Draw(
                sampling=Sampling(**facts["sampling"]), seed=facts["seed"], first=facts["first"]
            ),
            places=parted(state, positions, previous),
            made=facts["made"],
            nats=tensors["nats"].tolist(),
            weights=facts.get("weights", "float32"),
            guard=Guard(**facts["guard"]) if facts.get("guard") else None,
        )


def weights_sha256(network: WaveformModel) -> str:
    """Return the SHA-256 of a model's weights in order, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _damage_of(path: str | Path) -> Iterator[None]:
    """Name the file in an error of what it holds."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or holds no saved streams ({error!r})") from error


def _check_counts(state: list[Tensor], tensors: dict[str, Tensor], made: Any) -> None:
    """Raise ValueError unless all is there of each stream, in the type that `write` gives it."""
    num = len(state[0])
    if not num:
        raise ValueError("state.0 is of no stream")
    for i, leaf in enumerate(state):
        if len(leaf) != num:
            raise ValueError(f"state.{i} is of {len(leaf)} streams, state.0 of {num}")
    for name, dtype in (
        ("position", torch.int64),
        ("previous", torch.int64),
        ("nats", torch.float64),
    ):
        x = tensors[name]
        if x.shape != (num,) or x.dtype != dtype:
            raise ValueError(
                f"{name} is {x.dtype} of shape {tuple(x.shape)}; it must be {dtype}, ({num},)"
            )
    if check_whole(made, "made") < 0:
        raise ValueError(f"made is {made}; it must be 0 or more")


def _check_model(path: str | Path, theirs: str, network: WaveformModel) -> None:
    ours = weights_sha256(network)
    if theirs != ours:
        raise ValueError(
            f"{path} was saved with other weights (SHA-256 {theirs[:12]}, here {ours[:12]}); load "
            "the model that it was saved with"
        )


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _as(x: Tensor, leaf: Tensor) -> Tensor:
    return torch.view_as_complex(x) if leaf.is_complex() else x
