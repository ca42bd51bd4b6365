"""Finished takes, and streams that are made piece by piece, left and taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiomamba import saved
from audiomamba.arguments import Waveform
from audiomamba.engine.place import Opened, Place
from audiomamba.engine.rewind import Rewinds
from audiomamba.generate import start_fitting
from audiomamba.guard import guarded
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import check_whole
from audiomamba.saved import Saved


@dataclass(frozen=True, kw_only=True)
class Take:
    """A sound that is finished.

    Attributes:
        index: Its number under the seed.
        waveform: What is new, float32 (samples,).
        bits_per_sample: Minus its log-likelihood by the model itself, whatever the temperature and
            cuts: what `AudioModel.nll` says of it; after a prompt, given the prompt.
        place: Where it stands, to go on from.
        rewinds: What its guard did; None without one.
    """

    index: int
    waveform: Waveform
    bits_per_sample: float
    place: Place
    rewinds: Rewinds | None = None


class Session:
    """Streams side by side; what they make does not depend on how it is cut into pieces.

    `AudioModel.start` and `AudioModel.resume` give one. Under a guard each run is watched on its
    own: what is drawn anew near its begin or end then depends on where that is.

    Attributes:
        made: Samples made of each stream, without its prompt.

    Example:
        >>> session = model.start(seed=1)  # doctest: +SKIP
        >>> first = session.run(16000)  # doctest: +SKIP
        >>> session.save("later.safetensors")  # doctest: +SKIP
        >>> rest = model.resume("later.safetensors").run(16000)  # doctest: +SKIP
    """

    def __init__(self, network: WaveformModel, opened: Opened, begin: Saved) -> None:
        self._network = network
        self._begin = begin
        opened = guarded(opened, begin.guard, network.config.sample_rate)
        advice = "start no more than {} at once, or use another device"
        self._running, _ = start_fitting(opened, begin.places, begin.draw, False, advice)
        self._between = True
        self.made = begin.made

    @property
    def num(self) -> int:
        """How many streams there are."""
        return len(self._begin.places)

    @property
    def bits_per_sample(self) -> NDArray[np.float64]:
        """Minus the log-likelihood of all that was made of each stream, (num,) float64.

        It is that of the model itself, whatever the temperature and cuts; NaN before the first
        sample.
        """
        self._check_whole()
        if not self.made:
            return np.full(self.num, np.nan)
        return self._nats() / (math.log(2) * self.made)

    def run(self, samples: int, progress: Callable[[int], None] | None = None) -> Waveform:
        """Make so many samples more of each stream, float32 (num, samples).

        If it is interrupted, what was made is lost; `blocks` gives it away piece by piece.

        Args:
            samples: At least 1.
            progress: Called with the count of samples newly made, of all streams together.

        Raises:
            ValueError: If samples is out of range, or an earlier run was interrupted.
        """
        pieces = []
        with closing(self.blocks(samples)) as blocks:
            for block in blocks:
                pieces.append(block)
                if progress is not None:
                    progress(block.size)
        return np.concatenate(pieces, axis=1)

    def blocks(self, samples: int) -> Generator[Waveform, None, None]:
        """Make as `run` does; yield blocks, float32 (num, some), as soon as they are made.

        Closing the generator before its last block stops the work; the session then cannot go on,
        because the engine may be ahead of what was taken.

        Raises:
            ValueError: If samples is out of range; once it begins, if another is under way or was
                interrupted.
        """
        if check_whole(samples, "samples") < 1:
            raise ValueError(f"samples is {samples}; it must be at least 1")
        self._check_whole()
        return self._blocks(samples)

    def _blocks(self, samples: int) -> Generator[Waveform, None, None]:
        tokenizer, left = self._network.config.tokenizer, samples
        self._check_whole()  # another may have begun since this one was asked for
        self._between = False
        with closing(self._running.blocks(samples)) as blocks:
            for block in blocks:
                left -= block.shape[1]
                if not left:  # whoever takes the last block need not ask for one more
                    self.made += samples
                    self._between = True
                yield tokenizer.decode(block)

    def save(self, path: str | Path) -> None:
        """Write where the streams stand, for `AudioModel.resume`.

        Raises:
            OSError: If the file cannot be written; it does not appear half-written.
            ValueError: If a run was interrupted.
        """
        self._check_whole()
        now = replace(
            self._begin, places=self._running.places(), made=self.made, nats=self._nats().tolist()
        )
        saved.write(path, self._network, now)

    def _nats(self) -> NDArray[np.float64]:
        return np.asarray(self._begin.nats) + self._running.nats()

    def _check_whole(self) -> None:
        if not self._between:
            raise ValueError(
                "the session is between two samples: a run of it is under way or was interrupted; "
                "take all blocks of that run, or start or resume another session"
            )
