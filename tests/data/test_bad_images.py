"""Odd images are read right, broken ones named, and nothing hangs."""

import stat
from collections import Counter

import images
import numpy as np
import pytest
from helpers import finished
from mutants import mutant, outcome

from tinyalex.data import (
    DataError,
    EvalTransform,
    ImageError,
    ImageFolder,
    Loader,
    mean_colour,
    read_image,
    resize_shorter_side,
)

BOMB_WARNING = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def by_name(write):
    """Return the name of a writer, for the test's name."""
    return write.__name__


@pytest.mark.parametrize("write", images.ODD, ids=by_name)
def test_odd_image(write, tmp_path):
    expected = write(tmp_path / "image.jpg")
    pixels = read_image(tmp_path / "image.jpg")
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= images.ODD[write]


@pytest.mark.parametrize("write", images.ODD, ids=by_name)
def test_odd_image_resized(write, tmp_path):
    height, width = write(tmp_path / "image.jpg").shape[:2]
    pixels = read_image(tmp_path / "image.jpg", shorter_side=64)
    scale = 64 / min(height, width)
    assert pixels.shape == (height * scale, width * scale, 3)


@BOMB_WARNING
@pytest.mark.parametrize("write", images.BROKEN, ids=by_name)
def test_broken_image(write, tmp_path):
    path = tmp_path / "image.jpg"
    write(path)
    error = finished(read_image, path)
    assert isinstance(error, ImageError)
    assert error.path == str(path)
    assert images.BROKEN[write].lower() in error.reason.lower()
    assert str(error) == f"{path}: {error.reason}"


@pytest.mark.filterwarnings("ignore")  # of Pillow's, of which there are many
def test_spoilt_images_are_read_or_refused(tmp_path):
    found = Counter()
    for number in range(1000):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(mutant(number))
        found[outcome(read_image, path, shorter_side=(None, 16)[number % 2])] += 1
    assert found.keys() == {"decoded", "refused"}
    assert min(found.values()) > 100


def test_every_shortened_jpeg_is_refused(tmp_path):
    """Half a photograph must never become a photograph with a grey half."""
    images.truncated(tmp_path / "full.jpg")
    whole = (tmp_path / "full.jpg").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path = tmp_path / "part.jpg"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=r"part\.jpg"):
            read_image(path)


def test_large_jpeg_is_decoded_smaller_and_the_same(tmp_path, rng):
    smooth = resize_shorter_side(rng.integers(0, 256, (9, 12, 3), np.uint8), 1200)
    path = tmp_path / "photograph.jpg"
    images.Image.fromarray(smooth).save(path, quality=95)
    fast = read_image(path, shorter_side=256)
    exact = resize_shorter_side(read_image(path), 256)
    assert fast.shape == exact.shape == (256, 341, 3)
    assert np.abs(fast.astype(int) - exact).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(20_000, 10), (10, 20_000), (20_000, 1)])
def test_extreme_proportions_are_bounded(width, height, tmp_path):
    images.write(tmp_path / "strip.png", size=(width, height))
    pixels = read_image(tmp_path / "strip.png", shorter_side=256)
    assert sorted(pixels.shape[:2]) == [256, 4 * 256]


def test_the_centre_of_a_strip_is_kept(tmp_path):
    strip = np.zeros((10, 1000, 3), np.uint8)
    strip[:, 480:520] = images.RED
    assert (resize_shorter_side(strip, 20) == images.RED).all()


