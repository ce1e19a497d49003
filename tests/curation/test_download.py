"""Data sets from a server on this machine: whole, continued, checked, recorded; what to do by hand where it fails."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shutil
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from detseg.cli.main import main
from detseg.curation.download import read_download_table

COCO = b'{"images": [], "annotations": []}' + b" " * 5000


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a.txt", bytes(range(256)) * 40)
    return file.getvalue()


ZIP = archive()
CONTENT = {"/images.zip": ZIP, "/labels/train.json": COCO}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. ranges: whether parts can be asked for. break_after: bytes after which a whole answer ends."""

    ranges = True
    break_after: int | None = None
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append((self.path, asked))
        content = CONTENT.get(self.path)
        if content is None:
            self.send_error(404)
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = len(content) if self.break_after is None or begin else self.break_after
        self.wfile.write(content[begin:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DETSEG_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setenv("no_proxy", "*")
    Handler.asked, Handler.ranges, Handler.break_after = [], True, None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}"
        write_table(tmp_path, url)
        yield url
        running.shutdown()
        thread.join()


def write_table(tmp_path: Path, url: str, **changes: Any) -> None:
    images = {"url": f"{url}/images.zip", "path": "images.zip", "bytes": len(ZIP)}
    labels = {"url": url + "/labels/{part}.json", "path": "labels/{part}.json"}
    entry = {
        "name": "cells",
        "title": "Cells",
        "page": "https://example.org/cells",
        "licence": "CC BY 4.0",
        "citation": "A. Body, 2020",
        "each": {"part": ["train"]},
        "files": [images, labels],
        "prepare": "python prepare.py --source {folder}",
        **changes,
    }
    images["sha256"] = hashlib.sha256(ZIP).hexdigest()
    (tmp_path / "sets").mkdir(exist_ok=True)
    (tmp_path / "sets" / "sources.yaml").write_text(yaml.safe_dump([entry]))


def test_files_are_fetched_checked_and_recorded(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "cells"]) == 0
    folder = tmp_path / "sets" / "downloads" / "cells"
    assert (folder / "images.zip").read_bytes() == ZIP
    assert (folder / "labels" / "train.json").read_bytes() == COCO
    said = capsys.readouterr().out
    for text in ("CC BY 4.0", "A. Body, 2020", "https://example.org/cells", f"prepare.py --source {folder}"):
        assert text in said
    record = json.loads((folder / "downloads.json").read_text())
    assert record["images.zip"]["sha256"] == hashlib.sha256(ZIP).hexdigest()
    assert record["labels/train.json"]["bytes"] == len(COCO)
    assert record["labels/train.json"]["url"] == f"{server}/labels/train.json"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "downloads.json",
        "images.zip",
        "labels",
    ]


