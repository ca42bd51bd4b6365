"""What a run tells: numbers and sounds in its logs, a line now and then, and what is not finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiomamba.train_listen import Take

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20


class History:
    """Loss, gradient norm and samples of each step since the last look.

    They stay on the device, so nothing waits.

    Args:
        length: Steps between two looks, at most.
        device: Where the numbers are.
    """

    def __init__(self, length: int, device: torch.device | str = "cpu") -> None:
        self._values = torch.zeros(3, length, device=device)
        self.steps = 0  # since the last look

    def add_loss(self, nats: Tensor, samples: Tensor) -> None:
        """Keep the loss of the step at hand, in nats per sample, and how many it is a mean of."""
        self._values[0, self.steps] = nats.detach()
        self._values[2, self.steps] = samples

    def add_norm(self, norm: Tensor) -> None:
        """Keep the norm of the gradient, and count the step."""
        self._values[1, self.steps] = norm
        self.steps += 1

    def take(
        self, mean: Callable[[Tensor], Tensor] = lambda x: x
    ) -> tuple[list[float], list[float], float]:
        """Return losses, norms and the sum of samples since the last look; waits for the device.

        Args:
            mean: Takes the mean over the processes of a run.
        """
        # In memory of its own: gloo reduces what lies between, and NCCL refuses it.
        values = self._values[:, : self.steps].clone(memory_format=torch.contiguous_format)
        losses, norms, samples = mean(values).cpu().double().tolist()
        self.steps = 0
        return losses, norms, sum(samples)


def check_finite(losses: list[float], norms: list[float], step: int, last: Path) -> None:
    """Check the steps up to `step`.

    Args:
        losses: In nats per sample.
        norms: Of the gradient.
        step: The last one's number, from 1.
        last: The checkpoint that there may be to resume from.

    Raises:
        FloatingPointError: At the first loss or norm that is not finite.
    """
    pairs = zip(losses, norms, strict=True)
    for at, (loss, norm) in enumerate(pairs, step - len(losses) + 1):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = "gradient" if math.isfinite(loss) else "loss"
            raise FloatingPointError(
                f"the {bad} is not finite at step {at} (loss {loss:.4g} nats, gradient norm "
                f"{norm:.4g}); start again with a lower --learning-rate or --gradient-clip"
                + (f", or --resume from {last}" if last.exists() else "")
            )


class Report:
    """Where the numbers and sounds of a run go.

    Args:
        loggers: Lightning's.
        steps: Of the whole run.
        bar: Shows numbers on the progress bar; None if there is none.
        speak: Whether to write a line now and then where there is no bar.
    """

    def __init__(
        self,
        loggers: Sequence[Any],
        steps: int,
        *,
        bar: Callable[[dict[str, float]], None] | None = None,
        speak: bool = True,
    ) -> None:
        self._loggers, self._steps, self._bar, self._speak = loggers, steps, bar, speak
        self._spoke = time.monotonic()

    def numbers(self, step: int, values: dict[str, float], *, speak: bool = False) -> None:
        """Write numbers; the line about them is written at once if `speak`, else now and then."""
        for logger in self._loggers:
            logger.log_metrics(values, step)
            logger.save()
        if self._bar is not None:
            self._bar({name: value for name, value in values.items() if "bits" in name})
        elif self._speak and (speak or time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES):
            self._spoke = time.monotonic()
            words = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
            log.info("step %d/%d  %s", step, self._steps, words)

    def sound(self, take: Take) -> None:
        """Give a sample and its picture to the loggers that can play one: TensorBoard and W&B."""
        name, picture = "listen/sample", "listen/spectrogram"
        for logger in self._loggers:
            if hasattr(logger, "log_audio"):
                logger.log_audio(name, [str(take.audio)], take.step)
                logger.log_image(picture, [str(take.picture)], take.step)
            elif hasattr(logger.experiment, "add_audio"):
                from matplotlib.image import imread

                wave = torch.from_numpy(take.waveform)[None]
                logger.experiment.add_audio(name, wave, take.step, take.sample_rate)
                image = imread(take.picture)[..., :3]
                logger.experiment.add_image(picture, image, take.step, dataformats="HWC")
        if self._speak and self._bar is None:
            log.info("step %d/%d  %s", take.step, self._steps, take.audio)
