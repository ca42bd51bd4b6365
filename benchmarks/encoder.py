"""How long encoders take, and in how much memory, from a second of sound to ten minutes.

    python benchmarks/encoder.py [--seconds S ...] [--models MODEL ...] [--train]
    python benchmarks/encoder.py --smoke                                # tiny, on the CPU

One utterance of random features, 100 frames a second, through encoders of the same layers and size:
Mamba in both directions, Mamba causal, and torchaudio's Conformer, whose attention sees all frames.
Each subsamples by four, as for speech recognition. Without `--train` it is a forward pass without
gradients, in evaluation mode; with it, forward and backward. Told is the median of some runs after
one that is not timed, and on a GPU what PyTorch had allocated at most, weights included. A model
stops at the length at which it runs out of memory or a run takes longer than `--limit`; results say
which. On a CPU, where the system would end the process, choose lengths by `--seconds`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from audiomamba.files import replacing
from audiomamba.plot import figure_class
from audiomamba.provenance import provenance

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "recipes"))
from speech_config import BANDS, Config  # noqa: E402  # which is no package
from speech_models import MODELS, build, parameters  # noqa: E402

FRAMES = 100  # a second
SECONDS = (1, 2, 5, 10, 20, 60, 120, 300, 600)
SIZE = Config(d_model=144, n_layers=12, feed_forward=4, conv_kernel=31, subsampling=4, dropout=0.0)
SMALL = Config(d_model=16, n_layers=1, conv_kernel=3, subsampling=4, dropout=0.0)


def measure(
    encoder: torch.nn.Module, seconds: float, *, train: bool, runs: int, limit: float
) -> Any:
    """Return a row of times and memory of one length; raises what the encoder raises."""
    device = next(encoder.parameters()).device
    cuda = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, round(seconds * FRAMES), BANDS)
    features = torch.randn(shape, device=device, generator=generator)
    lengths = torch.tensor([shape[1]], device=device)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def run() -> float:
        began = time.perf_counter()
        with torch.set_grad_enabled(train):
            y, _ = encoder(features, lengths)
            if train:
                y.square().mean().backward()
        if cuda:
            torch.cuda.synchronize()
        encoder.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    first = run()
    times = [run() for _ in range(runs if first < limit else 1)]
    return {
        "seconds": seconds,
        "ms": 1e3 * statistics.median(times),
        "ms_range": [1e3 * min(times), 1e3 * max(times)],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
    }


def exhausted(error: Exception) -> bool:
    """Return whether an error is for want of memory."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error) for word in words
    )


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw time, and memory where it is known, against length."""
    memory = any(row["peak_gb"] for row in record["rows"])
    figure = figure_class()(figsize=(9 if memory else 5, 4), layout="constrained")
    panels = figure.subplots(1, 2 if memory else 1, squeeze=False)[0]
    for name in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["model"] == name]
        for axes, key in zip(panels, ("ms", "peak_gb"), strict=False):
            axes.plot([r["seconds"] for r in rows], [r[key] for r in rows], "o-", label=name)
    for axes, label in zip(panels, ("time, ms", "memory, GB"), strict=False):
        axes.set(xscale="log", yscale="log", xlabel="length of the utterance, s", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["mamba", "mamba-causal", "conformer"]
    )
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS, metavar="S")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--runs", type=int, default=5, help="timed")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a run, to go on")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    flags = parser.parse_args()
    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if flags.smoke:
        device, flags.seconds, flags.runs = "cpu", [0.5, 1.0], 1
    record: dict[str, Any] = {
        **provenance(device, packages=["triton", "torchaudio"]),
        "threads": torch.get_num_threads(),
        "train": flags.train,
        "rows": [],
        "stopped": {},
    }
    slug = re.sub(r"[^a-z0-9]+", "_", record["device"].lower())
    path = flags.out / f"encoder{'_train' if flags.train else ''}_{slug}.json"
    flags.out.mkdir(parents=True, exist_ok=True)
    for name in flags.models:
        torch.manual_seed(0)
        network = build(name, SMALL if flags.smoke else SIZE, 1, pool=False)
        encoder = network.encoder.to(device).train(flags.train)
        for seconds in sorted(flags.seconds):
            try:
                row = measure(
                    encoder, seconds, train=flags.train, runs=flags.runs, limit=flags.limit
                )
            except (RuntimeError, MemoryError) as error:
                if not exhausted(error):
                    raise
                record["stopped"][name] = f"out of memory at {seconds:g} s"
                print(f"{name}: {record['stopped'][name]}", flush=True)
                break
            record["rows"].append({"model": name, "parameters": parameters(encoder), **row})
            memory = f", {row['peak_gb']:.3f} GB" if row["peak_gb"] else ""
            print(f"{name}, {seconds:g} s: {row['ms']:.1f} ms{memory}", flush=True)
            if row["ms"] > 1e3 * flags.limit and seconds < max(flags.seconds):
                record["stopped"][name] = f"took {row['ms'] / 1e3:.0f} s for {seconds:g} s"
                print(f"{name}: stopped, {record['stopped'][name]}", flush=True)
                break
        with replacing(path) as part:  # after each, so that a run cut short leaves something
            part.write_text(json.dumps(record, indent=2) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        plot(record, path.with_suffix(".png"))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
