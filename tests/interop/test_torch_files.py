"""PyTorch's files and safetensors, in and out."""

import argparse
import dataclasses
import io
import json
import struct
import time
import zipfile

import numpy as np
import pytest
import torch_twins as twins
from safetensors.numpy import save_file
from torch_twins import Call, Tensor

import tinyalex as ta
from tinyalex.interop.writing import save_safetensors, save_torch
from tinyalex.models import VARIANTS, alexnet

pytest_plugins = ("trained",)

THIN = VARIANTS["torchvision"].thinner(32, 63)


@pytest.fixture(autouse=True)
def _thin(monkeypatch):
    """Offer a thin twin of torchvision's network."""
    monkeypatch.setitem(VARIANTS, THIN.name, THIN)


@pytest.fixture
def state():
    """State of a thin network with five classes, under torchvision's names."""
    return alexnet(THIN, 5).state_dict()


@pytest.fixture
def path(tmp_path):
    """A path in an empty folder."""
    return tmp_path / "weights of Alex.bin"


def tensors(state, prefix=""):
    return {prefix + name: Tensor(array) for name, array in state.items()}


def load(path, content, **options):
    path.write_bytes(content)
    return ta.load_weights(path, **options)


def assert_equal(weights, state):
    assert weights.variant == THIN.name
    for own, array in zip(weights.arrays.values(), state.values(), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_array_equal(own, array, strict=True)


# --- the three containers ---


@pytest.mark.parametrize("write", twins.FILES.values(), ids=twins.FILES)
def test_each_kind_of_file_is_read(write, state, path):
    assert_equal(load(path, write(tensors(state))), state)


TREES = {
    "state_dict": lambda own: {"epoch": 3, "state_dict": own, "best_acc1": 0.5, "arch": "alexnet"},
    "model beside its average": lambda own: {"model": own, "model_ema": tensors_like(own)},
    "prefixes": lambda own: {f"module._orig_mod.alexnet.{k}": v for k, v in own.items()},
    "an optimiser's state": lambda own: {
        "net": own,
        "optimizer": {"state": {0: {"momentum_buffer": Tensor(np.ones(3, "f4"))}}},
        "rng": Tensor(np.ones(8, "u1")),
    },
    "Lightning": lambda own: {
        "state_dict": {**{f"model.{k}": v for k, v in own.items()}, "loss.weight": TWO},
        "hyper_parameters": {"lr": 0.1, "names": ["a", ("b", None, True)]},
        "callbacks": {},
    },
    "OrderedDict": lambda own: Call("collections.OrderedDict", ([list(p) for p in own.items()],)),
    "parameters": lambda own: {
        k: Call("torch._utils._rebuild_parameter", (v, True, Call("collections.OrderedDict")))
        for k, v in own.items()
    },
    "a list": lambda own: [own, {"lr": 0.1}],
    "settings": lambda own: {"args": Call("argparse.Namespace", (), {"lr": 0.1}), "model": own},
}
TWO = Tensor(np.ones(2, "f4"))


def tensors_like(own):
    return {name: Tensor(tensor.storage + 1, tensor.shape) for name, tensor in own.items()}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_weights_are_found_wherever_they_are(tree, state, path):
    for write in (twins.zip_file, twins.stream_file):
        assert_equal(load(path, write(tree(tensors(state)))), state)


def module(**parts):
    names = ("_parameters", "_buffers", "_modules")
    return {"training": False, **{name: parts.get(name, {}) for name in names}}


def test_a_network_that_was_saved_whole_is_read(state, path):
    """Its classes are not loaded: their state has all that a state_dict has."""
    parts = {}
    for name, array in state.items():
        room, place, part = name.split(".")
        parts.setdefault(room, {}).setdefault(place, {})[part] = Tensor(array)

    def layer(parameters):
        state = module(_parameters=parameters)
        return Call("torch.nn.modules.linear.Linear", (), state)

    rooms = {
        room: Call(
            "torch.nn.modules.container.Sequential",
            (),
            module(_modules={place: layer(own) for place, own in layers.items()}),
        )
        for room, layers in parts.items()
    }
    whole = Call("torchvision.models.alexnet.AlexNet", (), module(_modules=rooms))
    assert_equal(load(path, twins.zip_file(whole)), state)


@pytest.mark.parametrize("kind", [*twins.FILES])
def test_views_of_shared_storages_are_read(kind, state, path):
    """One storage of all, from the last to the first, fc6 and conv1 in other orders."""
    flat = np.concatenate([np.zeros(7, "f4"), *(a.ravel() for a in reversed(state.values()))])
    tree, end = {}, 7
    for name, array in reversed(state.items()):
        tree[name] = Tensor(flat, array.shape, offset=end)
        end += array.size
    transposed = np.ascontiguousarray(state["classifier.1.weight"].T)
    tree["classifier.1.weight"] = Tensor(transposed, transposed.shape[::-1], (1, len(transposed.T)))
    last = np.ascontiguousarray(state["features.0.weight"].transpose(0, 2, 3, 1))
    k, h, w, c = last.shape
    tree["features.0.weight"] = Tensor(last, (k, c, h, w), (h * w * c, 1, w * c, c))
    gaps = np.repeat(state["classifier.6.weight"], 2, axis=1)
    tree["classifier.6.weight"] = Tensor(
        gaps, state["classifier.6.weight"].shape, (gaps.shape[1], 2)
    )
    assert_equal(load(path, twins.FILES[kind]({name: tree[name] for name in state})), state)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("kind", [*twins.FILES])
def test_other_precisions_become_float32(kind, dtype, state, path):
    if dtype == "bfloat16":
        expected = {name: upper(array).view(np.float32) for name, array in state.items()}
        tree = {k: Tensor((upper(a) >> 16).astype(np.uint16)) for k, a in state.items()}
    else:
        expected = {name: array.astype(dtype).astype(np.float32) for name, array in state.items()}
        tree = tensors({name: array.astype(dtype) for name, array in state.items()})
    assert_equal(load(path, twins.FILES[kind](tree)), expected)


def upper(array):
    return array.view(np.uint32) & np.uint32(0xFFFF0000)


def test_a_big_endian_archive_is_read(state, path):
    swapped = {name: array.byteswap() for name, array in state.items()}
    content = twins.zip_file(tensors(swapped)).replace(b"little", b"bigger")
    with pytest.raises(ta.FileError):
        load(path, content)
    assert_equal(load(path, twins.zip_file(tensors(swapped), {"byteorder": b"big"})), state)


# --- safetensors ---


@pytest.mark.parametrize("prefix", ["", "model.", "module.alexnet."])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["no metadata", "metadata"])
def test_safetensors_are_read(prefix, metadata, state, path):
    save_file({prefix + name: array for name, array in state.items()}, path, metadata)
    assert_equal(ta.load_weights(path), state)


