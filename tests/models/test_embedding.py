"""PixelEmbedding: losses of pairs of pixels, objects grown and clustered from embeddings, guides, decoders."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from models_for_tests import disks, share_found
from test_bottom_up import KEYS, build, total

from detseg.config import load_flat_config
from detseg.engine.validation import validate_config
from detseg.errors import ConfigError
from detseg.models.bottom_up import clustering
from detseg.models.bottom_up import embedding as embedding_module
from detseg.models.bottom_up.clustering import clusters_of, eroded_pieces, objects_by_clustering
from detseg.models.bottom_up.contrast import ContrastOptions, binary, contrastive, embedding_loss, sampled_pixels
from detseg.models.bottom_up.growing import density, grown_by_likeness, joined, objects_from_seeds, unit_vectors
from detseg.models.bottom_up.guides import GUIDES, GuidedInput
from detseg.models.bottom_up.seeds import edge_distances

WAYS = ("growing", "agglomerative", "mean_shift", "hdbscan")


def contrast(**changes: object) -> ContrastOptions:
    values = {"loss": "contrastive", "sampling": "windowed", "samples": 64, "windows": 2, "window": 8}
    return ContrastOptions(**(values | {"temperature": 0.1, "similarity": 0.7} | changes))


def touching(noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Labels (60, 80) of three objects that touch and one apart, and embeddings (8, 60, 80) with noise.

    The first and the fourth have the same embedding: only their places tell them apart.
    """
    labels = np.zeros((60, 80), np.int32)
    labels[8:30, 8:30], labels[8:30, 30:60], labels[30:50, 8:60], labels[5:50, 66:76] = 1, 2, 3, 4
    codes = np.zeros((5, 8), np.float32)
    codes[[1, 2, 3, 4], [0, 1, 2, 0]] = 1
    drawn = np.random.default_rng(0).normal(0, noise, (8, 60, 80))
    return labels, (codes[labels].transpose(2, 0, 1) + drawn).astype(np.float32)


def same_pixels_together(found: np.ndarray, labels: np.ndarray, share: float = 1.0) -> bool:
    """Whether there are as many objects, and each is one of them by `share` (IoU)."""
    return found.max() == labels.max() and share_found(found, labels, share) == 1


def test_a_pair_of_pixels_has_the_loss_of_its_formula() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    numbers = torch.tensor([1, 1, 2])
    e = [[np.exp(value / 0.5) for value in row] for row in (vectors @ vectors.T).tolist()]
    losses = contrastive(vectors, numbers, contrast(temperature=0.5))
    wanted = [-np.log(e[0][1] / (e[0][1] + e[0][2])), -np.log(e[1][0] / (e[1][0] + e[1][2])), 0]
    assert losses.tolist() == pytest.approx(wanted)
    judged = binary(vectors, numbers, contrast(temperature=0.5, similarity=0.6))
    log = [np.log1p(np.exp(sign * (value - 0.6) / 0.5)) for sign, value in ((-1, 0.6), (1, 0.0), (1, 0.8))]
    assert judged.tolist() == pytest.approx([(log[0] + log[1]) / 2, (log[0] + log[2]) / 2, (log[1] + log[2]) / 4])


