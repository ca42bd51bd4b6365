"""A prompt is read: whole periods at once, in chunks, and step by step what is left over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from audiomamba.engine.place import Draw, Opened, Place, Tokens
from audiomamba.models.waveform import WaveformModel
from audiomamba.state import leaves
from audiomamba_kernels.jit import announce

CHUNK = 1 << 16  # samples read at once

_log = logging.getLogger(__name__)


def read_prompt(
    network: WaveformModel,
    opened: Opened,
    pieces: Iterable[Tokens],
    notify: Callable[[], None] | None = None,
) -> Place:
    """Read a prompt that comes in pieces; memory does not grow with it.

    Whole periods are read in parallel, CHUNK samples at a time, or as many as fit into memory if
    those are fewer, which is logged; the engine steps through the rest.

    Args:
        network: The model.
        opened: What will go on from there.
        pieces: Tokens (samples,), integers.
        notify: Called once before code is compiled, if any is; None logs a warning.

    Raises:
        ValueError: If tokens are no levels.
        MemoryError: If not one period fits.
    """
    silence, period = network.config.tokenizer.silence, network.config.period
    chunk = max(1, CHUNK // period) * period
    state, position, previous = network.initial_state(1), 0, silence
    with announce(notify or _log_compiling), torch.inference_mode():
        for tokens in _regular(pieces, chunk):
            check_tokens(network, tokens)
            whole = len(tokens) - len(tokens) % period
            if whole:
                shifted = np.concatenate([[previous], tokens[: whole - 1]], dtype=np.int64)
                state, chunk = _read_periods(network, shifted, state, chunk)
                position, previous = position + whole, int(tokens[whole - 1])
            rest = tokens[whole:]  # of the last chunk alone
        here = [leaf.cpu() for leaf in leaves(state)]
        place = Place(state=here, position=position, previous=previous)
        if len(rest):
            running = opened.start([place], Draw())
            running.read(rest)
            (place,) = running.places()
    return place


def _read_periods(
    network: WaveformModel, tokens: Tokens, state: Any, chunk: int
) -> tuple[Any, int]:
    """Read whole periods, at most a chunk at once; return the state and the chunk that fits."""
    period, device, at, told = network.config.period, network.embedding.weight.device, 0, chunk
    while at < len(tokens):
        part = torch.from_numpy(tokens[at : at + chunk])[None].to(device)
        with suppress(torch.OutOfMemoryError):
            _, state = network(part, state)
            at += part.shape[1]
            if chunk < told:
                _log.warning("the prompt does not fit into memory; it is read by %d samples", chunk)
                told = chunk
            continue
        torch.cuda.empty_cache()
        chunk = part.shape[1] // (2 * period) * period
        if not chunk:
            raise MemoryError(
                f"{period} samples of the prompt do not fit into the device's memory; free some "
                "of it, or use another device"
            )
    return state, chunk


def _log_compiling() -> None:
    _log.warning("compiling what reads prompts; this happens once and takes about 20 seconds")


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
