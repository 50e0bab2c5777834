"""Image folders and transforms: images, their order and their pixels."""

import images
import numpy as np
import pytest
from PIL import Image

from tinyalex.data import (
    CachedDataset,
    DataError,
    EvalTransform,
    ImageFolder,
    Loader,
    TenCropTransform,
    TrainTransform,
    mean_colour,
    read_image,
    resize_shorter_side,
)
from tinyalex.data.augment import LUMA
from tinyalex.data.transforms import _mirrored
from tinyalex.training.datasets import ImageFiles
from tinyalex.training.settings import AUGMENTATIONS


def names(dataset):
    """Return "class/file" of every image."""
    return ["/".join(path.split("/")[-2:]) for path in dataset.paths]


def test_folder_is_sorted_and_labelled(tmp_path):
    images.folder(tmp_path, tulips=2, daisies=3)
    for name in ("daisies/b.JPG", "daisies/a.jpeg", "daisies/nested/c.webp", "tulips/.hidden.jpg"):
        images.write(tmp_path / name)
    for name in ("daisies/notes.txt", "tulips/Thumbs.db", "readme.md"):
        images.text(tmp_path / name)
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ["daisies", "tulips"]
    assert names(dataset) == [
        *("daisies/000.png", "daisies/001.png", "daisies/002.png", "daisies/a.jpeg"),
        *("daisies/b.JPG", "nested/c.webp", "tulips/000.png", "tulips/001.png"),
    ]
    assert dataset.labels.tolist() == [0] * 6 + [1] * 2
    assert dataset.labels.dtype == np.int64
    assert len(dataset) == 8
    assert dataset.passed_over == {"hidden": 2, "other": 1}
    assert dataset.describe(7) == str(tmp_path / "tulips" / "001.png")


def test_folder_loads_resized_rgb(tmp_path):
    images.folder(tmp_path, cats=1, dogs=2)
    image = ImageFolder(tmp_path).load(2)
    assert image.shape == (256, 341, 3)
    assert image.dtype == np.uint8
    assert (image == (1, 2, 100)).all()


def test_ready_split_is_used(tmp_path):
    images.folder(tmp_path / "train", cats=3, dogs=2)
    images.folder(tmp_path / "val", cats=1, dogs=1)
    images.folder(tmp_path / "other", frogs=1)
    train, val = (ImageFolder(tmp_path, split) for split in ("train", "val"))
    assert train.classes == val.classes == ["cats", "dogs"]
    assert (len(train), len(val)) == (5, 2)
    assert all("/val/" in path for path in val.paths)
    with pytest.raises(ValueError, match="say which"):
        ImageFolder(tmp_path)


def test_made_split_takes_the_same_share_of_every_class(tmp_path):
    images.folder(tmp_path, cats=20, dogs=10, frogs=2)
    train, val = (ImageFolder(tmp_path, split, val_fraction=0.3) for split in ("train", "val"))
    assert np.bincount(val.labels).tolist() == [6, 3, 1]
    assert np.bincount(train.labels).tolist() == [14, 7, 1]
    assert sorted([*train.paths, *val.paths]) == list(ImageFolder(tmp_path).paths)
    assert list(val.paths) == sorted(val.paths)


def test_made_split_depends_on_the_seed_alone(tmp_path):
    images.folder(tmp_path, cats=20, dogs=20)
    first, again, other = (
        list(ImageFolder(tmp_path, "val", seed=seed).paths) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[:4] != ImageFolder(tmp_path, "val", seed=1, val_fraction=0.5).paths[:4]


@pytest.mark.parametrize("options", [{"split": "tset"}, {"val_fraction": 1.0}, {"layout": "x"}])
def test_folder_refuses_bad_arguments(options, tmp_path):
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageFolder(tmp_path, **options)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((300, 400), (256, 341)),
        ((400, 300), (341, 256)),
        ((256, 999), (256, 999)),
        ((5, 5), (256, 256)),
    ],
)
def test_resize_shorter_side(shape, expected, rng):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    resized = resize_shorter_side(image, 256)
    assert resized.shape == (*expected, 3)
    if min(shape) == 256:
        assert (resized == image).all()


