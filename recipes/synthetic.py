"""What the synthetic recipes share: their settings, training, and evaluation by chunks.

A recipe gives a function that draws sequences, whose last tokens are each answered by one token,
and the models that it compares. A model is a `WaveformModel` without pooling, which is embedding,
blocks, norm and head; its tokenizer only says how many tokens there are.

A run's folder holds last.ckpt, from which `--resume` goes on, and logs/version_N/metrics.csv, one
for each time the run was started. Ctrl-C, SIGTERM and SIGUSR1 stop after the step at hand, with a
checkpoint; runs of several processes stop where they next log, test or save.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.config import ModelConfig, Tier
from audiomamba.data.batches import Steps
from audiomamba.layers.attention import Attention
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import UNKNOWN, Objective, capture
from audiomamba.optim import parameter_groups
from audiomamba.provenance import device_name
from audiomamba.resume import check_readable, check_same_run
from audiomamba.tokenizer import Tokenizer
from audiomamba.train_config import DEVICES
from audiomamba.train_folder import LAST, held, save_checkpoint, tidy
from audiomamba.train_stop import LATE, Stop, agreed

try:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    from audiomamba.train import fit, make_trainer
except ModuleNotFoundError as error:
    raise SystemExit(
        f'training needs lightning ({error}); install it: pip install "lightning>=2.6.6"'
    ) from None

TRAIN, TEST = 0, 1  # keep their random numbers apart


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: the model, its task, and how it is trained and tested.

    Attributes:
        out: Folder of the run.
        mixer: s6 (Mamba), lti (Mamba around a time-invariant S4D), s4 (S4 + MLP) or attention
            (with rotary positions, + MLP).
        complex: Whether A is complex (s6, lti).
        d_model: Width.
        n_layers: Blocks.
        d_state: Real state dimensions a channel.
        expand: Inner width over model width, of a Mamba block or of the MLP.
        n_heads: Attention heads.
        vocabulary: Kinds of tokens, all included; a power of two.
        answers: Tokens to be answered, the last of a sequence.
        length: Tokens of a training sequence.
        batch: Sequences a step, on each device.
        steps: Optimiser steps.
        learning_rate: AdamW's, the same at every step.
        betas: AdamW's.
        weight_decay: AdamW's; none on A, the step size, B, C, D, biases and norms.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        precision: 32-true or bf16-mixed; tests are in float32.
        seed: Of the initial weights and of every sequence.
        test_from: Shortest sequences tested.
        test_to: Longest sequences tested; between them, each twice the one before.
        test_rows: Sequences tested at each length, the same for every model.
        test_batch: Sequences tested side by side.
        test_chunk: Tokens read at a time in a test; the state is carried on.
        validate_every: Steps from one test at the training length to the next.
        checkpoint_every: Steps from one checkpoint to the next.
        log_every: Steps from one line of the log to the next.
        cuda_graph: Replay forward and backward as one recorded graph, on one CUDA device.
        max_minutes: Stop cleanly after so long, to be resumed; None never does.
        accelerator: Lightning's: auto, cpu, gpu, mps.
        devices: Number of devices a node, or which, as 0,2 or 1,; or auto.
        strategy: Lightning's: auto, ddp.
        nodes: Number of machines.
    """

    out: str = ""
    mixer: str = "s6"
    complex: bool = False
    d_model: int = 64
    n_layers: int = 2
    d_state: int = 16
    expand: int = 2
    n_heads: int = 8
    vocabulary: int = 16
    answers: int = 1
    length: int = 256
    batch: int = 8
    steps: int = 1000
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    precision: str = "32-true"
    seed: int = 0
    test_from: int = 256
    test_to: int = 256
    test_rows: int = 256
    test_batch: int = 16
    test_chunk: int = 32768
    validate_every: int = 8192
    checkpoint_every: int = 8192
    log_every: int = 256
    cuda_graph: bool = True
    max_minutes: float | None = None
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    nodes: int = 1

    def __post_init__(self) -> None:
        def require(name: str, good: bool, what: str) -> None:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {what}")

        for field in dataclasses.fields(self):
            if field.type == "int" and field.name != "seed":
                require(field.name, getattr(self, field.name) >= 1, "at least 1")
        for name in ("seed", "weight_decay", "gradient_clip"):
            require(name, getattr(self, name) >= 0, "0 or more")
        require("learning_rate", self.learning_rate > 0, "more than 0")
        require("max_minutes", self.max_minutes is None or self.max_minutes > 0, "more than 0")
        known = re.fullmatch(DEVICES, self.devices) is not None
        require("devices", known, "auto, a number, or numbers with commas")
        require("precision", self.precision in ("32-true", "bf16-mixed"), "32-true or bf16-mixed")
        known = self.vocabulary in (4, 8, 16, 32, 64, 128, 256)
        require("vocabulary", known, "a power of two from 4 to 256")
        require("test_to", self.test_to >= self.test_from, f"at least test_from {self.test_from}")
        for name in ("length", "test_from"):
            room = 2 * self.answers + 1
            require(
                name, getattr(self, name) >= room, f"at least {room} for {self.answers} answers"
            )
        self.model()  # refuses what no model has

    def model(self) -> ModelConfig:
        """Return the model's own config."""
        tier = Tier(
            mixer=self.mixer,  # type: ignore[arg-type]  # which Tier checks
            complex=self.complex,
            n_layers=self.n_layers,
            d_state=self.d_state,
            expand=self.expand,
            n_heads=self.n_heads,
            context=self.length,
        )
        bits = self.vocabulary.bit_length() - 1
        return ModelConfig(
            tokenizer=Tokenizer(bits=bits), d_model=self.d_model, tiers=(tier,), pools=()
        )

    def test_lengths(self) -> list[int]:
        """Return the lengths tested: test_from, twice that, ..., up to test_to."""
        doublings = (self.test_to // self.test_from).bit_length()
        return [self.test_from << i for i in range(doublings)]


# What may change when a run is resumed; the learning rate is constant, so a run may grow longer.
FREE = {
    *("out", "steps", "validate_every", "checkpoint_every", "log_every", "cuda_graph"),
    *("max_minutes", "test_from", "test_to", "test_rows", "test_batch", "test_chunk"),
    *("accelerator", "devices", "strategy", "nodes"),
}

Tokens = NDArray[np.uint8]
# (random, rows, length, config) to tokens (rows, length) and answers (rows, config.answers)
Draw = Callable[[np.random.Generator, int, int, Config], tuple[Tokens, Tokens]]


class Training(pl.LightningModule):
    """What lightning drives; a step's sequences are a function of (seed, rank, step)."""

    def __init__(self, config: Config, draw: Draw) -> None:
        super().__init__()
        self.config, self.draw = config, draw
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.default_generator.manual_seed(config.seed)
            self.network = WaveformModel(config.model())
        self.history: list[list[float]] = []  # [step, accuracy at the training length]
        self.stopped: str | None = None  # why
        self.stop = Stop(config.max_minutes)
        self.clock = time.monotonic()

    def train_dataloader(self) -> Steps:
        """Return the run's batches, from the step it has come to."""
        sampler: Any = self.sequences
        return Steps(sampler, self.config.steps)

    def sequences(self, step: int) -> dict[str, Tensor]:
        """Return a step's tokens and answers, as bytes."""
        c = self.config
        random = np.random.default_rng((c.seed, TRAIN, self.global_rank, step))
        pair = map(torch.from_numpy, self.draw(random, c.batch, c.length, c))
        tokens, answers = (x.pin_memory() if torch.cuda.is_available() else x for x in pair)
        return {"tokens": tokens, "answers": answers}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        c = self.config
        return torch.optim.AdamW(
            parameter_groups(self.network, c.weight_decay),
            lr=c.learning_rate,
            betas=c.betas,
            fused=self.device.type == "cuda",
        )

    def on_train_start(self) -> None:
        """Prepare what needs the device, and listen for signals."""
        c = self.config
        self.stop.listen()  # after lightning, which takes its own back together with these
        if self.global_rank == 0:
            where = f"on {device_name(self.device)} from step {self.global_step} to {c.steps}"
            first = "compiling may come first, for a minute or more"
            print(f"training {where}; {first}", file=sys.stderr, flush=True)
        objective: Any = Objective(
            self.network, torch.bfloat16 if c.precision == "bf16-mixed" else None
        )
        if self.device.type == "cuda" and c.cuda_graph and self.trainer.world_size == 1:
            objective = capture(objective, c.batch, c.length, carry_state=False)
        self.objective = objective.__call__  # not the module: its weights are the network's
        self.lately = torch.zeros(2, device=self.device)  # sum of losses, steps
        self.clock = time.monotonic()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss in nats per answer."""
        tokens, answers = batch["tokens"].long(), batch["answers"].long()
        target = F.pad(answers, (tokens.shape[1] - answers.shape[1], 0), value=UNKNOWN)
        loss: Tensor = self.objective(tokens, target)[0]
        self.lately += torch.stack([loss.detach(), torch.ones_like(loss)])
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Log, validate, save, stop, each where it is time."""
        c, step, strategy = self.config, self.global_step, self.trainer.strategy
        done = step >= c.steps
        validate, save = (done or step % n == 0 for n in (c.validate_every, c.checkpoint_every))
        check = validate or save or step % c.log_every == 0
        if check or self.trainer.world_size == 1:
            self.stopped = None if done else agreed(self.stop.why(), self.trainer)
        if not (check or self.stopped):
            return
        loss, steps = strategy.reduce(self.lately, reduce_op="sum").tolist()  # waits for the device
        weights = all(bool(x.isfinite().all()) for x in self.network.parameters())
        if not (math.isfinite(loss) and weights):
            bad = "a weight is" if math.isfinite(loss) else "the loss is"
            raise FloatingPointError(
                f"{bad} no longer finite at step {step}; start again with a lower "
                "--learning-rate or --gradient-clip"
            )
        rate = steps / self.trainer.world_size / (time.monotonic() - self.clock)
        values = {"train/bits_per_answer": loss / steps / math.log(2), "steps_per_second": rate}
        if validate:
            score = accuracy(self.network, c, self.draw, c.length)
            self.history.append([step, score])
            values["validation/accuracy"] = score
            words = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            if self.global_rank == 0:
                print(f"step {step}/{c.steps}  {words}", file=sys.stderr, flush=True)
        for logger in self.loggers:
            logger.log_metrics(values, step)
            logger.save()
        if save or self.stopped:
            save_checkpoint(self.trainer, Path(c.out) / LAST)
        if self.stopped:
            self.trainer.should_stop = True
        self.lately.zero_()
        self.clock = time.monotonic()

    def on_train_end(self) -> None:
        """Hear of a signal to the last."""
        if not self.stopped:
            why = agreed(self.stop.why(), self.trainer)
            self.stopped = None if why == LATE else why

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the run this one, and what it has come to."""
        checkpoint["synthetic"] = {"run": self.run(), "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the run is this one."""
        saved = checkpoint["synthetic"]
        check_same_run(saved["run"], self.run(), self.config.out)
        self.history = saved["history"]

    def run(self) -> dict[str, Any]:
        """Return what a resumed run shares with its beginning."""
        fixed = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in FREE}
        task = Path(inspect.getfile(self.draw)).stem
        return {"task": task, **fixed, "world_size": self.trainer.world_size}


