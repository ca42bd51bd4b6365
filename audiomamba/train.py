"""Training, from prepared tokens to a folder that `audiomamba generate -m` speaks with."""

from __future__ import annotations

import gc
import importlib.util
import logging
import math
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

try:
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.utilities import rank_zero_only
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'training needs lightning ({error}); install it: pip install "lightning>=2.6.6"'
    ) from error

from audiomamba import train_folder
from audiomamba.config import ModelConfig
from audiomamba.data.batches import check_length, long_enough
from audiomamba.data.tokens import TokenStore
from audiomamba.resume import check_readable
from audiomamba.train_config import TrainConfig
from audiomamba.train_folder import LAST
from audiomamba.train_listen import check_listening
from audiomamba.train_module import Training, choose_precision

log = logging.getLogger(__name__)

LARGE_STEP = 1 << 18  # samples; a million of them take the 3.5M model more than 20 GB


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: Optimiser steps that the run has made in all.
        bits_per_sample: Of the last validation, None if there was none.
        best_bits_per_sample: Of the best validation, None if there was none.
        stopped: Why it ended before its last step ("max_minutes", a signal's name), or None.
        rank: Which of the run's processes this is, from 0.
        processes: Their number.
        device: That of this one.
        samples: That the run has learnt from, in all processes.
    """

    step: int
    bits_per_sample: float | None
    best_bits_per_sample: float | None
    stopped: str | None
    rank: int = 0
    processes: int = 1
    device: str = "cpu"
    samples: int = 0


def train(model: ModelConfig, config: TrainConfig, *, resume: bool = False) -> Outcome:
    """Train a model, or go on with its training.

    Ctrl-C, SIGTERM and SIGUSR1 stop after the step at hand, with a checkpoint. A job that SLURM
    starts again, with the same command, goes on with its run.

    Args:
        model: What to train.
        config: How.
        resume: Go on from the checkpoint in `config.out`, if there is one, as if the run had not
            been interrupted (on a CPU, to the last bit).

    Raises:
        FileExistsError: If `config.out` holds a run and `resume` is not given, something else, or a
            run that goes on now.
        FileNotFoundError: If `config.data` holds no prepared tokens, or there is no `config.start`.
        FloatingPointError: If the loss or the gradient is no longer finite; no checkpoint is
            written after that.
        ValueError: If model, data and config do not fit, or do not fit the run that is resumed.
    """
    out, last = Path(config.out), Path(config.out) / LAST
    first = _is_first()  # the others may come when it has begun
    if first:
        train_folder.check_folder(out, resume=resume)
    if not config.data:
        raise ValueError("no data given; give a folder made by audiomamba prepare")
    store = TokenStore(config.data)
    check_length(config.length, model.period)
    long_enough(store, "train", config.length)
    if (store.tokenizer, store.sample_rate) != (model.tokenizer, model.sample_rate):
        raise ValueError(
            f"{config.data} holds {store.tokenizer} at {store.sample_rate} Hz, the model is of "
            f"{model.tokenizer} at {model.sample_rate} Hz; prepare the data for it"
        )
    if config.listen_every:
        check_listening(config.listen_seconds, model.sample_rate)
    if config.wandb and not importlib.util.find_spec("wandb"):
        raise ValueError("wandb is not installed; pip install wandb, or leave --wandb out")
    if first and resume and not last.exists():
        log.warning("%s holds no checkpoint to resume from; the run starts at step 0", out)
    on_cpu = config.accelerator == "cpu" or not torch.accelerator.is_available()
    if on_cpu and config.batch * config.length > LARGE_STEP:
        log.warning(
            "a step of %d x %d samples on a CPU can take tens of GB; if the process is killed, "
            "give a smaller --batch or --length",
            *(config.batch, config.length),
        )
    with train_folder.held(out) if first else nullcontext():
        return _train(model, config, store)


def _train(model: ModelConfig, config: TrainConfig, store: TokenStore) -> Outcome:
    out, last = Path(config.out), Path(config.out) / LAST
    ckpt = str(last) if last.exists() else None
    if ckpt:
        check_readable(last)
    module = Training(model, config, store)
    if config.start and not ckpt:
        module.begin_with(config.start)
    if _is_first():
        train_folder.tidy(out)
        if not ckpt:  # else when the checkpoint has been found to be of this run
            train_folder.record(out, model, config)
    quiet = not sys.stdout.isatty()
    trainer = make_trainer(
        config,
        precision=choose_precision(config),
        max_steps=config.steps,
        max_epochs=-1,
        logger=_loggers(out, config.wandb),
        callbacks=[] if quiet else [TQDMProgressBar(refresh_rate=config.log_every)],
        enable_progress_bar=not quiet,
        use_distributed_sampler=False,
        log_every_n_steps=min(config.log_every, config.steps),
        default_root_dir=out,
    )
    try:
        fit(trainer, module, ckpt)
    finally:
        module.close()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # the next run of this process is another
    best = module.best if math.isfinite(module.best) else None
    outcome = Outcome(
        step=trainer.global_step,
        bits_per_sample=module.bits,
        best_bits_per_sample=best,
        stopped=module.stopped,
        rank=trainer.global_rank,
        processes=trainer.world_size,
        samples=module.samples,
        device=str(trainer.strategy.root_device),
    )
    # They refer to each other, and to graphs that hold tens of GB, which the next run needs.
    del module, trainer
    gc.collect()
    torch.cuda.empty_cache()
    return outcome


def count_processes(config: TrainConfig) -> int:
    """Return how many processes `train` has with a config, on the devices that are here.

    Raises:
        ValueError: If there are none such.
    """
    return make_trainer(config, logger=False, enable_progress_bar=False).world_size


def make_trainer(config: Any, **options: Any) -> pl.Trainer:
    """Return a trainer that leaves checkpoints and summaries to its module.

    Args:
        config: Its accelerator, devices, strategy and nodes are lightning's.
        options: The rest.

    Raises:
        ValueError: If there are no such devices.
    """
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=config.strategy,
            num_nodes=config.nodes,
            enable_checkpointing=False,
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, TypeError) as error:  # the latter of indices of CPUs
        where = f"devices is {config.devices}, and accelerator {config.accelerator}"
        raise ValueError(f"{where}: {error}") from error


def fit(trainer: pl.Trainer, module: pl.LightningModule, ckpt: str | None) -> None:
    """Train, from a checkpoint on if there is one.

    Raises:
        KeyboardInterrupt: On Ctrl-C that the module does not heed; lightning exits with 1.
    """
    with warnings.catch_warnings():
        # Lightning asks torch about trees in a way that torch 2.11 announces to drop.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)", FutureWarning)
        try:
            trainer.fit(module, ckpt_path=ckpt, weights_only=True if ckpt else None)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise


def _is_first() -> bool:
    """Return whether this is the first process of all, before lightning has told."""
    # Where lightning starts a node's processes, the main one of each has no rank but its node's.
    node = "0" if "RANK" in os.environ else os.environ.get("NODE_RANK", "0")
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def _loggers(out: Path, wandb: str) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(out, name="logs", flush_logs_every_n_steps=1)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    if wandb:
        name = train_folder.recorded(out).get("id")
        loggers.append(WandbLogger(out.name, save_dir=out, project=wandb, id=name, resume="allow"))
    return loggers
