"""Whether a checkpoint can be gone on from: it can be read, and it is of the same run."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from audiomamba.config import ModelConfig
from audiomamba.data.tokens import INDEX, TokenStore
from audiomamba.files import sha256
from audiomamba.optim import warmup_cosine
from audiomamba.train_config import TrainConfig

log = logging.getLogger(__name__)

# What a resumed run must share with its beginning; the rest, such as steps, may change on the way.
FIXED = (
    *(
        "start",
        "batch",
        "length",
        "learn_silence",
        "carry_state",
        "seed",
        "precision",
        "weight_decay",
        "betas",
    ),
    *("learning_rate", "min_learning_rate", "warmup", "gradient_clip", "ema_decay"),
)


def describe_run(
    model: ModelConfig, config: TrainConfig, world_size: int, store: TokenStore
) -> dict[str, Any]:
    """Return what makes a run this one: model, data, processes and hyper-parameters."""
    return {
        **{f"model.{name}": value for name, value in model.to_dict().items()},
        "data (sha256 of its index)": sha256(store.directory / INDEX),
        "world_size": world_size,
        **{name: getattr(config, name) for name in FIXED},
    }


def check_same_run(then: dict[str, Any], now: dict[str, Any], out: str) -> None:
    """Raise ValueError at the first difference between two `describe_run`s."""
    for name, value in now.items():
        if then.get(name) != value:
            raise ValueError(
                f"the run in {out} has {name} {then.get(name)}, and this one has {value}; resume "
                "it with the same, or start another with --out"
            )


def warn_of_other_steps(planned: int | None, config: TrainConfig, step: int) -> None:
    """Say by how much the learning rate jumps if a run goes on to other steps than were planned.

    Args:
        planned: What `steps` was when the run stopped; None, of old checkpoints, is not known.
        config: What it is now, and the rest.
        step: Steps that were done.
    """
    if planned in (None, config.steps):
        return
    floor = config.min_learning_rate / config.learning_rate
    before, now = (
        config.learning_rate * warmup_cosine(step, steps, config.warmup, floor)
        for steps in (planned, config.steps)
    )
    log.warning(
        "the run in %s was laid out for %d steps and goes on to %d: after step %d its learning "
        "rate is %.3g, and would have been %.3g",
        *(config.out, planned, config.steps, step, now, before),
    )


def check_processes_agree(runs: list[dict[str, Any]]) -> None:
    """Raise ValueError at the first difference between what the processes of a run have.

    Args:
        runs: A `describe_run` for each process, in their order, the same list in each.
    """
    for rank, run in enumerate(runs):
        for name, value in run.items():
            if value != runs[0][name]:
                raise ValueError(
                    f"process {rank} has {name} {value}, and process 0 has {runs[0][name]}; all "
                    "need the same flags, and folders (--data, --out) that all machines share"
                )


def check_readable(path: Path) -> int | None:
    """Return the step of a checkpoint, None if it does not say.

    Raises:
        ValueError: If it is none that torch reads without running code.
    """
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({str(error).splitlines()[0]}); remove it to "
            "start again"
        ) from error
    return saved.get("global_step") if isinstance(saved, dict) else None
