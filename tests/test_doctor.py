from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numba
import pytest
import torch

import audiomamba
from audiomamba import doctor
from audiomamba.cli import main
from audiomamba.engine import cuda_compile, cuda_driver, philox
from audiomamba_kernels import available_backends


@pytest.fixture(autouse=True)
def few_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"plot": ("matplotlib",)})  # lightning takes seconds


def row(text: str, name: str) -> str:
    match = re.search(rf"^  {name} +(.*)$", text, re.MULTILINE)
    assert match is not None, text
    return match[1]


def package(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(folder)


def test_a_working_machine_is_healthy() -> None:
    text, healthy = doctor.examine()
    assert healthy
    assert row(text, "audiomamba") == audiomamba.__version__
    assert row(text, "torch").startswith(torch.__version__.split("+")[0])
    assert "cores" in row(text, "cpu")
    assert row(text, "reference").startswith("yes")
    kernels = text[text.index("\nkernels") : text.index("\nextras")]
    assert row(kernels, "triton").startswith("yes" if "triton" in available_backends() else "no: ")
    assert row(kernels, "numba").startswith("yes: generation on the CPU; compil")


def compiled_code() -> str:
    text, _ = doctor.examine()
    return row(text[text.index("\nkernels") :], "numba")


def test_where_compiled_code_is_kept_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert re.search(rf"is kept in {tmp_path}/engine_\w+, which is writable$", compiled_code())


def test_compiled_code_that_cannot_be_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(numba, "njit", njit)
    assert re.search("cannot be kept, .* set NUMBA_CACHE_DIR", compiled_code())


def test_compiling_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox, "uniform", lambda: None)
    assert "switched off by NUMBA_DISABLE_JIT" in compiled_code()


def test_whether_the_cuda_engine_can_run_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told() -> str:
        return row(doctor.examine()[0], "cuda engine")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert told() == "no: needs an NVIDIA GPU"
    monkeypatch.setattr(doctor, "_devices", lambda: [])
    monkeypatch.setattr(doctor, "_kernels", lambda: [("cuda engine", doctor._cuda_engine())])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda_compile, "why_not_cuda", lambda device: f"{device} is old")
    assert told() == "no: cuda:0 is old"
    monkeypatch.setattr(cuda_compile, "why_not_cuda", lambda device: None)

    def none() -> None:
        raise OSError("libcuda.so.1: not found")

    monkeypatch.setattr(cuda_driver, "driver", none)
    assert told() == "no: libcuda.so.1: not found"
    monkeypatch.setattr(cuda_driver, "driver", lambda: None)
    monkeypatch.setenv("AUDIOMAMBA_CACHE_DIR", str(tmp_path))
    assert told().endswith(f"compiled code is kept in {tmp_path}/cuda, which is writable")
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIOMAMBA_CACHE_DIR", str(tmp_path / "file"))
    assert re.search(r"^yes: .* cannot be kept: .*; set AUDIOMAMBA_CACHE_DIR to a folder", told())


def test_the_version_of_triton_is_told_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        doctor, "find_spec", lambda name: find_spec(name if name != "triton" else "re")
    )
    assert row(doctor.examine()[0], "triton")
    monkeypatch.setattr(
        doctor, "find_spec", lambda name: find_spec(name) if name != "triton" else None
    )
    versions, _, rest = doctor.examine()[0].partition("\ndevices")
    assert "triton" not in versions
    if "triton" not in available_backends():
        assert row(rest, "triton") == "no: comes with PyTorch on Linux"


def test_the_command_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["doctor"])
    titles = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert titles == ["versions", "devices", "kernels", "extras"]


def test_a_broken_core_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, "torn", "raise OSError('libtorn.so:\\nnot found')", monkeypatch)
    monkeypatch.setattr(doctor, "CORE", ("numpy", "torn", "absent_package"))
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    text = capsys.readouterr().out
    expected = "broken: torn of unknown version cannot be imported: libtorn.so: not found"
    assert row(text, "torn") == expected
    assert row(text, "absent_package") == "broken: not installed; pip install absent_package"
    assert "kernels" not in text.splitlines()


def test_a_missing_extra_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"train": ("absent_package", "matplotlib")})
    text, healthy = doctor.examine()
    assert healthy
    assert row(text, "train") == "missing absent_package; pip install absent_package"


def test_a_torchaudio_of_another_torch_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package(tmp_path, "torchaudio_x", "raise RuntimeError('different CUDA')", monkeypatch)
    monkeypatch.setattr(doctor, "EXTRAS", {"audio": ("torchaudio_x",)})
    state = row(doctor.examine()[0], "audio")
    assert state.startswith("broken: torchaudio_x of unknown version cannot be imported: different")
    assert state.endswith("pip install --force-reinstall torch torchaudio")


def test_the_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    declared: dict[str, set[str]] = {}
    core: set[str] = set()
    for requirement in metadata.requires("audiomamba") or []:
        name = re.split(r"[^\w-]", requirement)[0]
        if extra := re.search(r"extra == ['\"](\w+)['\"]", requirement):
            declared.setdefault(extra[1], set()).add(name)
        else:
            core.add(name)
    assert {extra: set(names) for extra, names in doctor.EXTRAS.items()} == {
        extra: names for extra, names in declared.items() if extra != "test"
    }
    assert {name.replace("_", "-") for name in doctor.CORE} == {
        name.replace("_", "-") for name in core - {"triton"}
    }
