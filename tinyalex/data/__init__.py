"""Images in, batches out: folders of photographs, the embedded data set, augmentation, the loader.

    dataset = ImageFolder("flowers", split="train")
    transform = TrainTransform(224, mean=mean_colour(dataset))
    loader = Loader(dataset, 128, transform, seed=0)
    for batch in loader.epoch(0):
        ...  # batch.images [N, 3, 224, 224] float32, batch.labels [N] int64

This room imports Pillow; `import tinyalex` alone does not import this room.
"""

from tinyalex.data.cached import CachedDataset
from tinyalex.data.colour import ColourNoise
from tinyalex.data.dataset import DataError, Dataset, ImageError, mean_colour
from tinyalex.data.folder import ImageFolder
from tinyalex.data.image import read_image, resize_shorter_side
from tinyalex.data.loader import Batch, Loader
from tinyalex.data.patterns import Patterns
from tinyalex.data.statistics import PixelSums, colour_covariance, mean_image, pixel_sums
from tinyalex.data.transforms import EvalTransform, TrainTransform, Transform

__all__ = [
    "Batch",
    "CachedDataset",
    "ColourNoise",
    "DataError",
    "Dataset",
    "EvalTransform",
    "ImageError",
    "ImageFolder",
    "Loader",
    "Patterns",
    "PixelSums",
    "TrainTransform",
    "Transform",
    "colour_covariance",
    "mean_colour",
    "mean_image",
    "pixel_sums",
    "read_image",
    "resize_shorter_side",
]
