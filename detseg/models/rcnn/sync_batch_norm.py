"""BatchNorm over the images of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose mean and variance in training are those of all processes' values; otherwise BatchNorm itself.

    Unlike torch.nn.SyncBatchNorm it works on every device, and a process may have no values at all (N = 0: no region),
    as long as all processes call it equally often.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x) if len(x) else x * self.weight[:, None, None] + self.bias[:, None, None]
        values = x.float()
        local = x.numel() // x.shape[1]
        counted = _SumOverProcesses.apply(torch.cat((values.sum(dim=(0, 2, 3)), values.new_tensor([float(local)]))))
        count = counted[-1].detach()
        mean = counted[:-1] / count.clamp(min=1)
        # The mean first, then squares of differences: in one go, E[x^2] - E[x]^2 would lose the small differences.
        difference = values - mean[:, None, None]
        variance = _SumOverProcesses.apply(difference.square().sum(dim=(0, 2, 3))) / count.clamp(min=1)
        self._note(mean.detach(), variance.detach(), count)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (difference * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as BatchNorm does: the variance without bias; not where nothing was seen."""
        share = self.momentum * (count > 0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
        self.num_batches_tracked += (count > 0).to(self.num_batches_tracked.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; every process's loss depends on it, so its gradient is a sum over them too."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
