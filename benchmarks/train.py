"""How fast models train, and in how much memory: whole steps of `audiomamba.train.train`.

    python benchmarks/train.py [--only SETTING ...] [--mode MODE ...] [--recompute]
    torchrun --nproc-per-node 2 benchmarks/train.py                 # DDP
    python benchmarks/train.py --smoke                              # tiny, on the CPU

A step reads its batch, runs forward and backward, clips, and moves weights and their average. It is
what `train` logs, the median over blocks of five steps, the first four blocks left out; a random
walk stands for audio. Memory is what PyTorch had allocated at most, on the first device, bare and
with graphs. peers.json holds what was measured of others on one GPU, and is compared with on that
GPU only.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import logging
import os
import re
import statistics
import tempfile
import time
import traceback
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, write_index
from audiomamba.files import replacing
from audiomamba.models.waveform import WaveformModel
from audiomamba.provenance import provenance
from audiomamba.train import train
from audiomamba.train_config import TrainConfig

HERE = Path(__file__).parent
STEPS = 5  # of a block
SKIPPED = 4  # blocks in which code is compiled and memory is taken
MODES = {
    "eager": {"compile": False, "cuda_graph": False},
    "compiled": {"compile": True, "cuda_graph": False},
    "graph": {"compile": True, "cuda_graph": True},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and what a step sees."""

    model: ModelConfig
    batch: int
    length: int


REAL = Tier(mixer="s6")
SETTINGS = {
    "sc09": Setting(model=unet(64, 8, (4, 4), REAL, REAL), batch=16, length=16000),
    "youtubemix": Setting(model=ModelConfig(), batch=1, length=958464),
    "youtubemix-real": Setting(model=unet(64, 3, (16, 16), REAL, REAL), batch=1, length=958464),
}
TINY = unet(8, 1, (4, 4), Tier(mixer="lti", complex=True, d_state=4), Tier(d_state=4))
SMOKE = {"tiny": Setting(model=TINY, batch=2, length=256)}


def measure(
    name: str, setting: Setting, mode: str, blocks: int, *, smoke: bool, recompute: bool
) -> dict[str, Any]:
    """Return samples a second of all devices together, and the memory of this one."""
    free()
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "run"
        write_tokens(data, setting)
        steps = STEPS * (SKIPPED + blocks)
        config = TrainConfig(
            data=str(data),
            out=str(out),
            steps=steps,
            batch=setting.batch,
            length=setting.length,
            validate_every=steps,
            checkpoint_every=steps,
            log_every=STEPS,
            listen_every=0,
            activation_checkpointing=recompute,
            accelerator="cpu" if smoke else "gpu",
            devices=os.environ.get("LOCAL_WORLD_SIZE", "1"),
            **MODES[mode],  # type: ignore[arg-type]  # all are switches
        )
        outcome = train(setting.model, config)
        if outcome.rank:
            return {}
        (table,) = out.rglob("metrics.csv")
        with table.open() as file:
            rates = [float(row["samples_per_second"]) for row in csv.DictReader(file)][SKIPPED:]
    median = statistics.median(rates)
    samples = setting.batch * setting.length * world_size()
    with torch.device("meta"):
        network = WaveformModel(setting.model)
    return {
        "setting": name,
        "mode": mode,
        "activation_checkpointing": recompute,
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": setting.batch,
        "length": setting.length,
        "samples_per_s": median,
        "samples_per_s_range": [min(rates), max(rates)],
        "ms_per_step": 1e3 * samples / median,
        "peak_gb": None if smoke else torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": None if smoke else torch.cuda.max_memory_reserved() / 1e9,
    }


def write_tokens(folder: Path, setting: Setting) -> None:
    """Write four clips of a random walk, one crop and a half long."""
    folder.mkdir()
    random, samples = np.random.default_rng(0), setting.length * 3 // 2
    walk = np.cumsum(random.integers(-2, 3, 4 * samples)) % 256
    walk.astype(np.uint8).tofile(folder / TOKENS)
    files = [
        TokenFile(
            path=f"train/{i}.wav",
            split="train",
            offset=i * samples,
            samples=samples,
            peak=1.0,
            sha256="",
        )
        for i in range(4)
    ]
    model = setting.model
    write_index(
        folder / INDEX,
        files,
        tokenizer=model.tokenizer,
        sample_rate=model.sample_rate,
        split_rule="none",
        skipped={},
    )


def compare(row: dict[str, Any], device: str) -> None:
    """Add the target, and on their device the peers, to a row."""
    recorded = json.loads((HERE / "peers.json").read_text())
    for known in recorded["train"]:
        if known["name"] == row["setting"]:
            row["target_samples_per_s"] = known["target_samples_per_s"]
            if device == recorded["device"]:
                row["peers"] = known["peers"]
                row["peer_source"] = recorded["source"]
                rates = [peer.get("samples_per_s", 0) for peer in known["peers"]]
                row["ratio"] = row["samples_per_s"] / max(rates) / world_size()


def free() -> None:
    """Give memory back, and forget the most that was taken and what was compiled."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="SETTING", default=SETTINGS)
    parser.add_argument("--mode", nargs="+", choices=MODES, metavar="MODE")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing as well")
    parser.add_argument("--blocks", type=int, default=9, help="timed, of five steps each")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    flags = parser.parse_args()
    if not flags.smoke and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --smoke tries everything, tiny, on the CPU")
    if flags.mode is None:  # on a CPU there are no graphs, and compiling takes long
        flags.mode = ["eager"] if flags.smoke else list(MODES)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    record = describe("cpu" if flags.smoke else "cuda")
    slug = re.sub(r"[^a-z0-9]+", "_", record["device"].lower())
    path = flags.out / f"train_{slug}{f'_x{world_size()}' if world_size() > 1 else ''}.json"
    flags.out.mkdir(parents=True, exist_ok=True)
    settings = SMOKE if flags.smoke else {name: SETTINGS[name] for name in flags.only}
    began = time.perf_counter()
    for name, mode, recompute in product(
        settings, flags.mode, [False, True][: 1 + flags.recompute]
    ):
        label = f"{name}, {mode}{', recomputed' if recompute else ''}"
        try:
            row = measure(
                name, settings[name], mode, flags.blocks, smoke=flags.smoke, recompute=recompute
            )
        except Exception as error:
            if world_size() > 1:  # the others wait for this one
                raise
            record["errors"][label] = f"{type(error).__name__}: {error}"[:2000]
            print(f"FAILED {label}\n{traceback.format_exc()}", flush=True)
        else:
            if not row:
                continue  # the first process tells
            compare(row, record["device"])
            record["rows"].append(row)
            memory = f", {row['peak_gb']:.1f} GB" if row["peak_gb"] else ""
            rate, ms = row["samples_per_s"] / 1e6, row["ms_per_step"]
            print(f"{label}: {rate:.3f} M samples/s, {ms:.1f} ms a step{memory}", flush=True)
        record["seconds"] = time.perf_counter() - began
        with replacing(path) as partial:  # after each, so that a run cut short leaves something
            partial.write_text(json.dumps(record, indent=2) + "\n")
    raise SystemExit(1 if record["errors"] else 0)


def describe(device: str) -> dict[str, Any]:
    """Return what the results are of."""
    return {
        **provenance(device, packages=["triton", "lightning"]),
        "devices": world_size(),
        "rows": [],
        "errors": {},
    }


if __name__ == "__main__":
    main()
