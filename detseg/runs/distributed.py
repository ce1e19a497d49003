"""Several processes that train one model, as `torchrun` starts them: who they are, and what they decide together.

Rank 0 is the main process, the only one that writes. What only one of them can know (a file that cannot be read, a
signal, a loss that is not finite) is exchanged before any of them acts on it, so that all continue or all stop, and
none waits for one that has ended. For a single process every method is the plain action itself.

Small things travel over gloo, gradients over NCCL where the model is on CUDA.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detseg import errors
from detseg.errors import ConfigError, DetsegError, RunError
from detseg.models.devices import choose_device
from detseg.runs.interrupt import StopRequest, TrainingInterrupted

T = TypeVar("T")

# What the main process does while the others wait (scoring a large set) has to fit.
TIMEOUT = timedelta(minutes=30)
_TORCHRUN_SETS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """This process among those that train together.

    rank: 0 .. count - 1, over all machines. local_rank: among the local_count of this machine. group: over which small
    things travel; None for the one that all processes have.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, *, local_rank: int = 0, local_count: int = 1, group: Any = None
    ) -> None:
        self._group = group
        self.rank = rank
        self.count = count
        self.local_rank = local_rank
        self.local_count = local_count
        self._agreed: BaseException | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of MODEL.DEVICE: with several processes on CUDA, one each.

        Raises:
            ConfigError: it does not exist, or there are fewer GPUs than processes.
        """
        if self.count == 1:
            return choose_device(name)
        if name.startswith("cuda:"):
            raise ConfigError(f"MODEL.DEVICE is {name!r}, but there are {self.count} processes: set it to cuda or auto")
        if name not in ("auto", "cuda") or not torch.cuda.is_available():
            return choose_device(name)
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {self.local_count} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "start at most as many (--nproc_per_node), or set MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside the block of one process is raised in all. The block must not exchange anything itself.

        The process in which it happened raises it as it is; the others the same DetsegError or TrainingInterrupted, or
        a RunError that tells of it.
        """
        if self.count == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        self._agree(failure)

    def from_main(self, action: Callable[[], T]) -> T:
        """What `action` returns. Only the main process calls it, the others get a pickled copy of the result."""
        if self.count == 1:
            return action()
        result, failure = None, None
        try:
            result = action() if self.is_main else None
        except Exception as error:
            failure = error
        self._agree(failure)
        box = [result]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return result if self.is_main else box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in the main process; nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values or []

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; a number that is not finite in one is so in all. One process: `values`."""
        if self.count == 1:
            return values
        total = values.detach().to("cpu", torch.float64)
        dist.all_reduce(total, group=self._group)
        return total / self.count

    def stop_signal(self, stop: StopRequest) -> int | None:
        """The number of a signal that came to any process, None where none did: the same answer for all."""
        return stop.signal if self.count == 1 else self._maximum(stop.signal or 0) or None

    def share_state(self, model: nn.Module) -> None:
        """Give all processes the weights and buffers of the main process."""
        if self.count == 1:
            return
        state = [tensor.detach() for tensor in model.state_dict().values()]
        for dtype in {tensor.dtype: None for tensor in state}:  # one exchange for all of a kind
            tensors = [tensor for tensor in state if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.broadcast(flat, src=0)
            if self.is_main:
                continue
            for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def exchange_gradients(self, model: nn.Module) -> nn.Module:
        """The module to train: backward passes through it leave the mean of all processes' gradients in `model`.

        All begin with the weights of the main process. BatchNorm statistics stay each process's own ("SyncBN" shares
        them); those of the main process are evaluated and saved.
        """
        if self.count == 1:
            return model
        newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        own_buffers = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        unused = not getattr(model, "trains_everything", False)
        return DistributedDataParallel(model, find_unused_parameters=unused, **own_buffers)

    def agreed_on(self, error: BaseException) -> bool:
        """Whether all processes raise this error, so that it is enough if the main process shows it."""
        return error is self._agreed

    def leave(self) -> None:
        """End the exchange: no process closes its connections while another still waits for an answer."""
        with suppress(RuntimeError):
            self._maximum(0)
        dist.destroy_process_group()

    def _maximum(self, value: int) -> int:
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return int(tensor)

    def _agree(self, failure: Exception | None) -> None:
        """Raise in all processes where there is a failure in any."""
        if not self._maximum(int(failure is not None)):
            return
        own = None if failure is None else (type(failure).__name__, str(failure), getattr(failure, "signal", None))
        failures: list[Any] = [None] * self.count
        dist.all_gather_object(failures, own, group=self._group)
        if failure is None:
            rank = next(rank for rank, failed in enumerate(failures) if failed is not None)
            failure = _rebuilt(rank, *failures[rank])
        self._agreed = failure
        raise failure


SINGLE = Processes()
"""A process that works by itself."""


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Backward passes in the context add up gradients without exchanging them, which the next pass outside does."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that torchrun, or Detectron2's launch, started; SINGLE where there are no others.

    Raises:
        RunError: the others cannot be reached, or one of them was lost on the way.
    """
    if dist.is_available() and dist.is_initialized():
        # Detectron2's launch makes a group for tensors on the model's device only.
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        rank, count = dist.get_rank(), dist.get_world_size()
    elif int(os.environ.get("WORLD_SIZE", 1)) == 1 or not all(name in os.environ for name in _TORCHRUN_SETS):
        yield SINGLE
        return
    else:
        group, rank, count = None, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT, rank=rank, world_size=count)
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RunError(f"process {rank} of {count} does not reach the others over {address}: {error}") from error
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", count))
    processes = Processes(rank, count, local_rank=local_rank, local_count=local_count, group=group)
    try:
        yield processes
    except RuntimeError as error:
        if not _connection_lost(error):
            raise
        raise RunError(
            f"process {rank} of {count} lost another one, which ended or hangs; what it said stands above or in its "
            "own output, else its memory may have been full. --resume continues from the last checkpoint "
            f"({error})"
        ) from error
    except Exception as error:
        if processes.agreed_on(error):
            processes.leave()
        raise
    processes.leave()


def _connection_lost(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out")
    return isinstance(error, getattr(dist, "DistError", ())) or any(word in str(error).lower() for word in words)


def _rebuilt(rank: int, kind: str, message: str, signal: int | None) -> Exception:
    """The error of another process, from the name of its type, its message and its signal."""
    if kind == TrainingInterrupted.__name__ and signal is not None:
        return TrainingInterrupted(message, signal)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, DetsegError):
        return known(message)
    return RunError(f"process {rank} failed, its own output says where: {kind}: {message}")
