"""How fast a model speaks on this CPU: the PyTorch step against the compiled engine, one stream.

    python benchmarks/generate_cpu.py [-m MODEL] [--json FILE]

The real-time factor is seconds of computing for a second of audio; below 1 is real time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# numba reads this when it is imported: an empty folder, so that compiling is timed too.
_CACHE = tempfile.TemporaryDirectory()
os.environ["NUMBA_CACHE_DIR"] = _CACHE.name

import numpy as np  # noqa: E402
import torch  # noqa: E402

from audiomamba import checkpoint  # noqa: E402
from audiomamba.config import ModelConfig  # noqa: E402
from audiomamba.engine.engine import Engine  # noqa: E402
from audiomamba.generate import Job, generate_streams  # noqa: E402
from audiomamba.models.waveform import WaveformModel  # noqa: E402
from audiomamba.provenance import provenance  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", help="default: the default shape, random weights, seed 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--blocks", type=int, default=11, help="timed blocks of each engine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    network = load(arguments.model)
    began = time.perf_counter()
    engine = Engine(network)
    laid_out = time.perf_counter()
    engine.warm_up(notify=lambda: None)
    compiled = time.perf_counter()
    stream = engine.start()
    results = {
        "numba": measure(lambda count: stream.run(np.full(count, -1)), 4096, arguments.blocks),
        "PyTorch step": measure(stepper(network), 64, arguments.blocks),
    }
    rate = network.config.sample_rate
    record: dict[str, Any] = {
        "model": arguments.model or "default shape, random weights, seed 0",
        "parameters": sum(p.numel() for p in network.parameters()),
        "config": network.config.to_dict(),
        **provenance(packages=["numba"]),
        "cores": os.cpu_count(),
        "threads": 1,
        "layout_seconds": laid_out - began,
        "compile_seconds": compiled - laid_out,
        "engines": {
            name: {
                "us_per_sample": statistics.median(seconds) * 1e6,
                "us_per_sample_range": [min(seconds) * 1e6, max(seconds) * 1e6],
                "real_time_factor": statistics.median(seconds) * rate,
            }
            for name, seconds in results.items()
        },
    }
    record["two_streams_samples_per_second"] = two_streams(network)
    report(record)
    if arguments.json:
        part = arguments.json.with_name(f"{arguments.json.name}.part")
        part.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(part, arguments.json)


def load(name: str | None) -> WaveformModel:
    if name:
        return checkpoint.load(checkpoint.find(name))
    torch.manual_seed(0)
    return WaveformModel(ModelConfig()).eval()


def stepper(network: WaveformModel) -> Callable[[int], None]:
    """Return a function that makes samples with the PyTorch step, as `generate_streams` does."""

    def run(count: int) -> None:
        for _ in generate_streams(network, Job(samples=count), engine="torch"):
            pass

    return run


def measure(run: Callable[[int], None], count: int, blocks: int) -> list[float]:
    """Return the seconds a sample of each block, after one that warms up."""
    run(count)
    seconds = []
    for _ in range(blocks):
        began = time.perf_counter()
        run(count)
        seconds.append((time.perf_counter() - began) / count)
    return seconds


def two_streams(network: WaveformModel, samples: int = 32768) -> float:
    """Return the samples a second of two streams in two threads."""
    torch.set_num_threads(2)
    began = time.perf_counter()
    for _ in generate_streams(network, Job(samples=samples), num=2):
        pass
    return 2 * samples / (time.perf_counter() - began)


def report(record: dict[str, Any]) -> None:
    print(f"{record['model']}: {record['parameters'] / 1e6:.2f} M parameters")
    versions = record["versions"]
    print(f"{record['device']}, 1 thread, torch {versions['torch']}, numba {versions['numba']}\n")
    print(f"{'engine':<14}{'us/sample':>11}{'(range)':>18}{'real-time factor':>19}")
    for name, figures in record["engines"].items():
        low, high = figures["us_per_sample_range"]
        print(
            f"{name:<14}{figures['us_per_sample']:>11.1f}{f'({low:.1f}-{high:.1f})':>18}"
            f"{figures['real_time_factor']:>19.3f}"
        )
    print(f"\ntwo streams, two threads: {record['two_streams_samples_per_second']:.0f} samples/s")
    print(f"compiling, once: {record['compile_seconds']:.1f} s")


if __name__ == "__main__":
    main()
