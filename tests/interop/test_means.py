"""Mean images and colours of Caffe's networks, in each of their files."""

import io

import numpy as np
import pytest
from caffemodels import blob, caffemodel, layers
from matconvnets import cell, mat, simple

import tinyalex as ta
from tinyalex.files import DamagedError, FileError
from tinyalex.interop import Weights, load_weights
from tinyalex.interop.means import IMAGENET_MEAN, read_mean
from tinyalex.interop.writing import save_safetensors, save_torch
from tinyalex.models import VARIANTS


@pytest.fixture
def image(rng):
    """Return a mean image [H, W, 3] in RGB, whose rows, columns and colours all differ."""
    ramps = np.linspace(0, 60, 256)[:, None, None] + np.linspace(0, 30, 256)[:, None]
    return (ramps + np.array([40, 30, 20]) + rng.uniform(0, 5, (256, 256, 3))).astype(np.float32)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = {  # of an image [3, H, W] in BGR, as Caffe's npy has it
    "binaryproto": lambda bgr: blob(bgr[None], legacy=True),
    "binaryproto with a shape": lambda bgr: blob(bgr[None]),
    "binaryproto of doubles": lambda bgr: blob(bgr[None], dtype="<f8"),
    "npy": npy,
    "npy of doubles": lambda bgr: npy(bgr.astype(np.float64)),
    "npy in columns": lambda bgr: npy(np.asfortranarray(bgr)),
    "npy of one image in a batch": lambda bgr: npy(bgr[None]),
    "mat, W x H x BGR": lambda bgr: mat(mean_data=bgr.transpose(2, 1, 0)),
    "mat before 2015, H x W x BGR": lambda bgr: mat(image_mean=bgr.transpose(1, 2, 0)),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES.keys())
def test_every_file_has_the_same_image(tmp_path, image, write):
    (tmp_path / "mean").write_bytes(write(image.transpose(2, 0, 1)[::-1]))
    mean = read_mean(tmp_path / "mean")
    assert mean.dtype == np.float32
    assert np.array_equal(mean, image)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_three_numbers_are_a_colour(tmp_path, shape):
    (tmp_path / "mean").write_bytes(npy(np.reshape([104.0, 117.0, 123.0], shape)))
    assert read_mean(tmp_path / "mean") == (123, 117, 104)


BGR = np.full((3, 256, 256), 100.0, np.float32)
RGB = np.array(IMAGENET_MEAN)[:, None, None] + np.zeros((256, 256))
REFUSALS = {
    "RGB": (npy(RGB), "colours are those of ImageNet in the wrong order: BGR is expected"),
    "RGB numbers": (npy(np.array([123.0, 117, 104])), "wrong order"),
    "RGB in a blob": (blob(RGB[None]), "wrong order"),
    "RGB in a mat": (mat(mean_data=RGB.T), "wrong order"),
    "colours last": (npy(BGR.T), r"\[3, H, W\] .* got float32 of shape \[256, 256, 3\]"),
    "one channel": (npy(BGR[0]), r"got float32 of shape \[256, 256\]"),
    "four numbers": (npy(np.ones(4)), r"three numbers are expected"),
    "unknown variable": (mat(mean=BGR.T), r"it has mean; mean_data .* is expected"),
    "two variables": (mat(mean_data=BGR.T, image_mean=BGR.T), "it has mean_data, image_mean"),
    "colours first in a mat": (mat(mean_data=BGR), "got float32 of shape"),
    "0..1": (npy(BGR / 255), "its values lie in 0..1"),
    "negative": (npy(BGR - 200), r"its values must lie in 0\.\.255"),
    "not finite": (npy(BGR * np.nan), r"its values must lie in 0\.\.255"),
    "not square": (npy(BGR[:, :, :200]), "200 x 256 pixels is not square"),
    "pickle": (npy(np.array({"a": 1}, object)), "its array of object has no numbers"),
    "cut": (npy(BGR)[:-4], "does not fill it"),
    "cut blob": (blob(BGR)[:-4], "its fields are damaged"),
    "no blob": (b"no mean", "its fields are damaged"),
    "empty": (b"", r"got float32 of shape|numbers are expected"),
}


@pytest.mark.parametrize(("raw", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_no_mean_is_refused(tmp_path, raw, message):
    (tmp_path / "mean").write_bytes(raw)
    with pytest.raises(FileError, match=message) as failure:
        read_mean(tmp_path / "mean")
    assert "\n" not in str(failure.value)
    assert f"the mean {tmp_path / 'mean'}: " in str(failure.value)


@pytest.mark.parametrize("write", [ta.export_onnx, save_torch, save_safetensors])
def test_a_mean_image_too_large_to_be_read_is_not_written(tmp_path, thin, write, monkeypatch):
    _, variant, arrays = thin
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    mean = np.full((512, 512, 3), 100, np.float32)
    with pytest.raises(ValueError, match="use the mean colour instead of a mean image"):
        write(Weights(arrays, variant.name, "a test").with_mean(mean), tmp_path / "net")
    assert not any(tmp_path.iterdir())


def caffe(weights, path):
    path.write_bytes(caffemodel(layers(VARIANTS[weights.variant], weights.arrays), 2))


def matconvnet(weights, path):
    theirs = simple(layers(VARIANTS[weights.variant], weights.arrays))
    path.write_bytes(mat(layers=cell(theirs)))


def numpy(weights, path):
    with path.open("wb") as file:
        np.savez(file, **{n: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
                          for n, a in weights.arrays.items()})  # fmt: skip


WRITERS = [caffe, matconvnet, numpy, ta.export_onnx, save_torch, save_safetensors]


@pytest.mark.parametrize("cut", ["net", "mean"])
@pytest.mark.parametrize("write", WRITERS)
def test_a_file_cut_short_should_be_copied_again(tmp_path, thin, write, cut, monkeypatch):
    _, variant, arrays = thin
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    write(Weights(arrays, variant.name, "a test"), tmp_path / "net")
    (tmp_path / "mean").write_bytes(blob(BGR))
    content = (tmp_path / cut).read_bytes()
    for kept in (0.5, 0.95):
        (tmp_path / cut).write_bytes(content[: int(kept * len(content))])
        with pytest.raises(DamagedError, match=r"; copy or download it again$"):
            load_weights(tmp_path / "net", variant.name, mean=tmp_path / "mean")


@pytest.mark.parametrize("write", WRITERS)
def test_a_mean_is_taken_with_weights_of_every_format(tmp_path, image, thin, write, monkeypatch):
    name, variant, arrays = thin
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    write(Weights(arrays, variant.name, "a test"), tmp_path / "net")

    def load(mean):
        (tmp_path / "mean").write_bytes(npy(mean))
        asked = name if write in (caffe, matconvnet, numpy) else variant.name
        return load_weights(tmp_path / "net", asked, mean=tmp_path / "mean")

    for size in (256, 240):  # that of a mean image is the one that images are resized to
        weights = load(image[:size, :size].transpose(2, 0, 1)[::-1])
        assert np.array_equal(weights.mean, image[:size, :size])
        assert weights.shorter_side == size
        assert "mean" not in " ".join(weights.notes)
    assert load(np.array([104.0, 117, 123])).mean == (123, 117, 104)
    with pytest.raises(FileError, match=f"200 pixels, fewer than the 227 .* '{name}"):
        load(image[:200, :200].transpose(2, 0, 1))
