"""Detectron2's checkpointer with detseg's files: its own reading unpickles whatever a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from detseg.engine.state import TrainingState
from detseg.models.weights.reading import read_weights
from detseg.models.weights.renaming import names_of_model
from detseg.models.weights.sources import resolve_weights


class SafeCheckpointer(DetectionCheckpointer):
    """Reads tensors and plain values only, from every address that MODEL.WEIGHTS takes; writes detseg's checkpoints.

    state: what is written. folder: where. keep: SOLVER.CHECKPOINT_KEEP.
    """

    def __init__(self, state: TrainingState, folder: Path, *, keep: int = 1) -> None:
        super().__init__(state.model, str(folder), save_to_disk=state.processes.is_main)
        self._state = state
        self._keep = keep

    def save(self, name: str, **_: Any) -> None:
        """Write NAME.pth with everything that continuing needs. Of several processes all call this, the main writes."""
        self._state.save_last(Path(self.save_dir) / f"{name}.pth", self._keep)

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Load weights into the model.

        Raises:
            WeightsError: no such file, or one with more in it than tensors and plain values.
        """
        return super().load(str(resolve_weights(path)) if path else path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        path = Path(filename)
        return {"model": names_of_model(read_weights(path), self.model.state_dict(), path.name).state}
