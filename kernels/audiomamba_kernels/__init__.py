"""Sequence kernels for audio: pure functions of tensors that know nothing of sound.

Layout is (batch, time, channels) everywhere, scans carry float32 (complex64) states, and every
function returns the pair (y, final state or None).
"""

from audiomamba_kernels.backend import Backend, available_backends
from audiomamba_kernels.causal_conv1d import causal_conv1d
from audiomamba_kernels.lti_scan import lti_scan
from audiomamba_kernels.selective_scan import selective_scan
from audiomamba_kernels.step import causal_conv1d_step, lti_mamba_step, selective_scan_step

__all__ = [
    "Backend",
    "available_backends",
    "causal_conv1d",
    "causal_conv1d_step",
    "lti_mamba_step",
    "lti_scan",
    "selective_scan",
    "selective_scan_step",
]
