"""Parameters, gradients and the optimiser's state shared out over the processes (FSDP).

The learner is one unit, put together for every part of a step and taken apart after it. Layers put together one by one
would need all processes to call the same layers equally often, which clips of different sizes and numbers do not. What
is saved is whole, so that a run goes on with and without.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def shard(learner: nn.Module, device: torch.device) -> None:
    """Share the parameters out, in place; all processes hold the same ones before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    fully_shard(learner, mesh=mesh, reshard_after_forward=False)


@contextmanager
def put_together(learner: nn.Module) -> Iterator[None]:
    """Meanwhile every process has all parameters, and may use parts of the learner by itself."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(learner, FSDPModule):
        learner.unshard()
    yield
    if isinstance(learner, FSDPModule):
        learner.reshard()


def sync_gradients(learner: nn.Module, last: bool) -> None:
    """Whether the next backward pass is the step's last, after which gradients are shared out."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(learner, FSDPModule)
    learner.set_requires_gradient_sync(last)


def whole(value: Tensor) -> Tensor:
    """All of a tensor that may be shared out; every process asks for it."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor, shared out as the parameter is, on its device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def used(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """(P,) float, 1 for the parameters that any of the losses depends on."""
    waiting = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    known, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                waiting.append(following)
    return torch.tensor([float(id(each) in found) for each in parameters], device=parameters[0].device)
