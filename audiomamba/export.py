"""A run's model as a small folder of its own: config, weights and a card, to share or to ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from audiomamba import __version__, checkpoint
from audiomamba.config import ModelConfig
from audiomamba.files import replacing
from audiomamba.train_folder import BEST

CARD = "README.md"
MIXERS = {
    "s6": "Mamba (S6)",
    "lti": "Mamba, time-invariant (Mamba-S4)",
    "s4": "S4 + MLP",
    "attention": "attention + MLP",
}


def export(run: str | Path, out: str | Path, *, best: bool = False, half: bool = False) -> Path:
    """Write config.json, model.safetensors and README.md, a card that says how it was trained.

    Args:
        run: Folder of a run, or any model's.
        out: Made if it does not exist.
        best: Take the weights of the best validation, not those of the last.
        half: Store float16; half the size. They are computed with in float32 all the same.

    Returns:
        The folder.

    Raises:
        FileExistsError: If `out` holds something.
        FileNotFoundError: If there is no model yet.
        ValueError: If the model is damaged, or too large for float16.
    """
    run, out = Path(run), Path(out)
    source = run / BEST if best else run
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; name a folder that is not there yet")
    if run.is_dir() and not (source / checkpoint.CONFIG).exists():
        raise FileNotFoundError(
            f"{source} holds no model; a run writes it at a validation, and when it ends"
        )
    network = checkpoint.load(source)
    about = json.loads((source / checkpoint.CONFIG).read_text(encoding="utf-8")).get("training", {})
    dtype = torch.float16 if half else torch.float32
    parameters = sum(parameter.numel() for parameter in network.parameters())
    checkpoint.save(
        out,
        network.config,
        network.state_dict(),
        dtype=dtype,
        temperature=checkpoint.read_temperature(source),
        guard=checkpoint.read_guard(source),
        words=checkpoint.read_words(source),
        training=about,
    )
    with replacing(out / CARD) as part:
        text = card(out.absolute().name, network.config, parameters, dtype, about)
        part.write_text(text, encoding="utf-8")
    return out


def card(
    name: str, config: ModelConfig, parameters: int, dtype: torch.dtype, about: dict[str, Any]
) -> str:
    """Return a model card in Markdown.

    Args:
        name: Of the model.
        config: What defines it.
        parameters: Their number.
        dtype: As which they are stored.
        about: What is known of the training, as `checkpoint.save` was given it.
    """
    blocks, rate = [], float(config.sample_rate)
    for tier, pool in zip(config.tiers, (*config.pools, 1), strict=True):
        kind = "complex " if tier.complex else ""
        blocks.append(f"{tier.n_layers} x {kind}{MIXERS[tier.mixer]} at {rate:g} Hz")
        rate /= pool
    tokenizer = config.tokenizer
    stored = str(dtype).removeprefix("torch.")
    size = parameters * dtype.itemsize / 1e6
    rows = {
        "samples": f"{tokenizer.bits}-bit {tokenizer.encoding}, {config.sample_rate} Hz, mono",
        "shape": f"U-Net, width {config.d_model}, pooling {list(config.pools)}",
        "blocks a path": "; ".join(blocks),
        "parameters": f"{parameters / 1e6:.2f} M, stored as {stored} ({size:.1f} MB)",
    }
    training = {key: value for key, value in about.items() if value not in (None, "")}
    told = "Bits per sample are of the weights before they were rounded to float16.\n\n"
    rounded = told if dtype == torch.float16 and "validation_bits_per_sample" in training else ""
    return f"""---
library_name: audiomamba
pipeline_tag: unconditional-audio-generation
tags: [audio, autoregressive, raw-waveform]
---

# {name}

An autoregressive model of raw audio, one sample at a time. `audiomamba generate -m {name}`, in the
folder that holds this one, makes sound with it.

{_table(rows)}

## How it was trained

{rounded}{_table(training) if training else "Nothing is recorded of it."}

The data and their licence are not recorded: say here what the model was trained on, and under which
licence its weights may be used. Exported by audiomamba {__version__}.
"""


def _table(rows: dict[str, Any]) -> str:
    said = {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in rows.items()}
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in said.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])
