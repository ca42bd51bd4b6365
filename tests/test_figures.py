"""The README's tables of generation on a GPU, of runaway noise and of encoders are as measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from audiomamba.drift import LIMITS_OF, faults, measure

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
    if not record["complete"]:
        assert "The run reached its time limit" in flat()
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
    host = of["engine", "piano", "numba", "float32", None, 1]
    text = f"slower: {host['us_per_sample']:.1f} microseconds, {host['real_time_factor']:.3f} s"
    assert text in flat()
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
    assert f"SC09's shape is {' and '.join(late)} % too slow" in flat()
    alone = {
        x["weights"]: x["us_per_sample"]
        for x in rows
        if (x["part"], x["model"], x["engine"], x.get("num_warps"), x["streams"])
        == ("kernel", "sc09", "cuda", 8, 1)
    }
    saved = alone["float32"] - alone["bfloat16"]
    assert f"save {saved:.0f} of its {alone['float32']:.0f} microseconds" in flat()
    assert 0.4 < 2 * saved / alone["float32"] < 0.6  # half the bytes: all would save twice that
    memory = read(BENCHMARKS / "memory_piano_nvidia_h200.json")
    held = {f"{x['bytes_per_stream'] / 1e3:.0f} kB" for x in memory["rows"]}
    assert len(held) == 1
    assert f"A stream holds {held.pop()}, after a second as after five minutes" in flat()
    assert (memory["rows"][0]["seconds"], memory["rows"][-1]["seconds"]) == (1, 300)


def test_the_figures_of_runaway_noise() -> None:
    for model, temperatures in (
        ("piano", ("1", "0.99")),
        ("piano_0995", ("0.995",)),
        ("digits", ("1", "0.95")),
    ):
        record = read(BENCHMARKS / f"runaway_{model}.json")
        of = {x["setting"]: x for x in record["rows"]}
        model = record["model"]
        for temperature in temperatures:
            without, guarded = of[temperature], of[f"{temperature}+guard"]
            length = without["seconds"] / without["runs"]
            cells = [f"{model}, {temperature}", f"{without['runs']} of {length:g} s"]
            for x in (without, guarded):
                noise = x["noise"]
                cells.append(
                    f"{noise['count']} ({100 * noise['low']:.0f} to {100 * noise['high']:.0f} %)"
                )
            cells.append(f"{guarded['rewound']['count']} runs")
            cells.append(f"{100 * guarded['drawn_anew']:.1f} %")
            words = [x["words"]["count"] for x in (without, guarded) if "words" in x]
            text = row([*cells, ", ".join(map(str, words))])
            assert text.replace("|  |", "| |") in README
        assert record["commit"][:7] in flat()
    files = ("runaway_piano.json", "runaway_piano_0995.json")
    of = {x["setting"]: x for file in files for x in read(BENCHMARKS / file)["rows"]}
    for temperature in ("1", "0.995", "0.99"):
        without, guarded = (100 * of[temperature + end]["noisy_seconds"] for end in ("", "+guard"))
        said = f"{without:.1f} % of the time is noise without and {guarded:.2f} % with"
        assert f"t {temperature}, {said}" in flat()
    up = [words_of(of[f"{temperature}+guard"]["unlikely"]["count"]) for temperature in (1, 0.995)]
    assert f"gave up, and of piano {up[0]} did at temperature 1 and {up[1]} at 0.995" in flat()
    assert f"{of['0.995+guard']['silence']['count']} of the 256 guarded runs fell silent" in flat()
    (real,) = read(BENCHMARKS / "runaway_piano_recordings.json")["rows"]
    low, high = (100 * real["noise"][end] for end in ("low", "high"))
    cells = [f"{real['runs']} of 30 s", f"{real['noise']['count']} ({low:.0f} to {high:.0f} %)"]
    assert f"| recordings of piano | {' | '.join(cells)} |" in README
    card = (ROOT / "audiomamba" / "weights" / "piano" / "README.md").read_text(encoding="utf-8")
    rows = [("recordings", real)]
    for where in ("", "_0995", "_cpu"):
        of = read(BENCHMARKS / f"runaway_piano{where}.json")["rows"]
        rows += [(x["setting"], x) for x in of if x["setting"].endswith("+guard")]
    assert len(rows) == 8
    for setting, x in rows:
        counts = [str(x[kind]["count"]) for kind in ("noise", "silence", "tone")]
        mean = [f"{x['median_level']:.1f} dBFS", f"{100 * x['quiet']:.1f} %"]
        assert row([setting.removesuffix("+guard"), str(x["runs"]), *counts, *mean]) in card


def test_what_is_said_of_long_generations_is_so() -> None:
    record = read(BENCHMARKS / "drift_piano.json")
    found, none = (x["faults"] for x in record["generated"])
    said = [f"{x['kind']} from {x['start']:g} to {x['stop']:g} s" for x in found]
    assert f"one had {' and '.join(said)}, and came back from both" in flat()
    assert {x["kind"] for x in found} == {"noise", "silence"}
    assert (none, record["recordings"]["faults"]) == ([], [])
    assert record["commit"][:7] in flat()
    limits = read(BENCHMARKS / "runaway_piano.json")["limits"]
    assert record["limits"] == limits
    levels = [x["percentiles"]["level"]["50"] for x in (*record["generated"], record["recordings"])]
    quieter = [f"{levels[2] - x:.1f}" for x in levels[:2]]
    assert f"They are {quieter[0]} and {quieter[1]} dB quieter" in flat()


def test_what_is_said_of_clear_digits_is_so() -> None:
    lines = (BENCHMARKS / "digits_heard.jsonl").read_text(encoding="utf-8").splitlines()
    sure = [json.loads(line)["probability"] for line in lines]
    clear, fair, likely = (sum(x >= least for x in sure) for least in (0.95, 0.9, 0.7))
    card = (ROOT / "audiomamba" / "weights" / "digits" / "README.md").read_text(encoding="utf-8")
    said = f"95 % sure of its word in {clear}, 90 % in {fair}, and 70 % in {likely}"
    assert f"Of the {len(sure)} clips" in " ".join(card.split())
    assert said in " ".join(card.split())


def words_of(number: int) -> str:
    """Return a small number in words."""
    return ["none", "one", "two", "three", "four", "five"][number]


def test_the_figures_of_the_sweep_over_lengths() -> None:
    results = read(RECIPES / "length_scaling.json")
    assert {x["steps"] for x in results} == {400}
    assert all(0.945e6 < x["samples"] / x["steps"] < 0.985e6 for x in results)
    lengths = sorted({x["length"] for x in results})
    assert len(lengths) == 8
    bits = {(x["model"], x["length"]): x["test_bits_per_sample"] for x in results}
    for model, name in (
        ("s4-mlp", "S4 + MLP"),
        ("mamba-complex", "Mamba, complex"),
        ("mamba-s4-outside", "Mamba-S4 outside, complex Mamba in the centre"),
    ):
        assert row([name, *(f"{bits[model, x]:.3f}" for x in lengths)]) in README
        mine = [bits[key] for key in sorted(bits) if key[0] == model]
        assert min(mine) == mine[0]  # shorter clips are better
    better = [bits["s4-mlp", x[1]] - bits[x] for x in bits if x[0] != "s4-mlp"]
    assert f"better than S4 + MLP by {min(better):.2f} to {max(better):.2f} bits" in flat()
    assert len(bits) == 24


def test_the_figure_of_piano_is_that_of_its_weights() -> None:
    result = read(RECIPES / "youtubemix_piano.json")
    bits = result["test_bits_per_sample"]
    assert f"| {bits:.4f} bits per sample on test clips |" in (RECIPES / "README.md").read_text(
        "utf-8"
    )
    shipped = read(ROOT / "audiomamba" / "weights" / "piano" / "config.json")["training"]
    assert all(shipped[key] == value for key, value in result["training"].items())
    assert (shipped["step"], shipped["samples"]) == (result["steps"], result["samples"])
    of_test = read(ROOT / "benchmarks" / "bits_per_sample.json")["bits_per_sample"]["piano"]
    assert abs(of_test - bits) < 1e-3  # stored as float16


def test_the_figures_of_s4_with_as_many_samples_as_piano_had() -> None:
    result = read(RECIPES / "youtubemix_s4-mlp.json")
    bits = result["test_bits_per_sample"]
    assert f"youtubemix_s4-mlp.json)) | {bits:.3f} |" in README
    assert f"{bits:.3f} bits per sample on test clips" in (RECIPES / "README.md").read_text("utf-8")
    assert result["samples"] == 50_000 * 4 * 65536  # as of the first piano, which its card says
    card = (ROOT / "audiomamba" / "weights" / "piano" / "README.md").read_text(encoding="utf-8")
    assert "--batch 4 --length 65536 --steps 50000" in card
    second = read(RECIPES / "youtubemix_s4-mlp_half-minutes.json")
    piano = read(RECIPES / "youtubemix_piano.json")
    others = ("start", "steps", "batch", "devices", "strategy", "max_minutes")
    for key, value in piano["training"].items():
        assert key in others or second["training"][key] == value
    for key in ("steps", "samples"):
        assert second[key] == piano[key]
    later = second["test_bits_per_sample"]
    assert f"youtubemix_s4-mlp_half-minutes.json)) | {later:.3f} |" in README
    worse = [bits - first_piano(), later - piano["test_bits_per_sample"]]
    assert f"{worse[0]:.3f} bits worse than `piano` after the first" in flat()
    assert f"and {worse[1]:.3f} after the second" in flat()


def first_piano() -> float:
    """Return the bits of the first weights, which its commit's table has."""
    (line,) = (x for x in README.splitlines() if "`piano` as it first shipped" in x)
    return float(line.split("|")[2])


