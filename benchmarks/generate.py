"""How fast models speak, by every engine that runs here, one stream or thousands at a time.

    python benchmarks/generate.py [--only MODEL ...] [--engines NAME ...] [--streams N ...]
    python benchmarks/generate.py --smoke                       # tiny, on the CPU

A row of the part "kernel" is a kernel alone, timed by events of the GPU: the median over
launches of whole frames of the centre. One of the part "engine" is `generate_streams` as a user
calls it, start, copies and all; "start_s" is how long it takes for a few samples. Real time is
62.5 us a sample at 16 kHz. How long the CPU engine compiles is in generate_cpu.py, what a stream
holds in memory.py. "complete" is whether every row was made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are defined

import torch
from torch import Tensor

from audiomamba import checkpoint
from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.engine.choice import why_not_engine
from audiomamba.engine.streams import StreamEngine, Streams
from audiomamba.files import replacing
from audiomamba.generate import Job, generate_streams
from audiomamba.models.waveform import WaveformModel
from audiomamba.plot import figure_class
from audiomamba.provenance import provenance

RESULTS = Path(__file__).parent / "results"
REAL = Tier(mixer="s6")
MODELS = ("piano", "sc09")  # the shipped model; the paper's SC09 shape, random weights
TINY = unet(8, 1, (2,), Tier(mixer="lti", complex=True, d_state=4), Tier(d_state=4))
ENGINES = ("cuda", "triton")
WARPS = {"cuda": (4, 8, 16), "triton": (4,)}
STREAMS = (1, 8, 64, 132, 512, 4096)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLES = {"cuda": 160000, "triton": 80000, "torch": 512, "numba": 16000}  # of an engine's row
LAUNCHES = 3
Row = dict[str, Any]


def load(name: str, device: str) -> WaveformModel:
    if name == "piano":
        return checkpoint.load(checkpoint.find(name)).eval().to(device)
    torch.manual_seed(0)
    config = unet(64, 8, (4, 4), REAL, REAL) if name == "sc09" else TINY
    return WaveformModel(config).eval().to(device)


def samples_of(config: ModelConfig, streams: int) -> int:
    """Return how many samples a launch makes: whole periods, few if there are many streams."""
    wanted = 256 if streams > 512 else 1024
    return max(1, wanted // config.period) * config.period


def seconds(streams: Streams, tokens: Tensor) -> float:
    """Return how long the device takes for a launch."""
    tokens.fill_(-1)
    if tokens.device.type != "cuda":
        began = time.perf_counter()
        streams.run(tokens)
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    streams.run(tokens)
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def build(engine: str, network: WaveformModel, dtype: torch.dtype, warps: int) -> StreamEngine:
    if engine == "cuda":
        from audiomamba.engine.cuda_engine import CudaEngine

        return CudaEngine(network, dtype=dtype, threads=32 * warps)
    from audiomamba.engine.triton_engine import TritonEngine

    return TritonEngine(network, dtype=dtype, num_warps=warps)


def kernel_rows(name: str, network: WaveformModel, flags: argparse.Namespace) -> Iterator[Row]:
    """Time launches of the kernels."""
    for kind, dtype in itertools.product(flags.engines, DTYPES):
        if why_not_engine(kind, network):
            continue
        for warps in flags.warps or WARPS[kind]:
            began = time.perf_counter()
            engine = build(kind, network, DTYPES[dtype], warps)
            engine.start().run(torch.full((1, 1), -1, dtype=torch.int32, device=flags.device))
            compiled = time.perf_counter() - began
            for count in flags.streams:
                samples = 2 if flags.smoke else samples_of(network.config, count)
                streams = engine.start(streams=count)
                tokens = torch.empty((count, samples), dtype=torch.int32, device=flags.device)
                seconds(streams, tokens)
                launches = 1 if flags.smoke else LAUNCHES
                times = [seconds(streams, tokens) for _ in range(launches)]
                us = 1e6 * statistics.median(times) / samples
                yield {
                    "part": "kernel",
                    "model": name,
                    "engine": kind,
                    "weights": dtype,
                    "num_warps": warps,
                    "streams": count,
                    "us_per_sample": us,
                    "us_per_sample_range": [1e6 * t / samples for t in (min(times), max(times))],
                    "samples_per_s": 1e6 * count / us,
                    "real_time_factor": us * 1e-6 * network.config.sample_rate,
                    "compile_s": compiled,
                }


def engine_rows(name: str, network: WaveformModel, flags: argparse.Namespace) -> Iterator[Row]:
    """Time every engine as a user meets it, one stream and, of the fast ones, some."""
    many = 2 if flags.smoke else 64
    for engine, count, weights in (
        *itertools.product(flags.engines, (1, many), DTYPES),
        ("torch", 1, "float32"),
        ("numba", 1, "float32"),
    ):
        on = network.cpu() if engine == "numba" else network.to(flags.device)
        if why_not_engine(engine, on):
            continue
        few, samples = (1, 2) if flags.smoke else (64, SAMPLES[engine])
        times = []
        for length in (few, few, samples):  # the first compiles
            began = time.perf_counter()
            job = Job(samples=length)
            for _made in generate_streams(on, job, num=count, engine=engine, weights=weights):
                pass
            times.append(time.perf_counter() - began)
        us = 1e6 * times[2] / samples
        yield {
            "part": "engine",
            "model": name,
            "engine": engine,
            "weights": weights,
            "streams": count,
            "samples": samples,
            "us_per_sample": us,
            "samples_per_s": 1e6 * count / us,
            "real_time_factor": us * 1e-6 * network.config.sample_rate,
            "start_s": times[1],
        }
    network.to(flags.device)


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw samples a second of all streams together against their number, as a PNG."""
    best: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in record["rows"]:
        if row["part"] == "kernel":
            line = best.setdefault((row["model"], row["engine"], row["weights"]), {})
            line[row["streams"]] = max(line.get(row["streams"], 0), row["samples_per_s"])
    if not best:
        return
    figure = figure_class()(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for names, line in best.items():
        axes.plot(*zip(*sorted(line.items()), strict=True), marker="o", label=", ".join(names))
    counts = sorted({count for line in best.values() for count in line})
    axes.plot(counts, [16000 * count for count in counts], "k--", label="real time for each")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="streams", ylabel="samples a second, all streams", title=record["device"])
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", default=MODELS)
    parser.add_argument("--streams", nargs="+", type=int, metavar="N", default=STREAMS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", default=ENGINES)
    parser.add_argument("--warps", nargs="+", type=int, metavar="N", help="of a stream")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    flags = parser.parse_args()
    if not flags.smoke and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --smoke tries everything, tiny, on the CPU")
    flags.device = "cpu" if flags.smoke else "cuda"
    if flags.smoke:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.interpreter import mend

        mend()
        flags.only, flags.streams, flags.warps = ("tiny",), (1, 2), (4,)
    record: dict[str, Any] = {
        **provenance(flags.device, packages=["triton", "numba"]),
        "complete": False,
        "rows": [],
        "errors": {},
    }
    flags.out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", record["device"].lower())
    path = flags.out / f"generate_{slug}.json"
    began = time.perf_counter()

    def save() -> None:
        record["seconds"] = time.perf_counter() - began
        with replacing(path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")

    for name in flags.only:
        network = load(name, flags.device)
        for measure in (kernel_rows, engine_rows):
            try:
                for row in measure(name, network, flags):
                    record["rows"].append(row)
                    save()  # after each, so that a run cut short leaves something
                    print(", ".join(f"{k} {show(v)}" for k, v in row.items()), flush=True)
            except Exception as error:
                label = f"{name}, {measure.__name__}"
                record["errors"][label] = f"{type(error).__name__}: {error}"[:2000]
                save()
                print(f"FAILED {label}\n{traceback.format_exc()}", flush=True)
    record["complete"] = not record["errors"]
    save()
    try:
        plot(record, path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        print(f"no plot: {error}")
    raise SystemExit(1 if record["errors"] else 0)


def show(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(show, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
