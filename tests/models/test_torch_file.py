"""Files of torch.save that claim more than they hold, or hold something else: one message, and no memory."""

import io
import logging
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detseg.errors import WeightsError
from detseg.models.weights.files import read_weights
from detseg.models.weights.names import without_shared_prefix
from detseg.models.weights.torch_file import OLD_TORCH
from detseg.runs.checkpoint import load_checkpoint, save_checkpoint


class Called:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.parts


def archive(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/version", b"3\n")
        file.writestr("a/byteorder", b"little")
    return stream.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def nested(levels: int) -> bytes:
    # {0: {0: ... None}}
    return b"\x80\x02" + b"}K\x00" * levels + b"N" + b"s" * levels + b"."


def larger_storage(data: bytes) -> bytes:
    """The storage claims 2**30 numbers, not 7."""
    source, stream = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cpuq\x08K\x07" in content
                content = content.replace(b"cpuq\x08K\x07", b"cpuq\x08J\x00\x00\x00\x40")
            file.writestr(name, content)
    return stream.getvalue()


WEIGHT = torch.zeros(7)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    QUANTIZED = torch._empty_affine_quantized([7], scale=0.1, zero_point=0, dtype=torch.qint8)
HOSTILE = {
    "bytearray": archive(pickle.dumps({"model": Called(bytearray, 8_000_000_000)}, protocol=2)),
    "deep": archive(nested(100_000)),
    "a stride of 0": saved({"model": {"a": torch.zeros(1).expand(1_000_000, 4000)}}),
    "a stride of 0, old": saved({"model": {"a": torch.zeros(1).expand(10**9)}}, _use_new_zipfile_serialization=False),
    "sparse": saved({"model": {"a": torch.eye(3).to_sparse()}}),
    "meta": saved({"model": {"a": torch.empty(10**9, device="meta")}}),
    "quantized": saved({"model": {"a": QUANTIZED}}),
    "a storage that claims more": larger_storage(saved({"model": {"a": WEIGHT}})),
    "numbers as names": saved({"model": {10**5000: WEIGHT}}),
    "a list": saved([WEIGHT]),
    "model is a list": saved({"model": [WEIGHT]}),
    "model holds a list": saved({"model": {"a": [1, 2]}}),
    "the same tensor many times": saved({"model": {str(n): t for n, t in enumerate([torch.zeros(10**6)] * 100)}}),
    "cut off": saved({"model": {"a": torch.zeros(1000)}})[:1500],
    "cut off, old": saved({"model": {"a": torch.zeros(1000)}}, _use_new_zipfile_serialization=False)[:1500],
    "a text that claims more, old": OLD_TORCH + b"\x80\x02M\xe9\x03.\x80\x02X\xff\xff\xff\x7fabc.",
    "safetensors, cut off": b'\x30\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[9],"data_off',
}


@pytest.mark.parametrize("read", [read_weights, load_checkpoint])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_message_and_take_no_memory(tmp_path: Path, name: str, read: Callable) -> None:
    path = tmp_path / "hostile.pth"
    path.write_bytes(HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"hostile\.pth") as caught:
        read(path)
    text = str(caught.value)
    assert not [advice for advice in ("weights_only", "allow_pickle", "trust the source") if advice in text]
    assert len(text) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


PART = {"model": {"a": WEIGHT}, "config": {"INPUT.FORMAT": "RGB"}, "classes": ["cell"], "iteration": 3}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("model", "text"), ("ema", 3), ("ema", {"model": 3}), ("config", [1]), ("config", {1: 2})],
        *[
            ("classes", "cell"),
            ("classes", [1]),
            ("classes", {"cell": 1}),
            ("iteration", "3"),
            ("iteration", 1.5),
            ("engine", []),
        ],
    ],
)
def test_parts_of_another_type_are_named(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, {**PART, key: value})
    with pytest.raises(WeightsError, match=rf"last\.pth.*expected\n.*{key}: "):
        load_checkpoint(path)


@pytest.mark.parametrize("new", [True, False])
def test_what_trainings_save_is_read(tmp_path: Path, new: bool) -> None:
    """Views, tied weights, parameters, state_dicts with their metadata, optimizers, empty tensors, half precision."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).half()
    model.add_module("tied", model[0])
    optimizer = torch.optim.Adam(model.parameters())
    large = torch.arange(100.0)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "more": [OrderedDict(a=large[10:20]), (torch.zeros(0, 3), large.reshape(10, 10).T), torch.nn.Parameter(large)],
        "rng": {"torch": torch.get_rng_state(), "cuda": []},
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
    }
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    read = load_checkpoint(path)
    assert read["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert torch.equal(read["more"][1][1], large.reshape(10, 10).T)
    assert torch.equal(read["more"][0]["a"], large[10:20])
    assert read["size"] == (1, 2)
    state: dict[str, Tensor] = read_weights(path).state
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_prefixes_that_all_names_share_are_stripped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {"module._orig_mod.a.weight": WEIGHT, "module._orig_mod.b": WEIGHT}
    assert list(without_shared_prefix(state)) == ["a.weight", "b"]
    assert "begin with module._orig_mod., which was stripped" in caplog.text
    assert list(without_shared_prefix({"module.a": WEIGHT, "b": WEIGHT})) == ["module.a", "b"]
    # A model whose own names begin so keeps them.
    assert list(without_shared_prefix({"model.a": WEIGHT}, own=["model.a", "model.b"])) == ["model.a"]
