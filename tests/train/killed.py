"""A program: trains by the recipe, once to the end, and once killed (SIGKILL) again and again.

    python killed.py DATA WHOLE KILLED

Writes how often it killed, and how often while a checkpoint was being written. What is heavy is
imported once; each run is a fork.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

import torch

TORN, AT_RANDOM = (3, 2, 4), 3  # kills: at so many checkpoints' ends, and so often at any time
FLAGS = {
    "preset": "tiny",
    "accelerator": "cpu",
    "steps": 24,
    "batch": 1,
    "length": 128,
    "checkpoint-every": 1,
    "validate-every": 7,
    "log-every": 5,
}


def load_recipe() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "youtubemix.py"
    spec = importlib.util.spec_from_file_location("youtubemix", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["youtubemix"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(recipe: ModuleType, data: str, out: Path, torn_at: int = 0) -> int:
    """Go on with a run in a process of its own; return its number.

    The process kills itself when it has half-written its checkpoint number `torn_at`, if not 0.
    """
    child = os.fork()
    if not child:
        try:
            os.dup2(2, 1)  # what it prints is not this program's result
            if torn_at:
                tear(torn_at)
            flags = {**FLAGS, "data": data, "out": out}
            recipe.main([f"--{name}={value}" for name, value in flags.items()] + ["--resume"])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def tear(number: int) -> None:
    """Let this process die as it replaces a checkpoint by one of which half is written."""
    replace, checkpoints = os.replace, itertools.count(1)

    def replace_or_die(part: Path, path: Path) -> None:
        if Path(path).name == "last.ckpt" and next(checkpoints) == number:
            os.truncate(part, os.path.getsize(part) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(part, path)

    os.replace = replace_or_die


def killed_after(child: int, seconds: float) -> bool:
    """Kill a run after so many seconds; say whether it had not ended."""
    began = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(1e-3)
    return False


def main(data: str, whole: Path, killed: Path) -> None:
    torch.set_num_threads(1)
    importlib.import_module("audiomamba.train")  # which takes seconds
    recipe, times = load_recipe(), random.Random(0)
    began = time.monotonic()
    assert os.waitpid(start(recipe, data, whole), 0)[1] == 0
    took = time.monotonic() - began
    torn = 0
    for checkpoints in TORN:
        _, status = os.waitpid(start(recipe, data, killed, checkpoints), 0)
        assert os.WIFSIGNALED(status)
        torn += any(killed.glob(".last.ckpt*.part"))
    after = [times.uniform(0.1, 0.9) * took for _ in range(AT_RANDOM)]
    kills = sum([killed_after(start(recipe, data, killed), seconds) for seconds in after])
    assert os.waitpid(start(recipe, data, killed), 0)[1] == 0
    sys.stdout.write(json.dumps({"kills": kills, "torn": torn}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
