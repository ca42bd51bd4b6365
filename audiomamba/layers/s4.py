"""S4 as SaShiMi uses it, in the diagonal form S4D rather than the low-rank one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba.layers.mamba import COMPLEX, initial_dt
from audiomamba_kernels import Backend, lti_scan


class S4(nn.Module):
    """A diagonal state space model per channel, GELU, and a gated linear unit across channels.

    Its state is the tensor (batch, d_model, d_state / 2), complex. Discretised by zero-order hold,
    B = 1, A starts at S4D-Lin, A_n = -1/2 + pi n i.

    Args:
        d_model: Width of input and output.
        d_state: Real state dimensions a channel (SaShiMi: 64).
        backend: Which kernels run; None is the fastest.

    Source: Goel et al. 2022 (arXiv 2202.09729), section 4.2; Gu et al. 2022 (arXiv 2206.11893),
    equations 4 and 6.
    """

    def __init__(self, d_model: int, d_state: int = 64, *, backend: Backend | None = None) -> None:
        super().__init__()
        n = d_state // 2
        self.backend = backend
        self.log_dt = nn.Parameter(torch.log(initial_dt(d_model, 1e-3, 1e-1)))
        self.A_log = nn.Parameter(torch.full((d_model, n), math.log(0.5)))
        self.A_imag = nn.Parameter(
            math.pi * torch.arange(n, dtype=torch.float32).repeat(d_model, 1)
        )
        self.C = nn.Parameter(torch.randn(d_model, n, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros."""
        return self.D.new_zeros(batch, *self.A_log.shape, dtype=COMPLEX[self.A_log.dtype])

    def parameters_of_scan(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return delta, A, B, C of `lti_scan`; B holds the zero-order hold's factor of delta B."""
        delta = torch.exp(self.log_dt)
        A = torch.complex(-torch.exp(self.A_log), self.A_imag)
        step = delta[:, None] * A
        return delta, A, torch.expm1(step) / step, torch.view_as_complex(self.C)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last step)."""
        device = x.device.type
        # The norm before it leaves float32. Autocast does not know the device "meta".
        if x.dtype == torch.float32 and not x.is_meta and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        delta, A, B, C = self.parameters_of_scan()
        y, state = lti_scan(
            x,
            delta,
            A,
            B,
            C,
            self.D,
            initial_state=state,
            output_final_state=True,
            backend=self.backend,
        )
        assert state is not None
        return F.glu(self.out_proj(F.gelu(y)), dim=-1), state
