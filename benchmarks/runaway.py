"""How often a model runs away into noise, silence or one tone; and with a guard or other sampling.

    python benchmarks/runaway.py -m piano -n 32 --seconds 60 --settings 1 1+guard 0.95 0.95+guard
    python benchmarks/runaway.py -m digits -n 128 --seconds 1 --settings 1 1+guard 1/0.99
    python benchmarks/runaway.py -m piano -n 1024 --seconds 60 --device cuda --batch auto
    python benchmarks/runaway.py -m piano --seconds 30 --settings --data TOKENS --tag _recordings
    python benchmarks/runaway.py --smoke                     # tiny, random weights

A setting is TEMPERATURE, /TOP_P where there is a cut, +guard where a guard watches. Every setting
has the same streams of random numbers. What counts as noise is measured on the waveform, by level
and flatness (`audiomamba.drift`), where a guard looks at likelihoods alone. With --data, tokens of
recordings, all of these are counted too, in pieces as long as a run, to see what the measure says
of them. By the median level and the share of quiet seconds, of which lower temperatures make more,
runs are to be compared with recordings. Intervals are Wilson's, of 95 %.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import audiomamba
from audiomamba.arguments import count_samples
from audiomamba.audiomodel import AudioModel
from audiomamba.classifier import AudioClassifier
from audiomamba.config import Tier, unet
from audiomamba.data.tokens import TokenStore
from audiomamba.drift import LIMITS, LIMITS_OF, Limits, faults, measure
from audiomamba.files import replacing
from audiomamba.guard import Guard
from audiomamba.models.waveform import WaveformModel
from audiomamba.provenance import provenance

HERE = Path(__file__).parent
SURE = 0.9  # of a word

QUIET = -50.0  # dBFS; one second in a hundred of piano recordings is below


@dataclass(frozen=True)
class Setting:
    """How streams are drawn, and its name."""

    name: str
    temperature: float
    top_p: float | None
    guard: bool

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read TEMPERATURE[/TOP_P][+guard]."""
        found = re.fullmatch(r"([\d.]+)(?:/([\d.]+))?(\+guard)?", text)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is no TEMPERATURE[/TOP_P][+guard]")
        temperature, top_p, guard = found.groups()
        return cls(text, float(temperature), float(top_p) if top_p else None, bool(guard))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="piano")
    parser.add_argument("-n", "--num", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--settings",
        nargs="*",
        type=Setting.parse,
        help="default: temperature 1 and the model's own, without a guard and with one",
    )
    for name in ("bits", "window", "back", "tries"):
        parser.add_argument(f"--{name}", type=int if name == "tries" else float, help="the guard's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--data", type=Path, metavar="TOKENS", help="recordings to compare with")
    parser.add_argument("--words", action="store_true", help="ask the digit classifier")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results, a temporary one for --smoke"
    )
    parser.add_argument("--tag", default="", help="ends the name of the JSON file")
    parser.add_argument("--smoke", action="store_true", help="two seconds of a tiny random model")
    flags = parser.parse_args()
    if flags.smoke:
        torch.manual_seed(0)
        tiny = unet(8, 1, (4, 4), Tier(mixer="lti", d_state=4), Tier(d_state=4))
        flags.seconds, flags.num = 2.0, 2
        model = AudioModel(WaveformModel(tiny), name="smoke", validation_bits=4.0)
    else:
        model = audiomamba.load(flags.model, device=flags.device)
    limits = LIMITS_OF.get(model.name, LIMITS)
    guard = chosen_guard(model, flags)
    classifier = AudioClassifier.from_pretrained() if flags.words else None
    record: dict[str, Any] = {
        **provenance(model.device, packages=["numba"]),
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "engine": model.engine,
        "seed": flags.seed,
        "guard": asdict(guard),
        "limits": asdict(limits),
        "rows": [],
    }
    if flags.data:
        store = TokenStore(flags.data)
        row = count(pieces(store, flags.seconds), model.sample_rate, limits, classifier)
        record["rows"].append({"setting": "recordings", **row})
        report(record["rows"][-1])
    out = flags.out or (Path(tempfile.mkdtemp()) if flags.smoke else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "_", Path(model.name).name.lower() + flags.tag)
    save(record, path := out / f"runaway_{slug}.json")
    own = f"{model.temperature:g}"
    texts = dict.fromkeys(text + guard for text in ("1", own) for guard in ("", "+guard"))
    settings = [Setting.parse(text) for text in texts] if flags.settings is None else flags.settings
    if settings:
        model.generate(samples=1)  # compiles
    for setting in settings:
        record["rows"].append(run(model, setting, guard, limits, classifier, flags))
        report(record["rows"][-1])
        save(record, path)  # each row costs minutes


