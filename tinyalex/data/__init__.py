"""Data sets, augmentation and batch loading.

    dataset = ImageFolder("flowers", split="train")
    transform = TrainTransform(224, mean=mean_colour(dataset))
    loader = Loader(dataset, 128, transform, seed=0)
    for batch in loader.epoch(0):
        ...  # batch.images [N, 3, 224, 224] float32, batch.labels [N] int64

This room imports Pillow; `import tinyalex` alone does not import this room.
"""

from tinyalex.data.augment import ColourNoise
from tinyalex.data.dataset import CachedDataset, DataError, Dataset, ImageError, Unreadable
from tinyalex.data.folder import ImageFolder
from tinyalex.data.gpu_loader import GPULoader, loader_on
from tinyalex.data.image import RESIZES, read_image, resize_image, resize_shorter_side
from tinyalex.data.loader import Batch, Loader
from tinyalex.data.patterns import Patterns
from tinyalex.data.statistics import (
    PixelStatistics,
    PixelSums,
    load_statistics,
    mean_colour,
    pixel_statistics,
)
from tinyalex.data.transforms import EvalTransform, TenCropTransform, TrainTransform, Transform
from tinyalex.data.worker_processes import WorkerError

__all__ = [
    "RESIZES",
    "Batch",
    "CachedDataset",
    "ColourNoise",
    "DataError",
    "Dataset",
    "EvalTransform",
    "GPULoader",
    "ImageError",
    "ImageFolder",
    "Loader",
    "Patterns",
    "PixelStatistics",
    "PixelSums",
    "TenCropTransform",
    "TrainTransform",
    "Transform",
    "Unreadable",
    "WorkerError",
    "load_statistics",
    "loader_on",
    "mean_colour",
    "pixel_statistics",
    "read_image",
    "resize_image",
    "resize_shorter_side",
]
