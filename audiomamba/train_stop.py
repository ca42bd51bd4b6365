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


REASONS = (None, "max_minutes", *(number.name for number in SIGNALS))
ONE_REQUEST = 1.0  # seconds in which the same signal, again, is the same request


def agreed(mine: str | None, strategy: Any, device: torch.device | str) -> str | None:
    """Return why all processes stop: of their reasons the last in `REASONS`, the same for each.

    Args:
        mine: This process's reason, or None.
        strategy: Lightning's, whose `reduce` all processes must call.
        device: Of this process.
    """
    code = torch.tensor(float(REASONS.index(mine)), device=device)
    return REASONS[int(strategy.reduce(code, reduce_op="max"))]


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
        return self._signal or ("max_minutes" if late else None)

    def _heed(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if number not in self._came:
            self._came[number], self._signal = now, signal.Signals(number).name
            log.warning("%s: stopping after this step", self._signal)
        elif now - self._came[number] > ONE_REQUEST:
            again = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, again)
            signal.raise_signal(number)
