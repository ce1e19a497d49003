"""What the cells of the notebook call, in their order; every step says in a few lines what it did."""

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
# The CSV is written again when writing it took no more than this part of the time since the last one.
_WRITING = 0.05
_SECONDS = 10  # and not more often than this
_LARGEST = (1600, 8000)  # width and height of the picture that the notebook shows
_CHUNK = 4  # batches that go through one model after the other on a GPU


@dataclass(frozen=True)
class Member:
    """A model and the views that it sees images in; soft_masks: whether its probabilities are needed."""

    predictor: Predictor
    views: tuple[View, ...]
    weight: float
    precision: str
    soft_masks: bool


class Kernel:
    """A session: the data set of the models, the test images and submission.csv.

    Args:
        bundle: folder of the data set, with its manifest.
        root: /kaggle, where `input` is and `working` is written.
        hours: that the session may take, from `started` (`time.time()`) on.
        batch_size: images at once on a GPU; on a CPU it is one.

    Raises:
        DataError: the data set is not whole.
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
        self.broken: dict[str, str] = {}  # image -> why it has the row of an image without objects
        self.said: list[str] = []  # what was left out for the sake of time and memory
        self._counts: Counter[int] = Counter()
        self._shown: list[tuple[Path, Predictions]] = []
        self._written = (0.0, 0.0)  # when the CSV was written last, and how long it took
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
        self.broken.update({name: "there is no file" for name in found.images if name not in found.files})
        self.table = SubmissionTable(found.images, self.competition.layout)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        print(f"{len(found.images)} images to submit ({found.sample}), {len(self.records)} files ({found.folder})")

    def load_models(self) -> None:
        """Load all models onto the GPU, or the CPU where none can be used."""
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
        """Predict all images that the time suffices for; the CSV is valid at every moment."""
        views = [len(member.views) for member in self.members]
        budget = Budget(self.hours, self.started, views, clock=time.time)
        position, members = 0, self._reduced(budget)
        while position < len(self.records):
            if budget.is_over:
                left = self.records[position:]
                self.broken.update({competition_name(record.file_name): "the time was over" for record in left})
                self._say(f"the time is over: {len(left)} images are without objects")
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
        """Write the CSV, read it back and compare; print what is in it.

        Raises RunError where no image could be predicted, unless it is the rerun, which a CSV without objects serves
        better than none.
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
        """Return a picture of the first images with what is submitted; None in the rerun, where nobody looks."""
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
        """The models and views that there is time for."""
        from detseg.inference.combine import with_views

        members = self.members[: budget.effort.models]
        kept = [(member, member.views[: budget.effort.views]) for member in members]
        return [
            dataclasses.replace(member, predictor=with_views(member.predictor, views), views=views)
            for member, views in kept
        ]

    def _predict(self, records: Sequence[ImageRecord], members: Sequence[Member]) -> dict[str, Predictions]:
        """Predict images whatever happens: smaller batches, then the CPU where memory ends; others are `broken`."""
        from detseg.models.devices import choose_device, is_out_of_memory

        try:
            return self._predict_once(records, members)
        except Exception as error:
            reason, full = first_line(error), is_out_of_memory(error)
        if full and self.batch_size > 1 and self.device.type != "cpu":
            self.batch_size //= 2
            self._say(f"the GPU has no memory left: batches of {self.batch_size} from here on")
            return self._predict(records, members)
        if len(records) > 1:
            return {name: found for one in records for name, found in self._predict([one], members).items()}
        if full and self.device.type != "cpu":
            self._say(f"{records[0].file_name}: the GPU has no memory for it, the CPU predicts")
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
        """Predict images by all members; image -> fused predictions after the postprocess."""
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
