"""Distributed training: processes started by `torchrun`, and the decisions that they must take together.

Rank 0 is the main process, the only one that writes. Events that only one process sees (an unreadable file, a signal, a
non-finite loss) are exchanged before any process reacts, so that all continue or all stop, and none waits for one that
has ended. In a single process every method just performs its action.

Small objects are exchanged over gloo, gradients over NCCL if the model is on CUDA.
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

# Limits what the main process can do while the others wait, such as scoring a large data set.
TIMEOUT = timedelta(minutes=30)
_TORCHRUN_SETS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """This process in the group of those that train one model together.

    rank: 0 .. count - 1, over all machines. local_rank: among the local_count processes of this machine. group: process
    group for small objects; None for the default group.
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
        """Return the device of MODEL.DEVICE; with several processes on CUDA, each has its own.

        Raises:
            ConfigError: the device does not exist, or there are fewer GPUs than processes.
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
        """Raise an error of one process in all processes. The block itself must not communicate.

        The failing process raises its error unchanged; the others raise the same DetsegError or TrainingInterrupted, or
        a RunError that describes it.
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
        """Return the result of `action`, which only the main process calls; the others get a pickled copy."""
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
        """Return the values of all processes by rank in the main process; an empty list in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values or []

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, not finite if any value is not; in a single process `values` itself."""
        if self.count == 1:
            return values
        total = values.detach().to("cpu", torch.float64)
        dist.all_reduce(total, group=self._group)
        return total / self.count

    def stop_signal(self, stop: StopRequest) -> int | None:
        """Return the number of a signal that any process received, None without one; the same in all processes."""
        return stop.signal if self.count == 1 else self._maximum(stop.signal or 0) or None

    def share_state(self, model: nn.Module) -> None:
        """Copy weights and buffers of the main process to all processes."""
        if self.count == 1:
            return
        state = [tensor.detach() for tensor in model.state_dict().values()]
        for dtype in {tensor.dtype: None for tensor in state}:  # one exchange per dtype
            tensors = [tensor for tensor in state if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.broadcast(flat, src=0)
            if self.is_main:
                continue
            for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def exchange_gradients(self, model: nn.Module) -> nn.Module:
        """Return the module to train: its backward passes leave the gradients' mean over all processes in `model`.

        All processes start with the weights of the main process. BatchNorm statistics stay local to each process
        (unless SyncBN); those of the main process are evaluated and saved.
        """
        if self.count == 1:
            return model
        newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        own_buffers = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        unused = not getattr(model, "trains_everything", False)
        return DistributedDataParallel(model, find_unused_parameters=unused, **own_buffers)

    def agreed_on(self, error: BaseException) -> bool:
        """Whether all processes raise this error, so that only the main process has to show it."""
        return error is self._agreed

    def leave(self) -> None:
        """Synchronize before the end: no process closes its connections while another still waits for data."""
        with suppress(RuntimeError):
            self._maximum(0)
        dist.destroy_process_group()

    def _maximum(self, value: int) -> int:
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return int(tensor)

    def _agree(self, failure: Exception | None) -> None:
        """Raise in all processes if any process has a failure."""
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
"""A single process."""


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Return a context in which backward passes accumulate gradients locally; the next pass outside exchanges them."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes started by torchrun or by Detectron2's launch; yield SINGLE if there are no others.

    Raises:
        RunError: the other processes cannot be reached, or the connection to one was lost.
    """
    if dist.is_available() and dist.is_initialized():
        # Detectron2's launch creates only a group for tensors on the model's device.
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
            raise RunError(f"process {rank} of {count} cannot connect to the others at {address}: {error}") from error
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", count))
    processes = Processes(rank, count, local_rank=local_rank, local_count=local_count, group=group)
    try:
        yield processes
    except RuntimeError as error:
        if not _connection_lost(error):
            raise
        raise RunError(
            f"process {rank} of {count} lost the connection to another one, which has ended or hangs; see its output "
            "above, or in its own file. Without a message there, it may have run out of memory. --resume continues "
            f"from the last checkpoint ({error})"
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
    """Return the error of another process, from its type's name, its message and its signal."""
    if kind == TrainingInterrupted.__name__ and signal is not None:
        return TrainingInterrupted(message, signal)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, DetsegError):
        return known(message)
    return RunError(f"process {rank} failed; see its own output: {kind}: {message}")
