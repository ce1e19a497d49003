"""Files, `_BASE_`, the forms of values, the command line; dump and hash."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detseg.config import config_hash, config_name, dump_config, get_default_config, load_config, load_flat_config
from detseg.errors import ConfigError

ZOO = json.loads((Path(__file__).parents[1] / "golden" / "d2_zoo.json").read_text(encoding="utf-8"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(*arguments) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(*arguments)
    return str(raised.value)


def test_values_are_read_as_yacs_reads_them(tmp_path: Path):
    text = """
MODEL: {PIXEL_STD: [1, 2, 3], WEIGHTS: "2018"}
SOLVER: {BASE_LR: 1e-3, STEPS: "(600, 800)", MAX_ITER: "900", WEIGHT_DECAY: 0, WEIGHT_DECAY_BIAS: 1e-4}
INPUT: {MIN_SIZE_TRAIN: "[640, 672]"}
DATASETS:
  TRAIN: ("a.json", "b.json")
  TEST: [c.json]
  IMAGE_ROOT: "'quoted'"
"""
    cfg = load_config(write(tmp_path, "c.yaml", text))
    assert cfg.MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
    assert all(isinstance(value, float) for value in cfg.MODEL.PIXEL_STD)
    assert cfg.MODEL.WEIGHTS == "2018"
    assert cfg.SOLVER.BASE_LR == 0.001
    assert cfg.SOLVER.STEPS == [600, 800]
    assert cfg.SOLVER.MAX_ITER == 900
    assert isinstance(cfg.SOLVER.WEIGHT_DECAY, float)
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS == 0.0001
    assert cfg.INPUT.MIN_SIZE_TRAIN == [640, 672]
    assert cfg.DATASETS.TRAIN == ["a.json", "b.json"]
    assert cfg.DATASETS.IMAGE_ROOT == "quoted"


def test_key_with_default_none_takes_a_number_or_none():
    assert get_default_config().SOLVER.WEIGHT_DECAY_BIAS is None
    assert load_config(None, ["SOLVER.WEIGHT_DECAY_BIAS", "0"]).SOLVER.WEIGHT_DECAY_BIAS == 0.0
    assert load_config(None, ["SOLVER.WEIGHT_DECAY_BIAS=None"]).SOLVER.WEIGHT_DECAY_BIAS is None
    assert "a number or None" in refused(None, ["SOLVER.WEIGHT_DECAY_BIAS=much"])


def test_detectron2_file_of_a_user_loads(tmp_path: Path):
    text = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-50.pkl
  MASK_ON: True
  RETINANET: {NUM_CLASSES: 3}
  ROI_KEYPOINT_HEAD: {NUM_KEYPOINTS: 5}
INPUT: {MASK_FORMAT: polygon}
OUTPUT_DIR: ./output
"""
    cfg = load_config(write(tmp_path, "c.yaml", text))
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert cfg.INPUT.MASK_FORMAT == "polygon"
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_configs_load_as_files(name: str, tmp_path: Path):
    differs = ZOO[name]["differs_from_defaults"]
    nested: dict = {}
    for key, value in differs.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    cfg = load_config(write(tmp_path, "zoo.yaml", yaml.safe_dump(nested)))
    assert {key: cfg[key] for key in differs} == differs


def test_bases_are_relative_to_the_file_and_later_ones_win(tmp_path: Path):
    write(tmp_path, "deep/first.yaml", "SEED: 1\nVIS_PERIOD: 1\nMODEL: {MASK_ON: True}")
    write(tmp_path, "second.yaml", "_BASE_: deep/first.yaml\nSEED: 2\nVIS_PERIOD: 2")
    write(tmp_path, "third.yaml", "VIS_PERIOD: 3")
    top = write(tmp_path, "sub/top.yaml", "VERSION: 2\n_BASE_: [../second.yaml, ../third.yaml]\nMODEL:\n")
    cfg = load_config(top, ["TEST.OVERLAYS", "5"])
    assert (cfg.SEED, cfg.VIS_PERIOD, cfg.MODEL.MASK_ON, cfg.TEST.OVERLAYS) == (2, 3, True, 5)
    assert cfg.origin("MODEL.MASK_ON") == f"{tmp_path / 'deep' / 'first.yaml'}:3"
    assert cfg.origin("TEST.OVERLAYS") == "command line"
    assert cfg.origin("MODEL.WEIGHTS") == "default"
    assert cfg.source == top