@pytest.mark.parametrize("loss", ["contrastive", "binary"])
@pytest.mark.parametrize("sampling", ["windowed", "uniform"])
def test_right_embeddings_have_less_loss_and_gradients_lead_to_them(loss: str, sampling: str) -> None:
    labels = torch.ones(1, 10, 12).long()
    labels[:, :, 6:], labels[:, 6:] = 2, 3
    right = torch.eye(8)[labels].permute(0, 3, 1, 2)
    options, share = contrast(loss=loss, sampling=sampling, samples=240, window=10), torch.ones(1, 10, 12)
    learnt = torch.randn(1, 8, 10, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = []
    for _ in range(20):
        torch.manual_seed(3)  # the same pixels every time: a window may lie within one object, whose loss is 0
        value = embedding_loss(torch.nn.functional.normalize(learnt, dim=1), labels, share, options)
        (gradient,) = torch.autograd.grad(value, learnt)
        learnt.data -= 0.1 * gradient / gradient.abs().mean()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    assert embedding_loss(right, labels, share, options) < 0.1 * losses[0]


def test_one_object_alone_and_none_have_no_loss_and_a_finite_gradient() -> None:
    for labels in (torch.zeros(1, 9, 9).long(), torch.ones(1, 9, 9).long(), torch.eye(9).long()[None]):
        embedding = torch.nn.functional.normalize(torch.randn(1, 4, 9, 9), dim=1).requires_grad_()
        value = embedding_loss(embedding, labels, torch.ones(1, 9, 9), contrast())
        value.backward()
        assert value.item() == 0
        assert embedding.grad.abs().max() == 0


def test_pixels_that_do_not_count_are_never_drawn_and_weights_weigh() -> None:
    labels, vectors = (torch.from_numpy(array)[None] for array in touching(noise=0.5))
    labels, share = labels.long(), torch.ones(1, 60, 80)
    share[:, :, :30] = 0
    other = torch.where(share > 0, labels, 7)

    def loss(numbers: torch.Tensor, shares: torch.Tensor) -> float:
        torch.manual_seed(0)
        return embedding_loss(vectors, numbers, shares, contrast(window=40)).item()

    assert loss(labels, share) == loss(other, share) > 0
    assert loss(labels, share / 2) == pytest.approx(loss(labels, share) / 2)


def test_windows_lie_where_objects_are_and_hold_their_share_of_the_pixels() -> None:
    usable = torch.zeros(60, 80, dtype=torch.bool)
    usable[10:40, 10:70] = True
    drawn = list(sampled_pixels(usable, contrast(samples=60, windows=3, window=10)))
    assert [len(ys) <= 20 for ys, _ in drawn] == [True] * 3
    for ys, xs in drawn:
        assert usable[ys, xs].all()
        assert max(int(line.max() - line.min()) for line in (ys, xs)) < 10
        assert len(set(zip(ys.tolist(), xs.tolist(), strict=True))) == len(ys)
    narrow = torch.ones(4, 90, dtype=torch.bool)  # windows reach beyond it
    for ys, xs in sampled_pixels(narrow, contrast(samples=3000, windows=3, window=10)):
        assert len(ys) == len(ys.unique()) * len(xs.unique()) >= 4, "all of the window that is inside"
        assert narrow[ys, xs].all()
    (whole,) = sampled_pixels(usable, contrast(sampling="uniform", samples=60))
    assert len(whole[0]) == 60
    assert int(whole[1].max() - whole[1].min()) > 40


@pytest.mark.parametrize("seeds", ["head", "density"])
def test_objects_grow_to_their_edges_from_either_kind_of_seeds(seeds: str) -> None:
    labels, embedding = touching()
    mask, unit = labels > 0, unit_vectors(embedding)
    height = edge_distances(labels) if seeds == "head" else density(unit, mask)
    found = objects_from_seeds(height, mask, unit, threshold=0.5, similarity=0.7)
    assert np.array_equal(found > 0, mask)
    assert same_pixels_together(found, labels, 0.97)


def test_two_seeds_of_one_object_are_joined_and_those_of_two_are_not() -> None:
    labels, embedding = touching(noise=0)
    mask, unit = labels > 0, unit_vectors(embedding)
    height = np.zeros(mask.shape, np.float32)
    for y, x in ((15, 12), (15, 26), (15, 45), (40, 12), (40, 55), (20, 70)):
        height[y, x] = 1
    assert same_pixels_together(objects_from_seeds(height, mask, unit, threshold=0.5, similarity=0.7), labels)
    assert objects_from_seeds(height, mask, unit, threshold=0.5, similarity=0.999999).max() == 4
    height[5:50, 66:76] = 0
    found = objects_from_seeds(height, mask, unit, threshold=0.5, similarity=0.7)
    assert same_pixels_together(found, labels), "what no seed reaches is an object of its own"


def test_a_seed_does_not_take_what_is_anothers_because_it_was_there_first() -> None:
    labels, embedding = touching(noise=0)
    seeds = np.zeros_like(labels)
    seeds[20, 29], seeds[12, 58], seeds[45, 20] = 1, 2, 3  # the first lies at the border to the second
    apart = labels < 4
    found = grown_by_likeness(seeds, (labels > 0) & apart, unit_vectors(embedding), 0.7)
    assert np.array_equal(found, np.where(apart, labels, 0))


def test_nothing_one_pixel_and_no_embedding_at_all() -> None:
    for shape in ((1, 1), (1, 7), (9, 4)):
        for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
            unit = unit_vectors(np.zeros((8, *shape), np.float32))
            zeros = np.zeros(shape, np.float32)
            found = objects_from_seeds(zeros, mask, unit, threshold=0.5, similarity=0.7)
            assert found.dtype == np.int32
            assert np.array_equal(found > 0, mask)
            for method in WAYS[1:]:
                other = objects_by_clustering(mask, unit, method=method, grid=(16, 8), similarity=0.7)
                assert np.array_equal(other > 0, mask)
    assert joined(np.zeros((3, 3), np.int32), np.zeros((1, 8), np.float32), 0.7).max() == 0


@pytest.mark.parametrize("method", WAYS[1:])
def test_objects_come_back_from_clusters_of_a_coarse_grid(method: str) -> None:
    pytest.importorskip("sklearn") if method != "agglomerative" else None
    labels, embedding = touching(noise=0.03)
    labels, embedding = labels.repeat(4, axis=0).repeat(4, axis=1), embedding.repeat(4, axis=1).repeat(4, axis=2)
    mask, unit = labels > 0, unit_vectors(embedding)
    found = objects_by_clustering(mask, unit, method=method, grid=(40, 30), similarity=0.7)
    assert np.array_equal(found > 0, mask)
    assert same_pixels_together(found, labels, 0.9)
    upright = objects_by_clustering(mask.T, unit.transpose(0, 2, 1), method=method, grid=(40, 30), similarity=0.7)
    assert same_pixels_together(upright, labels.T, 0.9), "the longer side of the grid is the image's"


def test_erosion_breaks_a_bridge_and_leaves_what_is_thin() -> None:
    clusters = np.zeros((12, 30), np.int32)
    clusters[2:9, 2:9] = clusters[2:9, 14:21] = clusters[5, 9:14] = 1
    clusters[2:9, 25] = 2
    pieces = eroded_pieces(clusters)
    assert pieces.max() == 3
    assert pieces[5, 11] == 0
    assert (pieces[2:9, 25] == pieces[5, 25]).all()


def test_of_a_large_region_some_pixels_are_clustered_and_the_others_join_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "MOST_PIXELS", 50)
    vectors = np.zeros((320, 4), np.float32)
    vectors[:100, 0] = vectors[100:, 1] = 1
    found = clusters_of(vectors, "agglomerative", 0.7)
    assert len(found) == 320
    assert len(np.unique(np.stack([found, vectors[:, 0]]), axis=1).T) == 2


