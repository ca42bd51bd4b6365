"""A run's folder: whether it may be written to, and the record of what runs there.

It holds

    run.json                         model and configuration, as the run was last started
    config.json, model.safetensors   averaged weights, after every validation and at the end
    best/                            the same at the best validation so far
    last.ckpt                        everything needed to go on as if nothing had happened
    listen/step_N.wav, .png          a sample of the averaged weights, and its picture
    logs/version_N/metrics.csv       one for each time the run was started; its samples_per_second
                                     are of all processes, and without what is not learnt
    data/                            tokens, where a recipe has prepared them
    results.json, .png               where a recipe has ended: bits per sample, and what made them
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from audiomamba.checkpoint import WEIGHTS
from audiomamba.config import ModelConfig
from audiomamba.files import replacing
from audiomamba.train_config import TrainConfig

RUN = "run.json"
LAST = "last.ckpt"
LOCK = ".lock"  # which a run holds as long as it goes on
BEST = "best"
LISTEN = "listen"
DATA = "data"


def check_folder(out: Path, *, resume: bool) -> None:
    """Check that a run may begin, or go on, in a folder; it need not be there.

    A job that SLURM starts again, with the command it had, goes on with its run.

    Raises:
        FileExistsError: If it holds a run that is not to be resumed, or something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; give another --out")
    if (out / RUN).exists() or (out / LAST).exists():
        begun = (out / LAST).exists() or (out / WEIGHTS).exists()
        if begun and not (resume or requeued(out)):
            raise FileExistsError(
                f"{out} holds a run; go on with it by --resume, or give another --out"
            )
        return
    names = sorted(path.name for path in out.iterdir())
    other = next((name for name in names if name != DATA and not name.startswith(".")), None)
    if other is not None:
        raise FileExistsError(
            f"{out} holds {other} and no run; give another --out, or empty the folder"
        )


def requeued(out: Path) -> bool:
    """Return whether the run in a folder is that of this SLURM job, which was started before."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    job = recorded(out).get("slurm_job")
    return job is not None and job == os.environ.get("SLURM_JOB_ID")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it.

    Raises:
        FileExistsError: If another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FileExistsError(
            f"another process trains in {out}; wait for it, or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def tidy(out: Path) -> None:
    """Take away what a killed process left half-written in a run's folder."""
    for folder in (out, out / BEST, out / LISTEN):
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)


def save_checkpoint(trainer: Any, last: Path) -> None:
    """Write lightning's checkpoint, whole or not at all; all processes must call this."""
    part = last.with_name(f".{last.name}.part")
    try:
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.global_rank == 0:
            part.replace(last)
    except BaseException:
        if trainer.global_rank == 0:
            part.unlink(missing_ok=True)
        raise


def record(out: Path, model: ModelConfig, config: TrainConfig) -> None:
    """Write down what runs in the folder, and under which name; the same name when resumed."""
    values = {
        "id": recorded(out).get("id") or secrets.token_hex(4),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "model": model.to_dict(),
        "train": dataclasses.asdict(config),
    }
    with replacing(out / RUN) as part:
        part.write_text(json.dumps(values, indent=2) + "\n")


def recorded(out: Path) -> dict[str, Any]:
    """Return what `record` wrote into a folder; nothing if it has not."""
    path = out / RUN
    values: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return values
