"""Streams that are taken back where they go wrong, and drawn anew, whatever the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from audiomamba.engine.place import Blocks, Draw, Opened, Place, Tokens

_log = logging.getLogger(__name__)

ROOM = 2  # times the reach that one stream may be ahead of another, for memory


class Piece(NamedTuple):
    """Samples that were drawn at once.

    Attributes:
        tokens: (samples,).
        nats: Minus their log-likelihood.
        begin: The place before them.
        before: Nats of the stream before them.
    """

    tokens: Tokens
    nats: float
    begin: Place
    before: float


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When streams are taken back, and how far.

    Attributes:
        bad: Says of pieces that follow one another, those that could be drawn anew, whether the
            last must not stay.
        samples: Of a piece.
        reach: Pieces that are drawn anew, the bad one among them.
        tries: How often, before a stream may go on as it is, until a piece is good again.
    """

    bad: Callable[[Sequence[Piece]], bool]
    samples: int
    reach: int
    tries: int


class Rewinds(NamedTuple):
    """What happened to a stream.

    Attributes:
        times: How often it was taken back.
        samples: Those that were drawn and thrown away.
        bad: Those of pieces that stayed although they are bad.
    """

    times: int = 0
    samples: int = 0
    bad: int = 0


@dataclass
class _Track:
    """A stream: where it stands, and what of it is not handed over.

    Attributes:
        place: After all that was drawn and not thrown away.
        nats: Of that.
        done: Samples of that.
        held: Of that, what is not handed over.
        free: How many of the last pieces may still be thrown away, whatever is held for others.
        tried: How often it was taken back lately.
        clear: How far it must come, in samples, for that not to count any more.
        lost: Whether it goes on although it is bad.
        rewinds: What happened to it.
    """

    place: Place
    nats: float = 0.0
    done: int = 0
    held: list[Piece] = field(default_factory=list)
    free: int = 0
    tried: int = 0
    clear: int = 0
    lost: bool = False
    rewinds: Rewinds = field(default_factory=Rewinds)

    def go_back(self, pieces: int) -> None:
        """Throw away the last so many pieces, or all that are free."""
        pieces = min(pieces, self.free)
        thrown = self.held[-pieces:]
        del self.held[-pieces:]
        self.free -= pieces
        samples = sum(len(piece.tokens) for piece in thrown)
        self.tried, self.clear = self.tried + 1, max(self.clear, self.done + samples)
        self.place, self.nats, self.done = thrown[0].begin, thrown[0].before, self.done - samples
        times, before, bad = self.rewinds
        self.rewinds = Rewinds(times + 1, before + samples, bad)