@pytest.mark.parametrize(("way", "seeds"), [("growing", "density"), *((way, "head") for way in WAYS)])
def test_maps_of_the_truth_are_decoded_to_the_truth(way: str, seeds: str) -> None:
    pytest.importorskip("sklearn")
    labels, embedding = touching(noise=0.03)
    keys = {"MODEL__EMBEDDING__OBJECTS": way, "MODEL__EMBEDDING__SEEDS": seeds, "MODEL__ROI_HEADS__NUM_CLASSES": 1}
    model = build("PixelEmbedding", **keys)
    maps = np.concatenate([(labels > 0)[None], edge_distances(labels)[None], embedding]).astype(np.float32)
    found = model.decode(maps)
    assert len(found) == 4
    assert found.scores.min() > 0.95
    assert len(model.decode(maps * 0)) == 0


def test_the_mean_of_views_with_other_embeddings_still_tells_objects_apart() -> None:
    """Every view has its own code of an object, as nothing asks it to have another's."""
    labels, embedding = touching(noise=0.02)
    rng = np.random.default_rng(1)
    views = []
    for _ in range(4):
        turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
        views.append(np.einsum("ed,dyx->eyx", turn, embedding))
    mean = unit_vectors(np.mean(views, axis=0))
    found = objects_from_seeds(edge_distances(labels), labels > 0, mean, threshold=0.5, similarity=0.7)
    assert same_pixels_together(found, labels, 0.97)


def test_binary_loss_has_three_classes_on_the_embeddings_and_no_other_heads() -> None:
    model = build("PixelEmbedding", MODEL__EMBEDDING__LOSS="binary", MODEL__UNET__CLASS_WEIGHTS=[1.0, 1.0, 4.0])
    losses = model([disks(6, (40, 56)), disks(9, (33, 40), seed=1)])
    assert {"loss_embedding", "loss_pixels", "loss_pixels_dice", "iou_inside", "iou_boundary"} <= losses.keys()
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(model.heads) == {"embedding", "classes"}
    (maps,) = model.eval().predict_maps([disks(6, (41, 50)).image])
    assert maps.shape == (2 + 8 + 2, 41, 50)
    assert (maps[1] <= maps[0] + 1e-6).all(), "the inside is a part of the foreground"


