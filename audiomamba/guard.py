"""When a stream has run away into noise, by what the model itself finds likely, and what to do.

A model that has run into noise knows it: its samples become as unlikely as noise is, and their bits
per sample, which every engine counts, stay far above what recordings have. In half seconds, and as
multiples of the bits of validation, of piano as it first shipped and of digits,

- test clips of piano have 1.0 in the median and 1.53 at most (four minutes of them), those of
  digits 1.0 and 1.9, where one in twenty, a noisy recording, has more than 1.6;
- what the models make at temperature 1 has up to 2.5 (piano) and 2.9 (digits).

`benchmarks/runaway.py` counts how often that happens, and what a guard does to it. Noise that is
shorter, such as an s, it does not mind; a held tone or silence, which are likely, it does not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audiomamba.engine.place import Opened
from audiomamba.engine.rewind import Piece, RewindingStreams, Rule
from audiomamba.sampling import check_real, check_whole

NOISE = 1.6  # times the bits of validation; the figures are at the top of this file
PIECES = 2  # of the stretch that is judged, so that it may begin between two


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Streams that become too unlikely are taken back and drawn anew.

    Attributes:
        bits: The limit, in bits per sample of the model itself (temperature 1, no cuts),
        seconds: over so long.
        back: How far a stream goes back, in seconds, at least `seconds`; what is streamed comes so
            much later.
        tries: How often it is drawn anew before it may go on as it is, until it is likely again; 0
            only tells.

    Raises:
        ValueError: If a value is out of range or no number.
    """

    bits: float
    seconds: float = 0.5
    back: float = 1.0
    tries: int = 8

    def __post_init__(self) -> None:
        for name in ("bits", "seconds", "back"):
            check_real(getattr(self, name), name)
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if self.back < self.seconds:
            raise ValueError(f"back is {self.back}; it must be at least seconds, {self.seconds}")
        if check_whole(self.tries, "tries") < 0:
            raise ValueError(f"tries is {self.tries}; it must be 0 or more")

    def rule(self, sample_rate: int) -> Rule:
        """Return this as streams at a sample rate follow it."""
        samples = max(1, round(self.seconds * sample_rate / PIECES))

        def bad(pieces: Sequence[Piece]) -> bool:
            judged = pieces[-PIECES:]
            nats = sum(piece.nats for piece in judged)
            count = sum(len(piece.tokens) for piece in judged)
            return len(judged) == PIECES and nats > self.bits * math.log(2) * count

        reach = max(PIECES, round(self.back * sample_rate / samples))
        return Rule(bad=bad, samples=samples, reach=reach, tries=self.tries)


def default_guard(validation_bits: float | None, name: str) -> Guard:
    """Return the guard whose limit is NOISE times a model's bits of validation.

    Args:
        validation_bits: Bits per sample on recordings that the model did not learn.
        name: Of the model.

    Raises:
        ValueError: If its bits are not known.
    """
    if validation_bits is None:
        raise ValueError(
            f"{name} has no validation bits, from which a guard's limit follows; give "
            "a Guard with bits of its own"
        )
    return Guard(bits=NOISE * validation_bits)


def guarded(opened: Opened, guard: Guard | None, sample_rate: int) -> Opened:
    """Return an engine whose streams follow a guard; without one the engine itself."""
    if guard is None:
        return opened
    rule = guard.rule(sample_rate)
    return opened._replace(start=lambda places, draw: RewindingStreams(opened, rule, places, draw))
