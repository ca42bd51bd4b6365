"""Bits per sample of whole clips: the measure that training, model cards and papers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from audiomamba.data.tokens import Split, TokenFile, TokenStore
from audiomamba.models.waveform import WaveformModel

LONGEST = 1 << 23  # samples read in one piece, so that memory does not grow with a file's length


class Piece(NamedTuple):
    """Part of a file that is read from a state of zeros."""

    file: TokenFile
    start: int
    samples: int


def evaluate(
    network: WaveformModel,
    store: TokenStore,
    split: Split = "test",
    *,
    batch: int = 8,
    chunk: int = 1 << 15,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Return the mean negative log-likelihood of a split's samples, in bits per sample.

    Every sample of every clip counts once, given all before it in its clip (state is carried from
    chunk to chunk; the first sample is given silence). Clips of more than 2^23 samples are read in
    pieces of that length. Float32 throughout, on the device of the network.

    Args:
        network: In whatever mode; it is not changed.
        store: Tokens, of the network's tokenizer.
        split: Which files.
        batch: Clips read side by side.
        chunk: Samples of each clip in memory at a time.
        seconds: Read only so much in all, the same from the start of every clip; None reads all.
        progress: Called with (samples done, samples in all).

    Raises:
        ValueError: If the split is empty or of another tokenizer or sample rate.
    """
    if store.sample_rate != network.config.sample_rate:
        raise ValueError(
            f"{store.directory} holds audio at {store.sample_rate} Hz, the model is of "
            f"{network.config.sample_rate} Hz; prepare the data for it"
        )
    pieces = cut(store, split, seconds)
    bits, samples = total_bits(network, store, pieces, batch=batch, chunk=chunk, progress=progress)
    return bits / samples


def cut(store: TokenStore, split: Split, seconds: float | None = None) -> list[Piece]:
    """Return what `evaluate` reads, longest first, so that neighbours are of like length."""
    files = store.files(split)
    if not files:
        raise ValueError(f"{store.directory} has no {split} files")
    share = None if seconds is None else max(1, int(seconds * store.sample_rate / len(files)))
    pieces = []
    for file in files:
        end = file.samples if share is None else min(file.samples, share)
        pieces += [Piece(file, at, min(LONGEST, end - at)) for at in range(0, end, LONGEST)]
    return sorted(pieces, key=lambda piece: -piece.samples)


@torch.no_grad()
def total_bits(
    network: WaveformModel,
    store: TokenStore,
    pieces: list[Piece],
    *,
    batch: int = 8,
    chunk: int = 1 << 15,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, int]:
    """Return the bits of all samples of the pieces together, and their number."""
    if store.tokenizer != network.config.tokenizer:
        raise ValueError(
            f"the tokens in {store.directory} are of {store.tokenizer}, but the model's are of "
            f"{network.config.tokenizer}; prepare the audio again with the model's"
        )
    device = network.head.weight.device
    bits, samples, total = 0.0, 0, sum(piece.samples for piece in pieces)
    for at in range(0, len(pieces), batch):
        group = pieces[at : at + batch]
        rows = np.full(
            (len(group), group[0].samples), store.tokenizer.silence, store.tokenizer.dtype
        )
        for row, piece in zip(rows, group, strict=True):
            row[: piece.samples] = store.read(*piece)
        lengths = torch.tensor([piece.samples for piece in group])
        tokens = torch.from_numpy(rows).to(device).long()
        with torch.autocast(device.type, enabled=False):
            nll = network.nll(tokens, chunk).cpu().double()
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        bits += float(nll[real].sum())
        samples += sum(piece.samples for piece in group)
        if progress is not None:
            progress(samples, total)
    return bits, samples