def test_the_classes_of_pixels_are_learned_beside_the_pairs() -> None:
    """With initial weights that are usual for larger inputs, the boundary is not learned in twice as many steps."""
    torch.manual_seed(0)
    keys = {"MODEL__PIXEL_MEAN": [100.0] * 3, "MODEL__PIXEL_STD": [60.0] * 3, "MODEL__UNET__CHANNELS": [16, 8]}
    model = build("PixelEmbedding", MODEL__EMBEDDING__LOSS="binary", **keys)
    samples = [disks(6, (40, 56)), disks(9, (33, 40), seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        losses = model(samples)
        total(losses).backward()
        optimizer.step()
    assert losses["iou_inside"] > 0.9
    assert losses["iou_boundary"] > 0.5


def test_embeddings_have_length_one_and_any_size() -> None:
    model = build("PixelEmbedding", MODEL__EMBEDDING__SIZE=3).eval()
    (maps,) = model.predict_maps([disks(6, (41, 50)).image])
    assert np.linalg.norm(maps[2:5], axis=0) == pytest.approx(1, abs=1e-5)
    assert model.map_names == ("foreground", "seed", "embedding 0", "embedding 1", "embedding 2", "class 0", "class 1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MODEL.EMBEDDING.OBJECTS": "watershed"}, "'agglomerative'"),
        ({"MODEL.EMBEDDING.SIMILARITY": 1.0}, "less than 1"),
        ({"MODEL.EMBEDDING.GRID": [160]}, "expected 2 values"),
        ({"MODEL.EMBEDDING.SAMPLES": 6}, "at least two for each of 4 WINDOWS"),
        ({"MODEL.UNET.CLASS_WEIGHTS": [1.0, 1.0, 1.0]}, "expected 2 values"),
        ({"MODEL.UNET.GUIDES": ["depth"]}, "contours"),
        ({"MODEL.UNET.SEED_DEPTH": 0.3}, "does not have this key"),
    ],
)
def test_keys_that_it_cannot_follow_are_refused(changes: dict[str, object], said: str) -> None:
    cfg = load_flat_config(KEYS | {"MODEL.META_ARCHITECTURE": "PixelEmbedding"} | changes)
    with pytest.raises(ConfigError, match=said):
        validate_config(cfg, training=False)


@pytest.mark.parametrize("way", ["mean_shift", "hdbscan"])
def test_without_scikit_learn_its_ways_are_refused_before_any_work(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_module, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    cfg = load_flat_config(KEYS | {"MODEL.META_ARCHITECTURE": "PixelEmbedding", "MODEL.EMBEDDING.OBJECTS": way})
    with pytest.raises(ConfigError, match=r"MODEL\.EMBEDDING\.OBJECTS.*detseg\[embedding\]"):
        validate_config(cfg, training=False)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_turns_with_the_image_and_tells_of_nothing_in_a_flat_one(name: str) -> None:
    gray = torch.from_numpy(disks(5, (37, 52)).image.mean(axis=2, dtype=np.float32)) / 50
    guide = GUIDES[name](gray)
    assert guide.shape == gray.shape
    assert guide.abs().max() > 0.1
    assert torch.allclose(GUIDES[name](gray.flip(0)).flip(0), guide, atol=1e-5)
    assert torch.allclose(GUIDES[name](gray.T).T, guide, atol=1e-5)
    assert GUIDES[name](torch.full((3, 4), 7.0)).abs().max() < 1e-4


def test_guides_are_channels_behind_the_image_and_zero_in_the_padding() -> None:
    model = build("PixelEmbedding", MODEL__UNET__GUIDES=["contrast", "edges"])
    images = [disks(4, (30, 41)).image, disks(4, (20, 20)).image]
    batch = model.image_input(images, torch.device("cpu"))
    values = {"pixel_mean": model.image_input.mean, "pixel_std": model.image_input.std}
    plain = GuidedInput(**values, bgr=True, size_divisibility=4)
    assert torch.equal(batch.tensor[:, :3], plain(images, torch.device("cpu")).tensor), "colours stay in their order"
    assert batch.tensor.shape == (2, 5, 32, 44)
    gray = batch.tensor[1, :3, :20, :20].mean(dim=0)
    assert torch.equal(batch.tensor[1, 4, :20, :20], GUIDES["edges"](gray))
    assert batch.tensor[1, 3:, 20:].abs().max() == 0
    assert torch.isfinite(total(model([disks(4, (30, 41))])))


@pytest.mark.parametrize("decoder", ["RefineNet", "Transposed"])
@pytest.mark.parametrize("encoder", ["resnet18", "pvt_v2_b0"])
def test_own_decoders_learn_on_encoders_with_and_without_a_map_of_stride_two(decoder: str, encoder: str) -> None:
    pytest.importorskip("timm")
    keys = {"MODEL__UNET__ENCODER": "timm", "MODEL__BACKBONE__FREEZE_AT": 0, "MODEL__TIMM__NAME": encoder}
    model = build("PixelEmbedding", **keys, MODEL__UNET__DECODER=decoder, MODEL__UNET__CHANNELS=[8, 8, 8, 8, 4])
    total(model([disks(3, (64, 70)), disks(3, (40, 56))])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    (maps,) = model.eval().predict_maps([disks(3, (41, 50)).image])
    assert maps.shape[1:] == (41, 50)


def test_networks_from_resnet_18_to_efficientnet_v2_m_are_encoders() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    for name in ("resnet18", "resnet50", "efficientnet_b3", "tf_efficientnetv2_m"):
        keys = {"MODEL.UNET.ENCODER": "timm", "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.TIMM.NAME": name}
        keys |= {"MODEL.META_ARCHITECTURE": "PixelEmbedding", "MODEL.UNET.CHANNELS": [64, 32, 32, 16, 16]}
        validate_config(load_flat_config(KEYS | keys), training=False)
