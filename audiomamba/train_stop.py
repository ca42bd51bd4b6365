"""Why a run stops before its last step: it was asked to, or its time is over."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

import torch

log = logging.getLogger(__name__)

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # not on Windows
    SIGNALS.append(signal.SIGUSR1)

LATE = "max_minutes"
REASONS = (None, LATE, *(number.name for number in SIGNALS))
ONE_REQUEST = 1.0  # seconds in which the same signal, again, is the same request


def agreed(mine: str | None, trainer: Any) -> str | None:
    """Return why all processes stop: of their reasons the last in `REASONS`, the same for each.

    Args:
        mine: This process's reason, or None.
        trainer: Lightning's, of which all processes must call this.
    """
    if trainer.world_size == 1:  # the host need not wait for the device
        return mine
    code = torch.tensor(float(REASONS.index(mine)), device=trainer.strategy.root_device)
    return REASONS[int(trainer.strategy.reduce(code, reduce_op="max"))]


class Stop:
    """Listens for Ctrl-C, SIGTERM and SIGUSR1, and watches the clock.

    SIGUSR1 is what SLURM is commonly told to send before a job's time is over. One request may come
    twice at once: `timeout` and launchers signal the process and then its group.

    Args:
        minutes: From now on; None is for ever.
    """

    def __init__(self, minutes: float | None) -> None:
        self._minutes, self._began = minutes, time.monotonic()
        self._signal: str | None = None
        self._came: dict[int, float] = {}

    def listen(self) -> None:
        """Take the signals; one that comes again, later, does what it always did."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._heed)

    def why(self) -> str | None:
        """Return a signal's name, "max_minutes", or None."""
        minutes = (time.monotonic() - self._began) / 60
        late = self._minutes is not None and minutes >= self._minutes
        return self._signal or (LATE if late else None)

    def _heed(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if number not in self._came:
            self._came[number], self._signal = now, signal.Signals(number).name
            log.warning(
                "%s: stopping after this step; the same again stops at once, and saves nothing",
                self._signal,
            )
        elif now - self._came[number] > ONE_REQUEST:
            again = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, again)
            signal.raise_signal(number)
