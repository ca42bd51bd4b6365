"""Whether a model's long generations run away: level, flatness and the strongest tone over time.

    audiomamba prepare AUDIO TOKENS
    python benchmarks/drift.py -m piano --seconds 300 -n 2 --data TOKENS
    python benchmarks/drift.py --smoke                       # tiny, random weights

`audiomamba.drift` has the measures and the limits. With tokens of recordings the clips of their
test split are measured too; the band in the picture is the 5th to 95th percentile of their windows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import audiomamba
from audiomamba.arguments import count_samples
from audiomamba.audiomodel import AudioModel
from audiomamba.config import Tier, unet
from audiomamba.data.tokens import TokenStore
from audiomamba.drift import LIMITS, LIMITS_OF, Curves, Limits, faults, measure
from audiomamba.files import replacing
from audiomamba.models.waveform import WaveformModel
from audiomamba.plot import figure_class
from audiomamba.provenance import provenance

HERE = Path(__file__).parent
LABELS = {"level": "level, dBFS", "flatness": "flatness", "share": "strongest tone's share"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", default="piano")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("-n", "--num", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, metavar="TOKENS", help="recordings to compare with")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results, a temporary one for --smoke"
    )
    parser.add_argument("--smoke", action="store_true", help="two seconds of a tiny random model")
    flags = parser.parse_args()
    if flags.smoke:
        torch.manual_seed(0)
        tiny = unet(8, 1, (4, 4), Tier(mixer="lti", d_state=4), Tier(d_state=4))
        flags.seconds, flags.num = 2.0, 1
        model = AudioModel(WaveformModel(tiny), name="smoke")
    else:
        model = audiomamba.load(flags.model, device=flags.device)

    limits = LIMITS_OF.get(model.name, LIMITS)
    record: dict[str, Any] = {
        **provenance(model.device, packages=["numba"]),
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "engine": model.engine,
        "seed": flags.seed,
        "temperature": model.temperature if flags.temperature is None else flags.temperature,
        "guard": model.guard,
        "limits": dataclasses.asdict(limits),
    }
    if flags.data:
        record["recordings"] = measure_recordings(TokenStore(flags.data), limits)
    each = model.generate_each(
        samples=count_samples(flags.seconds, model.sample_rate),
        num=flags.num,
        seed=flags.seed,
        temperature=flags.temperature,
    )
    # Measured as they come, so that one waveform is in memory.
    record["generated"] = [
        {"index": take.index, **summary(measure(take.waveform, model.sample_rate), limits)}
        for take in each
    ]
    record["generated"].sort(key=lambda row: row["index"])
    report(record)

    out = flags.out or (Path(tempfile.mkdtemp()) if flags.smoke else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", Path(model.name).name.lower())
    with replacing(out / f"drift_{slug}.json") as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    plot(record, out / f"drift_{slug}.png")


def measure_recordings(store: TokenStore, limits: Limits) -> dict[str, Any]:
    """Return percentiles of all windows of the test split, and what is outside the limits."""
    clips = [
        measure(store.tokenizer.decode(store.clip(file)), store.sample_rate)
        for file in store.files("test")
    ]
    if not clips:
        raise SystemExit(f"{store.directory} has no test files")
    return {
        "split": "test",
        "clips": len(clips),
        "windows": sum(len(curves.level) for curves in clips),
        "percentiles": {
            name: percentiles(np.concatenate([getattr(curves, name) for curves in clips]))
            for name in LABELS
        },
        "faults": [fault._asdict() for curves in clips for fault in faults(curves, limits)],
    }


def summary(curves: Curves, limits: Limits) -> dict[str, Any]:
    """Return percentiles, faults and the curves themselves; NaN, which JSON lacks, becomes null."""
    rounded = {
        name: [None if np.isnan(x) else round(float(x), 5) for x in getattr(curves, name)]
        for name in (*LABELS, "tone")
    }
    return {
        "percentiles": {name: percentiles(getattr(curves, name)) for name in LABELS},
        "faults": [fault._asdict() for fault in faults(curves, limits)],
        "window_seconds": curves.window,
        **rounded,
    }


def percentiles(values: Any) -> dict[str, float | None]:
    """Return some percentiles, by name; None if there is no number."""
    known = values[~np.isnan(values)]
    return {
        str(q): round(float(np.percentile(known, q)), 5) if len(known) else None
        for q in (0, 5, 50, 95, 100)
    }


def report(record: dict[str, Any]) -> None:
    rows = {f"{record['model']} {row['index']}": row for row in record["generated"]}
    if "recordings" in record:
        rows = {"recordings": record["recordings"], **rows}
    print(f"{'median (5 % to 95 %)':<22}{'dBFS':>22}{'flatness':>30}{'tone':>24}")
    for name, row in rows.items():
        text = f"{name:<22}"
        for width, known in zip((20, 28, 22), row["percentiles"].values(), strict=True):
            low, middle, high = (
                "-" if known[q] is None else f"{known[q]:.2g}" for q in ("5", "50", "95")
            )
            text += f"  {f'{middle} ({low} to {high})':>{width}}"
        print(text)
    for name, row in rows.items():
        for fault in row["faults"]:
            print(f"{name}: {fault['kind']} from {fault['start']:g} to {fault['stop']:g} s")
    print(f"{sum(len(row['faults']) for row in rows.values())} faults")


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw level, flatness and the strongest tone's share over time, and shade faults."""
    figure = figure_class()(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    limits = record["limits"]
    drawn = {
        "level": (limits["silence_level"], "silence, below"),
        "flatness": (limits["noise_flatness"], "noise, above"),
        "share": (limits["tone_share"], f"held tone, above for {limits['tone_seconds']:g} s"),
    }
    for axes, (name, label) in zip(panels, LABELS.items(), strict=True):
        if "recordings" in record:
            known = record["recordings"]["percentiles"][name]
            axes.axhspan(
                known["5"], known["95"], color="0.85", label="recordings, 5th to 95th percentile"
            )
        limit, meaning = drawn[name]
        axes.axhline(limit, color="0.3", linestyle="--", linewidth=1, label=meaning)
        for row in record["generated"]:
            values = np.array(row[name], float)
            seconds = (np.arange(len(values)) + 0.5) * row["window_seconds"]
            (line,) = axes.plot(seconds, values, linewidth=1, label=f"generated, {row['index']}")
            for fault in row["faults"]:
                axes.axvspan(fault["start"], fault["stop"], color=line.get_color(), alpha=0.2)
        axes.set(ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    panels[1].set_yscale("log")
    panels[0].set_title(
        f"{record['model']}, temperature {record['temperature']:g}, seed {record['seed']}; "
        "faults shaded"
    )
    panels[-1].set(xlabel="seconds", xlim=(0, seconds[-1]))
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=100)


if __name__ == "__main__":
    main()