@pytest.mark.parametrize("shape", [(300, 400), (20, 8000), (256, 256)])
def test_warp_stretches_the_whole_image_to_a_square(shape, tmp_path):
    image = np.zeros((*shape, 3), np.uint8)
    image[:, : shape[1] // 2] = images.RED
    images.Image.fromarray(image).save(tmp_path / "image.png")
    warped = read_image(tmp_path / "image.png", 256, "warp")
    expected = np.zeros((256, 256, 3), np.uint8)
    expected[:, :128] = images.RED
    np.testing.assert_array_equal(warped[:, :120], expected[:, :120])
    np.testing.assert_array_equal(warped[:, 136:], expected[:, 136:])


def test_the_rule_of_resizing_is_known_or_refused(tmp_path):
    folder = images.folder(tmp_path, daisies=2, tulips=1)
    images.write(folder / "daisies" / "long.png", size=(300, 20))
    shapes = {image.shape for image in map(ImageFolder(folder, resize="warp").load, range(4))}
    assert shapes == {(256, 256, 3)}
    with pytest.raises(ValueError, match="resize must be one of shorter_side, warp; got 'crop'"):
        ImageFolder(folder, resize="crop")


def test_mean_colour(tmp_path):
    images.write(tmp_path / "a" / "small.png", colour=(0, 100, 200), size=(8, 8))
    images.write(tmp_path / "b" / "large.png", colour=(100, 0, 100), size=(800, 80))
    assert mean_colour(ImageFolder(tmp_path)) == (50, 50, 150)
    assert mean_colour(ImageFolder(tmp_path), samples=1) == (0, 100, 200)


def test_mean_colour_of_nothing_is_refused():
    with pytest.raises(DataError, match="there are no images"):
        mean_colour(ImageFiles([], ["a", "b"]))


def test_a_folder_to_evaluate_on_may_lack_classes(tmp_path):
    images.folder(tmp_path / "one", cats=2)
    images.folder(tmp_path / "two", birds=0, cats=2)
    images.folder(tmp_path / "none", birds=0)
    one, two = (ImageFolder(tmp_path / name, complete=False) for name in ("one", "two"))
    assert (one.classes, one.labels.tolist()) == (["cats"], [0, 0])
    assert (two.classes, two.labels.tolist()) == (["birds", "cats"], [1, 1])
    assert len(ImageFolder(tmp_path / "two", "val", complete=False)) == 1
    with pytest.raises(DataError, match="no images"):
        ImageFolder(tmp_path / "none", complete=False)


@pytest.fixture
def positions():
    """Return an image whose red is the row and whose green is the column."""
    rows, columns = np.mgrid[:12, :15].astype(np.uint8)
    return np.stack([rows, columns, rows * 0], axis=2)


def test_eval_takes_the_centre(positions, rng):
    out = EvalTransform(8)(positions, rng)
    assert out.dtype == np.float32
    assert (out == positions[2:10, 3:11]).all()


def test_ten_crops_are_corners_and_centre_of_the_central_square_and_their_reflections(
    positions, rng
):
    views = TenCropTransform(8)(positions, rng)
    assert views.shape == (10, 8, 8, 3)
    assert views.dtype == np.float32
    corners = [(0, 1), (0, 5), (4, 1), (4, 5), (2, 3)]  # of columns 1 to 12, the last for 12
    for i, (top, left) in enumerate(corners):
        expected = positions[top : top + 8, left : left + 8]
        assert (views[i] == expected).all()
        assert (views[5 + i] == expected[:, ::-1]).all()
    assert (views[TenCropTransform.CENTRE] == EvalTransform(8)(positions, rng)).all()


def test_ten_crops_are_normalised_and_written_where_told(positions, rng):
    transform = TenCropTransform(8, mean=(1, 2, 3), std=2, channels=1)
    out = np.full(transform.shape, np.nan, np.float32)
    assert transform(positions, rng, out=out) is out
    centre = EvalTransform(8, mean=(1, 2, 3), std=2, channels=1)(positions, rng)
    assert (out[4] == centre).all()
    assert (out[9] == centre[:, ::-1]).all()


def test_a_batch_of_ten_crops(tmp_path):
    dataset = ImageFolder(images.folder(tmp_path, daisies=2, tulips=1), shorter_side=32)
    transform = TenCropTransform(28)
    (batch,) = Loader(dataset, 3, transform, shuffle=False).epoch(0)
    assert batch.images.shape == (3, 10, 3, 28, 28)
    view = transform(dataset.load(1), np.random.default_rng(0))[7]
    assert (batch.images[1, 7] == view.transpose(2, 0, 1)).all()


def test_train_reaches_every_offset(positions, rng):
    transform = TrainTransform(10, flip=False)
    crops = [transform(positions, rng) for _ in range(400)]
    seen = {(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in crops}
    assert seen == {(row, column) for row in range(3) for column in range(6)}
    assert all((np.diff(crop[..., 1], axis=1) == 1).all() for crop in crops)


def test_without_augmentation_training_sees_what_evaluation_sees(rng):
    image = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    view = TrainTransform(10, 100.0, 50.0, **AUGMENTATIONS["none"])(image, rng)
    assert (view == EvalTransform(10, 100.0, 50.0)(image, rng)).all()


def test_train_flips_half_of_the_images(positions, rng):
    crops = [TrainTransform(12)(positions, rng) for _ in range(400)]
    flipped = [crop[0, 0, 1] > crop[0, -1, 1] for crop in crops]
    assert 0.4 < np.mean(flipped) < 0.6
    assert all(np.ptp(crop[:, :, 1]) == 11 for crop in crops)


@pytest.mark.parametrize("transform", [EvalTransform, TrainTransform])
def test_mean_and_std(transform, rng):
    image = rng.integers(0, 256, (9, 9, 3), np.uint8)
    mean, std = [10.0, 20.0, 30.0], [2.0, 3.0, 4.0]
    plain = transform(9)(image, np.random.default_rng(5))
    scaled = transform(9, mean, std)(image, np.random.default_rng(5))
    np.testing.assert_allclose(scaled, (plain - mean) / std, rtol=1e-6)


@pytest.fixture
def mean_image(positions):
    """Return the central 12 x 12 pixels of `positions` as a mean image."""
    return positions[:, 1:13].astype(np.float32)


def test_the_mean_image_is_subtracted_where_the_image_was_cropped(positions, mean_image, rng):
    """The image itself as its mean: every view of it is 0, mirrored or not, and nothing else is."""
    transform = TrainTransform(8, mean_image)
    assert all((transform(positions, rng) == 0).all() for _ in range(200))
    assert (EvalTransform(8, mean_image)(positions, rng) == 0).all()
    crooked = mean_image + np.linspace(0, 1, 12, dtype=np.float32)[:, None, None]
    assert (TrainTransform(8, crooked)(positions, rng) < 0).any()


def test_with_a_mean_image_crops_come_from_the_square_that_it_covers(positions, mean_image, rng):
    transform = TrainTransform(10, mean_image * 0, flip=False)
    crops = [transform(positions, rng) for _ in range(200)]
    seen = {(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in crops}
    assert seen == {(row, column) for row in range(3) for column in (1, 2, 3)}
    assert (EvalTransform(10, mean_image * 0)(positions, rng) == positions[1:11, 2:12]).all()


def test_the_mean_image_of_a_random_part_is_that_part(rng):
    waves = 100 + 50 * np.sin(np.arange(64) / 9)
    image = np.stack([waves[:, None] + waves, waves[:, None] - waves + 99, np.ones((64, 64))], 2)
    pixels = image.round().clip(0, 255).astype(np.uint8)
    transform = TrainTransform(32, pixels.astype(np.float32), scale=(0.3, 1.0))
    views = np.array([transform(pixels, rng) for _ in range(50)])
    assert abs(views).max() <= 1.001  # Pillow rounds bytes after either direction


@pytest.mark.parametrize("mean", [0.0, "image"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_any_crop_can_be_had(positions, mean_image, mean, mirrored):
    transform = EvalTransform(8, mean_image / 2 if mean == "image" else mean)
    region = positions[:, 1:13] / 2 if mean == "image" else positions
    expected = region[3:11, 2:10]
    found = transform.view(positions, 3, 2, mirrored)
    assert (found == (expected[:, ::-1] if mirrored else expected)).all()


def test_the_mean_image_of_a_grey_input_is_its_luma(rng):
    image = rng.integers(0, 256, (9, 9, 3), np.uint8)
    mean = rng.uniform(0, 255, (9, 9, 3)).astype(np.float32)
    for seed in range(4):
        grey = TrainTransform(7, mean, channels=1)(image, np.random.default_rng(seed))
        colour = TrainTransform(7, mean)(image, np.random.default_rng(seed))
        np.testing.assert_allclose(grey[..., 0], colour @ LUMA, atol=1e-3)


def test_grey_is_luma(rng):
    image = rng.integers(0, 256, (9, 9, 3), np.uint8)
    mean = (10.0, 20.0, 30.0)
    grey = EvalTransform(9, mean, channels=1)(image, rng)
    assert grey.shape == (9, 9, 1)
    expected = np.asarray(Image.fromarray(image).convert("L"), float) - LUMA @ mean
    np.testing.assert_allclose(grey[..., 0], expected, atol=0.51)  # Pillow rounds


@pytest.mark.parametrize("options", [{}, {"scale": (0.3, 1), "jitter": 0.3}, {"channels": 1}])
def test_transform_writes_where_told(options, positions, rng):
    transform = TrainTransform(8, **options)
    out = np.full(transform.shape, np.nan, np.float32)
    assert transform(positions, np.random.default_rng(5), out=out) is out
    assert (out == transform(positions, np.random.default_rng(5))).all()


def test_random_part_has_the_share_of_the_area_that_was_asked_for(rng):
    rows, columns = np.mgrid[:240, :240].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    transform = TrainTransform(64, flip=False, scale=(0.25, 0.5))
    parts = [transform(image, rng) for _ in range(200)]
    sides = np.array([[np.ptp(part[..., 0]), np.ptp(part[..., 1])] for part in parts]) * 64 / 63
    areas = sides.prod(axis=1) / 240**2
    assert 0.23 < areas.min() < 0.30
    assert 0.45 < areas.max() < 0.53
    aspects = sides[:, 1] / sides[:, 0]
    assert 0.70 < aspects.min() < 0.82
    assert 1.22 < aspects.max() < 1.43


def test_random_part_of_a_narrow_image_stays_inside(rng):
    image = np.full((256, 64, 3), 77, np.uint8)
    transform = TrainTransform(32, scale=(0.9, 1))
    assert all((transform(image, rng) == 77).all() for _ in range(50))


def test_jitter_changes_brightness_contrast_and_saturation(rng):
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = (100, 100, 100)
    image[1] = (60, 50, 40)
    views = np.array([TrainTransform(2, flip=False, jitter=0.2)(image, rng) for _ in range(300)])
    brightness = (views @ LUMA).mean(axis=(1, 2)) / (image @ LUMA).mean()
    assert 0.8 <= brightness.min() < 0.82
    assert 1.18 < brightness.max() <= 1.2001
    contrast = (views @ LUMA)[:, 0, 0] - (views @ LUMA)[:, 1, 0]
    assert contrast.std() > 0.05 * contrast.mean()
    saturation = np.ptp(views[:, 1, 0], axis=1) / brightness / 20
    assert saturation.min() < 0.85
    assert saturation.max() > 1.15
    np.testing.assert_allclose(np.ptp(views[:, 0, 0], axis=1), 0, atol=1e-4)  # grey stays grey


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 0},
        {"crop": 8, "channels": 2},
        {"crop": 8, "mean": (1, 2)},
        {"crop": 8, "mean": np.nan},
        {"crop": 8, "mean": np.zeros((7, 7, 3))},
        {"crop": 8, "mean": np.zeros((9, 8, 3))},
        {"crop": 8, "mean": np.zeros((9, 9, 1))},
        {"crop": 8, "mean": np.full((9, 9, 3), np.inf)},
        {"crop": 8, "std": 0},
        {"crop": 8, "scale": (0.5, 1.5)},
        {"crop": 8, "scale": (0.5, 1.0), "random_crop": False},
        {"crop": 8, "jitter": 1},
    ],
    ids=lambda options: " ".join(f"{name} {np.shape(v) or v}" for name, v in options.items()),
)
def test_transform_refuses_bad_arguments(options):
    with pytest.raises(ValueError, match="got"):
        TrainTransform(**options)


@pytest.mark.parametrize("transform", [EvalTransform(13), TrainTransform(13)])
def test_transform_refuses_a_small_image(transform, positions, rng):
    with pytest.raises(ValueError, match="13 x 13 pixels from an image of 12 x 15"):
        transform(positions, rng)


class Counting:
    """Five images of 300 bytes; counts how often each is decoded."""

    classes = ("a", "b")
    labels = np.zeros(5, np.int64)

    def __init__(self):
        self.loads = [0] * 5

    def __len__(self):
        return 5

    def load(self, index):
        self.loads[index] += 1
        return np.full((10, 10, 3), index, np.uint8)

    def describe(self, index):
        return f"image {index}"


def test_cached_dataset_decodes_once_what_it_has_room_for():
    dataset = Counting()
    cached = CachedDataset(dataset, max_bytes=1000)
    for _ in range(3):
        for index in range(5):
            assert (cached.load(index) == index).all()
    assert dataset.loads == [1, 1, 1, 3, 3]
    assert cached.cached_bytes == 900
    assert (len(cached), cached.classes, cached.describe(3)) == (5, ("a", "b"), "image 3")
    with pytest.raises(ValueError, match="read-only"):
        cached.load(0)[0] = 9
    with pytest.raises(ValueError, match="max_bytes must be at least 0, got -1"):
        CachedDataset(dataset, -1)


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[1:9, 2:11]])
def test_a_mirrored_image_is_the_image_from_right_to_left(rng, part):
    image = rng.integers(0, 256, (10, 13, 3), np.uint8)[part]
    assert (_mirrored(image) == image[:, ::-1]).all()
