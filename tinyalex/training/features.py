"""Activations of a network's layers, as descriptions of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyalex.functional as F
from tinyalex.backends.devices import host_copy
from tinyalex.backends.types import Array
from tinyalex.data import Dataset, ImageFolder, loader_on
from tinyalex.data.cache import cache_file, images_digest, keep, kept
from tinyalex.grad_mode import no_grad
from tinyalex.models import AlexNet, alexnet
from tinyalex.progress import Progress
from tinyalex.random import manual_seed
from tinyalex.tensor import Tensor
from tinyalex.threads import get_num_threads
from tinyalex.training.classifier import Classifier
from tinyalex.training.evaluation import computed, device_of_model

BATCH = 32
PIXELS = 32
"""Side of the squares whose pixels are compared with."""
CACHED_BYTES = 2**30
"""Bytes of cached features; the oldest files make room."""


def features(
    model: AlexNet, images: Array, layer: str = "fc7", batch_size: int = BATCH
) -> np.ndarray:
    """Return the activations [N, D] of a layer for images, after its ReLU.

    images [N, C, H, W] as the network takes them (`Classifier.inputs`), on any device; ``layer`` is
    a name in ``model.layers``: conv1 ... conv5, pool1, pool2, pool5, fc6, fc7, fc8 and others. Maps
    are flattened in the order C, H, W. fc8 has no ReLU: its activations are the logits. The network
    runs without dropout, whatever its mode, records nothing, and stops after the layer;
    `batch_size` images go through it at a time. Raises ValueError for an unknown layer.
    """
    device, found = device_of_model(model), []
    with no_grad():
        for start in range(0, max(1, len(images)), batch_size):
            some = Tensor(images[start : start + batch_size]).to(device)
            found.append(host_copy(model.activations(some, layer).data))
    return np.concatenate(found)


def pixels(images: Array) -> np.ndarray:
    """Return images [N, C, H, W] with `PIXELS` x `PIXELS` mean pixels, flattened."""
    side = min(PIXELS, images.shape[2])
    with no_grad():
        small = F.adaptive_avg_pool2d(Tensor(images), side)
    return host_copy(small.flatten(1).data)


class Described(NamedTuple):
    """Images of a data set, each described by vectors."""

    vectors: dict[str, np.ndarray]
    """"network", "random" and "pixels": [N, D]."""
    indices: np.ndarray
    """Positions of the images in the data set, int64 [N]."""
    bad: list[tuple[str, str]]
    """Path and reason of each unreadable image."""


def described(
    classifier: Classifier,
    layer: str,
    splits: Mapping[str, Dataset],
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> dict[str, Described]:
    """Describe the images of all splits by a layer's features.

    Beside them, to compare with, stand those of an untrained network, drawn with `seed`, and
    pixels. With `cache`, they are kept for another time (`data.cache`), under a digest of the
    weights, preprocessing, layer, seed and images. Raises DataError where more than 1 % of the
    images cannot be read.
    """
    progress = progress or Progress(silent=True)
    place, digest = None, ""
    folders = [images for images in splits.values() if isinstance(images, ImageFolder)]
    if cache and len(folders) == len(splits):
        digest = _digest(classifier, layer, folders, seed)
        place = cache_file(digest, "features")
        if found := _kept(place, digest, splits):
            progress.say(f"the features are those computed before, in {place}")
            return found
    found, for_good = {}, True
    model = classifier.model
    manual_seed(seed)
    untrained = alexnet(model.variant, model.num_classes).to(device_of_model(model))

    def compute(images: Array) -> dict[str, np.ndarray]:
        return {
            "network": features(model, images, layer),
            "random": features(untrained, images, layer),
            "pixels": pixels(images),
        }

    for split, images in splits.items():
        size = min(BATCH, len(images))
        device = device_of_model(model)
        loader = loader_on(device, images, size, classifier.transform, shuffle=False)
        indices: list[np.ndarray] = []
        parts: dict[str, list[np.ndarray]] = {}
        for batch, vectors in computed(compute, loader, progress, f"features, {split}"):
            indices.append(batch.indices)
            for name, some in vectors.items():
                parts.setdefault(name, []).append(some)
        whole = {name: np.concatenate(some) for name, some in parts.items()}
        found[split] = Described(whole, np.concatenate(indices), loader.bad)
        for_good &= loader.bad_for_good
    if for_good:  # else another time may find these images, too
        _keep(place, digest, found)
    return found


def _digest(classifier: Classifier, layer: str, folders: list[ImageFolder], seed: int) -> str:
    """Return a digest of all that the features depend on."""
    digest = hashlib.sha256()
    model = classifier.model
    for array in (*model.state_dict().values(), np.asarray(classifier.mean)):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    resized = classifier.std, classifier.input_size, classifier.resizing
    computes = device_of_model(model), get_num_threads()
    digest.update(repr((model.variant, layer, seed, resized, computes)).encode())
    measured = digest.hexdigest()
    parts = (images_digest(images, measured) for images in folders)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _kept(
    place: Path | None, digest: str, splits: Mapping[str, Dataset]
) -> dict[str, Described] | None:
    content = kept(place, digest)
    if place is None or not content:
        return None
    with suppress(OSError):
        os.utime(place)  # the oldest are those that were not used for the longest time
    found = {}
    for split in splits:
        part = content[split]
        bad = [(path, reason) for path, reason in part["bad"]]
        found[split] = Described(part["vectors"], part["indices"], bad)
    return found


def _keep(place: Path | None, digest: str, found: Mapping[str, Described]) -> None:
    content: dict[str, Any] = {split: part._asdict() for split, part in found.items()}
    arrays = [vectors for part in found.values() for vectors in part.vectors.values()]
    if place is None or sum(array.nbytes for array in arrays) > CACHED_BYTES:
        return
    keep(place, digest, content)
    room = CACHED_BYTES
    with suppress(OSError):
        files = [(path.stat(), path) for path in place.parent.glob("features-*.safetensors")]
        for status, path in sorted(files, key=lambda file: -file[0].st_mtime_ns):
            room -= status.st_size
            if room < 0:
                path.unlink()