def test_same_base_by_two_ways_is_no_cycle(tmp_path: Path):
    write(tmp_path, "root.yaml", "SEED: 1")
    write(tmp_path, "a.yaml", "_BASE_: root.yaml")
    write(tmp_path, "b.yaml", "_BASE_: root.yaml\nSEED: 2")
    assert load_config(write(tmp_path, "c.yaml", "_BASE_: [a.yaml, b.yaml]")).SEED == 2


def test_base_cycle_shows_the_chain(tmp_path: Path):
    first = write(tmp_path, "a.yaml", "_BASE_: sub/b.yaml")
    write(tmp_path, "sub/b.yaml", "_BASE_: ../c.yaml")
    write(tmp_path, "c.yaml", "_BASE_: a.yaml")
    message = refused(first)
    places = [message.index(name) for name in ("a.yaml -> ", "b.yaml -> ", "c.yaml -> ")]
    assert "cycle" in message
    assert places == sorted(places)
    assert "cycle" in refused(write(tmp_path, "self.yaml", "_BASE_: self.yaml"))


def test_bases_that_multiply_are_stopped(tmp_path: Path):
    for level in range(30):
        write(tmp_path, f"{level}.yaml", f"_BASE_: [{level + 1}.yaml, {level + 1}.yaml]")
    write(tmp_path, "30.yaml", "SEED: 1")
    assert "more than 100 files" in refused(tmp_path / "0.yaml")


def test_missing_base_names_the_file_and_who_included_it(tmp_path: Path):
    top = write(tmp_path, "top.yaml", "_BASE_: gone/base.yaml")
    message = refused(top)
    assert str(tmp_path / "gone" / "base.yaml") in message
    assert str(top) in message


@pytest.mark.parametrize("value", ["3", "[a.yaml, 3]", "{a: b}", "", "['']"])
def test_base_of_another_type_is_refused(value: str, tmp_path: Path):
    assert "_BASE_" in refused(write(tmp_path, "c.yaml", f"_BASE_: {value}"))


def test_base_address_is_refused(tmp_path: Path):
    assert "local file" in refused(write(tmp_path, "c.yaml", "_BASE_: https://example.org/a.yaml"))


