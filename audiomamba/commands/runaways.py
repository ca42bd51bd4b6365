"""What is said of streams that run away: by files and seconds, as a user of commands knows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_LOGGER = "audiomamba.engine.rewind"  # speaks of streams and samples, to users of the library


class _Teller(logging.Handler):
    def __init__(self, name: Callable[[int], str], rate: int, clear: Callable[[], None]) -> None:
        super().__init__()
        self._name, self._rate, self._clear = name, rate, clear

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line in place of the record."""
        stream, sample, anew = (vars(record)[key] for key in ("stream", "sample", "anew"))
        self._clear()
        click.echo(
            f"warning: {self._name(stream)} runs into noise at {sample / self._rate:g} s of what "
            f"was made{anew}; it goes on as it is",
            err=True,
        )


@contextmanager
def telling_runaways(
    name: Callable[[int], str], rate: int, clear: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Tell of each stream that runs away in the block.

    Args:
        name: Gives the name of what a stream, by its number, becomes.
        rate: Samples a second.
        clear: Called before a line is printed.
    """
    logger, teller = logging.getLogger(_LOGGER), _Teller(name, rate, clear)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)
