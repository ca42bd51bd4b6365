"""What the README says is tried: its commands (made short), its Python, its links, its figures."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import audio, checkpoint
from audiomamba.cli import main
from audiomamba.config import ModelConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KERNELS = (ROOT / "kernels/README.md").read_text(encoding="utf-8")
TEXT = re.sub(r"```.*?```", "", README, flags=re.S)  # without its code
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^    (\S.*)$", TEXT, re.M)]
PYTHON = re.findall(r"```python\n(.*?)```", README + KERNELS, re.S)
TINY = re.search(r"`(--preset tiny[^`]*)`", README)


def apart(*words: str, folder: Path) -> None:
    """Run Python in a folder, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of this project in this process, which has imported all it needs."""
    first, *words = shlex.split(command)
    if first == "audiomamba":
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0, command
    else:
        assert first == "python"
        script = str(ROOT / words[0])
        monkeypatch.setattr(sys, "argv", [script, *words[1:]])
        runpy.run_path(script, run_name="__main__")


def short(command: str) -> str:
    """Ask for a tenth of a second after half a one, whatever is asked for and whoever listens."""
    command = command.split(" | ")[0]
    command = re.sub(r" --seconds \S+", "", command)
    command = re.sub(r"(--prompt-seconds) \S+", r"\1 0.5", command)
    return f"{command} --seconds 0.1" if command.startswith("audiomamba generate") else command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, and a song to go on from."""
    place = tmp_path_factory.mktemp("readme")
    (place / "RECORDINGS").mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        t = np.arange(16000) / 16000
        wave = 0.3 * np.sin(2 * np.pi * 110 * (i + 1) * t) * np.exp(-3 * t)
        wave += 0.01 * random.standard_normal(len(t))
        audio.write(place / "RECORDINGS" / f"{i}.wav", wave.astype(np.float32), 16000)
    audio.write(place / "song.flac", wave.astype(np.float32), 16000)
    return place


def test_the_two_commands_come_first() -> None:
    assert COMMANDS[0] == "pip install -e . && audiomamba generate --seconds 60"
    assert COMMANDS[1] == 'pip install -e ".[test]" && pytest'