def test_the_figures_of_selective_copying() -> None:
    for preset, name in (("mamba", "Mamba"), ("s4", "S4 + MLP")):
        result = read(RECIPES / f"selective_copying_{preset}.json")
        assert (result["steps"], result["seed"]) == (16_000, 0)
        course = {x["step"]: x["accuracy"] for x in result["validation"]}
        (test,) = result["test"]
        assert test["length"] == 4096
        cells = [course[4000], course[8000], test["accuracy"], test["paper"]]
        assert row([name, *(f"{x:.1f}" for x in cells)]) in README
        fell = f"({course[11000]:.1f} after 11,000 steps)" in flat()
        assert fell == (preset == "mamba")


def test_the_figures_of_whole_passes_of_the_time_invariant_scan() -> None:
    of: dict[str, list[Any]] = {}
    for x in read(BENCHMARKS / "kernels_nvidia_h200_lti.json")["rows"]:
        of.setdefault(x["name"], []).append(x)
    page = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    for name, states in (("one minute", "16, with a gate"), ("S4", "64")):
        cells = [f"{tuple(of[name][0]['shape'])}, {states}"]
        for key in ("graph_ms", "ms", "peer_ms"):
            cells.append(" / ".join(f"{x[key]:#.3g}" for x in of[name]))
        assert row(cells) in page


