"""What ESPnet asks of an encoder; with ESPnet itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from audiomamba.adapters import for_espnet
from audiomamba.adapters.for_espnet import Base, ESPnetEncoder, TooShortUttError

SIZE = {"d_model": 8, "n_layers": 3, "d_state": 4, "conv_kernel": 5}


def test_the_width_and_what_is_between() -> None:
    encoder = ESPnetEncoder(input_size=8, interctc_layer_idx=[1, 2], **SIZE).eval()
    assert isinstance(encoder, Base)
    assert encoder.output_size() == 8
    x, lengths = torch.randn(2, 20, 8), torch.tensor([20, 9])
    (y, between), counts, _ = encoder(x, lengths, ctc=None)
    assert counts.tolist() == [5, 2]
    assert [index for index, _ in between] == [1, 2]
    assert all(h.shape == y.shape and not h[1, 2:].any() for _, h in between)
    torch.testing.assert_close(encoder.encoder(x, lengths)[0], y)
    with pytest.raises(ValueError, match=r"interctc_layer_idx is \[3\]; each must be 1 to 2"):
        ESPnetEncoder(8, interctc_layer_idx=[3], **SIZE)


def test_what_is_too_short_is_told() -> None:
    encoder = ESPnetEncoder(8, **SIZE)
    with pytest.raises(TooShortUttError, match="has 3 frames and is too short") as caught:
        encoder(torch.randn(1, 3, 8), torch.tensor([3]))
    assert (caught.value.actual_size, caught.value.limit) == (3, 4)
    assert encoder(torch.randn(2, 4, 8), torch.tensor([4, 3]))[1].tolist() == [1, 0]


@pytest.fixture
def _stand_ins_are_forgotten() -> Iterator[None]:
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in ("espnet", "espnet2"):
            del sys.modules[name]


@pytest.mark.usefixtures("_stand_ins_are_forgotten")
@pytest.mark.parametrize("package", ["espnet2.legacy", "espnet"])
def test_it_is_an_encoder_of_espnet_where_that_is_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins by the names of its main branch or of its releases to 202511.

    ESPnet itself does not install beside everything.
    """
    module = f"{package}.nets.pytorch_backend.transformer.subsampling"
    files = {
        "espnet2/asr/encoder/abs_encoder.py": (
            "import torch\nclass AbsEncoder(torch.nn.Module): ..."
        ),
        f"{module.replace('.', '/')}.py": (
            "class TooShortUttError(Exception):\n"
            "    def __init__(self, message, actual_size, limit):\n"
            "        super().__init__(message)"
        ),
    }
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location("with_espnet", for_espnet.__file__)
    assert spec is not None
    assert spec.loader is not None
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    encoder = adapter.ESPnetEncoder(8, **SIZE)
    base = importlib.import_module("espnet2.asr.encoder.abs_encoder").AbsEncoder
    assert isinstance(encoder, base)
    with pytest.raises(importlib.import_module(module).TooShortUttError, match="3 frames"):
        encoder(torch.randn(1, 3, 8), torch.tensor([3]))
