"""How well models predict a test split, in bits per sample, beside models made of counts.

audiomamba prepare AUDIO TOKENS
python benchmarks/bits_per_sample.py TOKENS [-m MODEL ...] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import audiomamba
from audiomamba import baselines
from audiomamba.data.tokens import TokenStore
from audiomamba.evaluate import evaluate
from audiomamba.provenance import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokens", type=Path, help="folder made by audiomamba prepare")
    parser.add_argument("-m", "--model", action="append", help="default: piano; may be repeated")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    store = TokenStore(flags.tokens)
    bits = {
        "histogram (order 0)": baselines.order0_bits(store, flags.split),
        "two samples of context (order 2)": baselines.order2_bits(store, flags.split),
        "linear prediction (order 32)": baselines.linear_prediction_bits(store, flags.split),
    }
    for name in flags.model or ["piano"]:
        network = audiomamba.load(name, device=flags.device).network
        bits[name] = evaluate(network, store, flags.split)
    for name, value in bits.items():
        print(f"{name:34s} {value:.3f}")
    result = {
        "split": flags.split,
        "samples": sum(file.samples for file in store.files(flags.split)),
        "bits_per_sample": {name: round(value, 4) for name, value in bits.items()},
        **provenance(flags.device),
    }
    if flags.json:
        flags.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
