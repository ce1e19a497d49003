"""Albumentations pipelines of a configuration: refused early, deterministic, and nothing else is touched."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detseg.config import config_hash, dump_config, load_config, load_flat_config
from detseg.data.augment.intensities import AlbumentationsPipeline, import_albumentations
from detseg.data.augment.policy import TrainPolicy
from detseg.engine.validation import validate_config
from detseg.errors import ConfigError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

RANGE = (0.0, 255.0)
USUAL: list[Any] = [
    {"name": "CLAHE", "p": 0.5, "params": {"clip_limit": [1, 3], "tile_grid_size": [4, 4]}},
    {"name": "RandomBrightnessContrast", "p": 1.0},
    {"name": "RandomGamma", "p": 0.5, "params": {"gamma_limit": [70, 140]}},
    {
        "name": "OneOf",
        "p": 0.9,
        "transforms": [
            {"name": "GaussianBlur", "params": {"sigma_limit": [0.5, 1.5]}},
            {"name": "Compose", "transforms": [{"name": "GaussNoise", "p": 1.0}, {"name": "InvertImg", "p": 0.3}]},
            {"name": "ShotNoise"},
        ],
    },
]


def image_of(dtype: type, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, (64, 80, channels)).astype(dtype)


def words(entries: Any, *more: str) -> list[str]:
    return ["INPUT.ALBUMENTATIONS", repr(entries), *more]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_type_size_and_range_stay_and_the_image_itself_is_not_touched(dtype: type, channels: int) -> None:
    entries = [entry for entry in USUAL if entry["name"] != "CLAHE" or channels in (1, 3)]
    pipeline = AlbumentationsPipeline(entries, channels)
    image = image_of(dtype, channels)
    before = image.copy()
    results = [pipeline(image, np.random.default_rng(seed), RANGE) for seed in range(12)]
    for result in results:
        assert (result.dtype, result.shape) == (image.dtype, image.shape)
        assert 0 <= result.min() <= result.max() <= 255
        assert not np.shares_memory(result, image)
    assert len({result.tobytes() for result in results}) > 9
    np.testing.assert_array_equal(image, before)


def test_the_same_generator_gives_the_same_image_in_another_pipeline_and_process_and_order() -> None:
    one, two = AlbumentationsPipeline(USUAL), pickle.loads(pickle.dumps(AlbumentationsPipeline(USUAL)))
    image = image_of(np.float32)
    first = [one(image, np.random.default_rng(seed), RANGE) for seed in range(10)]
    for seed in reversed(range(10)):
        np.testing.assert_array_equal(two(image, np.random.default_rng(seed), RANGE), first[seed])


def test_global_generators_are_neither_used_nor_changed() -> None:
    pipeline = AlbumentationsPipeline(USUAL)
    image = image_of(np.uint8)
    random.seed(1)
    np.random.seed(1)
    one = pipeline(image, np.random.default_rng(5), RANGE)
    after = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    assert (random.random(), np.random.random()) == after
    np.testing.assert_array_equal(pipeline(image, np.random.default_rng(5), RANGE), one)


def test_fractions_are_what_albumentations_sees() -> None:
    pipeline = AlbumentationsPipeline([{"name": "InvertImg", "p": 1.0}])
    rng = np.random.default_rng(0)
    image = image_of(np.float32)
    np.testing.assert_allclose(pipeline(image, rng, RANGE), 255 - image, atol=1e-3)
    np.testing.assert_array_equal(pipeline(image.astype(np.uint16), rng, (0.0, 65535.0)), 65535 - image)
    np.testing.assert_array_equal(pipeline(image.astype(np.uint8), rng, RANGE), 255 - image)
    flat = np.full((8, 8, 1), 3, np.float32)
    np.testing.assert_array_equal(pipeline(flat, rng, (3.0, 3.0)), flat)


def test_colour_changes_of_a_gray_image_among_colour_ones_see_three_channels() -> None:
    pipeline = AlbumentationsPipeline([{"name": "HueSaturationValue", "p": 1.0}], 3)
    assert pipeline(image_of(np.uint8, 1), np.random.default_rng(0), RANGE).shape == (64, 80, 3)
    blur = AlbumentationsPipeline([{"name": "Blur", "p": 1.0}], 3)
    assert blur(image_of(np.uint8, 1), np.random.default_rng(0), RANGE).shape == (64, 80, 1)


def test_the_policy_changes_intensities_and_leaves_masks() -> None:
    cfg = load_config(None, words(USUAL, "INPUT.MIN_SIZE_TRAIN", "[0]", "INPUT.RANDOM_FLIP", "none"))
    sample = Sample(image_of(np.uint8, 3), LabelLayers.from_label_image(np.eye(64, 80, dtype=np.int32)), np.array([0]))
    policy = TrainPolicy.from_config(cfg)
    assert policy == TrainPolicy.from_config(cfg)
    one, two = (policy(sample, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.layers.layers, sample.layers.layers)
    assert (one.image != sample.image).any()


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ([{"name": "CLAE"}], ["[0] CLAE", "did you mean CLAHE?"]),
        ([{"name": "Blur"}, {"name": "Rotate"}], ["[1] Rotate", "RANDOM_AFFINE"]),
        ([{"name": "HorizontalFlip"}], ["INPUT.RANDOM_FLIP"]),
        ([{"name": "ElasticTransform"}], ["RANDOM_ELASTIC"]),
        ([{"name": "Mosaic"}], ["may move pixels"]),
        ([{"name": "Normalize"}], ["MODEL.PIXEL_MEAN"]),
        ([{"name": "clahe"}], ["did you mean CLAHE?"]),
        ([{"name": "Blur", "params": {"limit": 3}}], ["'limit'", "did you mean blur_limit?"]),
        ([{"name": "Blur", "params": {"x": 3}}], ["'x'", "arguments are blur_limit"]),
        ([{"name": "Blur", "params": {"blur_limit": "wide"}}], ["[0] Blur", "blur_limit"]),
        ([{"name": "Blur", "probability": 1}], ["'probability'", "fields are name"]),
        ([{"name": "Blur", "p": 1.5}], ["p is 1.5"]),
        ([{"name": "Blur", "p": True}], ["p is True"]),
        ([{"name": "Blur", "params": {"p": 1}}], ["p is a field next to name"]),
        ([{"name": "Blur", "params": 3}], ["params is 3"]),
        ([{"name": "Blur", "transforms": []}], ["contains no other transforms"]),
        ([{"name": "OneOf"}], ["a list of other entries"]),
        ([{"name": "SomeOf", "params": {"m": 1}, "transforms": [{"name": "Blur"}]}], ["[0] SomeOf", "'m'"]),
        ([{"name": "OneOf", "transforms": [{"name": "Blur"}, {"name": "Nope"}]}], ["[0] OneOf.transforms[1] Nope"]),
        ([{"name": "FDA"}], ["FDA", "does not accept images"]),
        ([{"name": "Lambda"}], ["Lambda"]),
        ([{"name": "Compose"}], ["a list of other entries"]),
        ([{"name": "os"}], ["no such transform"]),
        (["Blur"], ["expected {name:"]),
        ([{"p": 1}], ["expected {name:"]),
        ([None], ["expected {name:"]),
        ({"name": "Blur"}, ["expected a list of entries"]),
        ("Blur", ["expected a list of entries"]),
    ],
)
def test_what_cannot_run_is_refused_when_the_configuration_is_loaded(entries: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.ALBUMENTATIONS") as caught:
        AlbumentationsPipeline.from_config(load_config(None, words(entries)))
    for part in parts:
        assert part in str(caught.value)


def test_all_problems_are_told_together_with_the_files_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("INPUT:\n  ALBUMENTATIONS:\n    - {name: Blr}\n    - {name: Blur, p: 2}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        AlbumentationsPipeline.from_config(load_config(file))
    assert "2 problems" in str(caught.value)
    assert str(caught.value).count("run.yaml:2") == 2


def test_channels_that_do_not_fit_are_refused() -> None:
    stain = [{"name": "HEStain", "p": 1.0}]
    AlbumentationsPipeline.from_config(load_config(None, words(stain)))
    five = ["MODEL.PIXEL_MEAN", "[1, 1, 1, 1, 1.0]", "MODEL.PIXEL_STD", "[1, 1, 1, 1, 1.0]"]
    for more in (["INPUT.GRAYSCALE", "True"], ["INPUT.CHANNELS", "[0]"], five):
        with pytest.raises(ConfigError, match=r"HEStain: does not accept images of [15] channel"):
            AlbumentationsPipeline.from_config(load_config(None, words(stain, *more)))
    AlbumentationsPipeline.from_config(
        load_config(None, words([{"name": "GaussNoise"}], *five, "INPUT.SCALING", "percentile"))
    )


def test_a_configuration_with_a_pipeline_is_dumped_hashed_and_read_back(tmp_path: Path) -> None:
    cfg = load_config(None, words(USUAL))
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_config(cfg), encoding="utf-8")
    again = load_config(file)
    assert again == cfg
    assert config_hash(again) == config_hash(cfg) != config_hash(load_config(None))
    cfg.INPUT.ALBUMENTATIONS[0]["p"] = 0.9
    assert yaml.safe_load(yaml.safe_dump(USUAL)) == cfg.INPUT.ALBUMENTATIONS, "reading hands out a copy"


def test_prediction_neither_needs_nor_imports_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(None, words(USUAL))
    stored = load_flat_config(cfg.flatten() | {"INPUT.GRAYSCALE": True, "MODEL.ENGINE": "native"})
    monkeypatch.setitem(sys.modules, "albumentations", None)
    validate_config(stored, training=False)
    validate_config(load_config(None, words([{"name": "Blr"}], "MODEL.ENGINE", "native")), training=False)
    with pytest.raises(ConfigError, match="pip install 'albumentations"):
        validate_config(stored)
    with pytest.raises(ConfigError, match="pip install 'albumentations"):
        AlbumentationsPipeline(USUAL)(image_of(np.uint8), np.random.default_rng(0), RANGE)


def test_the_library_is_imported_on_use_without_asking_the_web() -> None:
    program = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "from detseg.data.augment.policy import TrainPolicy\n"
        "from detseg.config import load_config\n"
        "TrainPolicy.from_config(load_config(None))\n"
        "assert 'albumentations' not in sys.modules\n"
        "import os, warnings\n"
        "warnings.simplefilter('error')\n"
        "warnings.filterwarnings('ignore', category=DeprecationWarning)\n"
        "from detseg.data.augment.intensities import AlbumentationsPipeline\n"
        "AlbumentationsPipeline.from_config(load_config(None, ['INPUT.ALBUMENTATIONS', \"[{'name': 'Blur'}]\"]))\n"
        "assert 'albumentations' in sys.modules and 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_every_transform_that_is_let_through_is_deterministic_and_leaves_global_generators_alone() -> None:
    library = import_albumentations()
    names = [
        name
        for name, kind in vars(library).items()
        if isinstance(kind, type) and issubclass(kind, library.ImageOnlyTransform)
    ]
    image = np.random.default_rng(0).integers(0, 256, (48, 56, 3), dtype=np.uint8)
    checked = 0
    for name in names:
        entries = [{"name": name, "p": 1.0}]
        try:
            AlbumentationsPipeline.from_config(load_config(None, words(entries)))
        except ConfigError:
            continue
        random.seed(1)
        np.random.seed(1)
        expected = random.Random(1).random(), np.random.RandomState(1).random()
        results = [AlbumentationsPipeline(entries)(image, np.random.default_rng(7), RANGE) for _ in range(2)]
        np.testing.assert_array_equal(*results, err_msg=name)
        assert (random.random(), np.random.random()) == expected, name
        checked += 1
    assert checked > 40
