"""Downloads from a server on this machine: whole, continued, checked, refused; and what addresses stand for."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from detseg.errors import WeightsError
from detseg.models.weights.sources import cached_path, download, resolve_weights, torchvision_url

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges; /broken stops after a third each time, /gone is not there."""

    asked: list[str | None]
    tag = '"1"'

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        start = 0
        if asked and self.headers.get("If-Range") == self.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.tag)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        end = start + len(CONTENT) // 2 if self.path.startswith("/broken") else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DETSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    Handler.asked, Handler.tag = [], '"1"'
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_once_from_the_web_then_from_the_cache(server: str) -> None:
    path = download(f"{server}/zoo/a.pkl")
    assert path.read_bytes() == CONTENT
    assert path == cached_path(f"{server}/zoo/a.pkl")
    assert path.parts[-2:] == ("zoo", "a.pkl")
    assert download(f"{server}/zoo/a.pkl") == path
    assert len(Handler.asked) == 1
    assert not list(path.parent.glob("*.part*"))


def test_a_broken_connection_is_continued(server: str) -> None:
    assert download(f"{server}/broken.pkl", sha256=DIGEST).read_bytes() == CONTENT
    assert Handler.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_what_an_earlier_process_left_is_continued_unless_the_file_changed(server: str) -> None:
    for tag, begun in (('"1"', CONTENT[:1000]), ('"2"', b"of another file")):
        url = f"{server}/{tag.strip(chr(34))}.pkl"
        partial = cached_path(url).with_name(f"{cached_path(url).name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(begun)
        partial.with_name(f"{partial.name}.version").write_text(tag)
        assert download(url).read_bytes() == CONTENT
    assert Handler.asked == ["bytes=1000-", "bytes=15-"]


def test_a_partial_file_that_is_too_long_begins_anew(server: str) -> None:
    url = f"{server}/a.pkl"
    partial = cached_path(url).with_name("a.pkl.part")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT + b"more")
    partial.with_name("a.pkl.part.version").write_text('"1"')
    assert download(url).read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(server: str) -> None:
    with pytest.raises(WeightsError, match=DIGEST):
        resolve_weights(f"{server}/a.pkl#sha256={'0' * 64}")
    assert not [path for path in cached_path(f"{server}/a.pkl").parent.iterdir() if path.suffix != ".lock"]
    assert resolve_weights(f"{server}/a.pkl#sha256={DIGEST}").read_bytes() == CONTENT
    with pytest.raises(WeightsError, match="sha256="):
        resolve_weights(f"{server}/a.pkl#md5=0")


def test_a_missing_file_and_no_network_name_address_and_place(server: str) -> None:
    with pytest.raises(WeightsError, match="404"):
        download(f"{server}/gone.pkl")
    url = "http://127.0.0.1:9/zoo/a.pkl"
    with pytest.raises(WeightsError) as error:
        download(url)
    assert url in str(error.value)
    assert str(cached_path(url)) in str(error.value)
    assert "DETSEG_CACHE" in str(error.value)
    cached_path(url).write_bytes(CONTENT)
    assert download(url).read_bytes() == CONTENT


def test_no_address_leads_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETSEG_CACHE", str(tmp_path))
    for url in ("https://h/../../a.pkl", "https://h/%2e%2e/a", "https://u:p@h:80/a/./b?x=/../..", "https://h/a\\..\\b"):
        path = cached_path(url)
        assert ".." not in path.parts
        assert path.resolve().is_relative_to(tmp_path / "weights")
    assert cached_path("https://h/a?x=1") != cached_path("https://h/a?x=2")


def test_addresses_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETSEG_CACHE", str(tmp_path))
    known = {
        "detectron2://COCO-InstanceSegmentation/m/1/model_final.pkl": "https://dl.fbaipublicfiles.com/detectron2/"
        "COCO-InstanceSegmentation/m/1/model_final.pkl",
        "catalog://ImageNetPretrained/FAIR/X-152-32x8d-IN5k": "https://dl.fbaipublicfiles.com/detectron/"
        "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
        "torchvision://resnet50/IMAGENET1K_V1": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    }
    for address, url in known.items():
        place = cached_path(url)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"here")
        assert resolve_weights(address) == place


def test_torchvision_addresses_follow_its_defaults() -> None:
    assert torchvision_url("resnet50").endswith("resnet50-11ad3fa6.pth")
    assert "maskrcnn_resnet50_fpn_coco" in torchvision_url("maskrcnn_resnet50_fpn")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("catalog://ImageNetPretrained/R-50", "MSRA/R-50"),
        ("torchvision://vgg16", "resnet50"),
        ("torchvision://resnet50/V9", "IMAGENET1K_V1"),
        ("zoo://a", "detectron2://"),
        ("nothing.pth", "no such file"),
    ],
)
def test_unknown_addresses_name_the_known(address: str, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        resolve_weights(address)


def test_artifacts_of_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETSEG_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(WeightsError, match="pip install wandb"):
        resolve_weights("wandb://me/cells/model:v3")

    class Artifact:
        def download(self, root: str) -> str:
            for name in ("best.pth", "last.pth", "notes.txt"):
                Path(root).mkdir(parents=True, exist_ok=True)
                (Path(root) / name).write_bytes(b"")
            return root

    asked: list[str] = []
    api = types.SimpleNamespace(artifact=lambda name: asked.append(name) or Artifact())
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Api=lambda: api))
    assert resolve_weights("wandb://me/cells/model:v3#best.pth").name == "best.pth"
    assert asked == ["me/cells/model:v3"]
    with pytest.raises(WeightsError, match=r"best\.pth, last\.pth"):
        resolve_weights("wandb://me/cells/model:v3")


def test_weights_of_timm(server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("timm")
    caplog.set_level("INFO")
    monkeypatch.setenv("HF_ENDPOINT", server)
    path = resolve_weights(f"timm://tf_efficientnet_lite0#sha256={DIGEST}")
    assert path == cached_path(f"{server}/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors")
    assert path.read_bytes() == CONTENT
    assert "timm's tf_efficientnet_lite0.in1k, apache-2.0, from http" in caplog.text
    assert resolve_weights("timm://tf_efficientnet_lite0.in1k") == path
    assert len(Handler.asked) == 1, "from the cache the second time"
    with pytest.raises(WeightsError, match="expected resnet18"):
        resolve_weights("timm://resnet18.nonsense")
    with pytest.raises(WeightsError, match="timm://nonsense"):
        resolve_weights("timm://nonsense")
