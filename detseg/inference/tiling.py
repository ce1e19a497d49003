"""Which images are predicted in tiles, and in which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detseg.errors import ConfigError

if TYPE_CHECKING:
    from detseg.config import Config

# Pixels at the network from which an image is cut into tiles unless something else is said: 4096 x 4096. A network with
# 256 channels at stride 4 holds about 1 GB of features for them.
LARGE = 2**24
# Pixels at the network around an object that tell the model what it is.
CONTEXT = 64
LEAST_TILE = 1024
MOST_OVERLAP = 512

AUTO, ALWAYS, NEVER = "auto", "always", "never"
WHEN = (AUTO, ALWAYS, NEVER)


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    when: "auto": images of more than `LARGE` pixels at the network; "always": those that are larger than a tile;
    "never". tile, overlap: pixels of the file; None: `network_tile`, `network_overlap` pixels at the network. scale:
    pixels at the network per pixel of the file; None: as the model sees the whole image.

    Raises:
        ConfigError: sizes or a scale that make no sense.
    """

    when: str = AUTO
    tile: int | None = None
    overlap: int | None = None
    scale: float | None = None
    network_tile: int = LEAST_TILE
    network_overlap: int = 128 + CONTEXT

    def __post_init__(self) -> None:
        if self.when not in WHEN:
            raise ConfigError(f"tiles are asked for {self.when!r}; expected one of {', '.join(WHEN)}")
        if self.tile is not None and self.tile < 32:
            raise ConfigError(f"tiles of {self.tile} pixels are too small; expected 32 or more, several objects wide")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"the overlap of tiles is {self.overlap}; expected pixels, from 0 on")
        if self.tile is not None and self.overlap is not None and self.overlap > self.tile // 2:
            raise ConfigError(
                f"tiles of {self.tile} pixels cannot share {self.overlap} with each neighbour; expected at most half"
            )
        if self.scale is not None and not 0.01 <= self.scale <= 100:
            raise ConfigError(f"the scale of tiles is {self.scale}; expected 0.01 to 100")

    @classmethod
    def from_config(cls, cfg: Config) -> Tiling:
        """Tiles for a model: they share as much as its largest objects and some context need.

        The largest objects are those of the largest anchors, or those that fit into the crops of the training.
        """
        largest = max(_numbers(cfg.MODEL.ANCHOR_GENERATOR.SIZES), default=128)
        if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute":
            largest = min(largest, *cfg.INPUT.CROP.SIZE)
        overlap = min(int(largest) + CONTEXT, MOST_OVERLAP)
        return cls(network_tile=max(LEAST_TILE, 4 * overlap), network_overlap=overlap)

    def sizes(self, scale: tuple[float, float]) -> tuple[int, int]:
        """Return tile and overlap in pixels of a file that the network sees at `scale` (y, x)."""
        factor = min(scale)
        tile = self.tile or max(round(self.network_tile / factor), 32)
        overlap = round(self.network_overlap / factor) if self.overlap is None else self.overlap
        return tile, min(overlap, tile // 2)

    def applies(self, height: int, width: int, scale: tuple[float, float]) -> bool:
        """Whether an image height x width that the network sees at `scale` (y, x) is cut into tiles."""
        if self.when == NEVER:
            return False
        if self.when == ALWAYS:
            return max(height, width) > self.sizes(scale)[0]
        return height * scale[0] * width * scale[1] > LARGE

    def describe(self, tile: int, overlap: int) -> dict[str, Any]:
        """What provenance says of an answer that was put together."""
        return {"tile": tile, "overlap": overlap, **({} if self.scale is None else {"scale": self.scale})}


def _numbers(nested: Any) -> list[float]:
    if isinstance(nested, (int, float)):
        return [nested]
    return [number for one in nested for number in _numbers(one)]
