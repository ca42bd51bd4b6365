"""The Mamba block, selective (S6) or time-invariant (Mamba-S4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba_kernels import Backend, causal_conv1d, lti_scan, selective_scan
from audiomamba_kernels.ragged import zero_padding

# Of a dtype, its complex kind: a table, because torch.compile cannot trace dtype.to_complex().
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class MambaState(NamedTuple):
    """What a Mamba block carries from one chunk to the next."""

    conv: Tensor  # (batch, d_conv - 1, d_inner)
    ssm: Tensor  # (batch, d_inner, d_state), or complex (batch, d_inner, d_state / 2)


class Mamba(nn.Module):
    """Mamba's gated state space block.

    With `selective` and not `complex`, parameters have the names and shapes of
    `mamba_ssm.modules.mamba_simple.Mamba`, so its state dicts load. A complex block holds d_state /
    2 conjugate pairs and starts from S4D-Lin, A_n = -1/2 + n i; a real one from S4D-Real, A_n = -(n
    + 1).

    Args:
        d_model: Width of input and output.
        d_state: Real state dimensions a channel.
        d_conv: Width of the short convolution.
        expand: d_inner / d_model.
        selective: Whether step size, B and C depend on the input; if not, each channel has its own
            constants.
        complex: Whether A, B and C are complex.
        dt_min: Smallest initial step size.
        dt_max: Largest initial step size.
        backend: Which kernels run; None is the fastest.

    Source: Gu & Dao 2023 (arXiv 2312.00752), section 3.4, figure 3, section 3.6; Mamba-S4: section
    4.4.1 and appendix E.4.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        *,
        selective: bool = True,
        complex: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.d_inner = d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.selective = selective
        self.complex = complex
        self.backend = backend
        n = d_state // 2 if complex else d_state

        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        dt = initial_dt(d_inner, dt_min, dt_max)
        if selective:
            self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
            self.dt_proj = nn.Linear(self.dt_rank, d_inner)
            nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            with torch.no_grad():
                self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        else:
            self.log_dt = nn.Parameter(torch.log(dt))
            self.B = nn.Parameter(initial_ones(d_inner, n, complex))
            self.C = nn.Parameter(torch.randn_like(self.B) * (0.5**0.5 if complex else 1.0))
        if complex:
            self.A_log = nn.Parameter(torch.full((d_inner, n), math.log(0.5)))
            self.A_imag = nn.Parameter(torch.arange(n, dtype=torch.float32).repeat(d_inner, 1))
        else:
            self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> MambaState:
        """Return zeros; those of the scan are float32 (complex64) at least."""
        width = self.conv1d.kernel_size[0] - 1
        ssm = wide(self.A_log)
        return MambaState(
            self.D.new_zeros(batch, width, self.d_inner),
            ssm.new_zeros(
                batch, *ssm.shape, dtype=COMPLEX[ssm.dtype] if self.complex else ssm.dtype
            ),
        )

    def A(self) -> Tensor:
        """Return A, (d_inner, state), real or complex, with negative real part."""
        real = -torch.exp(wide(self.A_log))
        return torch.complex(real, wide(self.A_imag)) if self.complex else real

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, MambaState]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last step).

        Args:
            x: Input, time >= 1.
            state: What came before the first step; None is silence.
            lengths: (batch,), integers from 0 to time; None is time. What follows in a row has no
                effect, NaN included, and y is zero there.
            reverse: Whether time runs from the last valid step to the first.
        """
        x = zero_padding(x, lengths)  # a weight's gradient sums over padding too, and 0 NaN is NaN
        y, state = self.recur(*self.project(x), state, lengths=lengths, reverse=reverse)
        return self.out_proj(y), state

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the convolution's input and the gate, each (batch, time, d_inner)."""
        batch, steps, _ = x.shape
        if self.selective:  # this scan reads channels side by side, as Linear leaves them
            u, z = self.in_proj(x).chunk(2, dim=-1)
        else:  # that one along time: weight times transposed input leaves it so, without a copy
            xz = self.in_proj.weight @ x.reshape(batch * steps, -1).T
            u, z = xz.view(-1, batch, steps).permute(1, 2, 0).chunk(2, dim=-1)
        return u, z

    def recur(
        self,
        u: Tensor,
        z: Tensor,
        state: MambaState | None = None,
        *,
        lengths: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, MambaState]:
        """Convolve, scan and gate what `project` returns; y is (batch, time, d_inner)."""
        past, h = (None, None) if state is None else state
        u, conv = causal_conv1d(
            u,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_state=past,
            output_final_state=True,
            reverse=reverse,
            lengths=lengths,
            backend=self.backend,
        )
        y, ssm = self._scan(u, z, h, lengths, reverse)
        assert conv is not None
        assert ssm is not None
        return y, MambaState(conv.to((self.D if past is None else past).dtype), ssm)

    def _scan(
        self, u: Tensor, z: Tensor, h: Tensor | None, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not self.selective:
            B = torch.view_as_complex(wide(self.B)) if self.complex else self.B
            C = torch.view_as_complex(wide(self.C)) if self.complex else self.C
            return lti_scan(
                u,
                torch.exp(wide(self.log_dt)),
                self.A(),
                B,
                C,
                self.D,
                z,
                initial_state=h,
                output_final_state=True,
                reverse=reverse,
                lengths=lengths,
                backend=self.backend,
            )
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if self.complex:
            B, C = as_complex(B), as_complex(C)
        return selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            self.A(),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            initial_state=h,
            output_final_state=True,
            reverse=reverse,
            lengths=lengths,
            backend=self.backend,
        )


def initial_dt(channels: int, dt_min: float, dt_max: float) -> Tensor:
    """Return mamba_ssm's initial step sizes: log-uniform in [dt_min, dt_max], at least 1e-4."""
    dt = torch.exp(torch.rand(channels) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
    return dt.clamp(min=1e-4)


def initial_ones(channels: int, n: int, complex: bool) -> Tensor:
    """Return ones (channels, n), or complex ones as pairs (channels, n, 2)."""
    return torch.tensor([1.0, 0.0]).repeat(channels, n, 1) if complex else torch.ones(channels, n)


def wide(x: Tensor) -> Tensor:
    """Return x in float32 at least: what shapes a recurrence acts over many steps."""
    return x if x.dtype == torch.float64 else x.float()


def as_complex(x: Tensor) -> Tensor:
    """Join neighbouring real and imaginary parts, (..., 2 n) -> (..., n), in float32 at least."""
    x = wide(x)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    # A copy even of a contiguous slice: a complex view needs an even offset in memory.
    return torch.view_as_complex(pairs.clone(memory_format=torch.contiguous_format))