@pytest.mark.parametrize("kind", ["F16", "F64", "BF16"])
def test_other_precisions_in_safetensors_become_float32(kind, state, path):
    if kind == "BF16":
        arrays = {name: (upper(array) >> 16).astype("<u2") for name, array in state.items()}
        expected = {name: upper(array).view(np.float32) for name, array in state.items()}
    else:
        arrays = {
            name: array.astype({"F16": "<f2", "F64": "<f8"}[kind]) for name, array in state.items()
        }
        expected = {name: array.astype(np.float32) for name, array in arrays.items()}
    entries, end = {}, 0
    for name, array in arrays.items():
        place = [end, end := end + array.nbytes]
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": place}
    raw = b"".join(array.tobytes() for array in arrays.values())
    assert_equal(load(path, container(json.dumps(entries).encode(), raw)), expected)


def container(header, arrays=b""):
    return struct.pack("<Q", len(header)) + header + arrays


ENTRY = '"%s":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}'
HEADERS = {
    "hole": (ENTRY % ("a", 1, 0, 4) + "," + ENTRY % ("b", 1, 8, 12), 12),
    "overlap": (ENTRY % ("a", 2, 0, 8) + "," + ENTRY % ("b", 1, 4, 8), 8),
    "twice": (ENTRY % ("a", 1, 0, 4) + "," + ENTRY % ("a", 1, 0, 4), 4),
    "longer than the file": (ENTRY % ("a", 4, 0, 16), 8),
    "shorter than the file": (ENTRY % ("a", 1, 0, 4), 8),
    "wrong size": (ENTRY % ("a", 3, 0, 8), 8),
    "unknown dtype": (ENTRY.replace("F32", "F33") % ("a", 1, 0, 4), 4),
    "huge": (ENTRY % ("a", 2**62, 0, 2**64), 4),
    "no offsets": ('"a":{"dtype":"F32","shape":[1]}', 4),
    "brackets": ('"a":' + "[" * 100_000, 0),
    "metadata of numbers": ('"__metadata__":{"a":1}', 0),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_damaged_header_is_refused(case, path):
    text, size = HEADERS[case]
    with pytest.raises(ta.FileError, match=f"{path.name}: (its header is damaged|it is cut short)"):
        load(path, container(b"{" + text.encode() + b"}", bytes(size)))


# --- out and in again ---

WRITERS = {"safetensors": save_safetensors, "torch": save_torch}


@pytest.fixture
def weights(state, path):
    """Weights with everything that there is to say about them."""
    read = load(path, twins.zip_file(tensors(state)))
    options = {"classes": ["a", 'b "c"', "ä\n", "\N{TULIP}", "e"], "resize": "warp"}
    sizes = {"shorter_side": 64, "input_size": 63}
    mean = {"mean": (1.0, 2.5, 1 / 3), "std": (1.0, 2.0, 1e-3)}
    return ta.Weights(read.arrays, read.variant, "test", **options, **sizes, **mean)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("image", [False, True], ids=["mean colour", "mean image"])
def test_what_is_written_comes_back(write, image, weights, path, rng):
    if image:
        mean = rng.normal(size=(64, 64, 3)).astype(np.float32)
        weights = ta.Weights(**{**vars(weights), "mean": mean})
    write(weights, path)
    first = path.read_bytes()
    again = ta.load_weights(path)
    for name in ("variant", "classes", "std", "resize", "shorter_side", "input_size"):
        assert getattr(again, name) == getattr(weights, name), name
    np.testing.assert_array_equal(again.mean, weights.mean, strict=image)
    for name, array in weights.arrays.items():
        assert again.arrays[name].tobytes() == array.tobytes()
    write(again, path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_torch_reads_what_is_written(write, weights, state, path):
    torch = pytest.importorskip("torch")
    write(weights, path)
    if write is save_torch:
        read = torch.load(path, weights_only=True)
    else:
        read = pytest.importorskip("safetensors.torch").load_file(path)
    assert list(read) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(read[name].numpy(), array, strict=True)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_old_file(write, weights, path, disk):
    write(weights, path)
    before = path.read_bytes()
    disk(4096)
    with pytest.raises(OSError):
        write(dataclasses.replace(weights, classes=None), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_checkpoints_and_runs_are_read(state, path, tmp_path):
    classifier = {
        "variant": THIN.name,
        "classes": list("abcde"),
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "input_size": 63,
        "shorter_side": 64,
        "dropout": 0.5,
        "weights": state,
    }
    ta.save({"classifier": classifier}, tmp_path / "best.safetensors")
    for place in (tmp_path, tmp_path / "best.safetensors"):
        read = ta.load_weights(place)
        assert_equal(read, state)
        assert read.classes == list("abcde")
        assert (read.mean, read.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    del classifier["weights"]["features.0.bias"]
    others = {"weights": "classifier is missing", "classifier": "not those of its variant"}
    for key, message in others.items():
        ta.save({key: classifier}, path)
        with pytest.raises(ta.FileError, match=message):
            ta.load_weights(path)
    for key, wrong in {"weights": {"features.0.weight": "x"}, "classes": "abc", "mean": 3}.items():
        ta.save({"classifier": {**classifier, key: wrong}}, path)
        with pytest.raises(ta.FileError, match=f"classifier.{key}.* must be"):
            ta.load_weights(path)


# --- refusals ---


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


def reshaped(name, change):
    return lambda state: {**state, name: np.ascontiguousarray(change(state[name]))}


def swapped(a, b):
    return lambda state: {
        **state,
        **{f"{x}.{part}": state[f"{y}.{part}"] for x, y in ((a, b), (b, a)) for part in PARTS},
    }


PARTS = ("weight", "bias")
NORM = {f"features.1.{part}": np.ones(2, "f4") for part in ("weight", "bias", "running_mean")}
STATES = {
    "a missing layer": (without("features.6.weight"), "conv3.weight .features.6.weight. missing"),
    "a missing bias": (without("classifier.6.bias"), "fc8.bias .classifier.6.bias. missing"),
    "swapped layers": (swapped("classifier.1", "classifier.4"), "fc6.weight has shape"),
    "transposed": (reshaped("classifier.6.weight", np.transpose), "fc8.weight has shape"),
    "one more": (lambda own: {**own, "classifier.8.weight": np.ones((2, 5), "f4")}, "more arrays"),
    "one more of another kind": (
        lambda own: {**own, "remap.weight": np.ones(2, "f4")},
        "more arrays than an AlexNet: remap.weight",
    ),
    "batch normalisation": (lambda own: {**own, **NORM}, "features.1.running_mean is of batch"),
    "NaN": (reshaped("features.0.bias", lambda a: a * np.nan), "not finite"),
    "too large": (reshaped("features.0.bias", lambda a: np.full(2, 1e300)), "not finite"),
    "whole numbers": (reshaped("features.0.bias", lambda a: a.astype(np.int64)), "int64"),
    "two networks": (
        lambda own: {f"{place}.{k}": a for place in "ab" for k, a in own.items()},
        "several networks: under a., b.",
    ),
    "none": (lambda own: {"x": np.ones(3, "f4")}, "none of AlexNet's layers"),
    "empty": (lambda own: {}, "no arrays"),
    "odd names": (lambda own: {"x\n\0y" * 999: np.ones(3, "f4")}, r"x\?\?yx\?\?yx"),
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_what_is_no_alexnet_is_refused(case, kind, state, path):
    make, message = STATES[case]
    if kind == "safetensors":
        save_file(make(state), path)
        content = path.read_bytes()
    else:
        content = twins.FILES[kind](tensors(make(state)))
    with pytest.raises(ta.FileError, match=message) as caught:
        load(path, content)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_several_variants_fit_the_user_decides(path):
    state = {k: np.zeros(a.shape, "f4") for k, a in alexnet(THIN, 5).state_dict().items()}
    with pytest.raises(ta.FileError, match="the variant 'paper' expects"):
        load(path, twins.zip_file(tensors(state)), variant="paper")
    with pytest.raises(ta.FileError, match=r"fit torchvision/32$"):
        load(path, twins.zip_file(tensors(state)), variant="d2l")


def test_a_variant_with_twins_is_asked_for(monkeypatch, path):
    pairs = [VARIANTS[name].thinner(16, 67) for name in ("caffe", "caffenet")]
    for pair in pairs:
        monkeypatch.setitem(VARIANTS, pair.name, pair)
    content = twins.zip_file(tensors(alexnet(pairs[0], 3).state_dict()))
    with pytest.raises(ta.FileError, match=r"say which \(caffe/16, caffenet/16\)"):
        load(path, content)
    assert load(path, content, variant="caffenet/16").variant == "caffenet/16"


UNUSABLE = {
    "a quantised tensor": Call("torch._utils._rebuild_qtensor", (1, 2)),
    "a sparse tensor": Call("torch._utils._rebuild_sparse_tensor", (1, 2)),
    "__main__.AlexNet": Call("__main__.AlexNet"),
    "os.system": Call("os.system", ("true",)),
    "impossible shape": Tensor(np.ones(4, "f4"), (2, 2), (-1, 1)),
    "in a storage of 4 numbers": Tensor(np.ones(4, "f4"), (2**40,), (0,)),
    "of shape .3,. with offset 2": Tensor(np.ones(4, "f4"), (3,), offset=2),
}


@pytest.mark.parametrize("message", UNUSABLE)
@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_tensors_that_cannot_be_read_are_refused(message, kind, state, path):
    tree = {**tensors(state), "features.0.weight": UNUSABLE[message]}
    with pytest.raises(ta.FileError, match=message):
        load(path, twins.FILES[kind](tree))


def content_of(kind, state, path):
    """Return a file of this kind with these weights."""
    if kind != "safetensors":
        return twins.FILES[kind](tensors(state))
    save_file(state, path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [*twins.FILES, "safetensors"])
def test_a_part_of_a_file_is_refused(kind, state, path):
    content = content_of(kind, state, path)
    end = len(content) - (0 if kind != "tar" else 12_000)  # a tar archive is filled with zeros
    for length in np.linspace(0, end, 60, endpoint=False, dtype=int):
        with pytest.raises(ta.FileError, match=path.name):
            load(path, content[:length])


@pytest.mark.parametrize("kind", ["stream", "zip", "safetensors"])
def test_bytes_behind_the_arrays_are_refused(kind, state, path):
    content = content_of(kind, state, path)
    with pytest.raises(ta.FileError, match=r"damaged|arrays end"):
        load(path, content + b"\0")


@pytest.mark.parametrize("count", [3, 10**9])
@pytest.mark.parametrize("kind", [*twins.FILES])
def test_a_storage_that_is_smaller_than_it_says_is_refused(kind, count, state, path):
    tree = tensors(state)
    tree["features.0.bias"].count = count
    with pytest.raises(ta.FileError, match=path.name):
        load(path, twins.FILES[kind](tree))


@pytest.mark.parametrize("flip", [1, 128])
def test_a_changed_number_in_an_archive_is_noticed(flip, state, path):
    """By the checksum, which the other kinds of files do not have."""
    content = bytearray(twins.zip_file(tensors(state)))
    content[content.index(state["features.3.weight"].tobytes()) + 5] ^= flip
    with pytest.raises(ta.FileError, match="checksum"):
        load(path, content)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"constants.pkl": b""}, "TorchScript"), ({"data.pkl/data.pkl": b""}, "not of torch.save")],
)
def test_other_zip_archives_are_refused(more, message, state, path):
    with pytest.raises(ta.FileError, match=message):
        load(path, twins.zip_file(tensors(state), more))


@pytest.mark.parametrize("place", [2**62, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("what", ["member", "directory"])
def test_places_beyond_every_file_are_refused(what, place, path):
    local = b"PK\3\4" + bytes(26)
    if what == "member":
        sizes = (0, 0, 0, 0, 0, 1, 12, 0, 2**32 - 1)
        entry = struct.pack("<4s4xHH4xLLLHHH8xL", b"PK\1\2", *sizes)
        entry += b"x" + struct.pack("<HHQ", 1, 8, place)
        end = struct.pack("<4s8xLLH", b"PK\5\6", len(entry), len(local), 0)
    else:
        entry = struct.pack("<4s4xQ4x", b"PK\6\7", place)
        end = struct.pack("<4s8xLLH", b"PK\5\6", 2**32 - 1, 2**32 - 1, 0)
    with pytest.raises(ta.FileError, match="damaged zip archive"):
        load(path, local + entry + end)


def test_an_archive_that_was_packed_again_is_refused(state, path):
    with zipfile.ZipFile(io.BytesIO(twins.zip_file(tensors(state)))) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in content.items():
            target.writestr(name, data)
    with pytest.raises(ta.FileError, match="compressed"):
        ta.load_weights(path)


TORCHS = {
    "memory format": lambda torch, own: {
        name: own[name].to(memory_format=torch.channels_last) if own[name].dim() == 4 else own[name]
        for name in own
    },
    "Parameters": lambda torch, own: {name: torch.nn.Parameter(own[name]) for name in own},
    "training": lambda torch, own: {
        "state_dict": {f"module.{name}": own[name] for name in own},
        "optimizer": optimizer_state(torch, own),
        "best": np.float64(0.5),
        "rng": [torch.get_rng_state(), np.random.default_rng(0).normal(size=3)],
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
        "size": torch.Size([3, 4]),
        "args": argparse.Namespace(lr=0.1),
    },
}


def optimizer_state(torch, own):
    parameters = [torch.nn.Parameter(own[name]) for name in own]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("case", TORCHS)
def test_what_torch_writes_is_read(case, new, protocol, state, path):
    torch = pytest.importorskip("torch")
    own = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    tree = TORCHS[case](torch, own)
    torch.save(tree, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    assert_equal(ta.load_weights(path), state)


UNREAD = {
    "a quantised tensor": lambda torch, a: torch.quantize_per_tensor(a, 0.1, 0, torch.qint8),
    "a sparse tensor": lambda torch, a: a.to_sparse(),
    "conjugated or negated": lambda torch, a: torch._neg_view(a),
    "a dtype without a storage class": lambda torch, a: a.to(torch.float8_e4m3fn),
    "complex64": lambda torch, a: a.to(torch.complex64),
    "without values": lambda torch, a: a.to("meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("message", UNREAD)
def test_torchs_other_tensors_are_refused_by_name(message, new, state, path):
    torch = pytest.importorskip("torch")
    own = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    own["classifier.6.weight"] = UNREAD[message](torch, own["classifier.6.weight"])
    torch.save(own, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ta.FileError, match=message):
        ta.load_weights(path)


NAMES = ["daisy", "rose", "tulip", "lily", "\N{TULIP}"]


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": NAMES},
        {"class_names": NAMES},
        {"class_to_idx": {n: NAMES.index(n) for n in sorted(NAMES)}},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_classes_beside_the_weights_are_read(beside, state, path):
    content = twins.zip_file({"model": tensors(state), **beside})
    assert load(path, content).classes == NAMES
    for wrong in ([3], "daisy", {"daisy": 1}):
        assert (
            load(path, twins.zip_file({"model": tensors(state), next(iter(beside)): wrong})).classes
            is None
        )
    with pytest.raises(ta.FileError, match="names 1 class, but the network has 5"):
        load(path, twins.zip_file({"model": tensors(state), "classes": ["daisy"]}))


def test_another_variant_than_the_files_is_refused(weights, path):
    save_safetensors(weights, path)
    with pytest.raises(ta.FileError, match="it is of the variant 'torchvision/32', not 'caffe'"):
        ta.load_weights(path, variant="caffe")


DEEP = b"]" * 100_000 + b"a" * 99_999 + b"."


def test_deep_lists_are_no_trouble(state, path):
    content = twins.stream_file(tensors(state))
    begin = content.index(b"}(X")
    with pytest.raises(ta.FileError):
        load(path, content[:begin] + DEEP + DEEP)
    tree = {"model": tensors(state), "deep": None}
    content = twins.stream_file(tree)
    load(path, content.replace(b"X\4\0\0\0deepN", b"X\4\0\0\0deep" + DEEP[:-1]))


def test_lists_in_many_lists_take_no_time(path):
    long = b"](" + b"N" * 200_000 + b"eq\0"
    tree = b"\x80\x02](" + long + b"h\0" * 100_000 + b"e."
    begin = time.perf_counter()
    with pytest.raises(ta.FileError, match="too many items"):
        load(path, twins.zip_file(None, pickled=tree))
    assert time.perf_counter() - begin < 10
