"""The training objective: the model's own likelihood, compiled or recorded without a difference."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from audiomamba.config import Mixer, Tier, unet
from audiomamba.models.waveform import WaveformModel
from audiomamba.objective import Objective, capture, compile_blocks, recompute_blocks
from audiomamba.state import leaves

CONFIG = unet(8, 1, (4,), Tier(mixer="lti", complex=True, d_state=4), Tier(complex=True, d_state=4))


def network() -> WaveformModel:
    torch.manual_seed(0)
    return WaveformModel(CONFIG)


def gradients(objective: Objective, *inputs: torch.Tensor) -> list[torch.Tensor]:
    objective.network.zero_grad()
    objective(*inputs)[0].backward()
    return [p.grad.clone() for p in objective.network.parameters() if p.grad is not None]


def test_it_is_the_model_s_likelihood_and_carries_its_state() -> None:
    model = network()
    tokens = torch.randint(0, 256, (2, 33))
    bits = model(tokens[:, :-1])[0].log_softmax(-1).gather(2, tokens[:, 1:, None]) / -math.log(2)
    objective = Objective(model)
    nats, *state = objective(tokens[:, :16], tokens[:, 1:17])
    more, *_ = objective(tokens[:, 16:32], tokens[:, 17:], *state)
    torch.testing.assert_close((nats + more) / 2 / math.log(2), bits.mean())
    assert all(not leaf.requires_grad for leaf in state)


@pytest.mark.parametrize("mixer", ["s6", "lti", "s4", "attention"])
def test_recomputed_blocks_change_nothing(mixer: Mixer) -> None:
    """The same bits: the same operations on the same numbers, once more."""
    config = unet(8, 1, (4,), Tier(mixer=mixer, d_state=4, n_heads=2), CONFIG.tiers[-1])
    torch.manual_seed(0)
    plain = Objective(WaveformModel(config))
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    tokens = torch.randint(0, 256, (2, 33))
    halves = [(tokens[:, at : at + 16], tokens[:, at + 1 : at + 17]) for at in (0, 16)]
    state = {0: leaves(plain.network.initial_state(2)), 1: leaves(plain.network.initial_state(2))}
    for inputs in halves:
        for which, objective in enumerate((plain, again)):
            _, *state[which] = objective(*inputs, *state[which])
        assert all(map(torch.equal, *state.values()))
        pairs = zip(gradients(plain, *inputs), gradients(again, *inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert again.network.state_dict().keys() == plain.network.state_dict().keys()


def kept_bytes(objective: Objective, tokens: torch.Tensor) -> int:
    """Return what autograd keeps of the blocks for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    objective.loss = lambda head, y, target: y.mean()  # logits are the largest of all
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss, *_ = objective(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return sum(sizes.values())


def test_recomputed_blocks_keep_their_inputs_only() -> None:
    tokens = torch.randint(0, 256, (2, 1025))
    plain, again = Objective(network()), Objective(network())
    recompute_blocks(again)
    assert kept_bytes(again, tokens) < kept_bytes(plain, tokens) / 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_change_nothing(recompute: bool) -> None:
    plain, compiled = Objective(network()), Objective(network())
    if recompute:
        recompute_blocks(compiled)
    compile_blocks(compiled)
    tokens = torch.randint(0, 256, (2, 33))
    inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    for a, b in zip(gradients(compiled, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if recompute:
        assert kept_bytes(compiled, tokens) < kept_bytes(plain, tokens) / 3


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("carry_state", [False, True])
def test_a_recorded_graph_changes_nothing(
    carry_state: bool, recompute: bool, compiled: bool
) -> None:
    plain = Objective(network().cuda(), torch.bfloat16)
    recorded = copy.deepcopy(plain)
    if recompute:
        recompute_blocks(recorded)
    if compiled:
        compile_blocks(recorded)
    recorded = capture(recorded, 2, 32, carry_state)
    state = leaves(plain.network.initial_state(2)) if carry_state else []
    for _ in range(3):
        tokens = torch.randint(0, 256, (2, 33), device="cuda")
        inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), *state)
        for a, b in zip(gradients(recorded, *inputs), gradients(plain, *inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
        state = [leaf.detach().clone() for leaf in recorded(*inputs)[1:]] if carry_state else []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # of streams and process groups
def test_a_graph_recorded_under_ddp_is_reduced_by_it(tmp_path: Path) -> None:
    """In the order of a run: wrap on a stream of its own, record, train; DDP here doubles."""
    plain = Objective(network().cuda())
    recorded = copy.deepcopy(plain)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            wrapped = torch.nn.parallel.DistributedDataParallel(recorded, device_ids=[0])
        wrapped.register_comm_hook(None, lambda _, bucket: double(bucket))
        capture(recorded, 2, 32, False)  # puts a replay in the place of its forward
        assert all(p.grad is None for p in recorded.parameters())
        for _ in range(3):
            tokens = torch.randint(0, 256, (2, 33), device="cuda")
            inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            recorded.network.zero_grad()
            wrapped(*inputs)[0].backward()
            found = [p.grad.clone() for p in recorded.parameters() if p.grad is not None]
            for a, b in zip(found, gradients(plain, *inputs), strict=True):
                torch.testing.assert_close(a, 2 * b, rtol=1e-3, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def double(bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Stand for other processes: what comes back is not what was sent."""
    torch.distributed.all_reduce(bucket.buffer())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=["cuda:0"])
    future.set_result(2 * bucket.buffer())
    return future
