"""Samples as they are made, to standard output."""

from __future__ import annotations

import contextlib
import sys

from audiomamba.commands.runaways import telling_runaways
from audiomamba.commands.takes import Order


def write_raw(order: Order) -> None:
    """Write one stream as 16-bit little-endian samples, block by block.

    Raises:
        BrokenPipeError: If who reads has gone.
    """
    from audiomamba.audio import to_pcm16

    blocks = order.model.stream(
        samples=order.samples,
        first=order.first,
        **order.sampling,
        guard=order.guard or False,
        prompt=order.places,
    )
    for one in order.prompts:
        if one.before is not None:
            sys.stdout.buffer.write(to_pcm16(one.before))
    rate = order.model.sample_rate
    with contextlib.closing(blocks), telling_runaways(lambda _: "the stream", rate):
        for block in blocks:
            sys.stdout.buffer.write(to_pcm16(block[0]))
            sys.stdout.buffer.flush()
