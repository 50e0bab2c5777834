"""ONNX graphs that are no AlexNet, refused by node."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import know_thin_variants, thin

import tinyalex as ta


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The thin network `caffe` as ONNX, without our description."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    ta.export_onnx(thin("caffe"), path)
    model = onnx.load(path)
    del model.metadata_props[:]
    return model.SerializeToString()


@pytest.fixture
def refused(original, monkeypatch, tmp_path):
    """Return a function that changes the graph, and returns the refusal."""
    know_thin_variants(monkeypatch)

    def refusal(change, **options):
        model = onnx.load_model_from_string(original)
        change(model)
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ta.FileError) as caught:
            ta.load_weights(path, **options)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    return refusal


def node(model, name):
    return next(node for node in model.graph.node if node.name == name)


def with_attribute(name, attribute, value):
    """Return a change of one attribute of a node."""

    def change(model):
        changed = node(model, name)
        kept = [a for a in changed.attribute if a.name != attribute]
        del changed.attribute[:]
        changed.attribute.extend([*kept, helper.make_attribute(attribute, value)])

    return change


def inserted(op, after, *constants, outputs=1, domain="", **attributes):
    """Return a change that puts an operator named "more" behind a node."""

    def change(model):
        before = node(model, after)
        names = [f"constant{place}" for place in range(len(constants))]
        for name, value in zip(names, constants, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        (value,) = before.output
        before.output[0] = "before"
        more = [value, *(f"more{place}" for place in range(1, outputs))]
        place = [*model.graph.node].index(before) + 1
        model.graph.node.insert(
            place,
            helper.make_node(op, ["before", *names], more, "more", domain=domain, **attributes),
        )

    return change


def with_op(name, op, **attributes):
    """Return a change of a node's operator."""

    def change(model):
        changed = node(model, name)
        changed.op_type = op
        del changed.attribute[:]
        changed.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())

    return change


def without(name):
    """Return a change that takes a node out."""

    def change(model):
        gone = node(model, name)
        for other in model.graph.node:
            for place, value in enumerate(other.input):
                if value == gone.output[0]:
                    other.input[place] = gone.input[0]
        model.graph.node.remove(gone)

    return change