def test_missing_file_and_folder(tmp_path: Path):
    assert "no such configuration file" in refused(tmp_path / "gone.yaml")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MODEL:\n  MASKON: True", ["c.yaml:2", "MODEL.MASKON", "MODEL.MASK_ON"]),
        ("SOLVR:\n  MAX_ITER: 3", ["c.yaml:1", "SOLVR", "SOLVER"]),
        ("SOLVER:\n  NMS_THRESH_TEST: 3", ["SOLVER.NMS_THRESH_TEST", "ROI_HEADS.NMS_THRESH_TEST"]),
        ("MODEL.MASK_ON: True", ["c.yaml:1", "MODEL.MASK_ON", "section"]),
        ("SEED: 1\nSEED: 1", ["c.yaml:2", "SEED", "twice", "line 1"]),
        ("MODEL:\n  RPN: {}\nMODEL:\n  MASK_ON: True", ["c.yaml:3", "MODEL", "twice"]),
        ("SEED: one", ["c.yaml:1", "SEED", "'one'", "an integer"]),
        ("SEED: 1.0", ["SEED", "1.0", "an integer"]),
        ("SEED: True", ["SEED", "boolean", "an integer"]),
        ("MODEL: {MASK_ON: 1}", ["MODEL.MASK_ON", "True or False"]),
        ("SOLVER: {BASE_LR: .nan}", ["SOLVER.BASE_LR", "finite"]),
        ("SOLVER: {STEPS: [1, 2.5]}", ["SOLVER.STEPS", "integer"]),
        ("INPUT: {MIN_SIZE_TRAIN: 800}", ["INPUT.MIN_SIZE_TRAIN", "a list of integers", "[800]"]),
        ("DATASETS: {TRAIN: a.json}", ["DATASETS.TRAIN", "a list of strings", "['a.json']"]),
        ("DATASETS: {IMAGE_ROOT: 2018}", ["DATASETS.IMAGE_ROOT", "2018", "quote"]),
        ("MODEL: {WEIGHTS: null}", ["MODEL.WEIGHTS", '""']),
        ("MODEL: 3", ["c.yaml:1", "MODEL is a section", "3"]),
        ("MODEL: {WEIGHTS: {a: 1}}", ["MODEL.WEIGHTS", "section"]),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[8], 16]}}", ["ANCHOR_GENERATOR.SIZES", "list"]),
        ("SEED: 99999999999999999999", ["SEED", "64 bits"]),
        ("1: 2", ["c.yaml:1", "key must be a name"]),
        ("? [a]\n: 2", ["c.yaml:1", "key must be a name"]),
        ("SEED: !!python/object/apply:os.system ['true']", ["c.yaml:1", "python", "refused"]),
        ("MODEL: !!python/tuple [1]", ["python/tuple", "refused"]),
        ("SEED: 2018-99-99", ["c.yaml"]),
        ("SEED: [1", ["c.yaml:", "YAML"]),
        ("- a\n- b", ["c.yaml", "sections and keys"]),
        ("just text", ["c.yaml", "sections and keys"]),
        ("a: 1\n---\nb: 2", ["c.yaml", "YAML"]),
        ("SOLVER: &s {SEED: 1}\nMODEL:\n  <<: *s", ["<<", "_BASE_"]),
    ],
)
def test_bad_file_says_what_where_and_what_instead(text: str, expected: list[str], tmp_path: Path):
    message = refused(write(tmp_path, "c.yaml", text))
    for part in expected:
        assert part in message, f"{part!r} is missing in {message!r}"


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path):
    message = refused(write(tmp_path, "c.yaml", "SEEED: 1\nMODEL:\n  MASK: 1\n"))
    assert "2 problems" in message
    assert "c.yaml:1" in message
    assert "c.yaml:3" in message
    message = refused(write(tmp_path, "d.yaml", "SEED: a\nVERSION: b\n"))
    assert "SEED" in message
    assert "VERSION" in message


