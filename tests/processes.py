"""A program: trains in two processes on the CPU, started as torchrun starts them.

    python processes.py DATA FOLDER

Writes what the processes of each run say, in JSON; the runs are in FOLDER. What is heavy is
imported once; each process is a fork.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiomamba.config import Tier, unet
from audiomamba.data.batches import Batch, Crops, Steps
from audiomamba.data.tokens import TokenStore
from audiomamba.objective import Objective
from audiomamba.train_config import TrainConfig

MODEL = unet(8, 1, (4,), Tier(mixer="lti", complex=True, d_state=4), Tier(d_state=4))
WORLD = 2
SECONDS = 120  # for a run; code may have to be compiled


def run(
    config: TrainConfig,
    *,
    world: int = WORLD,
    patch: Callable[[], None] = lambda: None,
    **options: Any,
) -> list[int]:
    """Start a run's processes; return their numbers.

    Args:
        config: Of the run. Processes that come after the first have `others` as it, if given.
        world: How many.
        patch: What each does first.
        options: `others`, and what `train` takes.
    """
    others = options.pop("others", config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        fork(rank, world, port, patch, others if rank else config, options) for rank in range(world)
    ]


def fork(
    rank: int,
    world: int,
    port: int,
    patch: Callable[[], None],
    config: TrainConfig,
    options: dict[str, Any],
) -> int:
    child = os.fork()
    if child:
        return child
    os.dup2(2, 1)  # what it prints is not this program's result
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # whatever it waits for
    if world > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {name: str(value) for name, value in (places | address).items()}
    said: dict[str, Any] = {}
    try:
        # Imported before the fork, when there were no ranks yet.
        rank_zero_only: Any = importlib.import_module("lightning.pytorch.utilities").rank_zero_only
        rank_zero_only.rank = rank
        patch()
        training = importlib.import_module("audiomamba.train")
        counted = training.count_processes(config)
        said = dataclasses.asdict(training.train(MODEL, config, **options)) | {"counted": counted}
    except Exception as error:
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}"}
    finally:
        path = Path(sys.argv[2]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(said))
        os._exit(0)


def wait(children: list[int]) -> list[Any]:
    """Return what processes said when they had ended."""
    for child in children:
        os.waitpid(child, 0)
    paths = [Path(sys.argv[2]) / f"{child}.json" for child in children]
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


def joined() -> None:
    """Let one process see in a step what two see."""
    training = importlib.import_module("audiomamba.train_module").Training

    def batches(self: Any) -> Steps:
        c = self.config
        ranks = [
            Crops(self.store, batch=c.batch // WORLD, length=c.length, seed=c.seed, rank=rank)
            for rank in range(WORLD)
        ]

        def batch(step: int) -> Batch:
            parts: list[Any] = [crops(step) for crops in ranks]
            whole: Any = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            return whole

        return Steps(batch, c.steps)

    training.train_dataloader = batches


def replayed() -> None:
    """Do to the objective what `torch.cuda.make_graphed_callables` does, but for the recording.

    There is a weight that nothing uses, too.
    """
    training = importlib.import_module("audiomamba.train_module").Training
    begin = training.__init__

    def init(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        for network in (self.network, self.average):
            network.unused = torch.nn.Parameter(torch.zeros(3))
        self.average.requires_grad_(False)

    def objective(self: Any) -> Any:
        return replay(Objective(self.network), self.config.batch, self.config.length)

    training.__init__, training._objective = init, objective


def replay(objective: Objective, batch: int, length: int) -> Callable[..., Any]:
    weights = tuple(objective.parameters())

    def forward_and_backward(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss, *_ = objective(*inputs)
        return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, previous: Tensor, target: Tensor, *weights: Tensor) -> Tensor:
            with torch.enable_grad():
                loss, ctx.gradients = forward_and_backward(previous, target)
            return loss

        @staticmethod
        def backward(ctx: Any, *above: Tensor) -> Any:
            return None, None, *(None if g is None else above[0] * g for g in ctx.gradients)

    tokens = torch.zeros(batch, length, dtype=torch.long)
    for _ in range(3):
        forward_and_backward(tokens, tokens)
    return lambda previous, target: (Replay.apply(previous, target, *weights),)


def stopped_and_resumed(config: TrainConfig) -> dict[str, Any]:
    """Stop a run by a signal to its second process, and go on with it."""
    out = Path(config.out)
    children = run(dataclasses.replace(config, steps=100000))
    for _ in range(20 * SECONDS):
        if (out / "logs/version_0/metrics.csv").exists():
            break
        time.sleep(0.05)
    os.kill(children[1], signal.SIGTERM)
    stopped = wait(children)
    steps = stopped[0]["step"] + 2
    return {
        "stopped": stopped,
        "resumed": wait(run(dataclasses.replace(config, steps=steps), resume=True)),
        "apart": wait(
            run(config, others=dataclasses.replace(config, out=f"{out}_elsewhere"), resume=True)
        ),
    }


def main(data: str, folder: Path) -> None:
    torch.set_num_threads(1)
    importlib.import_module("audiomamba.train")  # which takes seconds
    assert TokenStore(data).files("train")
    base = TrainConfig(
        data=data,
        out=str(folder / "two"),
        steps=4,
        batch=2,
        length=512,
        validate_every=100000,
        checkpoint_every=100000,
        log_every=1,
        accelerator="cpu",
        devices="2",
        listen_every=0,
    )
    alone = dataclasses.replace(base, out=str(folder / "one"), batch=4, devices="1")
    graph = dataclasses.replace(base, out=str(folder / "graph"), log_every=3)
    long = dataclasses.replace(base, out=str(folder / "long"), length=64, carry_state=True)
    said = {
        "two": wait(run(base)),
        "one": wait(run(alone, world=1, patch=joined)),
        "graph": wait(run(graph, patch=replayed)),
        **stopped_and_resumed(long),
    }
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
