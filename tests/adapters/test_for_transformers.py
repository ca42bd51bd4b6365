"""Hugging Face's Auto classes, folders, masks and outputs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba.features import log_mel

SIZE = {"d_model": 8, "n_layers": 2, "d_state": 4, "conv_kernel": 5, "feed_forward": 2}
WAVEFORMS = [np.sin(np.arange(n) / 9).astype(np.float32) / 9 for n in (8000, 5000)]


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Imported here and not above: it takes seconds, and every process collects every test."""
    package = pytest.importorskip("transformers")
    package.logging.disable_progress_bar()
    return package


@pytest.fixture(scope="module")
def adapter(transformers: Any) -> Any:
    from audiomamba.adapters import for_transformers

    return for_transformers


@pytest.fixture
def model(adapter: Any) -> Any:
    encoder = MambaEncoder(EncoderConfig(**SIZE), backend="torch").eval()
    return adapter.AudiomambaEncoderModel.from_encoder(encoder)


def test_the_auto_classes_load_a_folder(
    transformers: Any, adapter: Any, model: Any, tmp_path: Path
) -> None:
    adapter.register()
    adapter.register()
    model.save_pretrained(tmp_path)
    adapter.AudiomambaFeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, adapter.AudiomambaEncoderModel)
    assert not loaded.training
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(extractor, adapter.AudiomambaFeatureExtractor)
    assert extractor.do_normalize
    batch = extractor(WAVEFORMS, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(loaded(**batch).last_hidden_state, model(**batch).last_hidden_state)
    made = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert made.config.to_encoder_config() == model.encoder.config


@pytest.mark.parametrize("name", ["d_modle", "n_layer", "layers", "to_dikt"])
def test_an_unknown_option_is_refused(transformers: Any, adapter: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is no option, of .* are d_input, d_model, n_lay"):
        adapter.AudiomambaEncoderConfig(d_state=4, **{name: 3})
    adapter.register()
    with pytest.raises(TypeError, match=f"{name} is no option"):
        transformers.AutoConfig.for_model("audiomamba_encoder", **{name: 3})


def test_options_of_transformers_are_taken(adapter: Any) -> None:
    config = adapter.AudiomambaEncoderConfig(
        hidden_size=8,
        num_hidden_layers=2,
        output_hidden_states=True,
        output_attentions=False,
        return_dict=False,
        num_labels=3,
        id2label={0: "a", 1: "b", 2: "c"},
        problem_type="regression",
        dtype="float32",
        torch_dtype="float32",
        name_or_path="here",
        architectures=["AudiomambaEncoderModel"],
        attn_implementation="eager",
        chunk_size_feed_forward=0,
        transformers_version="5.0.0",
    )
    assert (config.d_model, config.n_layers, config.num_labels) == (8, 2, 3)


def test_a_saved_config_of_another_version_is_loaded(
    transformers: Any, adapter: Any, model: Any, tmp_path: Path
) -> None:
    adapter.register()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    # As transformers 4 wrote them, and as another version may.
    other = {"torch_dtype": "float32", "tie_word_embeddings": True, "pruned_heads": {}, "top_k": 50}
    other |= {"_attn_implementation_autoset": True, "use_bfloat16": False, "d_new": 3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    for config in (
        loaded.config,
        transformers.AutoConfig.from_pretrained(tmp_path),
        adapter.AudiomambaEncoderConfig.from_pretrained(tmp_path, output_hidden_states=True),
        adapter.AudiomambaEncoderConfig.from_json_file(path),
        adapter.AudiomambaEncoderConfig(**loaded.config.to_dict()),
        copy.deepcopy(loaded.config),
    ):
        assert config.to_encoder_config() == model.encoder.config
        assert config.d_new == 3


def test_a_fresh_model_has_the_encoders_own_weights(adapter: Any) -> None:
    torch.manual_seed(1)
    wanted = MambaEncoder(EncoderConfig(**SIZE)).state_dict()
    torch.manual_seed(1)
    fresh = adapter.AudiomambaEncoderModel(adapter.AudiomambaEncoderConfig(**SIZE))
    for name, value in fresh.encoder.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_what_a_folder_lacks_is_made_as_the_encoder_makes_it(
    adapter: Any, model: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = next(name for name in weights if name.endswith("A_log"))  # not random
    del weights[key]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = adapter.AudiomambaEncoderModel.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded[name], value)


def test_a_pickle_is_refused(adapter: Any, model: Any, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        adapter.AudiomambaEncoderModel.from_pretrained(tmp_path)


def test_outputs_are_those_of_hugging_face(model: Any) -> None:
    x = torch.randn(2, 20, 80)
    out = model(x, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert all(h.shape == (2, 5, model.config.hidden_size) for h in out.hidden_states)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    layers, _ = model.encoder.extract_features(x)
    torch.testing.assert_close(out.hidden_states[1], layers[0])
    (y,) = model(x, return_dict=False)
    torch.testing.assert_close(y, out.last_hidden_state)
    assert len(model(x, output_hidden_states=True, return_dict=False)) == 2
    assert model._get_feat_extract_output_lengths(torch.tensor([20, 3])).tolist() == [5, 0]


def test_there_are_no_attentions(model: Any) -> None:
    x = torch.randn(1, 8, 80)
    assert model(x, output_attentions=False).attentions is None
    with pytest.raises(ValueError, match="output_attentions is True, but the encoder has no"):
        model(x, output_attentions=True)


def test_padding_stands_at_the_end(model: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="attention_mask has padding before a frame in row 1"):
        model(torch.randn(2, 8, 80), attention_mask=mask)


@pytest.mark.parametrize("normalize", [False, True])
def test_features_are_log_mel(adapter: Any, normalize: bool) -> None:
    extractor = adapter.AudiomambaFeatureExtractor(do_normalize=normalize)
    batch = extractor(WAVEFORMS, sampling_rate=16000, return_tensors="pt")
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in WAVEFORMS], True)
    wanted, counts = log_mel(padded, torch.tensor([8000, 5000]), normalize=normalize)
    torch.testing.assert_close(batch["input_features"], wanted)
    assert batch["attention_mask"].sum(1).tolist() == counts.tolist()
    for one in (WAVEFORMS[1], torch.from_numpy(WAVEFORMS[1]), WAVEFORMS[1].tolist()):
        alone = extractor(one, return_tensors="pt")["input_features"]
        torch.testing.assert_close(alone[0], wanted[1, : counts[1]])


def test_what_is_too_short_has_no_frame(adapter: Any, model: Any) -> None:
    extractor = adapter.AudiomambaFeatureExtractor()
    batch = extractor([WAVEFORMS[0][:399]], return_tensors="pt")
    assert batch["input_features"].shape == (1, 0, 80)
    assert model(**batch).last_hidden_state.shape == (1, 0, 8)


def test_what_is_wrong_is_said(adapter: Any) -> None:
    extractor = adapter.AudiomambaFeatureExtractor()
    with pytest.raises(ValueError, match="sampling_rate is 8000 Hz, but the model takes 16000 Hz"):
        extractor(WAVEFORMS, sampling_rate=8000)
    broken = WAVEFORMS[1].copy()
    broken[7] = np.nan
    for raw, match in (
        ([], "raw_speech is empty; give a waveform"),
        (np.empty(0, np.float32), "raw_speech is empty"),
        ([WAVEFORMS[0], WAVEFORMS[1][:0]], "waveform 1 of raw_speech is empty"),
        (np.ones(8000, np.int16), "waveform 0 of raw_speech is int16; it must be a floating-point"),
        ([1, -1, 1], "waveform 0 of raw_speech is int64"),
        ([WAVEFORMS[0], broken], "waveform 1 of raw_speech is NaN or infinite at sample 7"),
        (np.zeros((1, 2, 8000), np.float32), r"waveform 0 .* shape \(2, 8000\); it must be mono"),
    ):
        with pytest.raises(ValueError, match=match):
            extractor(raw, sampling_rate=16000)
    with pytest.raises(ValueError, match="direction is 'up'"):
        adapter.AudiomambaEncoderConfig(direction="up")
