"""Files of weights that want to run code, exhaust memory or are damaged: one clear error, and nothing has run."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.errors import WeightsError
from detseg.models.weights.files import read_weights

MARK = "hostile_ran"


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.arguments


def touch(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


def text_pickle(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def stack_global(module: str, name: str, argument: str) -> bytes:
    parts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    word = argument.encode()
    return b"\x80\x04" + b"".join(parts) + b"\x93(X" + struct.pack("<I", len(word)) + word + b"tR."


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
FLOATS = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array_of(shape: bytes, number_type: bytes = FLOATS, data: bytes = b"U\x04\x00\x00\x80?") -> bytes:
    return b"\x80\x02}U\x05model}U\x01a" + ARRAY + b"(K\x01" + shape + number_type + b"I00\n" + data + b"tbss."


def instance(module: str, name: str) -> bytes:
    return f"(i{module}\n{name}\n.".encode()


def hostile_pickles(target: Path) -> dict[str, bytes]:
    code = touch(target)
    nested = b"\x80\x02)" + b"\x85" * 200_000 + b"}q\x00h\x00."
    return {
        "exec": pickle.dumps({"model": Call(exec, code)}, protocol=2),
        "eval": pickle.dumps({"model": {"a": Call(eval, f"exec({code!r})")}}, protocol=4),
        "protocol 0": text_pickle("builtins", "exec", code),
        "python 2": text_pickle("__builtin__", "execfile", str(target)),
        "os.system": text_pickle("os", "system", f"touch {target}"),
        "posix": text_pickle("posix", "system", f"touch {target}"),
        "subprocess": text_pickle("subprocess", "getoutput", f"touch {target}"),
        "stack global": stack_global("builtins", "exec", code),
        "dotted name": stack_global("numpy", "core.multiarray", code),
        "through numpy": stack_global("numpy.testing._private.utils", "runstring", code),
        "numpy.load": stack_global("numpy", "load", str(target)),
        "codecs.decode": stack_global("_codecs", "decode", code),
        "inst": instance("os", "getcwd"),
        "obj": b"(cos\ngetcwd\no.",
        "newobj": b"\x80\x02cbuiltins\nlist\n)\x81.",
        "newobj of an allowed class": b"\x80\x02cnumpy\ndtype\n)\x81.",
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent": b"P" + str(target).encode() + b"\n.",
        "binary persistent": b"\x80\x02U\x01aQ.",
        "out of band": b"\x80\x05\x97.",
        "changed function": b"\x80\x02c_codecs\nencode\n}U\x04nameU\x01xsb.",
        "changed class": b"\x80\x02cnumpy\ndtype\n}U\x04nameU\x01xsb.",
        "called ndarray": b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
        "zlib bomb": b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aU\x04zlibtR.",
        "objects": array_of(b"K\x01\x85", b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR", b"]N a"[:2]),
        "object array by numpy": pickle.dumps({"model": {"a": np.array([Call(exec, code)], dtype=object)}}, protocol=2),
        "structured": pickle.dumps({"model": {"a": np.zeros(2, dtype=[("x", "f4")])}}, protocol=2),
        "shape too large": array_of(b"J\xff\xff\xff\x7f\x85"),
        "negative shape": array_of(b"J\xff\xff\xff\xff\x85"),
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "endless string": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a.",
        "nested": nested,
        "subclass": pickle.dumps({"model": {"a": np.ma.masked_array([1.0])}}, protocol=2),
        "cut off": pickle.dumps({"model": {"a": np.zeros(9)}}, protocol=2)[:-40],
        "empty stack": b"\x80\x02.",
        "no pickle": b"\x80\x02hello",
    }


NAMES = sorted(hostile_pickles(Path("x")))


def assert_refused(path: Path, target: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    assert path.name in str(error.value)
    assert not target.exists(), "the file's code has run"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_hostile_pickles(tmp_path: Path, name: str, suffix: str) -> None:
    target, path = tmp_path / MARK, tmp_path / f"weights{suffix}"
    path.write_bytes(hostile_pickles(target)[name])
    assert_refused(path, target)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickles_in_a_torch_archive(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / MARK, tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile_pickles(target)[name])
        archive.writestr("archive/version", "3\n")
    assert_refused(path, target)


def test_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    target = tmp_path / MARK
    for name, member, method in (
        ("other.zip", "readme.txt", zipfile.ZIP_STORED),
        ("bomb.pth", "archive/data.pkl", zipfile.ZIP_DEFLATED),
        ("script.pth", "archive/constants.pkl", zipfile.ZIP_STORED),
    ):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            archive.writestr(member, b"\x00" * 10_000_000)
        assert_refused(tmp_path / name, target)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "other.zip").read_bytes()[:1000])
    assert_refused(tmp_path / "cut.zip", target)


def test_old_torch_files_and_safetensors(tmp_path: Path) -> None:
    target = tmp_path / MARK
    torch.save({"model": Call(exec, touch(target))}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_refused(tmp_path / "old.pth", target)
    for number, content in enumerate(
        (b'{"a":', b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', b"{}", b"{" + b" " * 50)
    ):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content)
        assert_refused(path, target)
    (tmp_path / "page.pkl").write_text("<!DOCTYPE html>")
    assert_refused(tmp_path / "page.pkl", target)


@pytest.mark.parametrize("protocol", range(6))
def test_what_zoo_files_hold_is_read(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "float32": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "half": np.ones(2, dtype=np.float16),
        "count": np.int64(7),
        "flags": np.array([True, False]),
    }
    if protocol > 2:  # before, Python wrote empty bytes as a call of `bytes`, which zoo files do not hold
        arrays["empty"] = np.zeros((0, 4), dtype=np.float32)
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state = read_weights(path).state
    assert set(state) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name].numpy(), array, err_msg=name)
    # numpy 1 and 2 have different names for the same functions
    old, new = b"numpy._core", b"numpy.core"
    if protocol < 4:  # later ones store lengths
        path.write_bytes(path.read_bytes().replace(old, new))
        np.testing.assert_array_equal(read_weights(path).state["float32"], arrays["float32"])


def test_pickles_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "zoo.pkl"
    path.write_bytes(array_of(b"K\x01\x85"))
    assert read_weights(path).state["a"].tolist() == [1.0]