def test_what_is_there_is_not_fetched_again(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 0
    asked = list(Handler.asked)
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 0
    assert main(["download", "cells", "--output", str(tmp_path / "out"), "--check"]) == 0
    assert Handler.asked == asked
    assert "there" in capsys.readouterr().out


def test_a_file_put_there_by_hand_is_checked(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images.zip").write_bytes(ZIP)
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 0
    assert "checked" in capsys.readouterr().out
    assert [path for path, _ in Handler.asked] == ["/labels/train.json"]
    (tmp_path / "out" / "downloads.json").unlink()
    (tmp_path / "out" / "images.zip").write_bytes(ZIP[:-1] + b"x")
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "images.zip: " in capsys.readouterr().err
    assert main(["download", "cells", "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    assert (tmp_path / "out" / "images.zip").read_bytes() == ZIP


def test_a_file_that_changed_since_is_found(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["download", "cells", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    labels = tmp_path / "out" / "labels" / "train.json"
    labels.write_bytes(COCO[:-1] + b"\n")
    assert main(words) == 0, "sizes alone are looked at"
    assert main([*words, "--check"]) == 2
    assert "has the SHA-256" in capsys.readouterr().err
    labels.write_bytes(COCO[:100])
    assert main(words) == 2
    assert f"has 100 bytes; when it was downloaded it had {len(COCO)}" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert labels.read_bytes() == COCO


def test_a_truncated_transfer_is_continued(server: str, tmp_path: Path) -> None:
    Handler.break_after = 1000
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "images.zip").read_bytes() == ZIP
    assert ("/images.zip", "bytes=1000-") in Handler.asked


def test_a_server_without_ranges_begins_anew_or_is_given_up(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Handler.ranges, Handler.break_after = False, 1000
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"1000 of {len(ZIP)} bytes were received" in message
    assert not (tmp_path / "out" / "images.zip").exists()
    Handler.break_after = None
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "images.zip").read_bytes() == ZIP


def test_another_file_than_expected_is_not_kept(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENT, "/images.zip", ZIP[:-1] + b"x")
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "is not the expected file: its SHA-256 is" in capsys.readouterr().err
    monkeypatch.setitem(CONTENT, "/images.zip", ZIP + b"x")
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert f"it has {len(ZIP) + 1} bytes, not {len(ZIP)}" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("images*"))


def test_a_page_in_the_place_of_an_archive_is_refused(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENT, "/images.zip", b"<html>log in</html>")
    write_table(tmp_path, server, files=[{"url": f"{server}/images.zip", "path": "images.zip"}], each={})
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "images.zip: is not a complete zip archive" in capsys.readouterr().err


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, "http://127.0.0.1:9")
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    for text in (
        "http://127.0.0.1:9/images.zip\n",
        f"-> {tmp_path / 'out' / 'images.zip'}",
        "http://127.0.0.1:9/labels/train.json\n",
        f"-> {tmp_path / 'out' / 'labels' / 'train.json'}",
    ):
        assert text in message
    write_table(tmp_path, server, files=[{"url": f"{server}/gone.zip", "path": "gone.zip"}], each={})
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "404" in capsys.readouterr().err


def test_a_disk_without_room_is_told_before_and_during(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "make room, or give another folder with --output" in capsys.readouterr().err
    assert Handler.asked == []
    # A size that only the server knows.
    write_table(tmp_path, server, files=[{"url": f"{server}/images.zip", "path": "images.zip"}], each={})
    assert main(["download", "cells", "--output", str(tmp_path / "out")]) == 2
    assert "are still to be downloaded; make room" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.part"))


KAGGLE = """#!{python}
import pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("-p") + 1])
if (folder / "forbidden").exists():
    sys.exit("403 - Forbidden")
(folder / "cells.zip").write_bytes({content!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no command there")
def test_the_kaggle_command_is_run_and_its_failures_told(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(
        tmp_path, server, kaggle=["competitions", "download", "-c", "cells"], files=[{"path": "cells.zip"}], each={}
    )
    out = tmp_path / "out"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["download", "cells", "--output", str(out)]) == 2
    message = capsys.readouterr().err
    assert "the command kaggle is not installed" in message
    assert f"put the file at {out / 'cells.zip'}" in message
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "kaggle"
    command.write_text(KAGGLE.format(python=sys.executable, content=ZIP))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    (out / "forbidden").touch()
    assert main(["download", "cells", "--output", str(out)]) == 2
    assert "403 - Forbidden" in capsys.readouterr().err
    os.remove(out / "forbidden")
    assert main(["download", "cells", "--output", str(out)]) == 0
    assert (out / "cells.zip").read_bytes() == ZIP


def test_sets_behind_a_form_are_fetched_by_hand(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, server, manual="sign, and unpack to {folder}/train", files=[{"path": "train"}], each={})
    out = tmp_path / "out"
    assert main(["download", "cells", "--output", str(out)]) == 2
    assert f"https://example.org/cells): sign, and unpack to {out}/train" in capsys.readouterr().err
    (out / "train").mkdir()
    assert main(["download", "cells", "--output", str(out)]) == 0


def test_the_list_and_unknown_names(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download"]) == 0
    said = capsys.readouterr().out
    for text in ("cells", "bbbc039", "80.7 MB", "CC BY-NC 4.0", "livecell", "kaggle", "by hand"):
        assert text in said
    assert main(["download", "cow"]) == 2
    assert "known are bbbc038, bbbc039" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"files": []},
        {"files": [{"path": "../x", "url": "http://h/x"}]},
        {"files": [{"path": "/x", "url": "http://h/x"}]},
        {"files": [{"path": "x", "url": "file:///etc/passwd"}]},
        {"files": [{"path": "x"}]},
        {"files": [{"path": "x", "url": "http://h/x", "md5": "0"}]},
        {"colour": "red"},
        {"files": [{"path": "x", "url": "http://h/{y}"}]},
        {"files": [{"path": "x", "url": "http://h/x", "bytes": [3]}]},
        {"each": {"a": 3}},
        {"title": ["x"]},
    ],
)
def test_a_broken_table_is_refused(
    server: str, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, server, **{"each": {}, **change})
    assert main(["download"]) == 2
    assert "sources.yaml" in capsys.readouterr().err


def test_every_known_set_says_what_a_person_needs() -> None:
    for entry in read_download_table().values():
        assert entry.title
        assert entry.page.startswith("https://")
        assert entry.licence
        assert entry.prepare
        assert entry.kaggle or entry.manual or all(file.url.startswith("https://") for file in entry.files)
    assert len(read_download_table()["livecell_single_cells"].files) == 24
