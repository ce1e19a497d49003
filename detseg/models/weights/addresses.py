"""What the short addresses of Detectron2's model zoo stand for."""

from __future__ import annotations

# detectron2://PATH is this address with PATH behind it.
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"

_DETECTRON1 = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
# catalog://ImageNetPretrained/NAME: backbones trained on ImageNet, of Detectron's first version.
CATALOG = {
    "ImageNetPretrained/MSRA/R-50": _DETECTRON1 + "MSRA/R-50.pkl",
    "ImageNetPretrained/MSRA/R-101": _DETECTRON1 + "MSRA/R-101.pkl",
    "ImageNetPretrained/FAIR/R-50-GN": _DETECTRON1 + "47261647/R-50-GN.pkl",
    "ImageNetPretrained/FAIR/R-101-GN": _DETECTRON1 + "47592356/R-101-GN.pkl",
    "ImageNetPretrained/FAIR/X-101-32x8d": _DETECTRON1 + "20171220/X-101-32x8d.pkl",
    "ImageNetPretrained/FAIR/X-101-64x4d": _DETECTRON1 + "FBResNeXt/X-101-64x4d.pkl",
    "ImageNetPretrained/FAIR/X-152-32x8d-IN5k": _DETECTRON1 + "25093814/X-152-32x8d-IN5k.pkl",
}
