"""Training, from prepared tokens to a folder that `audiomamba generate -m` speaks with.

The only file that imports lightning. A run's folder holds

    config.json, model.safetensors   averaged weights, after every validation and at the end
    best/                            the same at the best validation so far
    last.ckpt                        everything needed to go on as if nothing had happened
    logs/version_N/metrics.csv       one for each time the run was started
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import logging
import math
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiomamba import checkpoint
from audiomamba.config import ModelConfig
from audiomamba.data.batches import Batch, Crops, Steps, Streams, check_length
from audiomamba.data.tokens import TokenStore
from audiomamba.evaluate import cut, total_bits
from audiomamba.files import replacing
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective, capture, compile_blocks
from audiomamba.optim import average_weights, parameter_groups, warmup_cosine
from audiomamba.resume import check_readable, check_same_run, describe_run
from audiomamba.state import leaves, map_state, where
from audiomamba.train_config import TrainConfig

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'training needs lightning ({error}); install it: pip install "lightning>=2.6.6"'
    ) from error

log = logging.getLogger(__name__)

LAST = "last.ckpt"
BEST = "best"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: Optimiser steps that the run has made in all.
        bits_per_sample: Of the last validation, None if there was none.
        best_bits_per_sample: Of the best validation, None if there was none.
        stopped: Why it ended before its last step ("max_minutes", a signal's name), or None.
        rank: Which of the run's processes this is, from 0.
    """

    step: int
    bits_per_sample: float | None
    best_bits_per_sample: float | None
    stopped: str | None
    rank: int = 0


def train(model: ModelConfig, config: TrainConfig, *, resume: bool = False) -> Outcome:
    """Train a model, or go on with its training.

    Ctrl-C and SIGTERM stop after the step at hand, with a checkpoint.

    Args:
        model: What to train.
        config: How.
        resume: Go on from the checkpoint in `config.out`, if there is one, as if the run had not
            been interrupted (on a CPU, to the last bit).

    Raises:
        FileExistsError: If `config.out` holds a run and `resume` is not given.
        FileNotFoundError: If `config.data` holds no prepared tokens.
        FloatingPointError: If the loss or the gradient is no longer finite; no checkpoint is
            written after that.
        ValueError: If model, data and config do not fit, or do not fit the run that is resumed.
    """
    out, last = Path(config.out), Path(config.out) / LAST
    if last.exists() and not resume:
        raise FileExistsError(
            f"{out} holds a run; go on with it by --resume, or give another --out"
        )
    if (out / checkpoint.WEIGHTS).exists() and not last.exists():
        raise FileExistsError(f"{out} holds a model that would be overwritten; give another --out")
    if not config.data:
        raise ValueError("no data given; give a folder made by audiomamba prepare")
    store = TokenStore(config.data)
    check_length(config.length, model.period)
    if (store.tokenizer, store.sample_rate) != (model.tokenizer, model.sample_rate):
        raise ValueError(
            f"{config.data} holds {store.tokenizer} at {store.sample_rate} Hz, the model is of "
            f"{model.tokenizer} at {model.sample_rate} Hz; prepare the data for it"
        )
    if resume and not last.exists():
        log.warning("%s holds no checkpoint to resume from; the run starts at step 0", out)
    ckpt = str(last) if last.exists() else None
    if ckpt:
        check_readable(last)
    out.mkdir(parents=True, exist_ok=True)
    module = Training(model, config, store)
    quiet = not sys.stdout.isatty()
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        num_nodes=config.nodes,
        precision=_precision(config),
        max_steps=config.steps,
        max_epochs=-1,
        logger=_loggers(out),
        callbacks=[] if quiet else [TQDMProgressBar(refresh_rate=config.log_every)],
        enable_progress_bar=not quiet,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=min(config.log_every, config.steps),
        default_root_dir=out,
    )
    with warnings.catch_warnings():
        # Lightning asks torch about trees in a way that torch 2.11 announces to drop.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)", FutureWarning)
        trainer.fit(module, ckpt_path=ckpt, weights_only=True if ckpt else None)
    best = module.best if math.isfinite(module.best) else None
    return Outcome(
        step=trainer.global_step,
        bits_per_sample=module.bits,
        best_bits_per_sample=best,
        stopped=module.stopped,
        rank=trainer.global_rank,
    )


