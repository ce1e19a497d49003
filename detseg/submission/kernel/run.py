"""The steps that the cells of the notebook call, in their order; each prints a short report."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detseg.coco.dataset import ImageRecord
from detseg.errors import DataError, RunError, first_line, list_problems
from detseg.formats.run_lengths import competition_name
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.images.reading import read_image
from detseg.report.overlays import side_by_side
from detseg.structures.predictions import Predictions
from detseg.submission.kernel.budget import Budget
from detseg.submission.kernel.facts import Competition
from detseg.submission.kernel.inputs import find_images, read_manifest
from detseg.submission.writing import SubmissionTable

if TYPE_CHECKING:
    from detseg.inference.predictor import Predictor
    from detseg.inference.views import View

RERUN = "KAGGLE_IS_COMPETITION_RERUN"
# The CSV is rewritten if that last took no more than this fraction of the time since then.
_WRITING = 0.05
_SECONDS = 10  # minimum interval
_LARGEST = (1600, 8000)  # maximum width and height of the picture shown
_CHUNK = 4  # batches per model before the next model's turn on the GPU


@dataclass(frozen=True)
class Member:
    """A model and its views; soft_masks: whether its mask probabilities are needed."""

    predictor: Predictor
    views: tuple[View, ...]
    weight: float
    precision: str
    soft_masks: bool


class Kernel:
    """A session: the data set with the models, the test images and submission.csv.

    Args:
        bundle: folder of the data set, with its manifest.
        root: /kaggle, with `input`, and `working` for outputs.
        hours: time limit of the session, from `started` (`time.time()`) on.
        batch_size: images per batch on a GPU; 1 on a CPU.

    Raises:
        DataError: the data set is incomplete.
    """

    def __init__(
        self, bundle: Path, root: Path = Path("/kaggle"), *, hours: float, started: float, batch_size: int = 4
    ) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.bundle, self.root = Path(bundle), Path(root)
        self.manifest = read_manifest(self.bundle)
        self.competition = Competition.from_plain(self.manifest["competition"], str(self.bundle))
        self.fusion = FusionOptions.load(self.bundle / "fusion.yaml")
        self.postprocess = Postprocess.load(self.bundle / "postprocess.yaml")
        self.output = self.root / "working" / "submission.csv"
        self.hours, self.started, self.batch_size = hours, started, batch_size
        self.is_rerun = bool(os.environ.get(RERUN))
        self.broken: dict[str, str] = {}  # image -> why it is submitted without objects
        self.said: list[str] = []  # messages about what was left out for lack of time or memory
        self._counts: Counter[int] = Counter()
        self._shown: list[tuple[Path, Predictions]] = []
        self._written = (0.0, 0.0)  # time of the last write of the CSV, and its duration
        kind = "the rerun with the hidden images" if self.is_rerun else "the commit run, with the few public images"
        print(f"detseg {self.manifest['detseg']}: {kind}; data set {self.bundle}")

    def find_images(self) -> None:
        """Find the test images, the same list for all models, and write a CSV in which none has objects."""
        temporary = Path(tempfile.mkdtemp(prefix="detseg_"))
        found = find_images(self.root / "input", self.competition, temporary)
        self.records = [
            ImageRecord(number, found.files[name].name, found.files[name], 0, 0, {})
            for number, name in enumerate((name for name in found.images if name in found.files), start=1)
        ]
        self.broken.update({name: "it has no file" for name in found.images if name not in found.files})
        self.table = SubmissionTable(found.images, self.competition.layout)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        print(f"{len(found.images)} images to submit ({found.sample}), {len(self.records)} files ({found.folder})")

    def load_models(self) -> None:
        """Load all models onto the GPU, or the CPU if there is none."""
        from detseg.inference.predictor import Predictor
        from detseg.inference.views import PLAIN, parse_views
        from detseg.models.devices import usable_device

        self.device = usable_device()
        needed = self.fusion.needs_soft_masks or self.postprocess.needs_soft_masks
        self.members = []
        for entry in self.manifest["members"]:
            options = {"device": str(self.device), "precision": entry["precision"]}
            predictor = Predictor.from_checkpoint(self.bundle / entry["weights"], **options)
            words = entry["views"]
            views = tuple(predictor.tta.views if words is None else [PLAIN] if words == ["off"] else parse_views(words))
            soft = needed and predictor.detector.gives_soft_masks
            self.members.append(Member(predictor, views, entry["weight"], entry["precision"], soft))
            names = " ".join(view.name for view in views)
            precision = predictor.detector.models[0].precision
            print(f"{entry['weights']}: {entry['run']}, views {names}, {precision}, on {self.device}")
        self.classes = self.members[0].predictor.classes

    def predict(self) -> None:
        """Predict all images that time allows; the CSV is valid at every moment."""
        views = [len(member.views) for member in self.members]
        budget = Budget(self.hours, self.started, views, clock=time.time)
        position, members = 0, self._reduced(budget)
        while position < len(self.records):
            if budget.is_over:
                left = self.records[position:]
                self.broken.update({competition_name(record.file_name): "the time was over" for record in left})
                self._say(f"time is over: {len(left)} images are submitted without objects")
                break
            if (said := budget.plan(len(self.records) - position)) is not None:
                self._say(said)
                members = self._reduced(budget)
            started = time.perf_counter()
            size = self.batch_size * _CHUNK if self.device.type != "cpu" else 1
            chunk = self.records[position : position + size]
            for name, found in self._predict(chunk, members).items():
                self._add(name, found)
            position += len(chunk)
            seconds = time.perf_counter() - started
            budget.took(len(chunk), seconds)
            tenth = max(len(self.records) // 10, 1)
            if position == len(chunk) or position // tenth > (position - len(chunk)) // tenth:
                print(f"{position} of {len(self.records)} images, {seconds / len(chunk):.2f} s an image")
            last, took = self._written
            if time.time() - last > max(_SECONDS, took / _WRITING):
                self._write()

    def finish(self) -> None:
        """Write the CSV, read it back and compare; print a summary.

        Raises RunError if no image could be predicted; not in the rerun, where a CSV without objects is better than
        none.
        """
        written = self.table.write(self.output)
        print(f"images   {written.images}\nobjects  {written.objects}")
        for index, name in enumerate(self.classes):
            print(f"  {name}  {self._counts[index]}")
        print(f"empty    {written.empty}")
        if self.broken:
            print(f"{len(self.broken)} images are submitted without having been predicted:")
            print(list_problems([f"{name}: {reason}" for name, reason in self.broken.items()]))
        for text in self.said:
            print(f"left out: {text}")
        print(f"written  {self.output}, read back and compared, after {(time.time() - self.started) / 60:.1f} minutes")
        if self.records and not self.is_rerun and len(self.broken) == written.images:
            raise RunError("no image could be predicted; see above")

    def pictures(self, count: int = 3) -> Image.Image | None:
        """Return a picture of the first images with their objects; None in the rerun, where nobody sees it."""
        if self.is_rerun or not self._shown:
            return None
        shown = [
            side_by_side(read_image(path), predictions=found, class_names=self.classes, caption=path.name)
            for path, found in self._shown[:count]
        ]
        width = max(picture.shape[1] for picture in shown)
        padded = [np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255) for one in shown]
        picture = Image.fromarray(np.concatenate(padded))
        picture.thumbnail(_LARGEST)
        return picture

    def _reduced(self, budget: Budget) -> list[Member]:
        """Return the models and views for which there is time."""
        from detseg.inference.combine import with_views

        members = self.members[: budget.effort.models]
        kept = [(member, member.views[: budget.effort.views]) for member in members]
        return [
            dataclasses.replace(member, predictor=with_views(member.predictor, views), views=views)
            for member, views in kept
        ]

    def _predict(self, records: Sequence[ImageRecord], members: Sequence[Member]) -> dict[str, Predictions]:
        """Predict images; out of memory, use smaller batches, then the CPU. Images that fail are put into `broken`."""
        from detseg.models.devices import choose_device, is_out_of_memory

        try:
            return self._predict_once(records, members)
        except Exception as error:
            reason, full = first_line(error), is_out_of_memory(error)
        if full and self.batch_size > 1 and self.device.type != "cpu":
            self.batch_size //= 2
            self._say(f"GPU out of memory: continuing with batches of {self.batch_size}")
            return self._predict(records, members)
        if len(records) > 1:
            return {name: found for one in records for name, found in self._predict([one], members).items()}
        if full and self.device.type != "cpu":
            self._say(f"{records[0].file_name}: GPU out of memory, predicting on the CPU")
            device = self.device
            try:
                self._move(members, choose_device("cpu"))
                return self._predict(records, members)
            finally:
                self._move(members, device)
        self.broken[competition_name(records[0].file_name)] = reason
        return {}

    def _move(self, members: Sequence[Member], device: Any) -> None:
        self.device = device
        for member in members:
            member.predictor.move_to(device, member.precision)

    def _predict_once(self, records: Sequence[ImageRecord], members: Sequence[Member]) -> dict[str, Predictions]:
        """Predict images with all members; return image -> fused predictions after the postprocess."""
        found: dict[str, list[tuple[Member, Predictions]]] = {}
        for member in members:
            skipped: list[Any] = []
            batch_size = self.batch_size if self.device.type != "cpu" else 1
            options = {"batch_size": batch_size, "soft_masks": member.soft_masks, "skipped": skipped, "workers": 1}
            for predictions in member.predictor.predict_records(records, **options):
                found.setdefault(competition_name(predictions.file_name), []).append((member, predictions))
            for image in skipped:
                self.broken[competition_name(image.file_name)] = image.reason
        result = {}
        for name, pairs in found.items():
            self.broken.pop(name, None)  # another model could predict it
            fused = pairs[0][1]
            if len(self.members) > 1:
                options = self.fusion.of_members(len(pairs))
                fused = fuse([one for _, one in pairs], options, [member.weight for member, _ in pairs])
            result[name] = self.postprocess.apply(fused)
        return result

    def _add(self, name: str, found: Predictions) -> None:
        try:
            kept = self.table.add(found)
        except DataError as error:
            self.broken[name] = str(error)
            return
        self._counts.update(kept.classes.tolist())
        if len(self._shown) < 3:
            path = next(record.path for record in self.records if record.image_id == found.image_id)
            self._shown.append((path, kept))

    def _write(self) -> None:
        started = time.time()
        self.table.write(self.output, compare=False)
        self._written = (time.time(), time.time() - started)

    def _say(self, text: str) -> None:
        self.said.append(text)
        print(text, flush=True)
