"""Prompts for Segment Anything, and which of its masks are accepted (MODEL.SAM.*)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from detseg.config.options import Options, Problems, key, part

BOX, POINT = "box", "point"
INSTALL = 'Segment Anything needs the package transformers: pip install "detseg[sam]"'


@dataclass(frozen=True)
class PromptOptions(Options):
    """kinds: BOX, POINT or both. points: maximum inside an object. negatives: maximum on its neighbours."""

    section = "MODEL.SAM"

    kinds: tuple[str, ...] = key("PROMPTS", default=(BOX, POINT), choices=(BOX, POINT), not_empty=True)
    points: int = key("POINTS", default=1, at_least=1, at_most=16)
    negatives: int = key("NEGATIVES", default=4, at_least=0, at_most=16)


@dataclass(frozen=True)
class GateOptions(Options):
    """Requirements on a mask of SAM to replace that of its object; see the keys. max_area: 0 for no limit."""

    section = "MODEL.SAM"

    quality: float = key("MIN_QUALITY", default=0.7, at_least=0, at_most=1)
    stability: float = key("MIN_STABILITY", default=0.8, at_least=0, at_most=1)
    overlap: float = key("MIN_OVERLAP", default=0.5, at_least=0, at_most=1)
    min_area: int = key("MIN_AREA", default=1, at_least=1)
    max_area: int = key("MAX_AREA", default=0, at_least=0)
    sharpness: float = key("MIN_SHARPNESS", default=0.0, at_least=0, at_most=1)
    keep_lost: bool = key("KEEP_LOST", default=True)


@dataclass(frozen=True)
class RefineOptions(Options):
    """tile, overlap: side in pixels of the windows for SAM, and overlap of neighbours. batch: prompts at once.

    multimask: SAM predicts three masks per prompt, of which the one with the best predicted quality is used.
    """

    section = "MODEL.SAM"

    multimask: bool = key("MULTIMASK", default=False)
    tile: int = key("TILE", default=512, at_least=32)
    overlap: int = key("OVERLAP", default=128, at_least=0)
    batch: int = key("BATCH", default=64, at_least=1)
    prompts: PromptOptions = part(PromptOptions, default=PromptOptions())
    gates: GateOptions = part(GateOptions, default=GateOptions())

    def check(self, problems: Problems) -> None:
        if self.overlap > self.tile // 2:
            problems.add("MODEL.SAM.OVERLAP", f"expected at most half of MODEL.SAM.TILE ({self.tile})")


@dataclass(frozen=True)
class SamOptions(Options):
    """name: see `sam.load_sam`."""

    section = "MODEL.SAM"

    name: str = key("NAME", test=lambda name: None if name.strip() else "expected a name, a folder or a file")
    refine: RefineOptions = part(RefineOptions)

    def check(self, problems: Problems) -> None:
        if find_spec("transformers") is None:
            problems.add("MODEL.SAM.NAME", INSTALL)