def test_files_that_are_no_text(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    assert "UTF-8" in refused(path)
    path.write_bytes(b"SEED: 1 \x00")
    assert "c.yaml" in refused(path)
    path.write_bytes(b" " * 2_000_000)
    assert "2000000 bytes" in refused(path)
    path.write_bytes(b"\xef\xbb\xbfSEED: 7\r\n")
    assert load_config(path).SEED == 7, "a byte order mark and Windows line ends are fine"
    path.write_bytes(b"")
    assert load_config(path) == get_default_config()


@pytest.mark.parametrize(
    "words",
    [
        ["SOLVER.MAX_ITER", "7", "MODEL.DEVICE", "cpu"],
        ["SOLVER.MAX_ITER=7", "MODEL.DEVICE=cpu"],
        ["--SOLVER.MAX_ITER=7", "MODEL.DEVICE", "cpu"],
        ["SOLVER.MAX_ITER", 7, "--MODEL.DEVICE=cpu"],
        ["SOLVER.MAX_ITER=1", "MODEL.DEVICE=cpu", "SOLVER.MAX_ITER=7"],
    ],
)
def test_forms_of_the_command_line(words: list):
    cfg = load_config(None, words)
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.DEVICE) == (7, "cpu")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["INPUT.MIN_SIZE_TRAIN=[256, 320]"], "INPUT.MIN_SIZE_TRAIN", [256, 320]),
        (["DATASETS.TRAIN", "('a=b.json',)"], "DATASETS.TRAIN", ["a=b.json"]),
        (["MODEL.WEIGHTS", "a=b.pth"], "MODEL.WEIGHTS", "a=b.pth"),
        (["MODEL.WEIGHTS=C:\\new\\table.pth"], "MODEL.WEIGHTS", "C:\\new\\table.pth"),
        (["MODEL.WEIGHTS="], "MODEL.WEIGHTS", ""),
        (["MODEL.MASK_ON=true"], "MODEL.MASK_ON", True),
        (["OUTPUT_DIR", "001"], "OUTPUT_DIR", "001"),
        (["OUTPUT_DIR=2024"], "OUTPUT_DIR", "2024"),
        (["SOLVER.BASE_LR=1e-4"], "SOLVER.BASE_LR", 1e-4),
        (["INPUT.CROP.SIZE=[256, 256]", "INPUT.CROP.TYPE=absolute"], "INPUT.CROP.SIZE", [256, 256]),
    ],
)
def test_values_from_the_command_line(words: list[str], key: str, value):
    assert load_config(None, words)[key] == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAXITER=3"], "SOLVER.MAX_ITER"),
        (["solver.max_iter=3"], "SOLVER.MAX_ITER"),
        (["SOLVER=3"], "is a section"),
        (["SOLVER.MAX_ITER=x"], "command line: SOLVER.MAX_ITER"),
        ([""], "unknown key"),
        (["--=3"], "unknown key"),
        (["X" * 100_000 + "=1"], "unknown key"),
    ],
)
def test_bad_words_of_the_command_line(words: list[str], expected: str):
    message = refused(None, words)
    assert expected in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [
        ("DATASETS.TRAIN", "[sartorius_filled_train]", ["sartorius_filled_train"]),
        ("DATASETS.TRAIN", "[a/b.json, 'c d.json',]", ["a/b.json", "c d.json"]),
        ("DATASETS.TRAIN", "('a', 'b')", ["a", "b"]),
        ("DATASETS.TRAIN", "C:\\data\\train.json", ["C:\\data\\train.json"]),
        ("DATASETS.TEST", "data/plate [1]/val.json", ["data/plate [1]/val.json"]),
        ("DATASETS.TEST", "2018", ["2018"]),
        ("DATASETS.TEST", "", []),
        ("DATASETS.TEST", "[]", []),
        ("DATASETS.TEST", "'quoted.json'", ["quoted.json"]),
        ("TEST.AUG.VIEWS", "[flips]", ["flips"]),
        ("INPUT.CHANNELS", "[0, DAPI]", [0, "DAPI"]),
        ("INPUT.CHANNELS", "DAPI", ["DAPI"]),
    ],
)
def test_lists_of_names_need_no_quotes_on_the_command_line(key: str, word: str, value: list):
    assert load_config(overrides=[key, word])[key] == value
    assert load_config(overrides=[f"{key}={word}"])[key] == value


def test_a_python_configuration_is_refused_with_the_way_out(tmp_path: Path):
    path = tmp_path / "mask_rcnn_R_50_FPN_100ep.py"
    path.write_text("from detectron2.config import LazyCall as L\nmodel = None\n")
    with pytest.raises(ConfigError, match=r"100ep.py: is a Python file \(Detectron2's lazy.*COCO-InstanceSegmentation"):
        load_config(path)


def test_keys_of_forks_count_only_where_they_change_something(tmp_path: Path):
    path = tmp_path / "fork.yaml"
    path.write_text(
        "MODEL: {MASK_ON: True, RESNETS: {DEPTH: 50, DEFORM_INTERVAL: 1, RADIX: 1}, BACKBONE: {ANTI_ALIAS: False}}\n"
        "INPUT: {HFLIP_TRAIN: True}\n"
    )
    assert load_config(path).MODEL.RESNETS.DEPTH == 50
    path.write_text("MODEL:\n  RESNETS:\n    BOTTLENECK_WIDTH: 32\n    DEFORM_INTERVAL: True\n    RADIUS: 1\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for text in (
        "3 problems",
        "fork.yaml:3: MODEL.RESNETS.BOTTLENECK_WIDTH = 32 is a key of ResNeSt, a fork of Detectron2",
        "only 1, which has no effect, is accepted",
        "unknown key 'MODEL.RESNETS.RADIUS'",
    ):
        assert text in str(error.value)


