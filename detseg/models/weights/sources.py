"""Addresses of weights: files, model zoos, Python packages, the web, Weights & Biases. All become local files."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from detseg.errors import WeightsError
from detseg.files.lock import wait_for_lock
from detseg.files.reading import check_regular
from detseg.files.transfer import CACHE_VARIABLE, TransferError, cache_folder, transfer
from detseg.models.imagenet import package_file, timm_url

_logger = logging.getLogger(__name__)

# detectron2://PATH is this address followed by PATH.
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
# The site of timm's weights; HF_ENDPOINT replaces it, as in the site's own programs.
HUGGING_FACE = "https://huggingface.co"

_DETECTRON1 = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
# catalog://ImageNetPretrained/NAME: backbones trained on ImageNet, from Detectron's first version.
CATALOG = {
    "ImageNetPretrained/MSRA/R-50": _DETECTRON1 + "MSRA/R-50.pkl",
    "ImageNetPretrained/MSRA/R-101": _DETECTRON1 + "MSRA/R-101.pkl",
    "ImageNetPretrained/FAIR/R-50-GN": _DETECTRON1 + "47261647/R-50-GN.pkl",
    "ImageNetPretrained/FAIR/R-101-GN": _DETECTRON1 + "47592356/R-101-GN.pkl",
    "ImageNetPretrained/FAIR/X-101-32x8d": _DETECTRON1 + "20171220/X-101-32x8d.pkl",
    "ImageNetPretrained/FAIR/X-101-64x4d": _DETECTRON1 + "FBResNeXt/X-101-64x4d.pkl",
    "ImageNetPretrained/FAIR/X-152-32x8d-IN5k": _DETECTRON1 + "25093814/X-152-32x8d-IN5k.pkl",
}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.IGNORECASE)
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth")  # torch's files end in the first digits of their SHA-256
_TORCHVISION_MODELS = re.compile(r"(wide_resnet|resnet|resnext)\d+\w*|maskrcnn_resnet50_fpn(_v2)?")
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pkl")
KNOWN = (
    "a .pth, .pkl or .safetensors file, detectron2://..., catalog://ImageNetPretrained/..., torchvision://resnet50, "
    "timm://resnet26d, package://efficientnet_lite0, https://..., wandb://entity/project/artifact:version"
)


def cached_path(url: str) -> Path:
    """Return the cached file of a web address: weights/HOST/PATH, always inside the cache."""
    parts = urlsplit(url)
    names = [parts.netloc.rpartition("@")[2], *parts.path.split("/")]
    names = [re.sub(r"[^A-Za-z0-9._=+-]", "_", name) for name in names if name]
    names = ["_" if name in (".", "..") else name for name in names]
    path = cache_folder().joinpath("weights", *names)
    if parts.query:
        path = path.with_name(f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{path.name}")
    return path


def download(url: str, *, sha256: str | None = None) -> Path:
    """Return the file of a web address, from the cache or from the web.

    An interrupted download is continued, also by another process; processes that want the same file wait for the one
    that downloads it. sha256: the hexadecimal digest, or its first digits.

    Raises:
        WeightsError: it cannot be downloaded (the message contains the address, and the path for a file that was
            downloaded elsewhere), or has another SHA-256.
    """
    target = cached_path(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                transfer(url, target, sha256=sha256)
    except TransferError as error:
        if error.is_wrong_file:
            raise WeightsError(
                f"{url} is not the file that was expected: {error}; nothing was kept. Try again, or ask where the "
                "address comes from"
            ) from error
        raise WeightsError(
            f"{url} cannot be downloaded ({error}). Without a network: download it on another machine and put it at "
            f"{target} (the cache is the folder that {CACHE_VARIABLE} names, else ~/.cache/detseg), or give its path "
            "as MODEL.WEIGHTS"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{url} cannot be stored at {target}: {error.strerror or error}; set {CACHE_VARIABLE} to a folder that can "
            "be written and has space"
        ) from error
    return target


def resolve_weights(source: str | Path) -> Path:
    """Return the file of an address, downloaded into the cache if necessary.

    source: a path; `detectron2://PATH` and `catalog://ImageNetPretrained/...` of Detectron2's zoo;
        `torchvision://NAME` or `torchvision://NAME/WEIGHTS` (resnet50/IMAGENET1K_V1); `timm://NAME` or
        `timm://NAME.TAG`; `package://NAME`, a file of a Python package; `https://...`;
        `wandb://ENTITY/PROJECT/ARTIFACT:VERSION`. `#sha256=DIGITS` after a web address is checked.

    Raises:
        WeightsError: the address is unknown, or its file cannot be downloaded; with the address and a remedy.
    """
    match = _SCHEME.fullmatch(str(source)) if isinstance(source, str) else None
    if match is None:
        path = Path(os.path.expanduser(source))
        check_regular(path)
        if not path.is_file():
            raise WeightsError(f"{source}: no such file; expected {KNOWN}")
        return path
    scheme, rest = match[1].lower(), match[2]
    if scheme in ("https", "http"):
        return _from_web(source)
    if scheme == "detectron2":
        return _from_web(DETECTRON2 + rest)
    if scheme == "catalog":
        if rest not in CATALOG:
            known = ", ".join(f"catalog://{name}" for name in CATALOG)
            raise WeightsError(f"{source}: not in the catalog; expected {known}")
        return _from_web(CATALOG[rest])
    if scheme == "torchvision":
        return _from_web(torchvision_url(rest))
    if scheme == "timm":
        name, mark, digits = rest.partition("#")
        url, what = timm_url(name, os.environ.get("HF_ENDPOINT") or HUGGING_FACE)
        path = _from_web(url + mark + digits)
        _logger.info("%s: %s, from %s", source, what, url)
        return path
    if scheme == "package":
        path, what = package_file(rest)
        _logger.info("%s: %s, at %s", source, what, path)
        return path
    if scheme in ("wandb", "wandb-artifact"):
        return _from_wandb(rest)
    raise WeightsError(f"{source}: {scheme}:// is unknown; expected {KNOWN}")


def torchvision_url(name: str) -> str:
    """Return the web address of `NAME` (torchvision's default weights) or `NAME/WEIGHTS`.

    Raises:
        WeightsError: torchvision has no such model or weights, or detseg cannot use the model.
    """
    from torchvision.models import get_model_weights, list_models

    model, _, version = name.partition("/")
    known = [known for known in list_models() if _TORCHVISION_MODELS.fullmatch(known)]
    if model not in known:
        raise WeightsError(f"torchvision://{name}: unknown; expected {', '.join(known)}")
    versions = get_model_weights(model)
    if version and version not in versions.__members__:
        raise WeightsError(f"torchvision://{name}: unknown weights; expected {', '.join(versions.__members__)}")
    return (versions[version] if version else versions.DEFAULT).url


def _from_web(url: str) -> Path:
    parts = urlsplit(url)
    sha256 = None
    if parts.fragment:
        match = _SHA256.fullmatch(parts.fragment)
        if match is None:
            raise WeightsError(f"{url}: after # expected sha256= and 64 hexadecimal digits")
        sha256 = match[1].lower()
    elif match := _HASH_IN_NAME.search(parts.path):
        sha256 = match[1] if parts.hostname == "download.pytorch.org" else None
    return download(urlunsplit(parts._replace(fragment="")), sha256=sha256)


def _from_wandb(name: str) -> Path:
    """The only weights file of an artifact, or the one named by `#FILE` after the name."""
    name, _, wanted = name.partition("#")
    try:
        import wandb
    except ImportError as error:
        raise WeightsError(f"wandb://{name}: needs the package wandb: pip install wandb") from error
    folder = cache_folder() / "wandb" / re.sub(r"[^A-Za-z0-9._=+-]+", "_", name)
    try:
        artifact = wandb.Api().artifact(name)
        folder = Path(artifact.download(root=str(folder)))
    except Exception as error:  # wandb's own errors, of many kinds
        raise WeightsError(
            f"wandb://{name}: cannot be downloaded ({error}); expected ENTITY/PROJECT/ARTIFACT:VERSION, and `wandb "
            "login` done before. Without a network give the file that another machine downloaded as MODEL.WEIGHTS"
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS_SUFFIXES)
    chosen = [path for path in files if not wanted or path.relative_to(folder).as_posix() == wanted]
    if len(chosen) != 1:
        there = ", ".join(path.relative_to(folder).as_posix() for path in files) or "no weights file"
        raise WeightsError(f"wandb://{name}: expected one weights file, or its name after #; it contains {there}")
    return chosen[0]
