"""Arguments that the preparation of batches on a GPU refuses.

Its values are among the exercises.
"""

import numpy as np
import pytest

from tinyalex.backends.geometry import BatchOptions


def prepare(cuda, **changes):
    """Prepare one image of 7 x 9 pixels."""
    from tinyalex.backends.cuda import batch

    place = {name: changes.pop(name, [0]) for name in ("tops", "lefts", "flips")}
    offsets = changes.pop("offsets", None)
    options = BatchOptions(**({"mean": np.zeros(1), "std": 1, "crop": 5} | changes))
    images = cuda.zeros((1, 7, 9, 3), np.uint8)
    return batch.prepare(images, **place, options=options, offsets=offsets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tops": [3]}, r"5 x 5 at \(3, 0\) leaves the 7 x 9 pixels of image 0"),
        ({"lefts": [-1]}, r"at \(0, -1\) leaves"),
        ({"crop": 8}, r"8 x 8 at \(0, 0\) leaves"),
        ({"mean": np.zeros((5, 5, 3))}, r"mean image must have shape \(7, 9, 3\), got \(5, 5, 3\)"),
        ({"offsets": np.zeros(3)}, r"offsets must have shape \(1, 3\), got \(3,\)"),
        ({"channels": 2}, "cannot make 2 of 3 channels"),
    ],
)
def test_what_does_not_fit_is_refused(cuda, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(cuda, **changes)


def test_the_last_crop_fits(cuda):
    assert prepare(cuda, tops=[2], lefts=[4]).shape == (1, 3, 5, 5)