@torch.no_grad()
def accuracy(network: WaveformModel, config: Config, draw: Draw, length: int) -> float:
    """Return the share of right answers in `test_rows` sequences of a length."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.context = length  # all there is; no weight depends on it
    right = 0
    for first in range(0, config.test_rows, config.test_batch):
        rows = range(first, min(first + config.test_batch, config.test_rows))
        seeds = [(config.seed, TEST, length, row) for row in rows]
        pairs = [draw(np.random.default_rng(seed), 1, length, config) for seed in seeds]
        tokens, answers = (torch.from_numpy(np.concatenate(x)) for x in zip(*pairs, strict=True))
        found = answer(network, tokens, config.answers, config.test_chunk).argmax(dim=-1)
        right += int((found.cpu() == answers).sum())
    return right / (config.test_rows * config.answers)


def answer(network: WaveformModel, tokens: Tensor, answers: int, chunk: int) -> Tensor:
    """Return the logits (batch, answers, vocabulary) at the last tokens.

    What is before them is read by chunks with carried state, so memory does not grow with time.

    Args:
        network: The model.
        tokens: (batch, time) bytes on any device.
        answers: Positions that are answered.
        chunk: Tokens read at a time.
    """
    device = network.head.weight.device
    state = None
    for piece in torch.split(tokens[:, :-answers], chunk, dim=1):
        _, state = network(piece.to(device).long(), state)
    logits: Tensor = network(tokens[:, -answers:].to(device).long(), state)[0]
    return logits


def train(config: Config, draw: Draw, *, resume: bool) -> tuple[Training, pl.Trainer]:
    """Train, or go on with the training in `config.out`.

    Raises:
        FileExistsError: If `config.out` holds a run and `resume` is not given, or another process
            trains there.
        FileNotFoundError: If it holds none and `resume` is.
        FloatingPointError: If the loss is no longer finite.
        ValueError: If the run in `config.out` is another one, or its checkpoint is damaged.
    """
    out, last = Path(config.out), Path(config.out) / LAST
    if last.exists() and not resume:
        raise FileExistsError(
            f"{out} holds a run; go on with it by --resume, or give another --out"
        )
    if resume:
        if not last.exists():
            raise FileNotFoundError(f"{out} holds no run to go on with; start it without --resume")
        check_readable(last)
    module = Training(config, draw)
    trainer = make_trainer(
        config,
        precision=config.precision,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.gradient_clip or None,
        logger=CSVLogger(out, name="logs", flush_logs_every_n_steps=1),
        enable_progress_bar=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        default_root_dir=out,
    )
    first = trainer.global_rank == 0
    with held(out) if first else nullcontext():
        if first:
            tidy(out)
        fit(trainer, module, str(last) if resume else None)
    return module, trainer
