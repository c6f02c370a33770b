"""The demo: a small ViT on scikit-learn's digits (1797 real 8×8 images), trained here and shipped as a package.

`python -m edgesdk.demo OUT` trains it again: bit for bit the same on the same machine.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesdk.data import Dataset

SEED = 0
TEST_SHARE = 0.2


def package_path() -> Path:
    """The shipped package of the trained model."""
    manifest = Path(str(files("edgesdk.demo").joinpath("digits.edgepkg", "manifest.json")))
    # An editable install is a tree of links, and a package holds none: go to where the files are.
    return manifest.resolve().parent


def train_data() -> Dataset:
    """1438 training images: `pixel_values` float32 [N, 1, 8, 8] from 0 to 1, labels 0 to 9."""
    return _split()[0]


def test_data() -> Dataset:
    """359 test images, stratified, never trained on."""
    return _split()[1]


def _split() -> tuple[Dataset, Dataset]:
    from sklearn.datasets import load_digits

    from edgesdk.data import Dataset

    digits = load_digits()
    pixels = (digits.images / 16.0).astype("float32")[:, None]
    whole = Dataset({"pixel_values": pixels}, digits.target.astype("int64"), name="digits")
    return whole.split(TEST_SHARE, SEED)
