import dataclasses
import json
import re
import runpy
import shlex
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiomamba import checkpoint
from audiomamba.data.tokens import TokenStore
from audiomamba.evaluate import evaluate
from audiomamba.files import sha256
from audiomamba.flags import parse
from audiomamba.models.waveform import WaveformModel
from audiomamba.provenance import commit
from audiomamba.recipe import make_parser
from audiomamba.train import Outcome
from tests.recipes import RECIPES, load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("youtubemix")


@pytest.fixture
def _recipes_import_each_other(monkeypatch):
    """As they do when one of them is run; no other test finds what they import."""
    monkeypatch.syspath_prepend(RECIPES)
    yield
    for path in RECIPES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def audio(tmp_path):
    """Return a folder of short decaying tones at another rate than the model's."""
    t = np.arange(8000) / 8000
    for split in ("train", "validation", "test"):
        (tmp_path / "audio" / split).mkdir(parents=True)
        for i in range(2):
            tone = 0.5 * np.sin(2 * np.pi * 220 * (i + 1) * t) * np.exp(-t)
            soundfile.write(tmp_path / "audio" / split / f"{i}.wav", tone, 8000)
    return tmp_path / "audio"


def test_a_folder_of_audio_becomes_a_model_and_is_prepared_once(recipe, audio, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--data", str(audio), "--out", str(out), "--preset", "tiny", "--accelerator", "cpu"]
    common += ["--batch", "2", "--length", "1024", "--steps", "3"]
    recipe.main([*common, "--max-minutes", "1e-9"])
    said = capsys.readouterr()
    assert "step 1 of 3" in said.out
    assert "--resume" in said.out
    assert "preparing" in said.err
    recipe.main([*common, "--resume"])
    said = capsys.readouterr()
    assert re.search(r"step 3 of 3, validation \d\.\d+ bits per sample", said.out)
    assert f"audiomamba generate -m {out}" in said.out
    assert "preparing" not in said.err
    assert checkpoint.load(out).config == recipe.PRESETS["tiny"].config()
    recipe.main([*common[2:], "--data", str(out / "data"), "--out", str(tmp_path / "second")])
    values = json.loads((tmp_path / "second" / "config.json").read_text())
    assert values["training"]["step"] == 3


def test_what_was_prepared_of_other_recordings_is_not_taken(recipe, audio, tmp_path):
    out = tmp_path / "run"
    common = ["--out", str(out), "--preset", "tiny", "--accelerator", "cpu", "--length", "1024"]
    with pytest.raises(SystemExit, match="no train clip"):
        recipe.main([*common[:-1], "1048576", "--data", str(audio)])
    assert (out / "data" / "index.json").exists()
    with pytest.raises(SystemExit, match=rf"prepared from {audio}, and not from data/youtubemix"):
        recipe.main([*common, "--steps", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no access to data/youtubemix"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--outer", "rnn"], "outer is 'rnn'; choose one of mamba, mamba-complex,"),
        (["--config", "nowhere.json"], "--config nowhere.json: No such file or directory"),
        (["--config", __file__], f"--config {__file__} is no JSON: "),
        (["--data", "nowhere", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["--preset", "grand"], "invalid choice: 'grand'"),
    ],
)
def test_mistakes_end_with_one_line(recipe, tmp_path, monkeypatch, capsys, arguments, message):
    def refused(folder):
        raise PermissionError(f"no access to {folder}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "RECIPE", dataclasses.replace(recipe.RECIPE, fetch=refused))
    with pytest.raises(SystemExit) as stopped:
        recipe.main(arguments)
    said = capsys.readouterr().err + str(stopped.value.code)
    assert message in said
    assert stopped.value.code != 0
    assert not list(tmp_path.iterdir())


def test_digits_without_lists_are_refused(audio, tmp_path):
    sc09, digits, out = load_recipe("sc09"), tmp_path / "digits", tmp_path / "run"
    for word in sc09.RECIPE.only:
        shutil.copytree(audio / "train", digits / word)
    with pytest.raises(
        SystemExit, match=r"^error: .*/digits has no validation_list\.txt and [^\n]+$"
    ):
        sc09.main(["--smoke", "--data", str(digits), "--out", str(out)])
    assert not out.exists()


def parameters(shape):
    with torch.device("meta"):
        network = WaveformModel(shape.config())
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_presets_of_the_papers_have_their_sizes(recipe):
    for name, shape in recipe.PRESETS.items():
        millions = parameters(shape)
        assert millions < 1 if name in ("small", "tiny") else 3 < millions < 4.5, name
    for name, shape in load_recipe("sc09").PRESETS.items():
        millions = parameters(shape)
        if name == "24.3M":
            assert 24 < millions < 25
        elif name not in ("3.3M", "small", "tiny"):
            assert 5.5 < millions < 6.6, name


def test_a_file_of_flags_gives_way_to_flags(recipe, tmp_path):
    file = tmp_path / "flags.json"
    values = {"preset": "tiny", "batch": 3, "width": 24, "pools": [4, 4], "learning_rate": 1e-5}
    values |= {"carry-state": True, "cuda_graph": False, "compile": None, "out": "-a b"}
    file.write_text(json.dumps(values))
    parser = make_parser(recipe.RECIPE)
    flags = parse(parser, ["--config", str(file), "--batch", "5"])
    assert (flags.preset, flags.batch, flags.width, flags.pools) == ("tiny", 5, 24, [4, 4])
    assert (flags.learning_rate, flags.out) == (1e-5, "-a b")
    assert (flags.carry_state, flags.cuda_graph, flags.compile) == (True, False, None)
    assert flags.blocks is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bacth": 3}, "has 'bacth', which no file can set"),
        ({"resume": True}, "has 'resume', which no file can set"),
        ([3], "holds [3]; it must be an object of flags"),
        ({"preset": "grand"}, "argument --preset: invalid choice: 'grand'"),
        ({"batch": "many"}, "argument --batch: invalid int value: 'many'"),
        ({"batch": 2.5}, "argument --batch: invalid int value: '2.5'"),
        ({"batch": True}, "argument --batch: expected one argument"),
        ({"betas": 0.9}, "argument --betas: expected 2 arguments"),
        ({"carry_state": 1}, "carry-state: ignored explicit argument"),
    ],
)
def test_a_file_of_flags_is_checked_as_flags_are(recipe, tmp_path, capsys, values, message):
    file = tmp_path / "flags.json"
    file.write_text(json.dumps(values))
    with pytest.raises(SystemExit):
        parse(make_parser(recipe.RECIPE), ["--config", str(file)])
    said = capsys.readouterr().err
    assert message in said