def percent(results: Sequence[Any], key: str) -> str:
    """Return mean and standard deviation over three seeds."""
    assert [x["seed"] for x in results] == [0, 1, 2]
    values = [x["percent"][key] for x in results]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def test_the_figures_of_encoders() -> None:
    words = read(RECIPES / "spoken_digits.json")
    for model, name in ENCODERS.items():
        cells = [name]
        for end in ("mel", "waveform"):
            of = [x for x in words if (x["model"], x["front_end"]) == (model, end)]
            cells.append(percent(of, "test"))
        assert row(cells) in README
    for x in words:
        test, unseen = (x["clips_of"][split] for split in ("test", "unseen"))
        assert f"of {test} test clips, all but {unseen} by" in flat()
        assert x["commit"] in flat()


def test_the_figures_of_strings_by_speakers_held_out() -> None:
    strings = read(RECIPES / "asr_ctc.json")
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    speakers = sorted({x["hold_out"][0] for x in strings})
    head = [name.removeprefix("fsdd") for name in speakers]
    assert f"| speakers seen | unseen: {' | '.join(head)} | mean of six |" in README
    rates: dict[str, list[float]] = {}
    for model in ("mamba", "mamba-causal", "conformer"):
        of = [x for x in strings if x["model"] == model]
        assert [(x["hold_out"], x["seed"]) for x in of] == [([name], 0) for name in speakers]
        assert all(x["percent"].get("streamed alike", 100) == 100 for x in of)
        assert all(x["clips_of"]["unseen"] == 530 and x["commit"] == "c49966f" for x in of)
        rates[model] = [x["percent"]["unseen"] for x in of]
        seen = statistics.mean(x["percent"]["seen"] for x in of)
        cells = [f"{x:.1f}" for x in (seen, *rates[model], statistics.mean(rates[model]))]
        assert row([ENCODERS[model], *cells]) in README
    best = [min(rates, key=lambda model: rates[model][i]) for i in range(len(speakers))]
    assert (best.count("mamba"), best.count("conformer")) == (3, 3)
    means = ", ".join(f"{statistics.mean(of):.1f}" for of in rates.values())
    assert f"means over speakers: {means} %" in page


