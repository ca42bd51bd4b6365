"""What `audiomamba generate` does with takes: ranks, keeps, resumes, streams, shows, plays."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import audiomamba
from audiomamba import audio, checkpoint, gallery
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import launches
from audiomamba.engine.choice import open_engine
from audiomamba.engine.prompt import read_prompt
from audiomamba.guard import NOISE, Guard
from audiomamba.models.waveform import WaveformModel
from audiomamba_kernels.jit import jit
from tests.cuda_on_cpu import emulate

RATE = 16000
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    folder = tmp_path_factory.mktemp("models") / "small"
    checkpoint.save(folder, config, WaveformModel(config).state_dict())
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["generate", "-m", small, "-o", tmp_path, "--seed", 1, *arguments]
        if "--resume" in arguments:
            words = [word for word in words if word not in ("--seed", 1)]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


def record(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.with_suffix(".json").read_text())
    return found


def test_the_likeliest_are_kept_in_order(run: Run, small: Path, tmp_path: Path) -> None:
    model = audiomamba.load(small)
    bits = [model.nll(row) for row in model.generate(samples=160, num=6, seed=1)]
    best = sorted(range(6), key=lambda index: bits[index])
    code, out, err = run(
        *("--seconds", 0.01, "-n", 6, "--keep", 2, "--save-state"),
    )
    assert (code, err) == (0, "")
    kept = [tmp_path / f"small_1_{index}.wav" for index in best[:2]]
    assert out.splitlines()[1:3] == list(map(str, kept))
    assert len(list(tmp_path.iterdir())) == 6
    for rank, path in enumerate(kept, 1):
        found = record(path)
        assert (found["rank"], found["ranked"]) == (rank, 6)
        assert found["bits_per_sample"] == pytest.approx(bits[best[rank - 1]], abs=1e-4)
        assert found["file"] == path.name

    code, out, _ = run("--seconds", 0.01, "-n", 6, "--rank", "--overwrite", "--quiet")
    assert code == 0
    assert out.split() == [str(tmp_path / f"small_1_{index}.wav") for index in best]
    assert record(tmp_path / f"small_1_{best[5]}.wav")["rank"] == 6


def test_what_an_older_take_left_beside_does_not_stay(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "small_1_9.safetensors"
    run("--seconds", 0.01, "-n", 3, "--save-state")
    other.write_bytes(b"another's")
    assert run("--seconds", 0.01, "-n", 2, "--overwrite")[0] == 0
    left = {path.name for path in tmp_path.glob("*.safetensors")}
    assert left == {"small_1_2.safetensors", other.name}  # no state of sounds that are gone
    assert run("--seconds", 0.01, "-n", 3, "--keep", 1, "--overwrite")[0] == 0
    assert other.exists()


def test_a_zero_is_an_option_too(run: Run, tmp_path: Path) -> None:
    run("--seconds", 0.01, "--save-state")
    state = tmp_path / "small_1_0.safetensors"
    code, _, err = run("--seconds", 0.01, "--resume", state, "--temperature", 0)
    assert code == 2
    assert "--temperature does not go with --resume" in err


def test_a_take_goes_on_from_its_state(
    run: Run, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--seconds", 0.3, "-n", 2, "--temperature", 0.9)[0] == 0
    whole = audio.read(tmp_path / "small_1_1.wav", RATE)
    half = ("--seconds", 0.15, "-n", 2, "--temperature", 0.9, "--save-state", "--overwrite")
    assert run(*half)[0] == 0
    state = tmp_path / "small_1_1.safetensors"
    code, out, _ = run("--seconds", 0.1, "--resume", state, "--save-state")
    rest = tmp_path / "small_1_1_from_2400.wav"
    assert (code, out.splitlines()[:2]) == (0, ["seed 1", str(rest)])
    assert np.array_equal(audio.read(rest, RATE), whole[2400:4000])
    found = record(rest)
    assert (found["index"], found["temperature"]) == (1, 0.9)
    assert found["resumed"]["samples"] == 2400  # type: ignore[index]
    assert run("--seconds", 0.05, "--resume", rest.with_suffix(".safetensors"))[0] == 0
    last = audio.read(tmp_path / "small_1_1_from_4000.wav", RATE)
    assert np.array_equal(last, whole[4000:])
    model = audiomamba.load(small)
    two = model.start(num=2)
    two.save(tmp_path / "two.safetensors")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "-m", str(small), "--resume", f"{tmp_path}/two.safetensors", "--stream"])
    assert "two.safetensors holds 2" in capfd.readouterr().err
    code, _, err = run("--resume", state, "--top-k", 3)
    assert code == 2
    assert "--top-k does not go with --resume" in err
    state.write_bytes(state.read_bytes()[:50])
    code, _, err = run("--resume", state)
    assert (code, err.count("\n")) == (1, 1)
    assert "is damaged or holds no saved streams" in err


def test_weights_that_the_engine_has_not_are_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--weights", "bfloat16")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--weights bfloat16 is for a GPU alone" in err
    run("--seconds", 0.01, "--save-state")
    state = tmp_path / "small_1_0.safetensors"
    assert run("--seconds", 0.01, "--resume", state, "--weights", "float32")[0] == 0
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["facts"]) | {"weights": "bfloat16"}
        metadata = file.metadata() | {"facts": json.dumps(facts)}
    save_file(tensors, state, metadata)
    code, _, err = run("--seconds", 0.01, "--resume", state, "--overwrite")
    assert (code, err.count("\n")) == (1, 1)
    assert "weights is 'bfloat16', but the numba engine" in err


def test_a_stream_is_the_samples_of_the_file(
    small: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "-m", str(small), "--seconds", "0.5", "--seed", "1", "--stream"])
    raw, err = capfdbinary.readouterr()
    assert err == b"seed 1\n"
    with pytest.raises(SystemExit):
        main(["generate", "-m", str(small), "--seconds", "0.5", "--seed", "1", "-o", str(tmp_path)])
    written = audio.read(tmp_path / "small_1_0.wav", RATE)
    assert np.array_equal(np.frombuffer(raw, "<i2"), written * 32768)


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "wav"],
        ["--output-dir", "."],
        ["--overwrite", "--gallery", "x.html"],
        ["--spectrogram", "--rank", "--keep", "1", "--play"],
        ["--save-state"],
        ["--batch-size", "auto"],
    ],
    ids=" ".join,
)
def test_a_stream_takes_no_options_of_files(
    options: list[str], small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "-m", str(small), "--stream", *options])
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    named = err.split("it does not go with ")[1].split(";")[0].split(", ")
    assert sorted(named) == sorted(word for word in options if word.startswith("--"))


def test_a_closed_pipe_ends_in_silence(small: Path, tmp_path: Path) -> None:
    for options in ("--stream --seconds 20", f"-n 99 --seconds 0.1 -o {tmp_path} --quiet"):
        command = f"{sys.executable} -u -m audiomamba generate -m {small} {options}"
        done = subprocess.run(
            ["bash", "-c", command + " | head -c 1 > /dev/null; echo ${PIPESTATUS[0]} >&2"],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stderr.splitlines()
        assert [line for line in said if not line.startswith("seed")] == ["141"], done.stderr
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("*.wav"))) == len(list(tmp_path.glob("*.json"))) > 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of the CUDA engine, which runs on the CPU where there is no GPU."""
    if torch.cuda.is_available():
        return "cuda"
    emulate(monkeypatch)
    for module in ("engine.choice", "audiomodel"):
        monkeypatch.setattr(f"audiomamba.{module}.choose_engine", lambda network: "cuda")
    return "cpu"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for ..."),
            1,
            "error: the device failed (CUDA error: unspecified launch failure); audiomamba doctor "
            "tells what works here; 2 of 4 files are finished and kept\n",
        ),
        (
            RuntimeError("CUDA error: cuLaunchKernel: out of memory"),
            1,
            "error: the device's memory is full; free some of it, or ask for less at once; 2 of 4 "
            "files are finished and kept\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted: 2 of 4 files are finished and kept\n"),
    ],
    ids=["lost", "full", "interrupted"],
)
def test_a_gpu_that_fails_leaves_what_is_finished(
    run: Run,
    gpu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    landed, blocks = launches._landed, []

    def failing(*arguments: Any) -> Any:  # where the host waits for the device
        blocks.append(None)
        if len(blocks) == 3:
            raise error
        return landed(*arguments)

    monkeypatch.setattr(launches, "_landed", failing)
    asked = (
        "--seconds",
        0.01,
        "-n",
        4,
        "--batch-size",
        1,
        "--save-state",
        "--rank",
        "--device",
        gpu,
    )
    assert run("--quiet", *asked) == (code, "", line)
    kept = {f"small_1_{i}{end}" for i in (0, 1) for end in (".wav", ".json", ".safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert record(tmp_path / "small_1_1.wav")["engine"] == "cuda"


def test_a_disk_that_fills_up_stops_a_gpu(
    run: Run, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if "_1_1" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    code, out, err = run("--seconds", 0.01, "-n", 4, "--batch-size", 2, "--device", gpu)
    assert (code, out.splitlines()[1:]) == (1, [str(tmp_path / "small_1_0.wav")])
    assert (err.count("\n"), "No space left on device" in err) == (1, True)
    assert {path.name for path in tmp_path.iterdir()} == {"small_1_0.wav", "small_1_0.json"}


def test_a_stream_of_a_gpu_ends_where_who_listens_goes(small: Path, gpu: str) -> None:
    model = audiomamba.load(small, device=gpu)
    stream = model.stream(seed=1)
    begun = next(stream)
    stream.close()
    assert np.array_equal(model.generate(samples=begun.shape[1], seed=1), begun)


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_gallery_holds_all_in_one_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "new" / "index.html"
    asked = ("--seconds", 0.1, "-n", 2, "--gallery", page)
    code, out, _ = run(*asked, "--rank")
    assert code == 0
    assert str(page) in out
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"src=\"(?!data:)|href=\"(?!#)|https?:", text)
    shown = Page(text)
    sounds = [found["src"] or "" for tag, found in shown.found if tag == "audio"]
    files = out.split()[2:4]
    for sound, file in zip(sounds, files, strict=True):
        kind, content = sound.split(",")
        assert kind == "data:audio/wav;base64"
        assert base64.b64decode(content) == Path(file).read_bytes()
    pictures = [found["src"] or "" for tag, found in shown.found if tag == "img"]
    for picture in pictures:
        assert base64.b64decode(picture.split(",")[1]).startswith(b"\x89PNG")
    assert len(pictures) == 2
    bits = float(str(record(Path(files[0]))["bits_per_sample"]))
    assert "rank 1 of 2, seed 1, index" in shown.text
    assert f"log-likelihood {-bits:.4f} bits per sample" in shown.text
    code, _, err = run(*asked)
    assert code == 1
    assert f"{page} is there already; add --overwrite" in err


def test_a_gallery_lists_its_sounds_and_leads_to_each(tmp_path: Path) -> None:
    drawn: list[int] = []

    def draw(i: int) -> bytes:
        drawn.append(i)
        return b"picture"

    exhibits = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        path.write_bytes(b"sound")
        values = {"seed": 1, "index": i, "bits_per_sample": 2.0 + i, "temperature": 1.0}
        exhibits.append(gallery.Exhibit(path=path, record=values, draw=partial(draw, i)))
    gallery.write(tmp_path / "page.html", "three", exhibits)
    assert drawn == [0, 1, 2]
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    targets = [found["href"] for tag, found in shown.found if tag == "a"]
    assert targets == [f"#{found['id']}" for tag, found in shown.found if tag == "article"]
    assert "3 sounds\n" in shown.text
    assert "1.wav -3.0000" in shown.text
    named = [found["aria-label"] for tag, found in shown.found if tag == "audio"]
    assert named == ["0.wav", "1.wav", "2.wav"]
    gallery.write(tmp_path / "page.html", "one", exhibits[:1])
    assert "details" not in (tmp_path / "page.html").read_text()


def test_a_gallery_escapes_names(tmp_path: Path) -> None:
    path = tmp_path / "<b>'x'\"&.wav"
    path.write_bytes(b"sound")
    values = {"seed": 1, "index": 0, "bits_per_sample": 2.0, "temperature": 1.0}
    exhibit = gallery.Exhibit(path=path, record=values, draw=lambda: b"picture")
    gallery.write(tmp_path / "page.html", "<script>", [exhibit])
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not {"script", "b"} & {tag for tag, _ in shown.found}
    assert path.name in shown.text
    (picture,) = [found for tag, found in shown.found if tag == "img"]
    assert picture["alt"] == f"Waveform and spectrogram of {path.name}"


def test_noise_is_warned_of_and_recorded(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--seconds", 4, "--guard")
    assert code == 0
    assert err == "warning: small_1_0.wav has noise from 0 s to 4 s of what was made\n"
    assert record(tmp_path / "small_1_0.wav")["faults"] == [
        {"kind": "noise", "start": 0.0, "stop": 4.0}
    ]
    assert run("--seconds", 0.1, "--guard", "--overwrite")[2] == ""


def test_files_are_played_in_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    asked = ("--seconds", 0.01, "-n", 2, "--play", "--overwrite")
    code, _, err = run(*asked)
    assert code == 1
    assert "none of ffplay, afplay, paplay, aplay is installed; install ffmpeg" in err
    assert not list(tmp_path.glob("*.wav"))
    player = tmp_path / "bin" / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/played\n')
    player.chmod(0o755)
    assert run(*asked)[0] == 0
    played = (tmp_path / "played").read_text().splitlines()
    assert played == [f"-q {tmp_path}/small_1_{index}.wav" for index in range(2)]
    assert "nothing here plays mp3 files" in run(*asked, "--format", "mp3")[2]
    player.write_text("#!/bin/sh\necho no sound device >&2; exit 3\n")
    code, _, err = run(*asked)
    assert code == 1
    assert re.search(r"^error: aplay could not play .*: no sound device; the file is there\n", err)


def test_what_does_not_fit_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("audiomamba.engine.choice.ThreadedStreams", full)
    for size in ("auto", 5):
        code, _, err = run("--seconds", 0.01, "--batch-size", size)
        assert code == 1
        assert err.startswith("error: not one stream fits into the device's memory; free some")
        assert err.count("\n") == 1


def test_a_prompt_that_does_not_fit_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    audio.write(tmp_path / "before.wav", np.zeros(99, np.float32), RATE)
    monkeypatch.setattr(WaveformModel, "forward", full)
    code, _, err = run("--seconds", 0.01, "--quiet", "--prompt", tmp_path / "before.wav")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: 2 samples of the prompt do not fit into the device's memory;")


def test_compiling_for_a_prompt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tier = Tier(mixer="lti", n_layers=1, d_state=2)
    network = WaveformModel(ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))).eval()
    opened = open_engine(network)
    functions = [jit(lambda x: x + 1), jit(lambda x: x + 2)]
    told: list[None] = []
    for fresh, notify in zip(functions, (lambda: told.append(None), None), strict=True):
        hook = network.register_forward_pre_hook(lambda *_, fresh=fresh: fresh(1) and None)
        for _ in range(2):
            read_prompt(network, opened, [np.zeros(9, np.int64)], notify)
        hook.remove()
    assert len(told) == 1
    said = [r.getMessage() for r in caplog.records if r.name == "audiomamba.engine.prompt"]
    assert said == ["compiling what reads prompts; this happens once and takes about 20 seconds"]


@pytest.fixture
def known(small: Path) -> Iterator[float]:
    """Gives the small model bits of validation under which a guard finds it bad now and then."""
    path = small / "config.json"
    before = path.read_text()
    bits = 7.0
    values = {**json.loads(before), "training": {"validation_bits_per_sample": bits / NOISE}}
    path.write_text(json.dumps(values))
    yield bits
    path.write_text(before)


def test_a_guarded_take_can_be_made_again(
    run: Run, small: Path, tmp_path: Path, known: float, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, _ = run("--seconds", 2, "-n", 2, "--guard", "rewind", "--save-state")
    assert code == 0
    path = tmp_path / "small_1_1.wav"
    found = record(path)
    assert found["guard"] == {"bits": known, "seconds": 0.5, "back": 1.0, "tries": 8}
    guard = Guard(**found["guard"])  # type: ignore[arg-type]
    model = audiomamba.load(small)
    *_, take = sorted(
        model.generate_each(samples=32000, num=2, seed=1, guard=guard), key=lambda one: one.index
    )
    assert take.rewinds is not None
    assert take.rewinds.times > 0
    assert found["rewinds"] == take.rewinds._asdict()
    np.testing.assert_allclose(audio.read(path, RATE), take.waveform, atol=1e-4)  # 16 bits
    assert not np.array_equal(take.waveform, model.generate(2, num=2, seed=1)[1])
    assert "stream 1 runs away at sample" in caplog.text
    state = path.with_suffix(".safetensors")
    assert run("--seconds", 0.1, "--resume", state, "--overwrite")[0] == 0
    resumed = record(tmp_path / "small_1_1_from_32000.wav")
    assert resumed["guard"] == found["guard"]


def test_a_guard_without_a_limit_is_told_before_the_work(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--seconds", 1, "--guard", "rewind")
    assert (code, list(tmp_path.iterdir())) == (1, [])
    assert "has no validation bits, from which a guard's limit follows" in err


def test_a_guarded_stream_is_that_of_the_file(
    small: Path, known: float, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "generate",
                "-m",
                str(small),
                "--seed",
                "1",
                "--seconds",
                "2",
                "--stream",
                "--guard",
                "rewind",
                "--quiet",
            ]
        )
    sound = capfdbinary.readouterr().out
    whole = audiomamba.load(small).generate(2, seed=1, guard=True)[0]
    assert sound == audio.to_pcm16(whole)


def test_a_warning_alone_watches_the_likelihood_too(
    run: Run, tmp_path: Path, known: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--seconds", 1, "--guard", "warn")[0] == 0
    found = record(tmp_path / "small_1_0.wav")
    assert found["guard"] == {"bits": known, "seconds": 0.5, "back": 1.0, "tries": 0}
    assert found["rewinds"] == {"times": 0, "samples": 0, "bad": 12000}
    assert "stream 0 runs away at sample 4000; it goes on as it is" in caplog.text


def test_a_stream_warns_of_nothing(run: Run) -> None:
    code, _, err = run("--stream", "--guard")
    assert code == 2
    assert "--guard warn does not go with --stream; --guard rewind does" in err
