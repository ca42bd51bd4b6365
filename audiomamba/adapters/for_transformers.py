"""Hugging Face's forms: a config, a model and a feature extractor, for the Auto classes.

Example:
    >>> register()  # doctest: +SKIP
    >>> extractor = AutoFeatureExtractor.from_pretrained(folder)  # doctest: +SKIP
    >>> model = AutoModel.from_pretrained(folder)  # doctest: +SKIP
    >>> batch = extractor(waveforms, sampling_rate=16000, return_tensors="pt")  # doctest: +SKIP
    >>> model(**batch).last_hidden_state  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    BatchFeature,
    PretrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutput

from audiomamba.adapters.masks import kept_lengths
from audiomamba.checkpoint import TRANSFORMERS_ENCODER
from audiomamba.encoder import MambaEncoder
from audiomamba.encoder_config import EncoderConfig
from audiomamba.features import log_mel
from audiomamba.waveform import Waveform, check_waveform
from audiomamba_kernels.ragged import valid

MASK = "attention_mask"
FIELDS = tuple(field.name for field in dataclasses.fields(EncoderConfig))


class AudiomambaEncoderConfig(PretrainedConfig):
    """The options of `EncoderConfig` as a Hugging Face config; of what is not given, its defaults.

    What else stands in a saved config, as other versions write, is kept as it is.

    Raises:
        TypeError: If an option is none of `EncoderConfig` and of transformers' own.
        ValueError: If an option is out of range.
    """

    model_type = TRANSFORMERS_ENCODER
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
    }

    def __init__(self, **options: Any) -> None:
        given = {self.attribute_map.get(name, name): value for name, value in options.items()}
        encoder = EncoderConfig(**{name: given.pop(name) for name in FIELDS if name in given})
        for name, value in encoder.to_dict().items():
            setattr(self, name, value)
        # Saved ones have their model_type: only what a caller has written can be misspelt.
        if "model_type" not in given:
            _check_names(given)
        super().__init__(**given)

    def to_encoder_config(self) -> EncoderConfig:
        """Return the options as audiomamba's own."""
        return EncoderConfig(**{name: getattr(self, name) for name in FIELDS})


