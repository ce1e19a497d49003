"""The files of a downloaded data set: a folder, or the zip archive itself."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.coco.checking import is_text
from detseg.errors import DataError, list_problems
from detseg.files.atomic import make_folder, written_whole
from detseg.files.names import has_drive
from detseg.files.reading import check_regular, unpacked_limit
from detseg.images.reading import decode_picture, read_picture
from detseg.progress import ProgressBar

# The largest archive member that is unpacked: a few bytes can claim any size.
MAX_MEMBER_BYTES = 2**32


def open_files(path: Path) -> FolderFiles | ZipFiles:
    """Open a folder or a zip archive.

    Raises DataError if there is neither, or the archive is broken or has names that lead out of it.
    """
    check_regular(path)
    if path.is_dir():
        return FolderFiles(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or zip archive")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is neither a folder nor a complete zip archive; download or copy it again")
    return ZipFiles(path)


class FolderFiles:
    """The files of a folder; they stay where they are.

    names: paths below the folder, with slashes, sorted, without hidden files. problems: names that cannot be decoded.
    """

    def __init__(self, root: Path, names: Iterable[str] | None = None) -> None:
        """names: of the files to use; None lists the folder."""
        self.root = root
        self.problems: list[str] = []
        if names is None:
            paths = (path for path in root.rglob("*") if path.is_file())
            names = [name for path in paths if _is_shown(name := path.relative_to(root).as_posix())]
            self.problems = [
                f"{str(root / n)!a}: its name is not UTF-8; rename the file" for n in names if not is_text(n)
            ]
        self.names = sorted(name for name in names if is_text(name))

    def __str__(self) -> str:
        return str(self.root)

    def describe(self, name: str) -> str:
        """Return the name of a file for messages."""
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises DataError if it cannot be read."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.describe(name)}: cannot be read ({error.strerror or error})") from None

    def read_picture(self, name: str, fields: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return an image and its facts, as `images.reading.read_picture`."""
        # By its path, so that only the required pages of a large stack are read.
        return read_picture(self.root / name, fields)

    def image_root(self, output: Path) -> Path:
        """Return the folder to which file names in the COCO files will be relative."""
        return self.root

    def check_target(self, names: Sequence[str], output: Path, *, overwrite: bool) -> None:
        """Raise DataError if `provide` would replace files, unless `overwrite`."""

    def provide(self, names: Sequence[str], output: Path) -> None:
        """Put the files below `image_root` unless they are there already."""


class ZipFiles:
    """The files of a zip archive; `provide` unpacks those for training to OUTPUT/images."""

    problems: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{path}: the zip archive cannot be read ({error}); download or copy it again") from None
        # Folder names end with a slash; a broken archive may have files without a name.
        members = {
            member.filename: member for member in self._archive.infolist() if member.filename[-1:] not in ("", "/")
        }
        bad = [name for name in members if _leads_out(name)]
        if bad:
            raise DataError(
                f"{path}: {len(bad)} file names in the archive lead out of it; such an archive is not unpacked, use "
                f"another one:\n{list_problems(bad)}"
            )
        self._members = {name: member for name, member in members.items() if _is_shown(name)}
        self.names = sorted(self._members)

    def __str__(self) -> str:
        return str(self.path)

    def describe(self, name: str) -> str:
        return f"{self.path}: {name}"

    def read(self, name: str) -> bytes:
        member = self._members[name]
        limit = min(unpacked_limit(self.path.stat().st_size), MAX_MEMBER_BYTES)
        if member.file_size > limit:
            raise DataError(f"{self.describe(name)}: claims {member.file_size} bytes; the limit is {limit}; unpack it")
        try:
            return self._archive.read(member)
        # For a broken or encrypted member zipfile raises RuntimeError, EOFError, zlib.error, ...
        except Exception as error:
            raise DataError(
                f"{self.describe(name)}: cannot be unpacked ({error}); download or copy the archive again"
            ) from None

    def read_picture(self, name: str, fields: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        return decode_picture(self.read(name), self.describe(name), fields)

    def image_root(self, output: Path) -> Path:
        return output / "images"

    def check_target(self, names: Sequence[str], output: Path, *, overwrite: bool) -> None:
        if overwrite:
            return
        root = self.image_root(output)
        others = [name for name in names if (root / name).exists() and not self._is_there(name, root / name)]
        if others:
            raise DataError(
                f"{root} has {len(others)} files that are not those of {self.path}; give --overwrite to replace them, "
                f"or another output:\n{list_problems(others)}"
            )

    def _is_there(self, name: str, path: Path) -> bool:
        member = self._members[name]
        if not path.is_file() or path.stat().st_size != member.file_size:
            return False
        return zlib.crc32(path.read_bytes()) == member.CRC

    def provide(self, names: Sequence[str], output: Path) -> None:
        root = self.image_root(output)
        for name in ProgressBar(names, desc=f"unpacking images to {root}", unit="image"):
            path = root / name
            if self._is_there(name, path):
                continue
            data = self.read(name)
            make_folder(path.parent)
            with written_whole(path, "the image") as temporary:
                temporary.write_bytes(data)


def _is_shown(name: str) -> bool:
    """Whether a file is relevant: not hidden, and not added by macOS to archives."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or has_drive(name)
