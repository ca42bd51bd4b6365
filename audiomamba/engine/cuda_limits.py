"""What a model asks of a GPU, known from its shape: shared memory, and numbers that a thread holds.

`cuda_plan.py` lays the same out; its header must agree.
"""

from __future__ import annotations

import math

import torch

from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.cuda_products import chunks_of, lanes_of

THREADS = 256  # of a stream, unless asked for otherwise
SHARED = 48 * 1024  # bytes that every GPU gives; older versions of PyTorch do not tell of more
HELD = 256  # numbers; a thread has 255 registers, which the weights under way share


def why_too_large(config: ModelConfig, device: torch.device, threads: int = THREADS) -> str | None:
    """Return why a model does not fit into a GPU's multiprocessor, or None if it does."""
    held = numbers_held(config, threads)
    if held > HELD:
        return (
            f"the model is too wide: each of {threads} threads would hold {held} numbers, more "
            f"than {HELD}"
        )
    needs = shared_bytes(config)
    has = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SHARED)
    if needs > has:
        return f"the model needs {needs} bytes of shared memory, and {device} has {has}"
    return None


def numbers_held(config: ModelConfig, threads: int) -> int:
    """Return how many numbers of its channels a thread holds at most: `Mine` of scan.cuh."""
    return max(_held(tier, width, threads) for tier, width in _tiers(config))


def shared_bytes(config: ModelConfig) -> int:
    """Return the bytes of shared memory of a block of threads."""
    tiers, levels = _tiers(config), config.tokenizer.levels
    mambas = [(tier, width) for tier, width in tiers if tier.mixer != "s4"]
    widths = [
        max(width for _, width in tiers),  # X
        max((tier.expand * width for tier, width in mambas), default=0),  # U
        max(_channels(tier, width) for tier, width in tiers),  # Y
        max((_selected(tier, width) for tier, width in mambas), default=0),
        max((tier.expand * width for tier, width in tiers if tier.mixer == "s4"), default=0),
        *(levels, levels, levels, 1),  # logits, gaps, weights and the token
    ]
    return 16 * sum(chunks_of(width, 4) for width in widths)


def _tiers(config: ModelConfig) -> list[tuple[Tier, int]]:
    """Return the tiers with their widths."""
    return [(tier, config.d_model << depth) for depth, tier in enumerate(config.tiers)]


def _channels(tier: Tier, width: int) -> int:
    return width if tier.mixer == "s4" else tier.expand * width


def _rank(width: int) -> int:
    return math.ceil(width / 16)


def _selected(tier: Tier, width: int) -> int:
    return _rank(width) + 2 * tier.d_state if tier.mixer == "s6" else 0


def _held(tier: Tier, width: int, threads: int) -> int:
    channels = _channels(tier, width)
    lanes = lanes_of(channels, threads)
    passes = chunks_of(channels, threads // lanes)
    parts = 2 if tier.complex or tier.mixer == "s4" else 1
    states = chunks_of(tier.d_state // parts, lanes) * parts
    if tier.mixer == "s4":
        vectors, past = 3, 0
    else:
        vectors, past = tier.d_conv + 2, tier.d_conv - 1
        vectors += 1 + _rank(width) if tier.mixer == "s6" else 0
    return passes * sum(4 * chunks_of(count, 4) for count in (vectors, past, states))
