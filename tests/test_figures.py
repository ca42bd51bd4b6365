"""The README's tables of generation on a GPU and of encoders are those in the results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = ROOT / "benchmarks" / "results"
RECIPES = ROOT / "recipes" / "results"
ENCODERS = {
    "mamba": "Mamba, both directions",
    "mamba-causal": "Mamba, causal",
    "gru": "GRU, both directions",
    "conformer": "Conformer (torchaudio)",
}
MODELS = {"piano": "piano", "sc09": "SC09 6.1M"}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def flat() -> str:
    """Return the README with no line breaks."""
    return " ".join(README.split())


def digits(x: float) -> str:
    """Return a number to three digits, with no exponent."""
    return f"{float(f'{x:.3g}'):g}"


def test_the_figures_of_generation_on_a_gpu() -> None:
    record = read(BENCHMARKS / "generate_nvidia_h200.json")
    assert record["errors"] == {}
    of = {
        tuple(x.get(k) for k in ("part", "model", "engine", "weights", "num_warps", "streams")): x
        for x in record["rows"]
    }
    engines = (("cuda", "float32", 8), ("cuda", "bfloat16", 8), ("triton", "float32", 4))
    for model, name in MODELS.items():
        for engine, weights, warps in engines:
            kernels = [
                of["kernel", model, engine, weights, warps, count] for count in (1, 64, 132, 4096)
            ]
            used = [of.get(("engine", model, engine, weights, None, count)) for count in (1, 64)]
            cells = [
                name,
                f"{'CUDA' if engine == 'cuda' else 'Triton'}, {weights}",
                *(digits(x["us_per_sample"]) for x in kernels),
                digits(kernels[-1]["samples_per_s"] / 1e6),
                " / ".join(f"{x['real_time_factor']:.3g} s" for x in used if x),
            ]
            assert row(cells) in README
    slow = of["engine", "piano", "torch", "float32", None, 1]
    seconds = f"{slow['real_time_factor']:.0f} s for a second of `piano`"
    assert f"take {seconds}, by {slow['samples']} samples" in flat()
    best = max(x["samples_per_s"] for x in record["rows"] if x["model"] == "piano")
    assert f"makes {best / 1e6:.1f} million from bfloat16" in flat()


def test_what_is_said_of_targets_is_so() -> None:
    rows = read(BENCHMARKS / "generate_nvidia_h200.json")["rows"]
    took = {
        (x["model"], x["weights"], x["streams"]): x["real_time_factor"]
        for x in rows
        if (x["part"], x["engine"]) == ("engine", "cuda")
    }
    for weights in ("float32", "bfloat16"):
        assert took["piano", weights, 1] <= 0.5
        assert took["piano", weights, 64] <= 1
    assert max(took["sc09", "bfloat16", count] for count in (1, 64)) <= 1
    late = [f"{100 * took['sc09', 'float32', count] - 100:.0f}" for count in (1, 64)]
    assert f"it is {' and '.join(late)} % too slow" in flat()
    alone = [
        x["us_per_sample"]
        for x in rows
        if (x["part"], x["model"], x["engine"], x["weights"], x.get("num_warps"))
        == ("kernel", "sc09", "cuda", "float32", 8)
        and x["streams"] <= 64
    ]
    assert max(alone) < 62.5
    memory = read(BENCHMARKS / "memory_piano_nvidia_h200.json")
    for x in memory["rows"]:
        held = memory["streams"] * x["bytes_per_stream"]
        assert f"64 streams hold {held / 1e6:.0f} MB" in README


def percent(results: Sequence[Any], key: str) -> str:
    """Return mean and standard deviation over three seeds."""
    assert [x["seed"] for x in results] == [0, 1, 2]
    values = [x["percent"][key] for x in results]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def test_the_figures_of_encoders() -> None:
    words, strings = read(RECIPES / "spoken_digits.json"), read(RECIPES / "asr_ctc.json")
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    rates = []
    for model, name in ENCODERS.items():
        cells = [name]
        for end in ("mel", "waveform"):
            of = [x for x in words if (x["model"], x["front_end"]) == (model, end)]
            cells.append(percent(of, "test"))
        of = [x for x in strings if x["model"] == model]
        cells += [percent(of, key) for key in ("test", "unseen")] if of else ["", ""]
        assert row(cells) in README
        rates += [cells[3].split()[0]] if of else []
        if model == "mamba-causal":
            assert all(x["percent"]["streamed alike"] == 100 for x in of)
    assert f"means over seeds: {', '.join(rates)} %" in page
    assert all(x["hold_out"] == ["fsddtheo"] for x in strings)
    for x in words[:1]:
        test, unseen = (x["clips_of"][split] for split in ("test", "unseen"))
        assert f"of {test} test clips, all but {unseen} by" in flat()
    for x in strings[:1]:
        test, unseen = (x["clips_of"][split] for split in ("test", "unseen"))
        assert f"of {test} clips, of which {unseen} are by" in flat()


def test_the_figures_of_time_against_length() -> None:
    without = read(BENCHMARKS / "encoder_nvidia_h200.json")["rows"]
    trained = read(BENCHMARKS / "encoder_train_nvidia_h200.json")["rows"]
    forward: dict[str, dict[float, float]] = {}
    for model in ("mamba", "mamba-causal", "conformer"):
        forward[model] = {x["seconds"]: x["ms"] for x in without if x["model"] == model}
        both = [
            {x["seconds"]: x for x in rows if x["model"] == model} for rows in (without, trained)
        ]
        cells = [
            ENCODERS[model],
            *(" / ".join(f"{x[s]['ms']:.0f}" for x in both) for s in (1, 10, 60, 300, 600)),
            " / ".join(f"{x[600]['peak_gb']:.2f}" for x in both) + " GB",
        ]
        assert row(cells) in README
    both_ways, attention = forward["mamba"], forward["conformer"]
    ratios = [both_ways[s] / attention[s] for s in both_ways if s <= 60]
    ratios += [forward["mamba-causal"][s] / attention[s] for s in both_ways if s <= 60]
    assert round(min(ratios)) >= 2
    assert round(max(ratios)) <= 4
    assert round(attention[600] / both_ways[600]) == 3