class AudiomambaEncoderModel(PreTrainedModel):
    """`MambaEncoder` as a Hugging Face model.

    Weights are saved and loaded as safetensors only.
    """

    config_class = AudiomambaEncoderConfig
    base_model_prefix = "audiomamba"
    main_input_name = "input_features"
    input_modalities = "audio"

    def __init__(self, config: AudiomambaEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = MambaEncoder(config.to_encoder_config())
        for parameter in self.encoder.parameters():
            # What is made here is made well; what waits on the meta device may come or not.
            parameter._is_hf_initialized = not parameter.is_meta  # type: ignore[attr-defined]
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: MambaEncoder) -> AudiomambaEncoderModel:
        """Return a model around an encoder, which is shared."""
        model = cls(AudiomambaEncoderConfig(**encoder.config.to_dict()))
        model.encoder = encoder
        return model.train(encoder.training)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load a folder or a Hugging Face id; a pickle, which could run code, is refused."""
        return super().from_pretrained(*arguments, **{**options, "use_safetensors": True})

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a padded batch.

        Args:
            input_features: Floating point, (batch, time, d_input).
            attention_mask: (batch, time), 1 on frames and 0 on the padding after them, which has no
                effect; None is all ones.
            output_hidden_states: Whether to return `MambaEncoder.hidden_states`; None asks the
                config.
            return_dict: Whether to return a `BaseModelOutput` or a tuple; None asks the config.
            output_attentions: Not True: there is no attention.

        Returns:
            last_hidden_state (batch, time', d_model), zero from the end of a row on, and
            hidden_states if asked for.

        Raises:
            ValueError: If a shape or type is wrong, padding stands before a frame, or attentions
                are asked for.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions is True, but the encoder has no attention; leave it out"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        lengths = None
        if attention_mask is not None:
            lengths = kept_lengths(attention_mask, input_features, MASK)
        states = None
        if output_hidden_states:
            hidden, _ = self.encoder.hidden_states(input_features, lengths)
            y, states = hidden[-1], tuple(hidden)
        else:
            y, _ = self.encoder(input_features, lengths)
        if not return_dict:
            return (y,) if states is None else (y, states)
        return BaseModelOutput(last_hidden_state=y, hidden_states=states)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor) -> Tensor:
        return self.encoder.output_lengths(input_lengths)

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: Tensor
    ) -> Tensor:
        lengths = kept_lengths(attention_mask, attention_mask, MASK)
        counts = self._get_feat_extract_output_lengths(lengths)
        return valid(counts, feature_vector_length)

    def _init_weights(self, module: nn.Module) -> None:
        # Hugging Face's normal weights are none for a Mamba: what a checkpoint lacks is made anew.
        name = next((n for n, m in self.encoder.named_modules() if m is module), None)
        if name is not None:
            fresh = MambaEncoder(self.encoder.config).get_submodule(name)
            for key, value in module.named_parameters(recurse=False):
                initialization.copy_(value, fresh.get_parameter(key))


class AudiomambaFeatureExtractor(SequenceFeatureExtractor):
    """`log_mel` as a Hugging Face feature extractor.

    Args:
        feature_size: Mel bands.
        sampling_rate: Hz.
        padding_value: What stands behind the frames; no matter what.
        do_normalize: Whether each band has mean 0 and variance 1 over an utterance.
        **options: As for `SequenceFeatureExtractor`.
    """

    model_input_names: ClassVar[list[str]] = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        do_normalize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **options)
        self.do_normalize = do_normalize

    def __call__(
        self,
        raw_speech: NDArray[Any] | Tensor | Sequence[Any],
        sampling_rate: int | None = None,
        padding: Any = True,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Turn waveforms into padded features.

        Args:
            raw_speech: One waveform (samples,), floating point in [-1, 1], an array, a tensor or a
                list, or several.
            sampling_rate: Theirs, in Hz, to be compared; None is taken on trust.
            padding: As for `pad`: True is to the longest.
            return_tensors: "pt" or "np".
            **options: As for `pad`: max_length, truncation, pad_to_multiple_of,
                return_attention_mask.

        Returns:
            input_features (batch, time, feature_size), float32, and attention_mask (batch, time).

        Raises:
            ValueError: If the rate is not the extractor's, there is no waveform, or one is empty,
                no floating point, not finite or of another shape.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate is {sampling_rate} Hz, but the model takes {self.sampling_rate} "
                "Hz; resample, as audiomamba.audio.read does"
            )
        if len(raw_speech) == 0:
            raise ValueError("raw_speech is empty; give a waveform (samples,), or several")
        single = np.ndim(raw_speech[0]) == 0
        rows = [
            log_mel(
                torch.from_numpy(_check_row(row, i))[None],
                n_mels=self.feature_size,
                sample_rate=self.sampling_rate,
                normalize=self.do_normalize,
            )[0][0].numpy()
            for i, row in enumerate([raw_speech] if single else raw_speech)
        ]
        return self.pad(
            BatchFeature({"input_features": rows}),
            padding=padding,
            return_tensors=return_tensors,
            **options,
        )


def _check_names(options: dict[str, Any]) -> None:
    if not options:
        return
    theirs = PretrainedConfig()
    for name in options:
        # Some are kept under another name: attn_implementation is _attn_implementation.
        if not (hasattr(theirs, name) or hasattr(theirs, f"_{name}")):
            raise TypeError(
                f"{name} is no option, of EncoderConfig or transformers' PretrainedConfig; those "
                f"of EncoderConfig are {', '.join(FIELDS)}"
            )


def _check_row(row: Any, index: int) -> Waveform:
    name = f"waveform {index} of raw_speech"
    wave = check_waveform(row if isinstance(row, Tensor) else np.asarray(row), name)
    if wave.ndim != 1:
        raise ValueError(f"{name} has shape {wave.shape}; it must be mono, (samples,)")
    return wave


def register() -> None:
    """Let `AutoConfig`, `AutoModel` and `AutoFeatureExtractor` know these classes."""
    AutoConfig.register(AudiomambaEncoderConfig.model_type, AudiomambaEncoderConfig, exist_ok=True)
    AutoModel.register(AudiomambaEncoderConfig, AudiomambaEncoderModel, exist_ok=True)
    AutoFeatureExtractor.register(
        AudiomambaEncoderConfig, AudiomambaFeatureExtractor, exist_ok=True
    )
