"""`detseg download`: download data sets from their official sources."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detseg.curation.download import DownloadEntry

DESCRIPTION = (
    "Download a data set from its official source, continue an interrupted download, check it and record "
    "its SHA-256. Without a name: list the data sets. Without a network or login it says what to download "
    "by hand, and where to put it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the data set")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for its files (default: downloads/NAME in $DETSEG_DATASETS)"
    )
    parser.add_argument("--check", action="store_true", help="read existing files again and check their SHA-256")
    parser.add_argument("--overwrite", action="store_true", help="download files again that are not the expected ones")


def run(arguments: argparse.Namespace) -> None:
    """Download the data set and print its files and the next command, or list what is available."""
    from detseg.curation.download import download, download_folder, find_entry, read_download_table
    from detseg.files.table import text_table

    if arguments.name is None:
        rows = [("name", "size", "from", "licence", "")]
        for _, entry in sorted(read_download_table().items()):
            origin = "by hand" if entry.manual else "kaggle" if entry.kaggle else "web"
            rows.append((entry.name, size_of(entry), origin, entry.licence, entry.title))
        print(text_table(rows, left=range(5)))
        return
    entry = find_entry(arguments.name)
    folder = download_folder(entry, arguments.output)
    print(f"{entry.name}: {entry.title}")
    for what, text in (("see", entry.page), ("licence", entry.licence), ("cite", entry.citation)):
        if text:
            print(f"  {what}: {text}")
    print(f"  size: {size_of(entry)}", flush=True)
    for file in download(entry, folder, check=arguments.check, overwrite=arguments.overwrite):
        print(f"{file.how:10}  {megabytes(file.size):>10}  {file.sha256[:16] or '-':16}  {file.path}")
    if entry.prepare:
        print(f"next: {entry.prepare.replace('{folder}', str(folder))}")


def size_of(entry: DownloadEntry) -> str:
    """Return the download size as text: exact, approximate, or unknown."""
    total = sum(file.about for file in entry.files)
    if not total:
        return "not known"
    is_exact = all(file.exact is not None for file in entry.files)
    is_least = any(not file.about for file in entry.files)
    return f"{'' if is_exact else 'over ' if is_least else 'about '}{megabytes(total)}"


def megabytes(size: int) -> str:
    """Format a number of bytes in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
