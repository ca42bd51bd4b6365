"""What is said of streams that run away: by files and seconds, as a user of commands knows them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_LOGGER = "audiomamba.engine.rewind"  # speaks of streams and samples, to users of the library


class _Teller(logging.Handler):
    def __init__(
        self, name: Callable[[int], str], rate: int, clear: Callable[[], None], hold: bool
    ) -> None:
        super().__init__()
        self._name, self._rate, self._clear, self._hold = name, rate, clear, hold
        self._held: defaultdict[int, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line in place of the record, or hold it."""
        stream, sample, anew = (vars(record)[key] for key in ("stream", "sample", "anew"))
        self._held[stream].append(
            f"warning: {self._name(stream)} runs into noise at {sample / self._rate:g} s of what "
            f"was made{anew}; it goes on as it is"
        )
        if not self._hold:
            self.tell(stream)

    def tell(self, stream: int) -> None:
        """Print what is held of a stream."""
        for line in self._held.pop(stream, []):
            self._clear()
            click.echo(line, err=True)


@contextmanager
def telling_runaways(
    name: Callable[[int], str],
    rate: int,
    clear: Callable[[], None] = lambda: None,
    *,
    hold: bool = False,
) -> Iterator[Callable[[int], None]]:
    """Tell of each stream that runs away in the block.

    Args:
        name: Gives the name of what a stream, by its number, becomes.
        rate: Samples a second.
        clear: Called before a line is printed.
        hold: Tell only of streams, by their numbers, with which what is given to the block is
            called; others become nothing.
    """
    logger, teller = logging.getLogger(_LOGGER), _Teller(name, rate, clear, hold)
    logger.addHandler(teller)
    try:
        yield teller.tell
    finally:
        logger.removeHandler(teller)
