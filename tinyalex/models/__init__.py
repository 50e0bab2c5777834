"""AlexNet in eight variants: `variants.VARIANTS` is the table, `alexnet` builds from it."""

from tinyalex.models.alexnet import AlexNet, alexnet
from tinyalex.models.recipe import PixelScale, Recipe
from tinyalex.models.spec import Variant
from tinyalex.models.variants import VARIANTS

__all__ = ["VARIANTS", "AlexNet", "PixelScale", "Recipe", "Variant", "alexnet"]
