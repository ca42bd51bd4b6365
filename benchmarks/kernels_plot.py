"""The results of kernels.py as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiomamba.files import replacing
from audiomamba.plot import figure_class

PASSES = ("forward", "forward+backward")
TITLES = {
    "scan": "Selective scan: 16 real states, bfloat16, D, z, delta_bias, softplus",
    "lti": "Time-invariant scan: 8 complex pairs, bfloat16, D, z; the peer is an FFT convolution",
    "conv": "Causal convolution: width 4, bias, SiLU, bfloat16",
    "length": "Selective scan against length, and causal attention of as many channels",
    "block": "Mamba block: autocast to bfloat16; shapes are (batch, model width, time)",
}
COLUMNS = {
    "pass": "pass",
    "ms": "ms",
    "graph_ms": "ms, CUDA graph",
    "compiled_ms": "ms, torch.compile",
    "target_ms": "target ms",
    "gb_per_s": "GB/s",
    "share_of_floor": "share of the floor",
    "peak_gb": "peak GB",
    "torch_ms": "PyTorch ms",
    "mambapy_ms": "mambapy ms",
    "attention_ms": "attention ms",
    "peer_ms": "peer ms",
    "peer_peak_gb": "peer's peak GB",
    "ratio": "peer / ours",
}
LINES = {
    "ms": "selective scan, this project",
    "graph_ms": "the same in a CUDA graph",
    "torch_ms": "selective scan, PyTorch",
    "peer_ms": "selective scan, {peer}",
    "attention_ms": "attention, FlashAttention of PyTorch",
}


def table(record: dict[str, Any]) -> str:
    """Return Markdown: a table for each part; columns that nobody measured are left out."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    text = [
        f"{record['device']}, copy {record['copy_gb_per_s']:.0f} GB/s; {versions}; "
        f"{record['date']}, commit {str(record['commit'])[:10]}.",
        f"Peer: {record['peer']}, {record['peer_source']}.",
    ]
    for part, title in TITLES.items():
        rows = [row for row in record["rows"] if row["part"] == part]
        if not rows:
            continue
        keys = [key for key in COLUMNS if any(key in row for row in rows)]
        lines = [["shape", *(COLUMNS[key] for key in keys)], ["---"] * (len(keys) + 1)]
        for row in rows:
            shape = f"{row['name']} ({', '.join(map(str, row['shape']))})"
            lines.append([shape, *(cell(key, row.get(key)) for key in keys)])
        text += ["", f"{title}.", "", *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join(text)


def cell(key: str, value: float | str | None) -> str:
    """Return a share in percent, any other number in three digits without an exponent."""
    if value is None or isinstance(value, str):
        return value or ""
    if key == "share_of_floor":
        return f"{value:.0%}"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw time against length, both logarithmic, as a PNG.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    figure = figure_class()(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in record["rows"] if row["part"] == "length"]
    for key, name in LINES.items():
        points = [(row["shape"][2], row[key]) for row in rows if key in row]
        if points:
            label = name.format(peer=record["peer"])
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    channels = rows[0]["shape"][1] if rows else 0
    title = f"batch 1, {channels} channels, 16 states, bfloat16, {record['device']}"
    axes.set(xlabel="length", ylabel="milliseconds, forward", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
