"""Weights from ONNX files, held against onnxruntime."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import (
    agree,
    equal,
    images,
    know_thin_variants,
    logits,
    run,
    same_logits,
    thin,
    weights_of,
)

import tinyalex as ta
from tinyalex.data import RESIZES
from tinyalex.interop.onnx_import import CAFFE_MEAN
from tinyalex.models import VARIANTS
from tinyalex.training import Classifier

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"


@pytest.fixture
def thin_variants(monkeypatch):
    know_thin_variants(monkeypatch)


@pytest.mark.parametrize("options", [{}, {"softmax": True}, {"pixels": True}], ids=str)
@pytest.mark.parametrize("name", [name for name in VARIANTS if "/" not in name])
def test_out_and_in_again_gives_the_same_bits(name, options, thin_variants, tmp_path):
    mean, std = ((1.5, 2.25, 1 / 3), (3.0, 0.1, 7.0))
    if VARIANTS[name].in_channels == 1:
        mean, std = mean[:1], std[:1]
    facts = {"mean": mean, "std": std, "shorter_side": 300, "resize": list(RESIZES)[-1]}
    weights = weights_of(thin(name), classes=list("abcdefg"), **facts)
    ta.export_onnx(weights, tmp_path / "net.onnx", **options)
    again = ta.load_weights(tmp_path / "net.onnx")
    equal(again, weights)
    for field, value in {**facts, "classes": list("abcdefg")}.items():
        assert getattr(again, field) == value, field
    assert again.variant == f"{name}/16"
    assert again.input_size == VARIANTS[name].input_size


@pytest.mark.parametrize("size", [63, 95, 127, 200, 415])
def test_our_adaptive_pools_are_read_at_every_size(size, thin_variants, tmp_path):
    model = thin("torchvision")
    mean, std = VARIANTS["torchvision"].pixels.mean, VARIANTS["torchvision"].pixels.std
    ta.export_onnx(Classifier(model, list("abcdefg"), mean, std, size), tmp_path / "net.onnx")
    assert same_logits(tmp_path / "net.onnx").input_size == size


def test_a_mean_image_comes_back(thin_variants, tmp_path):
    mean = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    weights = weights_of(thin("caffe"), mean=mean, shorter_side=256)
    ta.export_onnx(weights, tmp_path / "net.onnx", pixels=True)
    assert ta.load_weights(tmp_path / "net.onnx").mean.tobytes() == mean.tobytes()


def zoo_model(thin_by=1):
    """Return the zoo's bvlcalexnet, its weights filled with random numbers."""
    model = onnx.load(LIGHT)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rng = np.random.default_rng(3)
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        wanted = [int(number) for number in shapes[node.input[0]]]
        if thin_by > 1:  # not the colours, and not the windows
            wanted[0] //= thin_by
            if len(wanted) > 1 and wanted[1] != 3:
                wanted[1] //= thin_by
        deviation = 0.2 if len(wanted) == 1 else math.sqrt(2 / math.prod(wanted[1:]))
        array = rng.standard_normal(wanted, np.float32) * np.float32(deviation)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.input.append(
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, wanted)
        )
        model.graph.node.remove(node)
    unused = [value for value in model.graph.input if value.name.endswith("__SHAPE")]
    for value in unused:
        model.graph.input.remove(value)
        model.graph.initializer.remove(
            next(t for t in model.graph.initializer if t.name == value.name)
        )
    if thin_by > 1:
        flat = next(t for t in model.graph.initializer if t.name == "OC2_DUMMY_1")
        flat.CopyFrom(numpy_helper.from_array(np.int64([1, 9216 // thin_by]), flat.name))
        del model.graph.output[0].type.tensor_type.shape.dim[:]
    return model


def to_logits(model):
    """Let a model end before its softmax."""
    last = model.graph.node[-1]
    assert last.op_type == "Softmax"
    model.graph.output[0].name = last.input[0]
    model.graph.node.remove(last)


def as_blue_green_red(x):
    return np.ascontiguousarray(x[:, ::-1])


def test_the_zoos_bvlcalexnet_at_its_real_size(tmp_path):
    path, model = tmp_path / "bvlcalexnet.onnx", zoo_model()
    onnx.save(model, path)
    weights = ta.load_weights(path)
    assert weights.variant == "caffe_onnx"
    assert (weights.channels, weights.mean, weights.std) == ("BGR", CAFFE_MEAN, (1.0, 1.0, 1.0))
    assert (weights.resize, weights.shorter_side, weights.input_size) == ("warp", 224, 224)
    network = weights.network()
    x = images(network, 1, scale=50.0)
    to_logits(model)
    agree(logits(network, x), run(model, as_blue_green_red(x)), 2e-6)


def zoo_model_of(opset):
    """Return the zoo's network, thin, as that opset writes it."""
    model = zoo_model(16)
    model.opset_import[0].version = opset
    model.ir_version = 3 if opset < 9 else 8
    for node in model.graph.node:
        if node.op_type == "Dropout" and opset >= 12:
            node.ClearField("attribute")
        if node.op_type == "Dropout" and opset < 7:
            node.attribute.append(helper.make_attribute("is_test", 1))
        if node.op_type == "Gemm" and opset < 7:
            node.attribute.append(helper.make_attribute("broadcast", 1))
        if node.op_type == "Reshape" and opset < 5:
            shape = node.input.pop()
            node.attribute.append(helper.make_attribute("shape", [1, 9216 // 16]))
            for values in (model.graph.input, model.graph.initializer):
                values.remove(next(value for value in values if value.name == shape))
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("opset", range(3, 22))
def test_opsets(opset, thin_variants, tmp_path):
    """Weights stand among the inputs up to 8; Dropout, Gemm and Reshape change on the way."""
    onnx.save(zoo_model_of(opset), tmp_path / "net.onnx")
    weights = ta.load_weights(tmp_path / "net.onnx")
    assert weights.variant == "caffe_onnx/16"
    assert weights.channels == "BGR"
    x = images(weights.network(), 1, scale=50.0)
    model = zoo_model_of(max(opset, 7))  # onnxruntime knows no older ones
    to_logits(model)
    agree(logits(weights.network(), x), run(model, as_blue_green_red(x)), 2e-6)


@pytest.fixture
def exported(thin_variants, tmp_path):
    """Return a function that exports a thin network without our description."""

    def export(name, **options):
        path = tmp_path / "exported.onnx"
        ta.export_onnx(thin(name), path, **options)
        model = onnx.load(path)
        del model.metadata_props[:]
        return model

    return export


def stored_as(dtype):
    def change(model):
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), f"{tensor.name}*"))
                cast = helper.make_node("Cast", [tensor.name], [tensor.name[:-1]], to=1)
                model.graph.node.insert(0, cast)

    return change


def typed_fields(model):
    """Store numbers as repeated fields, not as raw bytes."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        name, kind = tensor.name, tensor.data_type
        tensor.CopyFrom(helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist()))


def constants_as_nodes(model):
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]


def weights_among_inputs(model):
    model.ir_version = 3
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)


def aliases(model):
    """Pass everything through Identity."""
    for node in [*model.graph.node]:
        for place, name in enumerate(node.input):
            model.graph.node.insert(0, helper.make_node("Identity", [name], [f"{name}="]))
            node.input[place] = f"{name}="
    order = {}
    ready, nodes = {"images", *(t.name for t in model.graph.initializer)}, [*model.graph.node]
    while nodes:
        node = next(node for node in nodes if ready.issuperset(node.input))
        nodes.remove(node)
        order[id(node)] = node
        ready.update(node.output)
    unique = {node.output[0]: node for node in order.values()}
    del model.graph.node[:]
    model.graph.node.extend(unique.values())


def products_and_sums(model):
    """Turn Gemm into MatMul with a transposed weight, and Add."""
    for place, node in reversed([*enumerate(model.graph.node)]):
        if node.op_type == "Gemm":
            x, weight, bias = node.input
            tensor = next(t for t in model.graph.initializer if t.name == weight)
            array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(array, weight))
            output = node.output[0]
            model.graph.node.remove(node)
            model.graph.node.insert(place, helper.make_node("Add", [f"{output}*", bias], [output]))
            product = helper.make_node("MatMul", [x, weight], [f"{output}*"])
            model.graph.node.insert(place, product)


def transposed(model):
    for node in model.graph.node:
        if node.op_type == "Gemm":
            del node.attribute[:]
            weight = node.input[1]
            tensor = next(t for t in model.graph.initializer if t.name == weight)
            array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(array, weight))


def biases_after_convolutions(model):
    for place, node in reversed([*enumerate(model.graph.node)]):
        if node.op_type == "Conv":
            bias = node.input.pop()
            tensor = next(t for t in model.graph.initializer if t.name == bias)
            array = numpy_helper.to_array(tensor)[:, None, None]
            tensor.CopyFrom(numpy_helper.from_array(array, bias))
            output = node.output[0]
            node.output[0] = f"{output}*"
            model.graph.node.insert(
                place + 1, helper.make_node("Add", [bias, f"{output}*"], [output])
            )


def padded_convolutions(model):
    """Say the same sizes in other words: explicit Pad, SAME, rounding up."""
    for place, node in reversed([*enumerate(model.graph.node)]):
        if node.op_type == "Conv" and node.name == "conv2":
            pads = next(a for a in node.attribute if a.name == "pads")
            widths = [*pads.ints]
            node.attribute.remove(pads)
            tensor = np.int64([0, 0, *widths[:2], 0, 0, *widths[2:]])
            model.graph.initializer.append(numpy_helper.from_array(tensor, "widths"))
            model.graph.node.insert(
                place, helper.make_node("Pad", [node.input[0], "widths"], ["padded"])
            )
            node.input[0] = "padded"
        elif node.op_type == "Conv" and node.name != "conv1":
            node.attribute.remove(next(a for a in node.attribute if a.name == "pads"))
            node.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
        elif node.op_type == "MaxPool":
            node.attribute.append(helper.make_attribute("ceil_mode", 1))


def open_sizes(model):
    """Leave also the height and width open."""
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()


def dropped_out(model):
    """Put Dropout before the last layer, with its mask."""
    last = model.graph.node[-1]
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Dropout", [last.input[0]], ["kept", "mask"])
    )
    last.input[0] = "kept"


@pytest.mark.parametrize(
    "change",
    [
        stored_as(np.float16),
        stored_as(np.float64),
        typed_fields,
        constants_as_nodes,
        weights_among_inputs,
        aliases,
        products_and_sums,
        transposed,
        biases_after_convolutions,
        padded_convolutions,
        open_sizes,
        dropped_out,
    ],
    ids=["float16", "float64", *(["change"] * 10)],
)
@pytest.mark.parametrize("name", ["caffe", "torchvision"])
def test_other_ways_to_write_the_same(name, change, exported, tmp_path):
    model = exported(name)
    change(model)
    assert same_logits(tmp_path / "net.onnx", model=model).variant == f"{name}/16"


def prepended(*operations):
    """Return a change that begins the graph with operations on the images."""

    def change(model):
        value = "images"
        for number, (op, constant) in enumerate(operations):
            array = np.asarray(constant, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, f"number{number}"))
            node = helper.make_node(op, [value, f"number{number}"], [f"scaled{number}"])
            model.graph.node.insert(number, node)
            value = f"scaled{number}"
        model.graph.node[len(operations)].input[0] = value

    return change


def colours(*numbers):
    return np.float32(numbers)[None, :, None, None]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("operations", "mean", "std"),
    [
        (
            [("Sub", colours(*MEAN)), ("Div", colours(*STD))],
            255 * np.array(MEAN),
            255 * np.array(STD),
        ),
        (
            [("Div", 255.0), ("Sub", colours(*MEAN)), ("Div", colours(*STD))],
            255 * np.array(MEAN),
            255 * np.array(STD),
        ),
        ([("Mul", 1 / 255)], (0, 0, 0), (255, 255, 255)),
        ([("Sub", 0.5), ("Div", 0.5)], (127.5,) * 3, (127.5,) * 3),
        ([("Add", colours(-123.68, -116.779, -103.939))], CAFFE_MEAN, (1, 1, 1)),
    ],
    ids=["0..1", "0..255", "only scaled", "one number", "Caffe's, RGB"],
)
def test_mean_and_std_are_read_from_a_graph(operations, mean, std, exported, tmp_path):
    model = exported("caffe")
    prepended(*operations)(model)
    onnx.save(model, tmp_path / "net.onnx")
    weights = ta.load_weights(tmp_path / "net.onnx")
    np.testing.assert_allclose(weights.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights.std, std, rtol=1e-5)
    assert weights.channels == "RGB"


@pytest.mark.parametrize("as_image", [False, True])
def test_colours_and_mean_are_turned_together(as_image, exported, tmp_path):
    """A mean whose blue comes first says that the file is BGR."""
    model = exported("caffe")
    mean = colours(103.939, 116.779, 123.68)
    if as_image:
        mean = mean + np.random.default_rng(0).normal(0, 1, (1, 3, 227, 227)).astype(np.float32)
    prepended(("Sub", mean))(model)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    weights = ta.load_weights(path)
    assert weights.channels == "BGR"
    ours = weights.mean if as_image else np.float32(weights.mean)
    pixels = np.random.default_rng(1).uniform(0, 255, (1, 227, 227, 3)).astype(np.float32)
    x = np.ascontiguousarray((pixels - ours).transpose(0, 3, 1, 2))
    theirs = run(path, np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2)))
    agree(logits(weights.network(), x), theirs, 2e-6)


def test_weights_in_a_file_beside(exported, tmp_path):
    """Exports of torch 2.9 and later have them there."""
    model = exported("torchvision")
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data")
    assert (tmp_path / "a.data").stat().st_size > 1e5
    same_logits(tmp_path / "a.onnx")
    (tmp_path / "a.data").write_bytes((tmp_path / "a.data").read_bytes()[:-4])
    with pytest.raises(ta.FileError, match=r"do not fit into 'a\.data'"):
        ta.load_weights(tmp_path / "a.onnx")
    (tmp_path / "a.data").unlink()
    with pytest.raises(ta.FileError, match=r"weights are in 'a\.data', which is needed beside it"):
        ta.load_weights(tmp_path / "a.onnx")


@pytest.mark.parametrize("place", ["../a.data", "/etc/passwd", "..", "b/a.data", "", "c:a", "b\\a"])
def test_no_file_elsewhere_is_opened(place, exported, tmp_path):
    model = exported("torchvision")
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data")
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ta.FileError, match="no name of a file beside it"):
        ta.load_weights(tmp_path / "a.onnx")


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_twins_in_qdq_form(per_channel, exported, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save(exported("caffe"), tmp_path / "float.onnx")
    rng = np.random.default_rng(0)
    samples = [{"images": rng.normal(0, 30, (1, 3, 227, 227)).astype(np.float32)} for _ in "ab"]

    class Samples(quantization.CalibrationDataReader):
        def get_next(self):
            return samples.pop() if samples else None

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "qdq.onnx",
        Samples(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
    )
    weights, original = (ta.load_weights(tmp_path / f"{name}.onnx") for name in ("qdq", "float"))
    assert weights.variant == "caffe/16"
    assert any("8 bits" in note for note in weights.notes)
    for name, array in weights.arrays.items():
        step = 2 * np.abs(original.arrays[name]).max() / 254
        assert np.abs(array - original.arrays[name]).max() <= step, name
    x = images(weights.network(), 2, scale=30.0)
    agree(logits(weights.network(), x), run(tmp_path / "qdq.onnx", x), 0.1)  # theirs rounds
