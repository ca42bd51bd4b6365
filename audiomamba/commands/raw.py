"""Samples as they are made, to standard output."""

from __future__ import annotations

import contextlib
import os
import sys

from audiomamba.commands.failure import telling
from audiomamba.commands.runaways import telling_runaways
from audiomamba.commands.takes import Order


def write_raw(order: Order) -> None:
    """Write one stream as 16-bit little-endian samples, block by block.

    Raises:
        BrokenPipeError: If who reads has gone.
        OSError: If standard output takes no more.
    """
    from audiomamba.audio import to_pcm16

    blocks = order.model.stream(
        samples=order.samples,
        first=order.first,
        **order.sampling,
        guard=order.guard or False,
        prompt=order.places,
    )
    rate, made = order.model.sample_rate, 0
    with (
        telling(lambda: f"{made / rate:.2f} of {order.samples / rate:g} s were made"),
        contextlib.closing(blocks),
        telling_runaways(lambda _: "the stream", rate),
    ):
        for one in order.prompts:
            if one.before is not None:
                _put(to_pcm16(one.before))
        for block in blocks:
            _put(to_pcm16(block[0]))
            made += block.shape[1]


def _put(samples: bytes) -> None:
    try:
        sys.stdout.buffer.write(samples)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's flush
        raise OSError(
            f"standard output takes no more ({error.strerror}); free some space where it goes, or "
            "send it elsewhere"
        ) from error
