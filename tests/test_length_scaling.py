import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from audiomamba.recipe_results import append_result, read_results
from audiomamba.tokenizer import Tokenizer
from audiomamba.train import Outcome, count_processes
from audiomamba.train_module import choose_precision
from tests.recipes import RECIPES, load_recipe


def test_a_sweep_over_lengths_goes_on_where_it_was(tmp_path, capsys, caplog):
    sweep, out = load_recipe("length_scaling"), tmp_path / "sweep"
    common = ["--smoke", "--out", str(out), "--models", "s4-mlp", "--listen-every", "0"]
    sweep.main([*common, "--lengths", "1024", "--max-minutes", "1e-9"])
    assert "the same command goes on" in capsys.readouterr().out
    assert "no checkpoint to resume from" not in caplog.text  # the run is new
    sweep.main([*common, "--lengths", "1024"])
    sweep.main([*common, "--lengths", "1024", "2048"])
    assert capsys.readouterr().out.count("clips of 1024") == 1
    results = json.loads((out / "results.json").read_text())
    assert [(r["length"], r["batch"]) for r in results] == [(1024, 4), (2048, 2)]
    (out / "length_scaling.png").unlink()
    sweep.main(
        [*common, "--lengths", "1024", "2048", "--listen-every", "2", "--validate-every", "3"]
    )
    assert "clips of" not in capsys.readouterr().out  # these flags change no result
    assert (out / "length_scaling.png").stat().st_size > 10_000


def test_the_minutes_of_a_sweep_are_those_of_all_its_runs(tmp_path, monkeypatch):
    sweep, given = load_recipe("length_scaling"), []

    def train(model, config, resume):
        given.append(config.max_minutes)
        clock[0] += 90
        return Outcome(step=4, bits_per_sample=8.0, best_bits_per_sample=8.0, stopped=None, rank=1)

    clock = [0.0]
    monkeypatch.setattr("audiomamba.train.train", train)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    common = ["--smoke", "--out", str(tmp_path), "--models", "s4-mlp"]
    sweep.main([*common, "--lengths", "1024", "2048", "4096", "--max-minutes", "2"])
    assert given == [2, 0.5, pytest.approx(0, abs=1e-6)]
    assert given[-1] > 0


def test_a_sweep_without_lightning_says_so_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomamba.train", None)
    with pytest.raises(SystemExit, match=r"^[^\n]*audiomamba\.train[^\n]*$"):
        load_recipe("length_scaling").main(["--smoke"])


def test_sweeps_beside_each_other_keep_all_results(tmp_path, monkeypatch):
    sweep = load_recipe("length_scaling")

    def train(model, config, resume):
        append_result(tmp_path, {"model": "another's"})
        return Outcome(step=1, bits_per_sample=8.0, best_bits_per_sample=8.0, stopped=None)

    monkeypatch.setattr(
        sweep, "result", lambda *_, **__: {"training": {}, "test_bits_per_sample": 8.0}
    )
    store = types.SimpleNamespace(tokenizer=Tokenizer(), sample_rate=16000)
    config = dataclasses.replace(sweep.RECIPE.train, out=str(tmp_path / "none"))
    about = {"model": "mine", "test_seconds": None}
    sweep.run(train, sweep.MODELS["s4-mlp"], about, config, store, tmp_path, {})
    assert [x["model"] for x in read_results(tmp_path)] == ["another's", "mine"]


def test_a_point_of_other_processes_or_precision_is_another(tmp_path, monkeypatch, capsys):
    def train(model, config, resume):
        assert config.out not in folders  # which hold one run each
        folders.append(config.out)
        return Outcome(
            step=4,
            bits_per_sample=8.0,
            best_bits_per_sample=8.0,
            stopped=None,
            processes=count_processes(config),
        )

    def result(made, outcome, config, store, test_seconds):
        return {"training": {}, "processes": outcome.processes, "test_bits_per_sample": 8.0}

    def plot(axes, x, *arguments, **options):
        drawn[options["label"]] = [*x]
        return whole_plot(axes, x, *arguments, **options)

    sweep, drawn, folders, whole_plot = load_recipe("length_scaling"), {}, [], Axes.plot
    monkeypatch.setattr("audiomamba.train.train", train)
    monkeypatch.setattr(sweep, "result", result)
    monkeypatch.setattr(Axes, "plot", plot)
    common = ["--smoke", "--out", str(tmp_path), "--models", "s4-mlp"]
    for flags, made, line in (
        (["--lengths", "1024", "2048"], 2, [1024, 2048]),
        (["--lengths", "2048", "4096", "--devices", "8"], 2, [2048, 4096]),
        (["--lengths", "2048", "--precision", "bf16-mixed"], 1, [2048]),
        # What they are on a CPU.
        (["--lengths", "1024", "--precision", "32-true", "--devices", "auto"], 0, [1024, 2048]),
    ):
        sweep.main([*common, *flags])
        assert capsys.readouterr().out.count("clips of") == made, flags
        assert drawn["s4-mlp"] == line, flags


def test_published_results_are_done_on_one_gpu(monkeypatch):
    sweep = load_recipe("length_scaling")
    results = json.loads((RECIPES / "results/length_scaling.json").read_text())
    assert len(results) == len(sweep.MODELS) * len(sweep.LENGTHS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    precision = choose_precision(sweep.RECIPE.train)
    monkeypatch.setattr(sweep, "sha256", lambda path: results[0]["data"])
    store = types.SimpleNamespace(directory=Path("tokens"))
    for length in sweep.LENGTHS:
        for name, shape in sweep.MODELS.items():
            config = dataclasses.replace(
                sweep.RECIPE.train,
                steps=400,
                precision=precision,
                length=length,
                batch=round(958464 / length),
            )
            counts = []
            for processes in (1, 8):
                about = sweep.describe(name, shape, config, processes, store, None)
                counts.append(sum(about.items() <= result.items() for result in results))
            assert counts == [1, 0], (name, length)


def test_a_sweep_reads_a_file_of_flags(tmp_path, monkeypatch, capsys):
    sweep, file = load_recipe("length_scaling"), tmp_path / "flags.json"
    monkeypatch.chdir(tmp_path)
    for values, message in (
        ({"models": ["rnn"]}, "argument --models: invalid choice: 'rnn'"),
        ({"batch": 3}, "--length and --batch follow from --lengths and --samples"),
        ({"lengths": [1000], "data": "nowhere"}, "there is no folder nowhere"),
    ):
        file.write_text(json.dumps(values))
        with pytest.raises(SystemExit) as stopped:
            sweep.main(["--config", str(file)])
        assert message in capsys.readouterr().err + str(stopped.value.code)