@pytest.mark.parametrize(
    "name", ["youtubemix", "length_scaling", "selective_copying", "spoken_digits"]
)
@pytest.mark.parametrize(
    "flags", [["--steps", "many"], ["--config", "nowhere.json"], ["--loud"], ["--step=3"]]
)
@pytest.mark.usefixtures("_recipes_import_each_other")
def test_a_wrong_flag_is_one_line(name, flags, monkeypatch, capsys):
    script = str(RECIPES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *flags])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: [^\n]*{flags[-1]}[^\n]*; see {name}\.py --help\n", said)


def test_flags_win_over_a_smoke_run_and_that_over_a_file(recipe, tmp_path):
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({"steps": 7, "seed": 7, "preset": "s4-mlp", "out": "x"}))
    smoke = {"steps": 1, "batch": 1, "length": 1}
    arguments = ["--smoke", "--config", str(file), "--batch", "9", "--out", "here"]
    flags = parse(make_parser(recipe.RECIPE), arguments, smoke)
    assert (flags.preset, flags.length, flags.steps, flags.batch) == ("s4-mlp", 1, 1, 9)
    assert (flags.seed, flags.out) == (7, "here")


def test_a_smoke_run_of_several_processes_needs_a_folder(recipe, capsys):
    with pytest.raises(SystemExit):
        parse(make_parser(recipe.RECIPE), ["--smoke", "--devices", "2"], {"devices": "1"})
    assert "needs --out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("youtubemix", ["--width", "8"]),
        ("sc09", ["--preset", "s4-mha"]),
        ("length_scaling", ["--models", "mamba-complex", "s4-mlp"]),
        ("selective_copying", ["--batch", "3"]),
        ("induction_heads", ["--preset", "attention"]),
        ("spoken_digits", ["--front-end", "waveform"]),
        ("asr_ctc", ["--seeds", "3"]),
    ],
)
@pytest.mark.usefixtures("_recipes_import_each_other")
def test_a_smoke_run_tries_everything(name, flags, tmp_path, monkeypatch):
    """In a new folder, and without a trace elsewhere."""
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(here)
    script = str(RECIPES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--smoke", *flags])
    runpy.run_path(script, run_name="__main__")
    assert not list(here.iterdir())
    (out,) = temporary.glob("smoke-*")
    results = json.loads((out / "results.json").read_text())
    for one in results if isinstance(results, list) else [results]:
        assert one["command"].endswith(shlex.join([f"{name}.py", "--smoke", *flags]))
        assert (one["commit"], one["steps"]) == (commit(), 4)
        assert one["parameters"] < 1e6
        assert one.get("samples", 1) > 0
        assert one["device"]
        assert ("torchaudio" if "percent" in one else "lightning") in one["versions"]
    if name == "length_scaling":
        tried = [(r["model"], r["length"], r["batch"], r["samples"]) for r in results]
        assert tried == [
            ("mamba-complex", 1024, 4, 4 * 4096),
            ("s4-mlp", 1024, 4, 4 * 4096),
            ("mamba-complex", 2048, 2, 4 * 4096),
            ("s4-mlp", 2048, 2, 4 * 4096),
        ]
    elif name in ("youtubemix", "sc09"):
        assert results["samples"] == 4 * 2 * 1024
        assert list((out / "listen").glob("*.wav"))
    picture = {"length_scaling": "length_scaling.png"}.get(name, "results.png")
    assert (out / picture).exists()


def test_results_are_of_the_averaged_model_on_all_test_clips(recipe, audio, tmp_path):
    out = tmp_path / "run"
    arguments = ["--smoke", "--data", str(audio), "--out", str(out), "--seed", "3"]
    recipe.main([*arguments, "--max-minutes", "1e-9"])
    assert not (out / "results.json").exists()
    recipe.main([*arguments, "--resume"])
    results = json.loads((out / "results.json").read_text())
    network, store = checkpoint.load(out), TokenStore(out / "data")
    assert results["test_bits_per_sample"] == pytest.approx(evaluate(network, store), abs=1e-6)
    trained = json.loads((out / "config.json").read_text())["training"]
    assert results["validation_bits_per_sample"] == trained["validation_bits_per_sample"]
    assert results["data"] == sha256(store.directory / "index.json")
    assert results["parameters"] == sum(p.numel() for p in network.parameters())
    assert (results["preset"], results["seed"], results["steps"]) == ("piano", 3, 4)
    assert results["samples"] == 4 * 2 * 1024
    assert [step for step, _ in results["validation"]] == [2, 4]
    assert results["validation"][-1][1] == pytest.approx(results["validation_bits_per_sample"])


def test_a_short_validation_does_not_shorten_the_test(recipe, audio, tmp_path):
    out = tmp_path / "run"
    recipe.main(
        ["--smoke", "--data", str(audio), "--out", str(out), "--validation-seconds", "0.01"]
    )
    results = json.loads((out / "results.json").read_text())
    network, store = checkpoint.load(out), TokenStore(out / "data")
    assert results["test_seconds"] is None
    assert results["test_bits_per_sample"] == pytest.approx(evaluate(network, store), abs=1e-6)


def test_a_run_on_tokens_elsewhere_is_resumed_without_naming_them(recipe, audio, tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "second"
    recipe.main(["--smoke", "--data", str(audio), "--out", str(first)])
    small = ["--preset", "tiny", "--accelerator", "cpu", "--batch", "2", "--length", "1024"]
    small += ["--steps", "2", "--listen-every", "0", "--out", str(out)]
    recipe.main([*small, "--data", str(first / "data"), "--max-minutes", "1e-9"])
    recipe.main([*small, "--resume"])
    assert "step 2 of 2" in capsys.readouterr().out
    shutil.rmtree(first)
    with pytest.raises(SystemExit, match=r"there is no folder .*first"):
        recipe.main([*small, "--resume"])


def test_a_full_device_is_told_in_one_line(recipe, tmp_path, monkeypatch):
    def train(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore of it.")

    monkeypatch.setattr("audiomamba.train.train", train)
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--smoke", "--out", str(tmp_path)])
    assert stopped.value.code == (
        "error: CUDA out of memory. Tried to allocate 9 GiB; give a smaller --batch or --length, "
        "or --activation-checkpointing"
    )


def test_ctrl_c_before_training_is_told_in_a_word(recipe, tmp_path, monkeypatch, capsys):
    def train(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiomamba.train.train", train)
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--smoke", "--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_results_need_no_test_clips(recipe, audio, tmp_path):
    shutil.rmtree(audio / "test")
    recipe.main(["--smoke", "--data", str(audio), "--out", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_bits_per_sample"] is None
    assert results["validation_bits_per_sample"] > 0


def test_only_the_first_process_writes_results(recipe, tmp_path, monkeypatch, capsys):
    def second(*arguments, **options):
        return Outcome(
            step=4, bits_per_sample=8.0, best_bits_per_sample=8.0, stopped=None, rank=1, processes=2
        )

    monkeypatch.setattr("audiomamba.train.train", second)
    recipe.main(["--smoke", "--out", str(tmp_path)])
    assert not (tmp_path / "results.json").exists()
    assert not capsys.readouterr().out


def test_every_field_has_a_flag_with_help(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--min-learning-rate FLOAT At the end of the run (default: 1e-05)" in said
    assert "--carry-state, --no-carry-state Walk through clips" in said
    assert "--betas FLOAT FLOAT AdamW's (default: (0.9, 0.95))" in said