def test_unreadable_image(unprivileged):
    path = images.write(unprivileged / "secret.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


def test_unreadable_class_folder(unprivileged):
    images.folder(unprivileged / "root", cats=2, dogs=2)
    (unprivileged / "root" / "dogs").chmod(stat.S_IXUSR)
    with pytest.raises(DataError, match=r"root/dogs.*Permission denied"):
        ImageFolder(unprivileged / "root")
    (unprivileged / "root" / "dogs").chmod(0o700)


def unusable_folders():
    """Return the expected message for each kind of folder."""

    def nothing(root):
        """Leave the folder missing."""

    def a_file(root):
        root.write_text("not a folder")

    def empty(root):
        root.mkdir()

    def loose_images(root):
        images.write(root / "a.png")

    def one_class(root):
        images.folder(root, cats=3)

    def empty_class(root):
        images.folder(root, cats=3, dogs=0)
        images.text(root / "dogs" / "readme.txt")

    def only_train(root):
        images.folder(root / "train", cats=3, dogs=3)

    def other_classes(root):
        images.folder(root / "train", cats=3, dogs=3)
        images.folder(root / "val", cats=3, frogs=3)

    def one_image(root):
        images.folder(root, cats=3, dogs=1)

    def one_empty_class(root):
        (root / "cats/2026/may").mkdir(parents=True)

    def one_folder_too_high(root):
        images.folder(root / "all/photos", cats=3, dogs=3)

    def link_to_the_root(root):
        images.folder(root, cats=3, dogs=3)
        (root / "all").symlink_to(root)

    def link_to_itself(root):
        images.folder(root, cats=3, dogs=3)
        (root / "frogs").symlink_to(root / "frogs")

    return {
        nothing: "expected a folder of class folders: No such file",
        a_file: "expected a folder of class folders, found a file",
        empty: "expected one folder for each class.*found no folders",
        loose_images: "found 1 image and no folders",
        one_class: "expected at least 2 classes, found only 'cats'$",
        one_empty_class: "expected at least 2 classes, found only 'cats', without images$",
        one_folder_too_high: "found only 'all': give .*all/photos if its folders are the classes$",
        empty_class: "no images .* in dogs",
        only_train: "a folder train but no val",
        other_classes: "dogs only in train, frogs only in val",
        one_image: "one image in dogs, where training and validation need one each: add another",
        link_to_the_root: "no images .* in all: .*; skipped: 1 linked twice",
        link_to_itself: "frogs is a link that leads nowhere",
    }


UNUSABLE = unusable_folders()


@pytest.mark.parametrize(
    ("make", "message"), UNUSABLE.items(), ids=[make.__name__ for make in UNUSABLE]
)
def test_unusable_folder(make, message, tmp_path):
    root = tmp_path / "photographs"
    make(root)
    with pytest.raises(DataError, match=message) as caught:
        ImageFolder(root, split="train")
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def spoilt(tmp_path):
    """Return a folder of 40 images, three of which are broken."""
    images.folder(tmp_path, cats=19, dogs=18)
    images.text(tmp_path / "cats" / "005x.jpg")
    images.empty(tmp_path / "cats" / "005y.jpg")
    images.truncated(tmp_path / "dogs" / "zzz.jpg")
    return ImageFolder(tmp_path, shorter_side=8)


BROKEN_INDICES = [6, 7, 39]


def load(dataset, **options):
    """Return the loader and all batches of its epoch 1."""
    loader = Loader(dataset, 8, EvalTransform(8), **options)
    return loader, list(loader.epoch(1))


def test_training_replaces_broken_images_by_the_next(spoilt):
    _, batches = load(spoilt, max_bad=0.1)
    indices = np.concatenate([batch.indices for batch in batches])
    assert [len(batch) for batch in batches] == [8] * 5
    good = set(range(40)) - set(BROKEN_INDICES)
    assert set(indices.tolist()) == good
    # 8 stands in for 6 and for 7, and the search goes round at the end.
    assert np.bincount(indices, minlength=40)[[8, 0, 9]].tolist() == [3, 2, 1]
    labels = np.concatenate([batch.labels for batch in batches])
    assert (labels == spoilt.labels[indices]).all()


def test_replacing_is_the_same_from_any_batch_on(spoilt):
    _, whole = load(spoilt, max_bad=0.1)
    late = Loader(spoilt, 8, EvalTransform(8), max_bad=0.1, workers=1).epoch(1, start_batch=3)
    for expected, batch in zip(whole[3:], late, strict=True):
        assert (expected.indices == batch.indices).all()
        assert (expected.images == batch.images).all()


def test_evaluation_leaves_broken_images_out(spoilt):
    _, batches = load(spoilt, shuffle=False, max_bad=0.1)
    indices = np.concatenate([batch.indices for batch in batches])
    assert indices.tolist() == [i for i in range(40) if i not in BROKEN_INDICES]
    assert sum(len(batch.images) for batch in batches) == 37


def test_broken_images_are_listed_in_order(spoilt):
    loader, _ = load(spoilt, max_bad=0.1)
    assert [path for path, _ in loader.bad] == [spoilt.describe(i) for i in BROKEN_INDICES]
    assert [reason.split()[0] for _, reason in loader.bad] == ["not", "the", "image"]


@pytest.mark.parametrize(("max_bad", "allowed"), [(0, 0), (0.01, 1), (0.05, 2)])
def test_too_many_broken_images_stop_the_run(max_bad, allowed, spoilt):
    with pytest.raises(DataError, match=f"of 40 images cannot be read, {allowed} ") as caught:
        load(spoilt, max_bad=max_bad, shuffle=False)
    assert spoilt.describe(6) in str(caught.value)


def test_nothing_but_broken_images_stops_the_run(tmp_path):
    for name in ("cats/a.jpg", "dogs/b.jpg"):
        (tmp_path / name).parent.mkdir()
        images.text(tmp_path / name)
    dataset = ImageFolder(tmp_path)
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        list(Loader(dataset, 1, EvalTransform(8), max_bad=1).epoch(0))
    with pytest.raises(DataError, match="none of 2 images could be read"):
        mean_colour(dataset)
