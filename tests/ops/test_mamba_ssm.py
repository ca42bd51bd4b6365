"""mamba_ssm's and causal_conv1d's functions have their signatures, and compile."""

from __future__ import annotations

import inspect

import pytest
import torch

from audiomamba_kernels import mamba_ssm
from audiomamba_kernels.mamba_ssm import mamba_inner_fn, selective_scan_fn
from tests.ops.mamba_ssm_cases import KINDS, Function, check, inner_inputs, scan_inputs

SIGNATURES = {
    "selective_scan_fn": "u delta A B C D=None z=None delta_bias=None delta_softplus=False "
    "return_last_state=False",
    "selective_scan_ref": "u delta A B C D=None z=None delta_bias=None delta_softplus=False "
    "return_last_state=False",
    "mamba_inner_fn": "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight "
    "out_proj_weight out_proj_bias A B=None C=None D=None delta_bias=None B_proj_bias=None "
    "C_proj_bias=None delta_softplus=True checkpoint_lvl=1 b_rms_weight=None c_rms_weight=None "
    "dt_rms_weight=None b_c_dt_rms_eps=1e-06",
    "causal_conv1d_fn": "x weight bias=None seq_idx=None initial_states=None "
    "return_final_states=False final_states_out=None activation=None",
    "causal_conv1d_update": "x conv_state weight bias=None activation=None cache_seqlens=None "
    "conv_state_indices=None",
    "selective_state_update": "state x dt A B C D=None z=None dt_bias=None dt_softplus=False "
    "state_batch_indices=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_peers(name: str) -> None:
    found = [
        p.name if p.default is p.empty else f"{p.name}={p.default}"
        for p in inspect.signature(getattr(mamba_ssm, name)).parameters.values()
    ]
    assert " ".join(found) == SIGNATURES[name]
    assert set(SIGNATURES) == set(mamba_ssm.__all__)


@KINDS
def test_the_functions_compile_into_one_graph(complex: bool) -> None:
    def compiled(fn: Function) -> Function:
        return torch.compile(fn, fullgraph=True, backend="aot_eager")

    torch._dynamo.reset()
    check(compiled(mamba_inner_fn), mamba_inner_fn, inner_inputs(complex))
    x = scan_inputs("shared", "2", complex)
    check(compiled(selective_scan_fn), selective_scan_fn, x)
