"""A run as lightning drives it: the step, and what happens between steps."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from audiomamba import checkpoint, resume
from audiomamba.config import ModelConfig
from audiomamba.data.batches import Batch, Crops, Steps, Streams
from audiomamba.data.tokens import TokenStore
from audiomamba.evaluate import cut, total_bits
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import (
    UNKNOWN,
    Objective,
    capture,
    compile_blocks,
    recompute_blocks,
    weight_of_rank,
)
from audiomamba.optim import average_weights, parameter_groups, warmup_cosine
from audiomamba.provenance import device_name
from audiomamba.state import leaves, map_state, where
from audiomamba.train_config import TrainConfig, without_places
from audiomamba.train_folder import BEST, LAST, LISTEN, record, save_checkpoint
from audiomamba.train_listen import Listener, check_listening
from audiomamba.train_log import History, Report, check_finite
from audiomamba.train_stop import LATE, Stop, agreed

log = logging.getLogger(__name__)


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
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.default_generator.manual_seed(config.seed)
            self.network = WaveformModel(model)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.objective: Any = None
        self.carried: Any = None
        self.best = math.inf
        self.bits: float | None = None  # of the last validation, at step self.validated
        self.validated = 0
        self.stopped: str | None = None
        self.samples = 0  # that the run has learnt from, in all processes
        self.uneven = False  # whether processes count different numbers of samples in a step
        self.history = History(config.log_every)
        self.report = Report([], config.steps)
        self.listener: Listener | None = None
        self._stop = Stop(config.max_minutes)
        self._clock = time.monotonic()

    def begin_with(self, name: str) -> None:
        """Take the weights of another model of the same shape.

        Raises:
            FileNotFoundError: If there is no such model.
            ValueError: If it is of another shape, or its files are damaged.
        """
        network = checkpoint.load(checkpoint.find(name, "model"))
        theirs, ours = network.config.to_dict(), self.model.to_dict()
        for key, value in ours.items():
            if theirs[key] != value:
                raise ValueError(
                    f"{name} has {key} {theirs[key]}, and this run {value}; --start takes a model "
                    "of the run's own shape"
                )
        for mine in (self.network, self.average):
            mine.load_state_dict(network.state_dict())

    # What lightning asks for.

    def setup(self, stage: str) -> None:
        """Check that all processes go on with the same run, before any of them waits for another.

        Machines may have folders of their own where one was meant.
        """
        if self.trainer.world_size > 1:
            last = Path(self.config.out) / LAST
            step = resume.check_readable(last) if last.exists() else None
            everyone: list[Any] = [None] * self.trainer.world_size
            mine = {f"in its {LAST} step": step, **self._run()}
            torch.distributed.all_gather_object(everyone, mine)
            resume.check_processes_agree(everyone)

    def train_dataloader(self) -> Steps:
        """Return the run's batches, from the step it has come to."""
        c = self.config
        options: Any = {"batch": c.batch, "length": c.length, "seed": c.seed}
        if not c.carry_state:
            crops = Crops(self.store, rank=self.global_rank, **options)
            unlearnt = crops.padding > 0 and not c.learn_silence
            self.uneven = unlearnt and self.trainer.world_size > 1
            if unlearnt:
                log.warning("%.2g %% of what is read is padding after clips", 100 * crops.padding)
            return Steps(crops, c.steps)
        streams = Streams(self.store, rank=self.global_rank, **options)
        if streams.unused:
            log.warning(
                "%d samples lie in clips shorter than %d and are not used", streams.unused, c.length
            )
        return Steps(streams, c.steps)

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
        """Prepare what needs the device or its number, and listen for signals."""
        c, first = self.config, self.global_rank == 0
        if first:
            record(Path(c.out), self.model, c)
        self._stop.listen()  # after lightning, which takes its own back together with these
        self._set_rate()
        if first:
            log.info(
                "training %.3g M parameters on %d x %s in %s, from step %d to %d; compiling "
                "may come first, for a minute or more",
                sum(p.numel() for p in self.network.parameters()) / 1e6,
                *(self.trainer.world_size, device_name(self.device), choose_precision(c)),
                *(self.global_step, c.steps),
            )
        self.objective = self._objective()
        if self.carried is not None:
            self.carried = map_state(lambda x: x.to(self.device), self.carried)
        self.history = History(c.log_every, self.device)
        bar = self._show if self.trainer.progress_bar_callback is not None else None
        self.report = Report(self.loggers, c.steps, bar=bar, speak=first)
        if c.listen_every and first:
            samples = check_listening(c.listen_seconds, self.model.sample_rate)
            self.listener = Listener(Path(c.out) / LISTEN, samples=samples, seed=c.seed)
        if c.start and self.global_step == 0:
            self._validate(0)  # so that the best is never worse than what the run began with
        self._clock = time.monotonic()

    def _set_rate(self) -> None:
        """Set the learning rate to the schedule's: a checkpoint's is of the steps it was for."""
        schedule: Any = self.lr_schedulers()
        for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = rate * schedule.lr_lambdas[0](self.global_step)

    def _objective(self) -> Any:
        """Return the loss as a function of tensors, as fast as the device allows."""
        c, cuda = self.config, self.device.type == "cuda"
        half = str(choose_precision(c)).startswith("bf16")
        objective = Objective(self.network, torch.bfloat16 if half else None)
        if c.activation_checkpointing:
            recompute_blocks(objective)
        if cuda if c.compile is None else c.compile:
            compile_blocks(objective)
        if replays_graphs(c, self.trainer.strategy, self.device):
            # DDP has wrapped this module by now, and that is well: recording computes gradients
            # without accumulating them, so that DDP's hooks stay still; a replay accumulates, and
            # DDP sends the gradients when the graph has run. It wraps on a stream of its own; were
            # it the default stream, recording would fail.
            objective = capture(objective, c.batch, c.length, c.carry_state)
        return objective.__call__  # not the module: its weights are the network's

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss in nats per sample."""
        c, tokens = self.config, batch["tokens"].long()  # bytes travel, and are widened here
        previous, target = tokens[:, :-1], tokens[:, 1:]
        if not self.config.learn_silence:
            beyond = torch.arange(c.length, device=self.device) >= batch["samples"][:, None]
            target = target.masked_fill(beyond, UNKNOWN)
        state = None
        if self.config.carry_state:
            state = self.network.initial_state(len(tokens))
            if self.carried is not None:
                state = where(batch["first"], state, self.carried)
        loss: Tensor
        loss, *carried = self.objective(previous, target, *([] if state is None else leaves(state)))
        if self.config.carry_state:
            after = iter(carried)
            self.carried = map_state(lambda _: next(after).detach().clone(), state)
        counted = (target != UNKNOWN).sum()
        if self.uneven:
            loss = loss * weight_of_rank(counted)
        self.history.add_loss(loss, counted)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip, and keep the norm."""
        limit = self.config.gradient_clip or math.inf
        self.history.add_norm(nn.utils.clip_grad_norm_(self.network.parameters(), limit))

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Average the weights; then, where it is time: check, log, validate, listen, save, stop.

        Nothing is written of weights that have not been checked.
        """
        c, step = self.config, self.global_step
        average_weights(self.average, self.network, c.ema_decay, step)
        done = step >= c.steps
        validate, save = (done or step % n == 0 for n in (c.validate_every, c.checkpoint_every))
        listen = c.listen_every > 0 and step % c.listen_every == 0
        check = save or validate or listen or self.history.steps == c.log_every
        if check or self.trainer.world_size == 1:
            self.stopped = None if done else agreed(self._stop.why(), self.trainer)
        if not (check or self.stopped):
            return
        self._check_and_log(step)
        if listen and self.listener is not None:
            self.listener.begin(self.average, step)
        if validate:
            self._validate(step)
        if self.stopped or validate:
            self._export(Path(c.out), step)
        if self.stopped or save:
            save_checkpoint(self.trainer, Path(c.out) / LAST)
        if self.stopped:
            self.trainer.should_stop = True
        self._show_take()
        self._clock = time.monotonic()

    def on_train_end(self) -> None:
        """Wait for the last sample, unless the run was stopped; hear of a signal to the last."""
        if not self.stopped:
            self._show_take(wait=True)
            why = agreed(self._stop.why(), self.trainer)
            self.stopped = None if why == LATE else why

    def close(self) -> None:
        """Leave off what goes on beside training."""
        if self.listener is not None:
            self.listener.close()

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
            "steps": self.config.steps,
            "samples": self.samples,
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
        # Before there was the choice of some, and before an "auto" was what it had come to.
        now = self._run()
        then = {"learn_silence": False, "start": "", **saved["run"]}
        if then["precision"] == "auto":
            then["precision"] = now["precision"]
        resume.check_same_run(then, now, self.config.out)
        c, steps = self.config, checkpoint["global_step"]
        if self.global_rank == 0:
            resume.warn_of_other_steps(saved.get("steps"), c, steps)
        read = steps * c.batch * c.length * self.trainer.world_size
        self.samples = saved.get("samples", read)  # which checkpoints did not always have
        self.best, self.bits, self.validated = (saved[k] for k in ("best", "bits", "validated"))
        if saved["carried"]:
            rows = iter([leaf[self.global_rank] for leaf in saved["carried"]])
            fresh = self.network.initial_state(self.config.batch)
            self.carried = map_state(lambda _: next(rows), fresh)

    def _run(self) -> dict[str, Any]:
        config = dataclasses.replace(self.config, precision=choose_precision(self.config))
        return resume.describe_run(self.model, config, self.trainer.world_size, self.store)

    # What happens between steps.

    def _check_and_log(self, step: int) -> None:
        """Log the steps since the last time, or raise if one is not finite."""
        c, steps = self.config, self.history.steps
        losses, norms, samples = self.history.take(
            lambda values: self.trainer.strategy.reduce(values, reduce_op="mean")
        )
        samples = round(samples * self.trainer.world_size)
        self.samples += samples
        check_finite(losses, norms, step, Path(c.out) / LAST)
        seconds = time.monotonic() - self._clock
        optimizer: Any = self.optimizers()
        self.report.numbers(
            step,
            {
                "train/bits_per_sample": sum(losses) / steps / math.log(2),
                "train/gradient_norm": max(norms),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "samples_per_second": samples / seconds,
            },
        )

    def _show(self, values: dict[str, float]) -> None:
        self.log_dict(values, prog_bar=True, logger=False)

    def _show_take(self, *, wait: bool = False) -> None:
        if self.listener is not None and (take := self.listener.finished(wait=wait)):
            self.report.sound(take)

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
        self.report.numbers(step, {"validation/bits_per_sample": self.bits}, speak=True)
        if self.bits < self.best:
            self.best = self.bits
            self._export(Path(c.out) / BEST, step)

    def _export(self, directory: Path, step: int) -> None:
        """Write the averaged weights as a model that can be loaded."""
        c = self.config
        if self.global_rank == 0:
            about: dict[str, Any] = {
                "step": step,
                "samples": self.samples,
                "validation_step": self.validated,
                "validation_bits_per_sample": self.bits,
                **without_places(c),
            }
            checkpoint.save(directory, self.model, self.average.state_dict(), training=about)


def choose_precision(config: TrainConfig) -> Any:
    """Return lightning's precision; "auto" is bf16-mixed on CUDA."""
    if config.precision != "auto":
        return config.precision
    cuda = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    return "bf16-mixed" if cuda else "32-true"


def replays_graphs(config: TrainConfig, strategy: Any, device: torch.device) -> bool:
    """Return whether steps are replays of a recorded graph.

    Raises:
        ValueError: If they should be, and the device is none of CUDA's, or lightning's strategy is
            one for which none is recorded.
    """
    cuda = device.type == "cuda"
    if config.cuda_graph and not cuda:
        raise ValueError(
            f"cuda_graph is on, and the device is {device}; leave it out, or take a CUDA device"
        )
    known = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
    if config.cuda_graph and not known:
        raise ValueError(
            f"strategy is {config.strategy!r}, and cuda_graph is on; graphs are recorded for one "
            "device and for ddp: take --strategy ddp or --no-cuda-graph"
        )
    return cuda and (known if config.cuda_graph is None else config.cuda_graph)
