"""The functions of mamba_ssm and causal_conv1d, so that their users change one import.

    from audiomamba_kernels.mamba_ssm import selective_scan_fn, mamba_inner_fn

Signatures, layouts (batch, channels, time) and return values are those of mamba_ssm 2.3 and
causal_conv1d 1.6; everything runs on the functions of this package, which choose by device. Where
theirs stop, these go on:

- They run on any device, in float64 too, with any number of states and any width of convolution,
  and nothing is built.
- last_state has a gradient. B and C may have different numbers of groups; complex ones are pairs in
  the last axis, (..., 2 * time), as theirs, or simply complex tensors.
- mamba_inner_fn differentiates through the three RMS norms, weights included; theirs leaves them
  out of the gradient.
- causal_conv1d_fn returns final states for any memory layout.
- selective_state_update takes D=None and dt_bias=None, as its documentation says; theirs is then a
  TypeError. It takes complex tensors.
- Lengths of memory are not limited to 2^31 elements.
- What is wrong raises ValueError, not AssertionError or NotImplementedError.

The two updates write the state they are given and have no gradient, as theirs. What theirs do not
have, initial states, lengths, packed sequences and reverse time, is in the functions themselves:
`audiomamba_kernels.selective_scan` and `causal_conv1d`.
"""

from audiomamba_kernels.mamba_ssm.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from audiomamba_kernels.mamba_ssm.mamba_inner import mamba_inner_fn
from audiomamba_kernels.mamba_ssm.selective_scan import selective_scan_fn, selective_scan_ref
from audiomamba_kernels.mamba_ssm.selective_state_update import selective_state_update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "selective_scan_fn",
    "selective_scan_ref",
    "selective_state_update",
]