class RewindingStreams:
    """See `Running`; each stream is what it is alone, and without a bad piece what it is unwatched.

    A piece that is bad is thrown away with those before it, `Rule.reach` of them, and drawn anew
    with random numbers of (seed, count of rewinds, number, sample). So that nothing is unsaid,
    blocks come that much later than they are made. Each call of `blocks` counts from its own
    begin, and looks at nothing before.
    """

    def __init__(self, opened: Opened, rule: Rule, places: Sequence[Place], draw: Draw) -> None:
        self._opened, self._rule, self._draw = opened, rule, draw
        self._tracks = [_Track(place) for place in places]
        self._keys = [draw.key(i) for i in range(len(places))]
        self._running = self._opened.start(places, replace(draw, keys=tuple(self._keys)))
        self._offsets = np.zeros(len(places))
        self._members = list(range(len(places)))  # whom the engine has under way

    def read(self, tokens: Tokens) -> None:
        """Take all streams through given tokens."""
        self._go_to(range(len(self._tracks)))
        self._running.read(tokens)
        spent = self._offsets + self._running.nats()
        for track, place, nats in zip(self._tracks, self._running.places(), spent, strict=True):
            track.place, track.nats = place, float(nats)

    def blocks(self, samples: int) -> Blocks:
        """Draw samples."""
        self._tracks = [_Track(track.place, track.nats) for track in self._tracks]
        keys = [self._draw.key(i) for i in range(len(self._tracks))]
        if self._keys != keys:
            self._keys, self._members = keys, []
        given = 0
        while given < samples:
            self._draw_pieces(samples)
            ready = min(self._final(track, samples) for track in self._tracks)
            while given < ready:
                pieces = [track.held.pop(0) for track in self._tracks]
                given += len(pieces[0].tokens)
                yield np.stack([piece.tokens for piece in pieces])

    def nats(self) -> NDArray[np.float64]:
        """Return minus the log-likelihoods."""
        return np.array([track.nats for track in self._tracks])

    def places(self) -> list[Place]:
        """Return where each stream stands."""
        return [track.place for track in self._tracks]

    def rewinds(self) -> list[Rewinds]:
        """Return what happened to each stream in the last call of `blocks`."""
        return [track.rewinds for track in self._tracks]

    def _draw_pieces(self, samples: int) -> None:
        """Take those streams on by a piece that are far from the end, or else those near it."""
        slowest = min(track.done for track in self._tracks)
        room = slowest + ROOM * self._rule.reach * self._rule.samples
        sizes = [
            min(self._rule.samples, samples - track.done) if track.done <= room else 0
            for track in self._tracks
        ]
        size = max(sizes)
        self._go_to([i for i, own in enumerate(sizes) if own == size])
        with closing(self._running.blocks(size)) as blocks:
            tokens = np.concatenate(list(blocks), axis=1)
        spent, places = self._offsets + self._running.nats(), self._running.places()
        for i, row, nats, place in zip(list(self._members), tokens, spent, places, strict=True):
            self._take(i, row, float(nats), place)

    def _go_to(self, members: Sequence[int]) -> None:
        """Let the engine have these streams, where they stand."""
        if self._members == list(members):
            return
        self._members = list(members)
        draw = replace(self._draw, keys=tuple(self._keys[i] for i in members))
        del self._running  # its memory may be needed
        self._running = self._opened.start([self._tracks[i].place for i in members], draw)
        self._offsets = np.array([self._tracks[i].nats for i in members])

    def _take(self, i: int, tokens: Tokens, nats: float, place: Place) -> None:
        """Let a piece stay, or go back."""
        track, rule = self._tracks[i], self._rule
        track.held.append(Piece(tokens, nats - track.nats, track.place, track.nats))
        track.place, track.nats, track.done = place, nats, track.done + len(tokens)
        track.free += 1
        seed, number = self._draw.key(i)
        if not rule.bad(track.held[-min(track.free, rule.reach) :]):
            track.lost = False
            if track.done >= track.clear:
                track.tried = 0
        elif track.lost or track.tried == rule.tries:
            self._leave(track, number, len(tokens))
        else:
            track.go_back(rule.reach)
            self._keys[i] = (_another(seed, track.rewinds.times), number)
            self._members = []  # the engine must begin anew
        track.free = min(track.free, rule.reach)

    def _leave(self, track: _Track, number: int, samples: int) -> None:
        """Let a bad piece stay, and say so the first time."""
        times, thrown, bad = track.rewinds
        if not bad:
            anew = f", also after it was drawn anew {track.tried} times" if track.tried else ""
            at = track.done - samples
            _log.warning(
                "stream %d runs away at sample %d%s; it goes on as it is",
                *(number, at, anew),
                extra={"stream": number, "sample": at, "anew": anew},  # for other words
            )
        track.lost, track.rewinds = True, Rewinds(times, thrown, bad + samples)

    def _final(self, track: _Track, samples: int) -> int:
        """Return how many samples of a stream can not be unsaid any more."""
        return samples if track.done == samples else track.done - track.free * self._rule.samples


def _another(seed: int, count: int) -> int:
    """Return the seed after so many rewinds, a function of both that looks random."""
    return int.from_bytes(blake2b(f"{seed} {count}".encode(), digest_size=8).digest(), "little")