def with_weight(name, function):
    """Return a change of a stored array."""

    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = np.ascontiguousarray(function(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def both(*changes):
    def change(model):
        for one in changes:
            one(model)

    return change


def input_of(*shape):
    def change(model):
        dims = model.graph.input[0].type.tensor_type.shape.dim
        del dims[:]
        for size in shape:
            dims.add().dim_value = size

    return change


ones = np.ones(6, np.float32)
MORE_FILTERS = np.zeros((16, 16, 3, 3), np.float32)

NODES = {
    "batch normalisation": (
        inserted("BatchNormalization", "conv1", ones, ones, ones, ones),
        "more",
    ),
    "sigmoid": (with_op("relu_1", "Sigmoid"), "relu_1"),
    "leaky ReLU": (with_op("relu_1", "LeakyRelu", alpha=0.1), "relu_1"),
    "a ReLU too many": (inserted("Relu", "maxpool_3"), "more"),
    "no ReLU": (without("relu_1"), "lrn_2"),
    "no pool": (without("maxpool_14"), "fc6"),
    "a convolution too many": (
        both(
            inserted("Conv", "relu_13", MORE_FILTERS, kernel_shape=[3, 3], pads=[1] * 4),
            inserted("Relu", "more"),
        ),
        "more",
    ),
    "stride": (with_attribute("conv2", "strides", [2, 2]), "conv2"),
    "stride of rows": (with_attribute("conv2", "strides", [1, 2]), "conv2"),
    "pads": (with_attribute("conv3", "pads", [0, 0, 0, 0]), "conv3"),
    "pads of rows": (with_attribute("conv3", "pads", [1, 0, 1, 0]), "conv3"),
    "negative pads": (with_attribute("conv3", "pads", [-1] * 4), "conv3"),
    "dilation": (with_attribute("conv3", "dilations", [2, 2]), "conv3"),
    "groups": (with_attribute("conv3", "group", 2), "conv3"),
    "no groups": (with_attribute("conv2", "group", 1), "conv2"),
    "kernel_shape": (with_attribute("conv3", "kernel_shape", [5, 5]), "conv3"),
    "pool window": (with_attribute("maxpool_3", "kernel_shape", [2, 2]), "maxpool_3"),
    "pool stride": (with_attribute("maxpool_3", "strides", [3, 3]), "maxpool_3"),
    "pool padding": (with_attribute("maxpool_3", "pads", [1, 1, 1, 1]), "maxpool_3"),
    "mean-pooling": (with_op("maxpool_3", "AveragePool", kernel_shape=[3, 3]), "maxpool_3"),
    "LRN size": (with_attribute("lrn_2", "size", 3), "lrn_2"),
    "LRN of even size": (with_attribute("lrn_2", "size", 4), "lrn_2"),
    "LRN alpha": (with_attribute("lrn_2", "alpha", 2e-4), "lrn_2"),
    "LRN beta": (with_attribute("lrn_2", "beta", 0.5), "lrn_2"),
    "LRN k": (with_attribute("lrn_6", "bias", 2.0), "lrn_6"),
    "Gemm alpha": (with_attribute("fc6", "alpha", 2.0), "fc6"),
    "Gemm transA": (with_attribute("fc6", "transA", 1), "fc6"),
    "Gemm not transposed": (with_attribute("fc6", "transB", 0), "fc6"),
    "swapped layers": (
        both(
            lambda model: node(model, "fc6").input.__setitem__(1, "fc7.weight"),
            lambda model: node(model, "fc7").input.__setitem__(1, "fc6.weight"),
        ),
        "fc6",
    ),
    "other colours": (with_weight("conv1.weight", lambda w: w[:, :1]), "conv1"),
    "softmax twice": (both(inserted("Softmax", "fc8"), inserted("Softmax", "more")), "more"),
    "channels last": (inserted("Transpose", "maxpool_3", perm=[0, 2, 3, 1]), "more"),
    "flattened wrongly": (with_attribute("flatten_15", "axis", 2), "flatten_15"),
    "scaled maps": (inserted("Mul", "maxpool_3", np.float32(2)), "more"),
    "residual": (
        lambda model: (
            model.graph.node.insert(
                12, helper.make_node("Add", ["relu_9", "relu_11"], ["sum"], "more")
            )
            or node(model, "conv5").input.__setitem__(0, "sum")
        ),
        "more",
    ),
    "int8": (with_op("conv3", "QLinearConv"), "conv3"),
    "whole numbers": (with_op("fc7", "MatMulInteger"), "fc7"),
    "fused": (inserted("Relu", "conv3", domain="com.microsoft"), "more"),
    "weights of whole numbers": (with_weight("conv3.weight", np.int32), "conv3"),
    "weights from elsewhere": (
        lambda model: node(model, "conv3").input.__setitem__(1, "nowhere"),
        "conv3",
    ),
    "weights that are activations": (
        lambda model: node(model, "conv3").input.__setitem__(1, "relu_5"),
        "conv3",
    ),
    "no inputs": (lambda model: node(model, "conv3").ClearField("input"), "conv3"),
    "cut": (
        lambda model: model.graph.output[0].__setattr__("name", "fc7") or None,
        "",
    ),
}


@pytest.mark.parametrize("case", NODES)
def test_what_does_not_fit_is_refused_by_node(case, refused):
    change, name = NODES[case]
    message = refused(change)
    if name:
        assert message.startswith(f"node '{name}' ("), message


FILES = {
    "two inputs": (
        lambda model: model.graph.input.add().CopyFrom(
            helper.make_tensor_value_info("mask", 1, [1, 227, 227])
        ),
        "expected one input and one output, got 2 and 1",
    ),
    "other size": (input_of(1, 3, 231, 231), "3 channels and 231 pixels, 'caffe/16', the nearest"),
    "not square": (input_of(1, 3, 227, 300), "must be square images"),
    "huge": (input_of(1, 3, 2**40, 2**40), "must be [N, C, H, W]"),
    "a list": (input_of(1, 3), "must be [N, C, H, W]"),
    "other layout": (input_of(1, 227, 227, 3), "must be square images"),
    "not finite": (
        with_weight("fc7.bias", lambda b: b + np.float32(np.nan)),
        "fc7.bias has values that are not finite",
    ),
    "output from nowhere": (
        lambda model: model.graph.output[0].__setattr__("name", "nowhere"),
        "output 'nowhere' is no list of logits",
    ),
    "functions": (
        lambda model: model.functions.add(name="f", domain="own"),
        "functions and sparse weights are not read",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "expected one input and one output"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_refused_with_the_reason(case, refused):
    change, reason = FILES[case]
    assert reason in refused(change)


def test_the_message_names_the_nearest_variant(refused):
    message = refused(with_attribute("lrn_6", "bias", 2.0))
    assert message == (
        "node 'lrn_6' (LRN) is LRN with size 5, alpha 0.0001, beta 0.75, k 2; 'caffe/16', the "
        "nearest variant, has LRN with size 5, alpha 0.0001, beta 0.75, k 1 there"
    )


def test_the_variant_that_was_asked_for_is_compared(refused):
    assert refused(lambda model: None, variant="caffenet/16") == (
        "it is of the variant 'caffe/16', not 'caffenet/16'"
    )
    assert "variant must be one of" in refused(lambda model: None, variant="vgg")


BOMBS = {
    "ConstantOfShape": [helper.make_node("ConstantOfShape", ["huge"], ["weight"], "bomb")],
    "doubled": [
        helper.make_node("Concat", [f"x{i}", f"x{i}"], [f"x{i + 1}"], f"bomb{i}", axis=0)
        for i in range(40)
    ],
    "cast": [
        node
        for i in range(200)
        for node in [
            helper.make_node("Cast", [f"c{i}"], [f"c{i + 1}"], f"bomb{i}", to=11 if i % 2 else 1)
        ]
    ],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_constants_do_not_unfold(kind, refused):
    last = {"ConstantOfShape": "weight", "doubled": "x40", "cast": "c200"}[kind]

    def change(model):
        tensors = {
            "huge": np.int64([2**40, 2**20]),
            "x0": np.zeros(64, np.float32),
            "c0": np.zeros(2**16, np.float32),
        }
        for name, array in tensors.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        for place, bomb in enumerate(BOMBS[kind]):
            model.graph.node.insert(place, bomb)
        node(model, "fc7").input[1] = last

    assert refused(change).startswith("node 'bomb")
