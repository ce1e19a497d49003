"""detseg's own configurations and tables: beside the package in a checkout, inside the package if installed."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def own_folder(name: str) -> Path:
    """Return the folder of detseg's own `configs` or `datasets`."""
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


OWN_CONFIGS = own_folder("configs")


def path_or_own(named: str | os.PathLike[str], folder: str | os.PathLike[str] = "") -> Path:
    """Return the file of a name: a path relative to `folder`, else detseg's own configuration of that name.

    named: a path, or `dsb2018/mask_rcnn_small_FPN.yaml`, also with `configs/` before it. If neither exists, the path is
    returned, and reading it raises the error.
    """
    path = Path(os.path.normpath(os.path.join(folder, os.path.expanduser(named))))
    own = Path(named)
    own = own.relative_to("configs") if own.parts[:1] == ("configs",) else own
    if os.path.exists(path) or own.is_absolute() or ".." in own.parts:
        return path
    return OWN_CONFIGS / own if os.path.isfile(OWN_CONFIGS / own) else path


def near_own(named: str | os.PathLike[str]) -> str:
    """Return `; did you mean ...?` with detseg's own configurations of similar names, or ""."""
    known = sorted(path.relative_to(OWN_CONFIGS).as_posix() for path in OWN_CONFIGS.rglob("*.yaml"))
    wanted = Path(named).as_posix().removeprefix("configs/")[-200:]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.7)
    if not near:  # the name without a folder, or with another one
        by_name = {Path(name).stem.lower(): name for name in reversed(known)}
        near = [by_name[stem] for stem in difflib.get_close_matches(Path(wanted).stem.lower(), by_name, cutoff=0.8)]
    return f"; did you mean detseg's own {', '.join(near)}?" if near else ""
