"""Which engine a configuration gets, and MODEL.IMPORTS; with Detectron2 or without it."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detseg.cli.main import run_command
from detseg.config import load_config, load_flat_config
from detseg.config.keys import OWN_KEYS as ALL_OWN_KEYS
from detseg.config.schema import kinds
from detseg.detectron2.keys import DETECTRON2_ONLY, OWN_KEYS, REFUSED, implements
from detseg.engine.validation import validate_config
from detseg.engines.choice import as_trained, choose_engine, for_prediction, missing_detectron2
from detseg.engines.validation import run_imports
from detseg.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "mask_rcnn.yaml"


@pytest.fixture
def without_detectron2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Detectron2 does not import, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", None)
    missing_detectron2.cache_clear()
    yield
    missing_detectron2.cache_clear()


def test_asking_for_one_engine_gives_it():
    for engine in ("native", "detectron2"):
        assert choose_engine(load_config(QUICKSTART, ["MODEL.ENGINE", engine])).name == engine


@pytest.mark.usefixtures("without_detectron2")
def test_auto_is_native_where_detectron2_does_not_import():
    choice = choose_engine(load_config(QUICKSTART))
    assert choice.name == "native"
    assert "detectron2 does not import here" in choice.reason


@pytest.mark.usefixtures("without_detectron2")
def test_detectron2_is_refused_where_it_does_not_import():
    cfg = load_config(QUICKSTART, ["MODEL.ENGINE", "detectron2"])
    with pytest.raises(ConfigError, match=r"MODEL.ENGINE.*command line.*does not import.*https://.*native"):
        validate_config(cfg)
    with pytest.raises(ConfigError, match="does not import"):
        validate_config(cfg, training=False)


@pytest.mark.usefixtures("without_detectron2")
@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("detectron2", "does not import here"),
        ("native", "torchrun --nproc_per_node 2"),
        ("auto", "does not import here"),
    ],
)
def test_processes_of_its_launch_are_refused_without_it(engine: str, said: str, capsys: pytest.CaptureFixture[str]):
    words = ["--config", str(QUICKSTART), "--num-gpus", "2", "MODEL.ENGINE", engine]
    assert run_command("train_net", words, prog="train_net") == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("without_detectron2")
def test_what_only_detectron2_takes_says_why_it_is_native():
    cfg = load_config(QUICKSTART, ["VIS_PERIOD", "5"])
    with pytest.raises(ConfigError, match=r"(?s)VIS_PERIOD.*does not honour.*native because.*does not import"):
        validate_config(cfg)


@pytest.mark.usefixtures("without_detectron2")
def test_a_model_of_detectron2_is_predicted_natively(caplog: pytest.LogCaptureFixture):
    cfg, engine = for_prediction(load_config(QUICKSTART), "detectron2")
    assert (cfg.MODEL.ENGINE, engine.name) == ("native", "native")
    assert "trained with detectron2, which cannot be imported here" in engine.reason
    assert "the model was trained with detectron2, which" in caplog.text
    other = load_config(QUICKSTART, ["MODEL.META_ARCHITECTURE=RetinaNet"])
    cfg, _ = for_prediction(other, "detectron2")
    with pytest.raises(ConfigError, match="Detectron2 does not import"):
        validate_config(cfg, training=False)


def test_the_recorded_engine_is_kept():
    cfg = load_config(QUICKSTART)
    assert as_trained(cfg, "native").MODEL.ENGINE == "native"
    assert as_trained(cfg, None).MODEL.ENGINE == "auto"
    asked = load_config(QUICKSTART, ["MODEL.ENGINE", "native"])
    assert as_trained(asked, "detectron2").MODEL.ENGINE == "native"
    assert for_prediction(cfg, "native")[1].reason == "the model was trained with native"


@pytest.mark.parametrize("pattern", [*DETECTRON2_ONLY, *OWN_KEYS, *REFUSED])
def test_what_is_said_of_the_detectron2_engine_names_keys(pattern: str):
    assert fnmatch.filter(kinds(), pattern), f"{pattern} names no key"


def test_no_engine_is_advised_that_refuses_too():
    for words, advised in (
        (["MODEL.RPN.HEAD_NAME", "OtherHead"], True),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"], False),
        (["SOLVER.REFERENCE_WORLD_SIZE", "8"], False),
    ):
        with pytest.raises(ConfigError) as caught:
            validate_config(load_config(QUICKSTART, [*words, "MODEL.ENGINE", "native"]))
        assert ("set MODEL.ENGINE detectron2" in str(caught.value)) == advised


def test_every_own_key_of_model_and_solver_is_judged():
    """A new key that nobody thought of is refused by the Detectron2 engine, not ignored."""
    judged = [name for name in ALL_OWN_KEYS if name.startswith(("MODEL.", "SOLVER."))]
    assert not implements("MODEL.TORCHVISION.NAME")
    assert all(implements(name) == any(fnmatch.fnmatchcase(name, p) for p in OWN_KEYS) for name in judged)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_imports_are_refused_unless_the_user_named_the_file(tmp_path: Path):
    path = write(tmp_path, 'MODEL:\n  IMPORTS: ["antigravity:fly"]\n  FLIES: True\n')
    with pytest.raises(
        ConfigError, match=r"config.yaml:2: MODEL.IMPORTS names code \(antigravity:fly\).*--config FILE"
    ):
        load_config(path)
    assert load_config(path, imports=lambda names: {"MODEL.FLIES": False}).MODEL.FLIES is True
    with pytest.raises(ConfigError, match=r"stored configuration: MODEL.IMPORTS names code"):
        load_flat_config({"MODEL.IMPORTS": ["antigravity:fly"]})
    with pytest.raises(ConfigError, match=r"command line: MODEL.IMPORTS is read from configuration files only"):
        load_config(QUICKSTART, ["MODEL.IMPORTS", '["antigravity:fly"]'], imports=run_imports)
    with pytest.raises(ConfigError, match=r"MODEL.IMPORTS: got .*expected a list of strings"):
        load_config(write(tmp_path, "MODEL: {IMPORTS: 3}"), imports=run_imports)


def test_imports_are_inherited_and_can_be_taken_back(tmp_path: Path):
    write(tmp_path, 'MODEL: {IMPORTS: ["a:b"], POINTS: 3}')
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: config.yaml\nMODEL: {POINTS: 4}")
    cfg = load_config(child, imports=lambda names: {"MODEL.POINTS": 1, "SEED": 9})
    assert (cfg.MODEL.POINTS, cfg.SEED) == (4, 9)
    child.write_text("_BASE_: config.yaml\nMODEL: {IMPORTS: []}")
    with pytest.raises(ConfigError, match=r"unknown key 'MODEL.POINTS'"):
        load_config(child, imports=lambda names: {"MODEL.POINTS": 1})


@pytest.mark.usefixtures("without_detectron2")
def test_imports_need_detectron2(tmp_path: Path):
    with pytest.raises(ConfigError, match="extends Detectron2, which cannot be imported here"):
        load_config(write(tmp_path, 'MODEL: {IMPORTS: ["a:b"]}'), imports=run_imports)
