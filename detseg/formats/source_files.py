"""The files of a source as it was downloaded: a folder, or the zip archive itself."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from tqdm import tqdm

from detseg.coco.dataset import make_folder
from detseg.coco.index import is_text
from detseg.errors import DataError, list_problems
from detseg.files.atomic import written_whole
from detseg.formats.source import LabelledImage

logger = logging.getLogger(__name__)

# The largest member of an archive that is unpacked: a few bytes can claim any size.
MAX_MEMBER_BYTES = 2**32


class SourceFiles(Protocol):
    """Files by their names: paths below the source, with slashes, sorted; hidden ones and folders left out."""

    names: list[str]

    def describe(self, name: str) -> str:
        """Return what messages call a file."""
        ...

    def read(self, name: str) -> bytes:
        """Return what a file holds. Raises DataError where it cannot be read."""
        ...

    def image_root(self, output: Path) -> Path:
        """Return the folder that the file names of the COCO files will be relative to."""
        ...

    def check_target(self, names: Sequence[str], output: Path, *, overwrite: bool) -> None:
        """Raise DataError where `provide` would replace files, unless `overwrite`."""
        ...

    def provide(self, names: Sequence[str], output: Path) -> None:
        """Make the files lie below `image_root`."""
        ...


def open_source(path: Path) -> SourceFiles:
    """Open a folder or a zip archive.

    Raises DataError where there is neither, or the archive is broken or has names that lead out of it.
    """
    if path.is_dir():
        return FolderFiles(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or zip archive")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is neither a folder nor a whole zip archive; download or copy it again")
    return ZipFiles(path)


class FolderFiles:
    """The files of a folder; they stay where they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = (path for path in root.rglob("*") if path.is_file())
        self.names = sorted(name for path in paths if _is_shown(name := path.relative_to(root).as_posix()))
        bad = [ascii(name) for name in self.names if not is_text(name)]
        if bad:
            raise DataError(f"{root}: {len(bad)} names are no UTF-8; rename the files:\n{list_problems(bad)}")

    def describe(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.describe(name)}: cannot be read ({error.strerror or error})") from None

    def image_root(self, output: Path) -> Path:
        return self.root

    def check_target(self, names: Sequence[str], output: Path, *, overwrite: bool) -> None:
        """Nothing is written."""

    def provide(self, names: Sequence[str], output: Path) -> None:
        """They are there."""


class ZipFiles:
    """The files of a zip archive; `provide` unpacks those that a training needs, to OUTPUT/images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{path}: the zip archive cannot be read ({error}); download or copy it again") from None
        members = {member.filename: member for member in self._archive.infolist() if not member.is_dir()}
        bad = [name for name in members if _leads_out(name)]
        if bad:
            raise DataError(
                f"{path}: {len(bad)} files of the archive lead out of it; nothing is unpacked from an archive like "
                f"that, get another:\n{list_problems(bad)}"
            )
        self._members = {name: member for name, member in members.items() if _is_shown(name)}
        self.names = sorted(self._members)

    def describe(self, name: str) -> str:
        return f"{self.path}: {name}"

    def read(self, name: str) -> bytes:
        member = self._members[name]
        if member.file_size > MAX_MEMBER_BYTES:
            raise DataError(f"{self.describe(name)}: claims {member.file_size} bytes; the limit is {MAX_MEMBER_BYTES}")
        try:
            return self._archive.read(member)
        # What zipfile raises for a broken or encrypted member is RuntimeError, EOFError, zlib.error, ...
        except Exception as error:
            raise DataError(
                f"{self.describe(name)}: cannot be unpacked ({error}); download or copy the archive again"
            ) from None

    def image_root(self, output: Path) -> Path:
        return output / "images"

    def check_target(self, names: Sequence[str], output: Path, *, overwrite: bool) -> None:
        others = [] if overwrite else [name for name in names if self._differs(name, self.image_root(output) / name)]
        if others:
            raise DataError(
                f"{self.image_root(output)} holds {len(others)} files that are not those of {self.path}; pass "
                f"--overwrite to replace them, or name another output:\n{list_problems(others)}"
            )

    def _differs(self, name: str, path: Path) -> bool:
        """Whether a file is there that is not the member."""
        return path.exists() and not self._is_there(name, path)

    def _is_there(self, name: str, path: Path) -> bool:
        member = self._members[name]
        if not path.is_file() or path.stat().st_size != member.file_size:
            return False
        return zlib.crc32(path.read_bytes()) == member.CRC

    def provide(self, names: Sequence[str], output: Path) -> None:
        root = self.image_root(output)
        for name in tqdm(names, desc=f"unpacking images to {root}", unit="image"):
            path = root / name
            if self._is_there(name, path):
                continue
            data = self.read(name)
            make_folder(path.parent)
            with written_whole(path, "the image") as temporary:
                temporary.write_bytes(data)


class StoredImages:
    """The part of a `Source` that is the same for all whose images lie in one folder or archive.

    A source sets `_images`, their files, and `_file_of`, image name -> its file among them.
    """

    _images: SourceFiles
    _file_of: Mapping[str, str]

    def aliases(self, name: str) -> list[str]:
        """Return what a table of the images may call one of them."""
        return [name, PurePosixPath(self._file_of[name]).name]

    def describe(self, name: str) -> str:
        """Return what messages call the image."""
        return self._images.describe(self._file_of[name])

    def image_root(self, output: Path) -> Path:
        """Return the folder that file names are relative to."""
        return self._images.image_root(output)

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Raise DataError where `provide` would replace files, unless `overwrite`."""
        self._images.check_target([image.file_name for image in images], output, overwrite=overwrite)

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """Make the images lie below `image_root`."""
        self._images.provide([image.file_name for image in images], output)


def _is_shown(name: str) -> bool:
    """Whether a file is meant to be seen: no hidden one, nor what macOS adds to archives."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