def test_the_figures_of_time_against_length() -> None:
    without = read(BENCHMARKS / "encoder_nvidia_h200.json")["rows"]
    trained = read(BENCHMARKS / "encoder_train_nvidia_h200.json")["rows"]
    of: dict[str, list[dict[float, float]]] = {}
    for model in ("mamba", "mamba-causal", "conformer"):
        both = [
            {x["seconds"]: x for x in rows if x["model"] == model} for rows in (without, trained)
        ]
        of[model] = [{seconds: x["ms"] for seconds, x in rows.items()} for rows in both]
        cells = [
            ENCODERS[model],
            *(" / ".join(f"{x[s]['ms']:.0f}" for x in both) for s in (1, 10, 60, 300, 600)),
            " / ".join(f"{x[600]['peak_gb']:.2f}" for x in both) + " GB",
        ]
        assert row(cells) in README
    mambas = of["mamba"], of["mamba-causal"]
    ranges = []
    for i in range(2):
        attention = of["conformer"][i]
        ratios = [x[i][s] / attention[s] for x in mambas for s in attention if s <= 60]
        ranges.append(f"{min(ratios):.1f} to {max(ratios):.1f} times")
    assert f"the Conformer is {ranges[0]} as fast, {ranges[1]} with gradients" in flat()
    assert round(of["conformer"][0][600] / of["mamba"][0][600]) == 3
    spread = max(max(x.values()) / min(x.values()) for both in mambas for x in both)
    assert f"by up to {100 * spread - 100:.0f} %" in flat()


def test_what_is_said_of_the_faults_of_samples_is_so() -> None:
    said = " ".join((ROOT / "samples" / "README.md").read_text(encoding="utf-8").split())
    for i, words in enumerate(
        (
            [],
            [],
            [("tone", "`piano_7_2` holds a tone from 21 to 29 s")],
            [("noise", "has noise from 3 to 5 s"), ("silence", "is silent from 8 to 13 s")],
        )
    ):
        waveform, rate = soundfile.read(ROOT / "samples" / f"piano_7_{i}.ogg", dtype="float32")
        found = faults(measure(waveform, rate), LIMITS_OF["piano"])
        for fault, (kind, text) in zip(found, words, strict=True):
            assert fault.kind == kind
            assert text.endswith(f"from {fault.start:g} to {fault.stop:g} s")
            assert text in said
