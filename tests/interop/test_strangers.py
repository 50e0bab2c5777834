"""Files that are no weights, refused in one sentence."""

import gzip
import pickle
import re

import pytest
from commands import assert_refused, run
from images import write

import tinyalex as ta

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 243815000\n"
FILES = {
    "empty": (b"", "it is empty"),
    "blank": (b" \n\n", "it is blank"),
    "lfs": (POINTER.encode(), "it is a Git LFS pointer, not the file itself: git lfs pull fetches"),
    "html": (b"\n<!DOCTYPE html>\n<html><title>404</title>", "it is a web page, which a failed"),
    "HTML": (b"<HTML>" + b"x" * 4096, "it is a web page"),
    "drive": (b"<html><head><title>Google Drive - Virus scan warning</title>", "it is a web page"),
    "s3": (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>NoSuchKey', "it is a web page"),
    "json": (b'{"message": "Not Found"}', "it is a text file"),
    "text": (b"alexnet weights, see http://example.org\n" * 99, "it is a text file"),
    "prototxt": (b'name: "AlexNet"\nlayer {\n  name: "data"\n', "it is a text file"),
    "python": (b"import torch\nmodel = torch.hub.load('pytorch/vision')\n", "it is a text file"),
    "gzip": (gzip.compress(b"x" * 4096), "it is compressed: unpack it first"),
    "xz": (b"\xfd7zXZ\0\0\4\xe6\xd6\xb4\x46" + bytes(99), "it is compressed: unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(99), "it is compressed: unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd\4\0" + bytes(99), "it is compressed: unpack it first"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99), "it is an image"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is HDF5"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF"),
    "pickle": (pickle.dumps({"weight": 1}), "it is a pickle, which may run code and is not opened"),
    "0x80": (b"\x80", "is no weight file"),
    "zeros": (bytes(4096), "is no weight file"),
    "noise": (bytes(range(255, 0, -1)) * 9, "is no weight file"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_no_weights(name, ending, tmp_path):
    path = tmp_path / f"alexnet.{ending}"
    content, expected = FILES[name]
    path.write_bytes(content)
    with pytest.raises(ta.FileError, match=rf"alexnet\.{ending} .*{re.escape(expected)}"):
        ta.load_weights(path)
    code, said, complaints = run("predict", path, "photo.jpg")
    assert_refused(code, complaints, expected)
    assert said == ""


def test_images_that_are_given_first(tmp_path):
    path = write(tmp_path / "photo.png")
    code, _, complaints = run("predict", path, "alexnet.pth")
    assert_refused(code, complaints, "photo.png is no weight file")
    assert "it is an image, not weights" in complaints


def test_a_folder_without_a_checkpoint(tmp_path):
    code, _, complaints = run("predict", tmp_path, "photo.jpg")
    assert_refused(code, complaints, "is not the folder of a run: there is no checkpoint in it")
    with pytest.raises(IsADirectoryError):
        ta.load_weights(tmp_path)
