"""A sample of the model now and then, made in a thread while training goes on."""

from __future__ import annotations

import copy
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from audiomamba import audio
from audiomamba.arguments import Waveform, count_samples
from audiomamba.audiomodel import AudioModel
from audiomamba.models.waveform import WaveformModel
from audiomamba.plot import WINDOW, figure_class, spectrogram

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Take:
    """A sample that was made.

    Attributes:
        step: After which the weights were taken.
        waveform: float32 (samples,).
        sample_rate: Hz.
        audio: The file, step_N.wav.
        picture: Its spectrogram beside it, step_N.png.
    """

    step: int
    waveform: Waveform
    sample_rate: int
    audio: Path
    picture: Path


def check_listening(seconds: float, sample_rate: int) -> int:
    """Return the samples to make.

    Raises:
        ModuleNotFoundError: If matplotlib, which draws them, is missing.
        ValueError: If they are too few to draw.
    """
    figure_class()
    samples = count_samples(seconds, sample_rate)
    if samples < WINDOW:
        raise ValueError(
            f"listen_seconds is {seconds}; it must be at least {WINDOW / sample_rate}, "
            f"the {WINDOW} samples of a spectrogram's window"
        )
    return samples


class Listener:
    """Makes samples, one at a time, on the CPU.

    What it computes with is a copy of the weights and random numbers that are a formula of the
    seed, so nothing of the training is touched; on a GPU no kernel is launched. The first sample on
    a machine waits for the engine to be compiled, the training does not.

    Args:
        folder: For the files; made when there is one.
        samples: Length of each.
        seed: Of each, so that one can be compared with the next.
    """

    def __init__(self, folder: Path, *, samples: int, seed: int) -> None:
        self._folder, self._samples, self._seed = folder, samples, seed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="listen")
        self._work: Future[Take] | None = None
        self._step = 0
        self._closing = threading.Event()

    def begin(self, network: WaveformModel, step: int) -> None:
        """Start on a sample of a network as it is now, unless one is being made."""
        if self._work is not None:
            log.warning("no sample of step %d: that of step %d is not finished", step, self._step)
            return
        self._step = step
        model = AudioModel(copy.deepcopy(network).cpu())
        self._work = self._pool.submit(self._make, model, step)

    def finished(self, *, wait: bool = False) -> Take | None:
        """Return the sample if it is finished, once; a failure is logged and ends no training.

        Args:
            wait: Until it is finished.
        """
        if self._work is None or not (wait or self._work.done()):
            return None
        work, self._work = self._work, None
        error = work.exception()
        if error is not None:
            log.warning("no sample of step %d: %s", self._step, error)
            return None
        return work.result()

    def close(self) -> None:
        """Leave off what is being made."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def _make(self, model: AudioModel, step: int) -> Take:
        waveform = model.generate(samples=self._samples, seed=self._seed, progress=self._go_on)[0]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{step}.wav"
        picture = path.with_suffix(".png")
        audio.write(path, waveform, model.sample_rate)
        spectrogram(waveform, model.sample_rate, picture)
        return Take(
            step=step,
            waveform=waveform,
            sample_rate=model.sample_rate,
            audio=path,
            picture=picture,
        )

    def _go_on(self, made: int) -> None:
        if self._closing.is_set():
            raise InterruptedError("training has ended")
