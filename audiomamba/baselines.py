"""Bits per sample of models made of counts: what a network has to beat. NumPy alone.

A context c_t is a number that the samples before t determine, and n(c, x) counts how often level x
followed it in the training split. With L levels,

    p0(x)     = (n(x) + 1) / (N + L)
    p1(x | d) = (n(d, x) + k p0(x)) / (n(d) + k),       d = c mod L, the coarse part of the context
    p2(x | c) = (n(c, x) + k p1(x | d)) / (n(c) + k)

and k, one of 1, 4, 16, ..., is the best on the validation split (hierarchical Dirichlet smoothing:
MacKay & Peto 1995, "A hierarchical Dirichlet language model", section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiomamba.data.tokens import Split, TokenStore

Tokens = NDArray[Any]
Contexts = Callable[[Tokens], NDArray[np.int64]]

STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)
SMOOTHING = 16  # samples over which a prediction's recent error is averaged
CLASSES = 32  # of that error, half an octave each


def order0_bits(store: TokenStore, split: Split = "test") -> float:
    """Return the bits per sample of p0: a histogram, which knows nothing of the past."""
    levels = store.tokenizer.levels
    seen = table(store, "train", np.zeros_like, 1).ravel()
    p = (seen + 1) / (seen.sum() + levels)
    return cross_entropy(table(store, split, np.zeros_like, 1).ravel(), p)


def order2_bits(store: TokenStore, split: Split = "test") -> float:
    """Return the bits per sample of p2 given the two samples before, c = x[t-2] L + x[t-1].

    Raises:
        ValueError: If a sample has more than 8 bits: the table would not fit in memory.
    """
    levels = store.tokenizer.levels

    def contexts(tokens: Tokens) -> NDArray[np.int64]:
        padded = np.full(len(tokens) + 2, store.tokenizer.silence, np.int64)
        padded[2:] = tokens
        return padded[:-2] * levels + padded[1:-1]

    return context_bits(store, split, contexts, levels * levels)


def linear_prediction_bits(store: TokenStore, split: Split = "test", order: int = 32) -> float:
    """Return the bits per sample of p2 given what a linear predictor expects, and how sure it is.

    One predictor for all audio, x'[t] = sum_k w_k x[t-k] with k to `order`, is fitted to the
    training split by least squares (autocorrelation method). The coarse context is the level of
    x'[t]; the fine one adds the mean of |x - x'| over the last 16 samples, in half octaves. This is
    how lossless audio codecs see a signal, with the distribution of the residual learned.

    Raises:
        ValueError: If a sample has more than 8 bits: the table would not fit in memory.
    """
    tokenizer = store.tokenizer
    correlation = np.zeros(order + 1)
    for file in store.files("train"):
        x = tokenizer.decode(store.clip(file)).astype(np.float64)
        for k in range(min(order + 1, len(x))):
            correlation[k] += x[: len(x) - k] @ x[k:]
    lags = abs(np.subtract.outer(np.arange(order), np.arange(order)))
    # A floor of noise, -90 dB, keeps the equations solvable for silence and pure tones.
    noise = np.eye(order) * (1e-9 * correlation[0] + 1e-12)
    weights = np.linalg.solve(correlation[lags] + noise, correlation[1:])

    def contexts(tokens: Tokens) -> NDArray[np.int64]:
        x = tokenizer.decode(tokens).astype(np.float64)
        expected = np.concatenate([[0.0], np.convolve(x, weights)[: len(x) - 1]])
        expected = np.clip(expected, -1, 1)
        total = np.concatenate([np.zeros(SMOOTHING + 1), np.cumsum(abs(x - expected))])
        recent = np.maximum(total[SMOOTHING:-1] - total[: len(x)], 0) / SMOOTHING
        sure = (2 * np.log2(recent * 2**15 + 1)).astype(np.int64).clip(0, CLASSES - 1)
        fine: NDArray[np.int64] = sure * tokenizer.levels + tokenizer.encode(expected)
        return fine

    return context_bits(store, split, contexts, CLASSES * tokenizer.levels)


def context_bits(store: TokenStore, split: Split, contexts: Contexts, size: int) -> float:
    """Return the bits per sample of p2.

    Args:
        store: Tokens; a validation split chooses k, without one it is 16.
        split: What is scored.
        contexts: Map a clip (samples,) to its contexts (samples,), 0 to `size` - 1.
        size: Number of contexts, a multiple of the levels.

    Raises:
        ValueError: If a sample has more than 8 bits.
    """
    levels = store.tokenizer.levels
    if store.tokenizer.bits > 8:
        raise ValueError(f"tokens of {store.tokenizer.bits} bits are too many to count; 8 at most")
    seen = table(store, "train", contexts, size)
    coarse = seen.reshape(-1, levels, levels).sum(0)
    p0 = (coarse.sum(0) + 1) / (coarse.sum() + levels)

    def p2(k: float) -> NDArray[np.float64]:
        p1 = (coarse + k * p0) / (coarse.sum(1, keepdims=True) + k)
        prior = np.broadcast_to(p1, (size // levels, levels, levels)).reshape(size, levels)
        smooth: NDArray[np.float64] = (seen + k * prior) / (seen.sum(1, keepdims=True) + k)
        return smooth

    best = 16.0
    if store.files("validation"):
        heard = table(store, "validation", contexts, size)
        best = min(STRENGTHS, key=lambda k: cross_entropy(heard, p2(k)))
    return cross_entropy(table(store, split, contexts, size), p2(best))


def table(store: TokenStore, split: Split, contexts: Contexts, size: int) -> NDArray[np.int64]:
    """Return n(c, x) of a split, (size, levels).

    Raises:
        ValueError: If the split is empty.
    """
    levels = store.tokenizer.levels
    counts = np.zeros(size * levels, np.int64)
    files = store.files(split)
    if not files:
        raise ValueError(f"{store.directory} has no {split} files")
    for file in files:
        tokens = store.clip(file)
        cells = contexts(tokens).astype(np.int64) * levels + tokens
        if len(cells) < len(counts):
            np.add.at(counts, cells, 1)
        else:
            counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(size, levels)


def cross_entropy(counts: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    """Return the mean of -log2 p over what was counted."""
    there = counts > 0
    return float(-(counts[there] * np.log2(p[there])).sum() / counts.sum())