class Training(pl.LightningModule):
    """What lightning drives: network, average, optimiser, and what happens between steps.

    The average of the weights is a second network here, and not lightning's EMAWeightAveraging:
    that callback copies the module before it is moved to its device, so that on a GPU each step
    waits for every weight to be copied to the host, and it overwrites the weights when training
    ends, which a run that is to be resumed must not do. Validation is a call of `evaluate` on the
    average rather than lightning's loop, so that there is one way of counting bits.

    Args:
        model: What to train.
        config: How.
        store: Tokens, of the model's tokenizer.
    """

    def __init__(self, model: ModelConfig, config: TrainConfig, store: TokenStore) -> None:
        super().__init__()
        self.model, self.config, self.store = model, config, store
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.network = WaveformModel(model)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.objective: Any = None
        self.carried: Any = None
        self.best = math.inf
        self.bits: float | None = None  # of the last validation, at step self.validated
        self.validated = 0
        self.stopped: str | None = None
        self._signal: str | None = None
        self._unchecked = 0  # steps in _history
        self._began = self._clock = self._spoke = time.monotonic()

    # What lightning asks for.

    def train_dataloader(self) -> Steps:
        """Return the run's batches, from the step it has come to."""
        c = self.config
        kind = Streams if c.carry_state else Crops
        sampler = kind(
            self.store, batch=c.batch, length=c.length, seed=c.seed, rank=self.global_rank
        )
        if sampler.unused:
            log.warning(
                "%d samples lie in clips shorter than %d and are not used", sampler.unused, c.length
            )
        return Steps(sampler, c.steps)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its learning rate, set at each step."""
        c = self.config
        optimizer = torch.optim.AdamW(
            parameter_groups(self.network, c.weight_decay),
            lr=c.learning_rate,
            betas=c.betas,
            fused=self.device.type == "cuda",
        )
        floor = c.min_learning_rate / c.learning_rate
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, c.steps, c.warmup, floor)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Prepare what needs the device, and listen for signals."""
        cuda = self.device.type == "cuda"
        half = str(_precision(self.config)).startswith("bf16")
        objective = Objective(self.network, torch.bfloat16 if half else None)
        if cuda if self.config.compile is None else self.config.compile:
            compile_blocks(objective)
        if cuda and self.config.cuda_graph and self.trainer.world_size == 1:
            shape = (self.config.batch, self.config.length, self.config.carry_state)
            objective = capture(objective, *shape)
        self.objective = objective.__call__  # not the module: its weights are the network's
        if self.carried is not None:
            self.carried = map_state(lambda x: x.to(self.device), self.carried)
        self._history = torch.zeros(2, self.config.log_every, device=self.device)
        self._clock = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Set after lightning's own, which it takes back together with these at the end.
                signal.signal(number, self._heed)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss in nats per sample."""
        tokens = batch["tokens"].long()  # bytes travel, and are widened here
        previous, target = tokens[:, :-1], tokens[:, 1:]
        state = None
        if self.config.carry_state:
            state = self.network.initial_state(len(tokens))
            if self.carried is not None:
                state = where(batch["first"], state, self.carried)
        loss: Tensor
        loss, *carried = self.objective(previous, target, *([] if state is None else leaves(state)))
        if self.config.carry_state:
            after = iter(carried)
            self.carried = map_state(lambda _: next(after).clone(), state)
        self._history[0, self._unchecked] = loss.detach()
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip, and keep the norm."""
        limit = self.config.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self._history[1, self._unchecked] = norm

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Average the weights; then, where it is time: check, log, validate, save, stop."""
        c, step = self.config, self.global_step
        average_weights(self.average, self.network, c.ema_decay, step)
        self._unchecked += 1
        done = step >= c.steps
        validate = done or step % c.validate_every == 0
        save = done or step % c.checkpoint_every == 0
        check = save or validate or self._unchecked == c.log_every
        if check or self.trainer.world_size == 1:
            self.stopped = None if done else self._why_stop()
        if check or self.stopped:
            self._check_and_log(step)
        if validate:
            self._validate(step)
        if self.stopped or validate:
            self._export(Path(c.out), step)
        if self.stopped or save:
            self._save()
        if self.stopped:
            self.trainer.should_stop = True
        if check or self.stopped:
            self._clock = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the carried states of all ranks, the best validation and the configs."""
        states = [] if self.carried is None else [leaf.detach() for leaf in leaves(self.carried)]
        if self.trainer.world_size > 1:
            gather: Any = self.all_gather
            states = [gather(leaf) for leaf in states]
        else:
            states = [leaf[None] for leaf in states]
        checkpoint["audiomamba"] = {
            "run": self._run(),
            "carried": [leaf.cpu() for leaf in states],
            "best": self.best,
            "bits": self.bits,
            "validated": self.validated,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the run is this one, and take its carried state."""
        saved = checkpoint.get("audiomamba")
        if saved is None:
            raise ValueError(f"{self.config.out}/{LAST} is no checkpoint of audiomamba")
        check_same_run(saved["run"], self._run(), self.config.out)
        self.best, self.bits, self.validated = (saved[k] for k in ("best", "bits", "validated"))
        if saved["carried"]:
            rows = iter([leaf[self.global_rank] for leaf in saved["carried"]])
            fresh = self.network.initial_state(self.config.batch)
            self.carried = map_state(lambda _: next(rows), fresh)

    def _run(self) -> dict[str, Any]:
        return describe_run(self.model, self.config, self.trainer.world_size, self.store)

    # What happens between steps.

    def _heed(self, number: int, frame: Any) -> None:
        """Stop after this step; a second signal of the kind does what it always did."""
        self._signal = signal.Signals(number).name
        again = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, again)
        log.warning("%s: stopping after this step", self._signal)

    def _why_stop(self) -> str | None:
        minutes = (time.monotonic() - self._began) / 60
        late = self.config.max_minutes is not None and minutes >= self.config.max_minutes
        why = self._signal or ("max_minutes" if late else None)
        if self.trainer.world_size > 1:
            anyone = self.trainer.strategy.reduce_boolean_decision(why is not None, all=False)
            return why or ("another process" if anyone else None)
        return why

    def _check_and_log(self, step: int) -> None:
        """Log the steps since the last time, or stop if one is not finite; waits for the device."""
        history = self._history[:, : self._unchecked]
        history = self.trainer.strategy.reduce(history, reduce_op="mean")
        losses, norms = history.cpu().tolist()
        for i in range(self._unchecked):
            bad = "loss" if not math.isfinite(losses[i]) else "gradient"
            if not (math.isfinite(losses[i]) and math.isfinite(norms[i])):
                kept = Path(self.config.out) / LAST
                raise FloatingPointError(
                    f"the {bad} is not finite at step {step - self._unchecked + i + 1} (loss "
                    f"{losses[i]:.4g} nats, gradient norm {norms[i]:.4g}); start again with a "
                    "lower --learning-rate or --gradient-clip"
                    + (f", or --resume from {kept}" if kept.exists() else "")
                )
        seconds = time.monotonic() - self._clock
        c = self.config
        optimizer: Any = self.optimizers()
        samples = self._unchecked * c.batch * c.length * self.trainer.world_size
        self._log(
            step,
            {
                "train/bits_per_sample": sum(losses) / self._unchecked / math.log(2),
                "train/gradient_norm": max(norms),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "samples_per_second": samples / seconds,
            },
        )
        self._unchecked = 0

    def _log(self, step: int, values: dict[str, float], *, speak: bool = False) -> None:
        """Write to the logs, and to the progress bar or, without one, now and then to a line."""
        for logger in self.loggers:
            logger.log_metrics(values, step)
            logger.save()
        if self.trainer.progress_bar_callback is not None:
            names = {name: value for name, value in values.items() if "bits" in name}
            self.log_dict(names, prog_bar=True, logger=False)
        elif self.global_rank == 0 and (speak or time.monotonic() - self._spoke > 20):
            self._spoke = time.monotonic()
            words = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
            log.info("step %d/%d  %s", step, self.config.steps, words)

    def _validate(self, step: int) -> None:
        c = self.config
        if not self.store.files("validation"):
            return
        pieces = cut(self.store, "validation", c.validation_seconds)
        mine = pieces[self.global_rank :: self.trainer.world_size]
        sums: Any = total_bits(self.average, self.store, mine, batch=c.validation_batch)
        if self.trainer.world_size > 1:
            both = torch.tensor(sums, dtype=torch.float64, device=self.device)
            sums = self.trainer.strategy.reduce(both, reduce_op="sum").tolist()
        bits, samples = sums
        self.bits, self.validated = bits / samples, step
        self._log(step, {"validation/bits_per_sample": self.bits}, speak=True)
        if self.bits < self.best:
            self.best = self.bits
            self._export(Path(c.out) / BEST, step)

    def _export(self, directory: Path, step: int) -> None:
        """Write the averaged weights as a model that can be loaded."""
        if self.global_rank == 0:
            about = {
                "step": step,
                "samples": step * self.config.batch * self.config.length * self.trainer.world_size,
                "validation_step": self.validated,
                "validation_bits_per_sample": self.bits,
                **dataclasses.asdict(self.config),
            }
            del about["data"], about["out"]  # a place on this machine says nothing elsewhere
            checkpoint.save(directory, self.model, self.average.state_dict(), training=about)

    def _save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        last = Path(self.config.out) / LAST
        if self.trainer.world_size > 1:
            # All ranks take part in gathering; only the first writes.
            part = last.with_suffix(".part")
            self.trainer.save_checkpoint(part, weights_only=False)
            if self.global_rank == 0:
                part.replace(last)
            return
        with replacing(last) as part:
            self.trainer.save_checkpoint(part, weights_only=False)


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return config.precision
    cuda = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    return "bf16-mixed" if cuda else "32-true"


def _loggers(out: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(out, name="logs", flush_logs_every_n_steps=1)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    return loggers