def pieces(store: TokenStore, seconds: float) -> Iterator[NDArray[np.float32]]:
    """Yield all files in pieces; what is left at the end of a file counts if it is all there is."""
    size = count_samples(seconds, store.sample_rate)
    for file in store.files():
        waveform = store.tokenizer.decode(store.clip(file))
        for start in range(0, max(1, len(waveform) - size + 1), size):
            yield waveform[start : start + size]


def save(record: dict[str, Any], path: Path) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def chosen_guard(model: AudioModel, flags: argparse.Namespace) -> Guard:
    """Return the model's guard, with what was asked for otherwise."""
    names = {"bits": "bits", "window": "seconds", "back": "back", "tries": "tries"}
    asked = {
        to: getattr(flags, name) for name, to in names.items() if getattr(flags, name) is not None
    }
    return Guard(**{**asdict(model.default_guard()), **asked})


def run(
    model: AudioModel,
    setting: Setting,
    guard: Guard,
    limits: Limits,
    classifier: AudioClassifier | None,
    flags: argparse.Namespace,
) -> dict[str, Any]:
    """Make the streams of a setting, and count."""
    samples, began, rewinds, bits = count_samples(flags.seconds, model.sample_rate), 0.0, [], []
    each = model.generate_each(
        samples=samples,
        num=flags.num,
        seed=flags.seed,
        temperature=setting.temperature,
        top_p=setting.top_p,
        guard=guard if setting.guard else replace(guard, tries=0),
        batch=flags.batch,
    )

    def waveforms() -> Iterable[Any]:
        for take in each:
            bits.append(take.bits_per_sample)
            rewinds.append(take.rewinds)
            yield take.waveform

    began = time.perf_counter()
    row = {"setting": setting.name, **count(waveforms(), model.sample_rate, limits, classifier)}
    row["wall_seconds"] = round(time.perf_counter() - began, 1)
    row["bits_per_sample"] = round(float(np.mean(bits)), 4)
    row["unlikely"] = share(sum(one.bad > 0 for one in rewinds), flags.num)
    row["unlikely_seconds"] = round(sum(one.bad for one in rewinds) / (samples * flags.num), 4)
    if setting.guard:
        row["rewound"] = share(sum(one.times > 0 for one in rewinds), flags.num)
        row["rewinds"] = sum(one.times for one in rewinds)
        row["drawn_anew"] = round(sum(one.samples for one in rewinds) / (samples * flags.num), 4)
    return row


def count(
    waveforms: Iterable[Any],
    sample_rate: int,
    limits: Limits,
    classifier: AudioClassifier | None,
) -> dict[str, Any]:
    """Count waveforms with each fault, seconds of noise, and those that are clearly a word."""
    seconds, found, words, runs = 0.0, [], 0, 0
    levels: list[Any] = []
    for waveform in waveforms:
        runs += 1
        seconds += len(waveform) / sample_rate
        short = max(0, sample_rate - len(waveform))
        curves = measure(np.pad(waveform, (0, short)), sample_rate)
        found.append(faults(curves, limits))
        levels.append(curves.level)
        words += classifier is not None and classifier.classify(waveform).probability > SURE
    kinds = ("noise", "silence", "tone")
    noise = [fault for faulty in found for fault in faulty if fault.kind == "noise"]
    return {
        "runs": runs,
        "seconds": round(seconds, 2),
        **{k: share(sum(any(f.kind == k for f in row) for row in found), runs) for k in kinds},
        "noisy_seconds": round(sum(fault.stop - fault.start for fault in noise) / seconds, 4),
        "median_level": round(float(np.median(np.concatenate(levels))), 2),
        "quiet": round(float(np.mean(np.concatenate(levels) < QUIET)), 4),
        **({"words": share(words, runs)} if classifier else {}),
    }


def share(count: int, of: int) -> dict[str, float]:
    """Return a count with its share and Wilson's interval of 95 %."""
    z, p = 1.959964, count / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"count": count, "share": round(p, 4), "low": round(low, 4), "high": round(high, 4)}


def report(row: dict[str, Any]) -> None:
    texts = [f"{row['setting']:<12} {row['runs']} runs"]
    for name, value in row.items():
        if isinstance(value, dict):
            low, high = value["low"], value["high"]
            texts.append(f"{name} {value['count']} ({low:.0%} to {high:.0%})")
        elif name not in ("setting", "runs", "seconds"):
            texts.append(f"{name} {value:g}")
    print(", ".join(texts), flush=True)


if __name__ == "__main__":
    main()
