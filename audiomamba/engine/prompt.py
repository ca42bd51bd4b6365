"""A prompt is read: whole periods at once, in chunks, and step by step what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from audiomamba.engine.place import Draw, Opened, Place, Tokens
from audiomamba.models.waveform import WaveformModel
from audiomamba.state import leaves
from audiomamba_kernels.jit import announce

CHUNK = 1 << 16  # samples read at once


def read_prompt(
    network: WaveformModel,
    opened: Opened,
    pieces: Iterable[Tokens],
    notify: Callable[[], None] | None = None,
) -> Place:
    """Read a prompt that comes in pieces; memory does not grow with it.

    Whole periods are read in parallel, CHUNK samples at a time; the engine steps through the rest.

    Args:
        network: The model.
        opened: What will go on from there.
        pieces: Tokens (samples,), integers.
        notify: Called once before code is compiled, if any is; None does not tell.

    Raises:
        ValueError: If tokens are no levels.
    """
    silence, period = network.config.tokenizer.silence, network.config.period
    device, chunk = network.embedding.weight.device, max(1, CHUNK // period) * period
    state, position, previous = network.initial_state(1), 0, silence
    with announce(notify or (lambda: None)), torch.inference_mode():
        for tokens in _regular(pieces, chunk):
            check_tokens(network, tokens)
            whole = len(tokens) - len(tokens) % period
            if whole:
                shifted = np.concatenate([[previous], tokens[: whole - 1]], dtype=np.int64)
                _, state = network(torch.from_numpy(shifted)[None].to(device), state)
                position, previous = position + whole, int(tokens[whole - 1])
            rest = tokens[whole:]  # of the last chunk alone
            place = Place(state=leaves(state), position=position, previous=previous)
            if len(rest):
                running = opened.start([place], Draw())
                running.read(rest)
                (place,) = running.places()
    return place


def check_tokens(network: WaveformModel, tokens: Tokens) -> None:
    """Raise ValueError for tokens that are no levels."""
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"the prompt's tokens are {tokens.dtype}; they must be integers")
    levels = network.config.tokenizer.levels
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < levels:
        raise ValueError(f"the prompt holds other tokens than the levels 0 to {levels - 1}")


def _regular(pieces: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """Yield what pieces hold together in chunks of a size, and what is left over, maybe nothing."""
    held: list[Tokens] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count < size:
            continue
        together = np.concatenate(held)
        for at in range(0, count - size + 1, size):
            yield together[at : at + size]
        held, count = [together[count - count % size :]], count % size
    yield np.concatenate(held) if held else np.empty(0, np.int64)
