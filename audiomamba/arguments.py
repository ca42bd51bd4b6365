"""What a user gives is looked at: lengths, devices, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from audiomamba.engine.place import Place, Tokens
from audiomamba.guard import Guard
from audiomamba.sampling import check_real, check_whole
from audiomamba.tokenizer import Tokenizer
from audiomamba.waveform import Waveform as Waveform
from audiomamba.waveform import check_waveform

Prompt = Waveform | Tensor | Place


class Options(TypedDict, total=False):
    """Keywords of all that makes sound; `AudioModel.generate` says what they mean."""

    num: int | None
    seed: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guard: Guard | bool | None


def count_samples(seconds: float, sample_rate: int) -> int:
    """Return the nearest count of samples.

    Raises:
        ValueError: If that is no sample, or seconds is not finite or no number.
    """
    check_real(seconds, "seconds")
    if not 0.5 / sample_rate < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; it must be positive, and long enough for a sample")
    return round(seconds * sample_rate)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used here; raise ValueError with the reason if it cannot."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ValueError(
                f"device is {str(device)!r}, but PyTorch sees {count} CUDA devices; choose another "
                "device, as 'cpu'"
            )
    elif place.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'")
    return place


def encode_prompts(
    tokenizer: Tokenizer, prompt: Prompt | Sequence[Prompt] | None, num: int | None
) -> list[Tokens | Place]:
    """Return a prompt for each sound, as tokens or read already.

    Args:
        tokenizer: The model's.
        prompt: One for all, one for each, or None.
        num: Sounds; None is one, or one for each prompt.

    Raises:
        ValueError: If num is out of range or no count of the prompts, or one is none.
    """
    if num is not None and check_whole(num, "num") < 1:
        raise ValueError(f"num is {num}; it must be at least 1")
    if prompt is None:
        return [np.empty(0, np.int64)] * (num or 1)
    if isinstance(prompt, (np.ndarray, Tensor, Place)):
        return [_encode(tokenizer, prompt)] * (num or 1)
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise ValueError(f"the prompt is {prompt!r}; it must be a waveform or a list of some")
    if num not in (None, len(prompt)):
        raise ValueError(f"num is {num}, but there are {len(prompt)} prompts; leave it out")
    return [_encode(tokenizer, one) for one in prompt]


def check_waveforms(prompt: Any) -> Any:
    """Return a prompt or a list of some; raise ValueError if one was read already."""
    given = prompt if isinstance(prompt, (list, tuple)) else [prompt]
    if any(isinstance(one, Place) for one in given):
        raise ValueError(
            "the prompt was read already, and its waveform, with which a row would begin, is not "
            "known; give it to generate_each, start or stream, or give the waveform"
        )
    return prompt


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> Tokens | Place:
    return prompt if isinstance(prompt, Place) else tokenizer.encode(check_mono(prompt))


def check_mono(prompt: Any) -> Waveform:
    """Return a prompt as an array (samples,)."""
    waveform = check_waveform(prompt, "the prompt")
    if waveform.ndim != 1:
        raise ValueError(f"the prompt has shape {waveform.shape}; it must be mono, (samples,)")
    return waveform
