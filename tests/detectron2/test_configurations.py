"""Configuration files mean here what they mean to Detectron2, and each of its own does what docs/engines.md says.

python tests/detectron2/test_configurations.py      prints that page's table
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from detectron2_cases import require_detectron2

require_detectron2()

from detectron2 import model_zoo
from detectron2.config import get_cfg

from detseg.config import Config, load_config
from detseg.config.schema import default_values, detectron2_defaults
from detseg.detectron2.config import flatten
from detseg.engine.validation import validate_config
from detseg.errors import ConfigError
from detseg.inference.validation import validate_for_prediction

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
ZOO = Path(model_zoo.__file__).parent / "configs"
ZOO_FILES = sorted(path.relative_to(ZOO).as_posix() for path in ZOO.rglob("*.yaml"))

OLD_FILES = {
    "guessed": "MODEL: {WEIGHT: a.pkl, RPN: {ANCHOR_SIZES: [[8, 16]]}}\nTEST: {DETECTIONS_PER_IMG: 7, AUG_FLIP: False}",
    "0": "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Mine}, ROI_HEADS: {NMS: 0.3, SCORE_THRESH: 0.2}}",
    "1, panoptic": """
VERSION: 1
MODEL:
  PANOPTIC_FPN: {SEMANTIC_LOSS_SCALE: 2.0, RPN_LOSS_SCALE: 3.0, COMBINE_ON: False, COMBINE_OVERLAP_THRESHOLD: 0.25}
""",
    "1, RetinaNet": """
VERSION: 1
MODEL:
  META_ARCHITECTURE: RetinaNet
  RETINANET: {ANCHOR_SIZES: [[8], [16]], ANCHOR_STRIDES: [8, 16], INFERENCE_TOPK_CANDIDATES: 9}
  RPN: {ANCHOR_SIZES: [[99]]}
""",
}


def plain(value: Any) -> Any:
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def in_both(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file changes of Detectron2's defaults to Detectron2, and of detseg's to detseg."""
    theirs = get_cfg()
    theirs.merge_from_file(str(path), allow_unsafe=True)
    cfg, defaults = load_config(path), default_values()
    known = detectron2_defaults()
    expected = {key: plain(value) for key, value in flatten(theirs) if plain(value) != known[key]}
    found = {key: cfg[key] for key in known if cfg[key] != defaults[key] or key in expected}
    return expected, found


def verdict(cfg: Config) -> str:
    """What can be done with a configuration, and which keys stand against the rest."""
    try:
        validate_config(cfg)
    except ConfigError as error:
        can, problem = "predicts", error
    else:
        return "trains"
    try:
        validate_for_prediction(cfg)
    except ConfigError as error:
        can, problem = "no", error
    values = dict(re.findall(r"([A-Z][A-Z_]+\.[A-Z0-9_.]+) = '?(\w+)", str(problem)))
    return f"{can}: {', '.join(f'`{key}` {values[key]}' for key in sorted(values))}"


def zoo_row(name: str) -> str:
    """A file's line of the table; a GPU is taken for granted, and for files that others build on, weights."""
    verdicts = []
    for engine in ("native", "detectron2"):
        words = ["MODEL.ENGINE", engine, "MODEL.DEVICE", "cuda"]
        if Path(name).name.startswith("Base-"):
            words += ["MODEL.WEIGHTS", "R-50.pkl"]
        verdicts.append(verdict(load_config(ZOO / name, words)))
    return f"| {name.removesuffix('.yaml')} | {' | '.join(verdicts)} |"


@pytest.mark.parametrize("name", OLD_FILES)
def test_old_versions_are_upgraded_as_by_detectron2(name: str, tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD_FILES[name])
    expected, found = in_both(path)
    assert expected
    assert found == expected


@pytest.mark.parametrize("name", ZOO_FILES)
def test_detectron2s_own_files_have_its_values_and_do_what_the_page_says(name: str):
    expected, found = in_both(ZOO / name)
    assert found == expected
    assert zoo_row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_no_other_files():
    rows = re.findall(r"^\| (\S+) \| (?:trains|predicts:|no:)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(name.removesuffix(".yaml") for name in ZOO_FILES)


if __name__ == "__main__":
    print("\n".join(map(zoo_row, ZOO_FILES)))
