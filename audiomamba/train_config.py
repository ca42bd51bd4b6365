"""Everything that defines a training run but the model, in one frozen dataclass."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# What lightning takes as a flag: "1" is one device, "1," the one of that index.
DEVICES = r"auto|-1|\d+(,\d+)*,?"
PLACES = ("data", "out", "wandb")  # of a run; they say nothing elsewhere


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    The defaults are the Mamba paper's for YouTubeMix (arXiv 2312.00752, appendices E.2.1, E.4.1);
    the averaging of weights is ours.

    Attributes:
        data: Folder made by `audiomamba prepare`; recipes take a folder of audio too.
        out: Folder of the run.
        start: Model of the same shape whose weights the run begins with: a shipped one, a folder or
            a Hugging Face id; none begins with random ones. What it has learnt is kept by a
            learning rate well below the default, such as 1e-4, and it is validated first.
        steps: Optimiser steps of the whole run; the learning rate's course is laid over them.
        batch: Rows a step, on each device.
        length: Samples a row, a multiple of the model's period.
        learning_rate: At the end of the warm-up.
        min_learning_rate: At the end of the run.
        warmup: Fraction of the steps in which the learning rate rises, linearly, from zero.
        weight_decay: AdamW's; none on A, the step size, B, C, D, biases and norms.
        betas: AdamW's.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        ema_decay: Of the averaged weights, which are validated and exported; 0 is no average.
        precision: bf16-mixed, 32-true, or auto (bf16-mixed on CUDA, else 32-true).
        learn_silence: Learn the silence after clips that are shorter than a row, too, so that what
            is generated ends; otherwise it is left out of the loss.
        carry_state: Walk through clips by chunks with carried state (TBPTT), not random crops.
        seed: Of the initial weights and the data's order.
        validate_every: Steps from one validation to the next.
        validation_seconds: Audio read in a validation, from the start of every clip; None is all.
        validation_batch: Clips validated side by side.
        checkpoint_every: Steps from one checkpoint to the next.
        log_every: Steps from one row of OUT/logs to the next; of them a line is shown every 20 s.
        listen_every: Steps from one sample of the averaged model to the next; 0 makes none.
        listen_seconds: Length of each sample.
        wandb: Project of Weights & Biases to log to as well, if any.
        compile: Compile the network with torch.compile; None does so on CUDA.
        activation_checkpointing: Compute each block again in the backward pass instead of keeping
            what it computed: less memory, more time, the same gradients.
        cuda_graph: Replay forward and backward as one recorded graph, on CUDA devices; None does so
            on a single device and with ddp.
        max_minutes: Stop cleanly after so long, to be resumed; None never does.
        accelerator: Lightning's: auto, cpu, gpu, mps.
        devices: Number of devices a node, or which, as 0,2 or 1,; or auto.
        strategy: Lightning's: auto, ddp.
        nodes: Number of machines.
    """

    data: str = ""
    out: str = "run"
    start: str = ""
    steps: int = 200_000
    batch: int = 16
    length: int = 61440
    learning_rate: float = 2e-3
    min_learning_rate: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    precision: str = "auto"
    learn_silence: bool = False
    carry_state: bool = False
    seed: int = 0
    validate_every: int = 2000
    validation_seconds: float | None = None
    validation_batch: int = 8
    checkpoint_every: int = 1000
    log_every: int = 50
    listen_every: int = 5000
    listen_seconds: float = 2.0
    wandb: str = ""
    compile: bool | None = None
    activation_checkpointing: bool = False
    cuda_graph: bool | None = None
    max_minutes: float | None = None
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "nodes", "log_every", "validation_batch"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("validate_every", "checkpoint_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        precisions = ("auto", "bf16-mixed", "32-true")
        _require("precision", self.precision, self.precision in precisions, ", ".join(precisions))
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "more than 0")
        for name in ("min_learning_rate", "weight_decay", "gradient_clip"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("listen_every", self.listen_every, self.listen_every >= 0, "0 or more")
        for name in ("max_minutes", "validation_seconds", "listen_seconds"):
            value = getattr(self, name)
            _require(name, value, value is None or value > 0, "more than 0")
        low = self.min_learning_rate
        _require("min_learning_rate", low, low <= self.learning_rate, "at most learning_rate")
        _require("seed", self.seed, self.seed >= 0, "0 or more")
        known = re.fullmatch(DEVICES, self.devices) is not None
        _require("devices", self.devices, known, "auto, a number, or numbers with commas")
        for name in ("warmup", "ema_decay"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")


def without_places(config: TrainConfig) -> dict[str, Any]:
    """Return what says something elsewhere too: of a folder to start from the name alone."""
    values = {k: v for k, v in asdict(config).items() if k not in PLACES}
    start = Path(config.start)
    if start.is_absolute() or start.is_dir():
        values["start"] = start.name if config.start else ""
    return values


def _require(name: str, value: Any, good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}; it must be {what}")