def test_dump_is_read_back_equal(tmp_path: Path):
    words = ["MODEL.WEIGHTS", "\"'in quotes'\"", "DATASETS.TRAIN", "['None', '12', 'ä b.json']", "SEED", "5"]
    cfg = load_config(None, [*words, "DATASETS.IMAGE_ROOT", "2018", "SOLVER.BASE_LR", "1e-7"])
    again = load_config(write(tmp_path, "dump.yaml", dump_config(cfg)))
    assert again == cfg
    assert config_hash(again) == config_hash(cfg)
    assert load_flat_config(cfg.flatten()) == cfg
    assert load_flat_config(json.loads(json.dumps(cfg.flatten()))) == cfg


def test_hash_does_not_depend_on_order_spelling_and_process():
    cfg = load_config(None, ["MODEL.ANCHOR_GENERATOR.SIZES=[[8.0, 16]]", "SEED=3", "SOLVER.BASE_LR=1e-3"])
    same = load_config(None, ["SOLVER.BASE_LR=0.001", "SEED=3", "MODEL.ANCHOR_GENERATOR.SIZES=((8, 16.0),)"])
    assert config_hash(cfg) == config_hash(same)
    assert config_hash(load_flat_config(dict(reversed(cfg.flatten().items())))) == config_hash(cfg)
    assert config_hash(load_config(None, ["OUTPUT_DIR=elsewhere"])) == config_hash(get_default_config())
    assert config_hash(load_config(None, ["SEED=4"])) != config_hash(load_config(None, ["SEED=5"]))
    program = "from detseg.config import *; print(config_hash(load_config(None, ['SEED=3'])))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == config_hash(load_config(None, ["SEED=3"]))
    assert len(config_hash(cfg)) == 16


def test_stored_configuration_is_checked():
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_ONN.*MODEL\.MASK_ON"):
        load_flat_config({"MODEL.MASK_ONN": True})
    with pytest.raises(ConfigError, match="SEED"):
        load_flat_config({"SEED": "1"})
    assert load_flat_config({"INPUT.MIN_SIZE_TRAIN": (1, 2)}).INPUT.MIN_SIZE_TRAIN == [1, 2]


def test_name_of_a_configuration(tmp_path: Path):
    assert config_name(tmp_path / "configs" / "quickstart" / "mask_rcnn.yaml") == "quickstart_mask_rcnn"
    assert config_name(tmp_path / "mine.v2.yaml") == "mine.v2"
    assert config_name(None) == "default"


def test_own_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("_BASE_: configs/_base_/mask_rcnn_small_fpn.yaml\nSEED: 7\n")
    assert load_config("mine.yaml").MODEL.FPN.OUT_CHANNELS == 64
    assert load_config("configs/quickstart/mask_rcnn.yaml").SOLVER.MAX_ITER == 450
    assert load_config("quickstart/mask_rcnn.yaml").SOLVER.MAX_ITER == 450
    for mistyped in ("quickstart/mask_rcn.yaml", "configs/quikstart/mask_rcnn.yaml", "mask_rcnn.yaml"):
        assert "did you mean detseg's own" in refused(mistyped)
        assert "quickstart/mask_rcnn.yaml" in refused(mistyped)
    # A file of that name that is there comes first; what is in neither is missing as ever.
    (tmp_path / "configs" / "_base_").mkdir(parents=True)
    (tmp_path / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml").write_text("SEED: 8\n")
    assert load_config("mine.yaml").MODEL.FPN.OUT_CHANNELS == 256
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "mask_rcnn.yaml").write_text("SEED: 9\n")
    assert load_config("quickstart/mask_rcnn.yaml").SEED == 9
    with pytest.raises(ConfigError, match=r"configs/none\.yaml: no such configuration file"):
        load_config("configs/none.yaml")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config("configs/../setup.yaml")