@pytest.mark.slow
def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert TINY is not None
    runs = [line.removeprefix("pip install -e . && ") for line in COMMANDS]
    runs = [line for line in runs if not line.startswith("pip ")]
    runs.sort(key=lambda line: "runs/mine" in line and "--data" not in line)  # train, then speak
    ran = []
    for command in runs:
        tried = short(command)
        if tried == "audiomamba doctor":  # which imports every extra
            apart("-m", *tried.split(), folder=folder)
        elif tried.startswith("python recipes"):
            call(f"{tried} {TINY[1].replace('20', '2')}", monkeypatch)
        else:
            call(tried, monkeypatch)
        ran.append(tried.split()[1])
    assert set(ran) == {
        "generate",
        "doctor",
        "prepare",
        "evaluate",
        "export",
        "encode",
        "classify",
        "recipes/youtubemix.py",
    }
    assert (folder / "out").is_dir()
    assert len(list((folder / "out").glob("*.wav"))) == 4
    assert list(folder.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_the_python_runs(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for toolkit in ("speechbrain", "transformers"):
        if toolkit in PYTHON[block] and importlib.util.find_spec(toolkit) is None:
            pytest.skip(f"{toolkit} is not installed")
    if "speechbrain" in PYTHON[block]:  # which leaves modules that break when others look at them
        apart("-c", PYTHON[block], folder=tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[block], "README.md", "exec"), {})


def test_what_the_layer_s_comment_says_is_so() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(compile(PYTHON[1], "README.md", "exec"), names)
    whole, _ = names["layer"](names["x"])
    torch.testing.assert_close(names["rest"], whole[:, 700:], rtol=1e-4, atol=1e-5)


def test_the_commands_behind_the_figures_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quoted = re.findall(r"`((?:python|pytest) [^`]*)`", README)
    monkeypatch.chdir(folder)
    call("audiomamba prepare RECORDINGS TOKENS", monkeypatch)
    scores = next(c for c in quoted if "bits_per_sample.py" in c)
    call(scores + " --json bits.json", monkeypatch)
    assert "piano" in capsys.readouterr().out
    assert json.loads((folder / "bits.json").read_text())["bits_per_sample"]["piano"] > 0
    sizes = next(c for c in quoted if c.startswith("pytest tests"))
    tests, name = sizes.removeprefix("pytest ").split(" -k ")
    assert any(name in x.read_text("utf-8") for x in (ROOT / tests).glob("test_*.py"))


def test_the_figures_are_those_in_the_results() -> None:
    speed = json.loads((ROOT / "benchmarks" / "generate_cpu.json").read_text())
    for name, result in speed["engines"].items():
        assert f"{result['real_time_factor']:.3g}" in README, name
    digits = json.loads((ROOT / "benchmarks/results/generate_cpu_digits.json").read_text())
    config = checkpoint.read_config(checkpoint.find("digits"))
    assert ModelConfig.from_dict(digits["config"]) == config  # of the model that ships
    factor = digits["engines"]["numba"]["real_time_factor"]
    assert f"**{factor:.3f} s**" in README
    results = {"piano": "bits_per_sample.json", "digits": "results/bits_per_sample_digits.json"}
    for model, file in results.items():
        scores = json.loads((ROOT / "benchmarks" / file).read_text())["bits_per_sample"]
        card = (ROOT / "audiomamba" / "weights" / model / "README.md").read_text()
        assert all(f"{value:.3f}" in card for value in scores.values()), card
        assert f"{scores[model]:.3f}" in README


def kernels() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return what was measured of each part, shape and pass; the first of equal ones is real."""
    result = ROOT / "benchmarks" / "results" / "kernels_nvidia_h100_80gb_hbm3.json"
    measured = {}
    for x in json.loads(result.read_text())["rows"][::-1]:
        part = "lti block" if x["name"] == "time-invariant, complex" else x["part"]
        measured[part, str(tuple(x["shape"])), x["pass"]] = x
    return measured


def test_the_kernels_figures_are_those_in_the_results() -> None:
    measured = kernels()
    parts = {
        "selective scan": "scan",
        "time-invariant scan": "lti",
        "causal convolution": "conv",
        "Mamba block, real": "block",
        "Mamba block, time-invariant": "lti block",
    }
    lines = [
        line for line in README.splitlines() if line.startswith(tuple(f"| {p}" for p in parts))
    ]
    shown = set()
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        part = next(parts[name] for name in parts if cells[0].startswith(name))
        shown.add((part, cells[1]))
        keys = ("graph_ms", "ms", "compiled_ms", "peer_ms")
        for cell, key in zip(cells[2:], keys, strict=True):
            both = [measured[part, cells[1], p].get(key) for p in ("forward", "forward+backward")]
            if not cell:  # an FFT convolution, beside the time-invariant scan, is told of below
                assert None in both or (part, key) == ("lti", "peer_ms"), line
                continue
            assert cell == " / ".join(f"{x:.3g}" for x in both), line
    assert {x[:2] for x in measured if x[0] in ("block", "lti block")} <= shown


def test_the_figures_of_the_kernels_page_are_those_in_the_results() -> None:
    minute = "(1, 128, 958464)"

    def both(part: str, key: str) -> str:
        passes = ("forward", "forward+backward")
        return " / ".join(f"{measured[part, minute, p][key]:.3g}" for p in passes)

    measured = kernels()
    page = " ".join(KERNELS.split())
    assert f"{both('scan', 'ms')}, and {both('scan', 'graph_ms')} in a CUDA graph" in page
    lti = " | ".join(both("lti", key) for key in ("floor_ms", "graph_ms", "ms"))
    assert f"| 18cc44c | {lti} |" in page
    assert f"The targets are {both('lti', 'target_ms')}." in page
    assert f"takes {both('conv', 'graph_ms')} ms in a CUDA graph" in page
    waits = [x for x in measured.values() if x.get("ms", 0) > 1.5 * x.get("graph_ms", 1e9)]
    forward, whole = (
        [x["ms"] for x in waits if x["part"] in ("scan", "length") and x["pass"] == which]
        for which in ("forward", "forward+backward")
    )
    times = f"{min(forward):.2f} to {max(forward):.2f} ms forward and {min(whole):.1f}"
    assert f"{times} to {max(whole):.1f} forward and backward" in page


def test_where_the_peer_is_faster_is_said() -> None:
    measured = kernels()
    said = README[README.index("Called from Python, `mamba_ssm` is faster") :].split("Short")[0]
    slower = {
        shape
        for (part, shape, _), x in measured.items()
        if part in ("scan", "block") and x["ms"] > x.get("peer_ms", x["ms"])
    }
    assert set(re.findall(r"\([\d, ]+\)", said)) == slower
    for (part, *_), x in measured.items():
        if part == "scan":
            assert x["graph_ms"] <= x["peer_ms"]
    blocks = [x for (part, *_), x in measured.items() if part in ("block", "lti block")]
    worse = sum(x["compiled_ms"] > 1.01 * x["ms"] for x in blocks)
    assert f"makes {worse} of\ntheir {len(blocks)} figures worse by more than 1 %" in README
    minute = measured["block", "(1, 64, 958464)", "forward+backward"]
    peaks = f"{minute['peak_gb']:.2f} GB,\nthat of `mamba_ssm` {minute['peer_peak_gb']}. "
    assert peaks in README


def test_the_figures_of_recipes_are_those_in_the_results() -> None:
    results = ROOT / "recipes" / "results"
    page = (results / "README.md").read_text("utf-8")
    for pair in ("s4-mha", "s4-s4", "s4-mamba", "mamba-mha", "mamba-s4", "mamba-mamba"):
        result = json.loads((results / f"sc09_{pair}.json").read_text())
        assert (result["preset"], result["steps"]) == (pair, 600)
        words = {"s4": "S4 + MLP", "mamba": "Mamba", "mha": "attention"}
        cells = [*(words[name] for name in pair.split("-"))]
        bits = f"{result['test_bits_per_sample']:.3f}"
        assert f"| {' | '.join([*cells, bits])} |" in README
        line = next(x for x in page.splitlines() if f"sc09_{pair}.json" in x)
        assert f" {bits} " in line
    for seed in range(3):
        name = "induction_heads_mamba" + (f"_seed{seed}" if seed else "")
        result = json.loads((results / f"{name}.json").read_text())
        assert (result["seed"], result["steps"]) == (seed, 24576)
        score = {test["length"]: test["accuracy"] for test in result["test"]}
        lengths = (256, 4096, 8192, 16384, 65536, 262144, 1048576)
        cells = [f"seed {seed}", *(f"{score[length]:.1f}" for length in lengths)]
        assert f"| {' | '.join(cells)} |" in README


def test_the_figures_of_training_are_those_in_the_results() -> None:
    results = ROOT / "benchmarks" / "results"
    for devices, suffix in ((1, ""), (2, "_x2")):
        record = json.loads((results / f"train_nvidia_h100_80gb_hbm3{suffix}.json").read_text())
        assert (record["devices"], record["errors"]) == (devices, {})
        for row in record["rows"]:
            line = next(
                x
                for x in README.splitlines()
                if f"| {row['batch']} x {row['length']}" in x
                and ("of real S6" in x) == (row["setting"] == "youtubemix-real")
            )
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert cells[2 + devices] == f"{row['samples_per_s'] / 1e6:.3g}", line
            assert devices == 2 or cells[2] == f"{row['peak_gb']:.1f} GB", line


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "samples/README.md",
        "audiomamba/weights/piano/README.md",
        "audiomamba/weights/digits/README.md",
        "recipes/results/README.md",
        "audiomamba/weights/digit_classifier/README.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_results_of_recipes_say_what_made_them() -> None:
    folder = ROOT / "recipes" / "results"
    page = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text())
        made = result if isinstance(result, list) else [result]
        for key in ("command", "commit", "device", "seed", "versions"):
            assert all(one.get(key) is not None for one in made), f"{path.name}: {key}"
        assert not any("dirty" in one["commit"] for one in made), path.name
        assert path.name in page, path.name
        assert path.with_suffix(".png").exists(), path.name


def test_the_map_names_every_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in (ROOT / "audiomamba", ROOT / "kernels" / "audiomamba_kernels"):
        for path in package.rglob("*.py"):
            name = str(path.relative_to(package))
            known = f"`{name}`" in text or f"`{path.parent.name}/`" in text
            assert known or path.name.startswith("__"), f"{name} is not in ARCHITECTURE.md"
