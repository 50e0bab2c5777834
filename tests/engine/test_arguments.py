"""Every public argument has a right gradient, or refuses a tensor.

What has no entry in these tables fails: a function, an argument or a method that is new gets one.
"""

import inspect
import operator

import numpy as np
import pytest

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.backends.bfloat16 import bfloat16

REFUSALS = (TypeError, ValueError, IndexError, RuntimeError)
RNG = np.random.default_rng(2012)


def normal(*shape):
    """Draw what is to have a gradient: float64 arrays become leaves, everything else is refused."""
    return RNG.standard_normal(shape)


def positive(*shape):
    """Draw such numbers from 0.5 to 2."""
    return RNG.uniform(0.5, 2, shape)


IMAGES, KERNELS, BIAS = normal(1, 4, 5, 5), normal(4, 2, 3, 3), normal(4)
CONVOLUTION = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
NORM = {"size": 3, "alpha": 0.5, "beta": 0.75, "k": 1.0}
WINDOW = {"kernel_size": 2, "stride": 1, "padding": 1, "ceil_mode": True}
WEIGHTS = {"x": IMAGES, "weight": KERNELS, "bias": BIAS}
MASK = np.arange(6).reshape(2, 3) % 2 == 0

FUNCTIONS = {
    "conv2d": {**WEIGHTS, **CONVOLUTION},
    "conv2d_relu": {**WEIGHTS, **CONVOLUTION},
    "max_pool2d": {"x": IMAGES, **WINDOW, "dilation": 1},
    "avg_pool2d": {"x": IMAGES, **WINDOW, "count_include_pad": False, "divisor_override": 3},
    "adaptive_avg_pool2d": {"x": IMAGES, "output_size": 2},
    "local_response_norm": {"x": IMAGES, **NORM, "groups": 2},
    "local_response_norm_max_pool2d": {"x": IMAGES, **NORM, "groups": 2, **WINDOW},
    "conv2d_relu_norm_max_pool2d": {
        **WEIGHTS,
        "convolution": tuple(CONVOLUTION.values()),
        "norm": (*NORM.values(), 2),
        "window": tuple(WINDOW.values()),
    },
    "within_channel_response_norm": {"x": IMAGES, **NORM},
    "relu": {"x": IMAGES},
    "dropout": {"x": IMAGES, "p": 0.4, "training": True},
    "linear": {"x": normal(2, 3), "weight": normal(4, 3), "bias": normal(4)},
    "linear_relu": {"x": normal(2, 3), "weight": normal(4, 3), "bias": normal(4)},
    "pad": {"x": normal(2, 3), "pad": (1, 2), "mode": "constant", "value": 0.5},
    "softmax": {"x": normal(2, 3), "dim": 1},
    "log_softmax": {"x": normal(2, 3), "dim": 1},
    "cross_entropy": {
        "input": normal(2, 3),
        "target": positive(2, 3),
        "weight": positive(3),
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.1,
    },
}

MAKING_AND_JOINING = {
    "cat": {"tensors": [normal(2, 3), normal(1, 3)], "dim": 0},
    "stack": {"tensors": [normal(2, 3), normal(2, 3)], "dim": 1},
    "where": {"condition": MASK, "input": normal(2, 3), "other": normal(2, 3)},
    "full": {"shape": (2, 3), "value": 0.5, "dtype": np.float64, "requires_grad": False},
}
"""The functions of the package itself that read tensors or numbers."""

WITHOUT_GRADIENT = {
    *("DeviceError", "FileError", "Function", "GradcheckError", "Tensor", "Weights"),
    *("arange", "ones", "rand", "randn", "tensor", "zeros"),  # make leaves
    *("current_backend", "empty_cache", "is_grad_enabled", "no_grad", "use_backend", "use_fusion"),
    *("get_float32_matmul_precision", "set_float32_matmul_precision", "manual_seed"),
    *(
        "Drawing",
        "draw_graph",
        "export_onnx",
        "gradcheck",
        "load",
        "load_weights",
        "save",
        "summary",
    ),
}

REDUCTION = {"self": normal(2, 3), "dim": None, "keepdim": False, "axis": 1, "keepdims": True}
BINARY = {"self": positive(2, 3), "other": positive(3)}
UNARY = {"self": positive(2, 3)}

METHODS = {
    **dict.fromkeys(("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"), BINARY),
    **dict.fromkeys(("__truediv__", "__rtruediv__", "__pow__", "__rpow__"), BINARY),
    "__matmul__": {"self": normal(2, 3), "other": normal(3, 2)},
    "__rmatmul__": {"self": normal(2, 3), "other": normal(3, 2)},
    **dict.fromkeys(("__pos__", "__neg__", "__abs__", "abs", "exp", "log", "sqrt", "tanh"), UNARY),
    **dict.fromkeys(("sigmoid", "relu", "cpu", "T"), UNARY),
    **dict.fromkeys(("sum", "mean", "max", "min", "amax", "amin"), REDUCTION),
    "reshape": {"self": normal(2, 3), "sizes": (3, 2)},
    "view": {"self": normal(2, 3), "sizes": (3, 2)},
    "permute": {"self": normal(2, 3), "dims": (1, 0)},
    "flatten": {"self": normal(2, 3), "start_dim": 0, "end_dim": 1},
    "transpose": {"self": normal(2, 3), "dim0": 0, "dim1": 1},
    "unsqueeze": {"self": normal(2, 3), "dim": 1},
    "squeeze": {"self": normal(2, 1), "dim": 1},
    "__getitem__": {"self": normal(2, 3), "index": 1},
    "to": {"self": normal(2, 3), "target": np.float64},
}

NOT_DIFFERENTIABLE = {
    # In place: gradients are those of tests/engine/test_inplace.py.
    *("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__setitem__"),
    *("__iand__", "__ior__", "__ixor__", "__copy__"),
    *("__init__", "__len__", "__repr__", "__bool__", "__float__", "__array__", "__hash__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "argmax", "argmin", "any", "all"),
    *("__and__", "__or__", "__xor__", "__rand__", "__ror__", "__rxor__", "__invert__"),
    *("__iter__", "__reversed__", "__contains__", "__format__", "tolist"),
    *("__int__", "__complex__", "__index__", "__array_ufunc__", "__array_function__"),
    *("__deepcopy__", "__reduce_ex__"),
    *("data", "grad", "grad_fn", "requires_grad", "__weakref__"),
    *("shape", "dtype", "ndim", "size", "device", "is_leaf"),
    *("backward", "detach", "requires_grad_", "numpy", "item"),
    "register_post_accumulate_grad_hook",
    "cuda",  # as cpu, where there is a GPU
}

LAYERS = {
    "AdaptiveAvgPool2d": {"output_size": 2},
    "AvgPool2d": {**WINDOW, "count_include_pad": False, "divisor_override": 3},
    "Conv2d": {
        **{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **CONVOLUTION},
        **{"bias": True, "dtype": np.float64},
    },
    "CrossEntropyLoss": {
        "weight": positive(4),
        **{"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.1},
    },
    "Dropout": {"p": 0.4, "inplace": False},
    "Flatten": {"start_dim": 1, "end_dim": 2},
    "Linear": {"in_features": 5, "out_features": 3, "bias": True, "dtype": np.float64},
    "LocalResponseNorm": {**NORM, "groups": 2},
    "MaxPool2d": {**WINDOW, "dilation": 1, "return_indices": False},
    "ReLU": {"inplace": False},
    "WithinChannelResponseNorm": NORM,
    "ZeroPad2d": {"padding": 1},
}

HARMLESS = {"self", "dtype", "target", "requires_grad"}
"""A tensor in these places is asked for its dtype, as in torch, or is true."""

SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}


def members(value):
    """Return an argument's arrays, of a list or a single one."""
    return list(value) if isinstance(value, list) else [value]


def is_leaf(value):
    """Return whether an argument is of those that have a gradient."""
    return all(isinstance(v, np.ndarray) and v.dtype == np.float64 for v in members(value))


def call(function, arguments):
    """Call a function with starred arguments, and the rest by name or place."""
    arguments = dict(arguments)
    starred = [name for name in ("sizes", "dims") if name in arguments]
    positional = [arguments.pop("self")] if "self" in arguments else []
    for name in starred:
        given = arguments.pop(name)
        positional += given if isinstance(given, tuple) else [given]
    ta.manual_seed(1)  # for dropout
    return function(*positional, **arguments)


def assert_gradients(function, arguments):
    """Check the gradient of every argument that has one, by finite differences."""
    leaves = {name: value for name, value in arguments.items() if is_leaf(value)}
    flat = [ta.Tensor(v.copy(), True) for value in leaves.values() for v in members(value)]

    def of_leaves(*tensors):
        given, remaining = dict(arguments), list(tensors)
        for name, value in leaves.items():
            some = [remaining.pop(0) for _ in members(value)]
            given[name] = some if isinstance(value, list) else some[0]
        return call(function, given)

    if flat:
        assert of_leaves(*flat).requires_grad
        assert ta.gradcheck(of_leaves, flat)


def assert_refused(function, arguments, name):
    """Check that an argument cannot be a tensor that requires a gradient."""
    given = {n: ta.Tensor(v) if is_leaf(v) and n != "tensors" else v for n, v in arguments.items()}
    if "tensors" in given:
        given["tensors"] = [ta.Tensor(v) for v in arguments["tensors"]]
    value = arguments[name]
    # A number of the same size where there is one, so that only the type can be the reason.
    number = np.asarray(value, float) if isinstance(value, (int, float, np.ndarray)) else 1.0
    with pytest.raises(REFUSALS):
        call(function, {**given, name: ta.Tensor(np.array(number, np.float64), True)})
    if isinstance(value, tuple):  # a tensor in a tuple is one as well
        one = (ta.Tensor(np.array(1.0), True), *value[1:])
        with pytest.raises(REFUSALS):
            call(function, {**given, name: one})


def method(name):
    """Return a method, or a property as a function."""
    found = getattr(ta.Tensor, name)
    return found if callable(found) else operator.attrgetter(name)


TABLE = {
    **{f"functional.{name}": (getattr(F, name), given) for name, given in FUNCTIONS.items()},
    **{name: (getattr(ta, name), given) for name, given in MAKING_AND_JOINING.items()},
    **{f"Tensor.{name}": (method(name), given) for name, given in METHODS.items()},
}
OTHERS = [
    pytest.param(*TABLE[where], name, id=f"{where} {name}")
    for where, (_, given) in TABLE.items()
    for name, value in given.items()
    if not is_leaf(value) and name not in HARMLESS
]


@pytest.mark.parametrize(("function", "arguments"), TABLE.values(), ids=TABLE)
def test_gradients_of_all_tensors(function, arguments, backend):
    assert_gradients(function, arguments)


def on_gpu(arguments, dtype):
    """Return arguments on a GPU, leaves in this dtype, rounded to bfloat16."""

    def leaf(array):
        return ta.Tensor(array).to("cuda").to(bfloat16()).detach().to(dtype).requires_grad_()

    given, flat = {}, []
    for name, value in arguments.items():
        if is_leaf(value):
            made = [leaf(array) for array in members(value)]
            flat += made
            given[name] = made if isinstance(value, list) else made[0]
        else:
            given[name] = ta.Tensor(value).to("cuda") if isinstance(value, np.ndarray) else value
    return given, flat


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize(("function", "arguments"), TABLE.values(), ids=TABLE)
def test_bfloat16_computes_as_its_copy_in_float32(function, arguments, precision, standin):
    """Up to the rounding of what is stored; each gradient has the dtype of its leaf."""
    ta.set_float32_matmul_precision(precision)
    found = []
    for dtype in (bfloat16(), np.dtype(np.float32)):
        given, flat = on_gpu(arguments, dtype)
        result = call(function, given)
        result = getattr(result, "values", result)
        if flat:
            weights = np.linspace(0.5, 1, result.size, dtype=np.float32).reshape(result.shape)
            (result * ta.Tensor(weights).to(result.device)).sum().backward()
        assert [leaf.grad.dtype for leaf in flat] == [dtype] * len(flat)
        found.append([result.detach(), *(ta.Tensor(leaf.grad) for leaf in flat)])
    for stored, wide in zip(*found, strict=True):
        stored, wide = stored.cpu().numpy(), wide.cpu().numpy()
        # Half a unit in the last of 8 digits at each of the places where numbers are stored.
        np.testing.assert_allclose(stored, wide, rtol=3 * 2**-9, atol=2**-9 * np.abs(wide).max())


@pytest.mark.parametrize(("function", "arguments", "name"), OTHERS)
def test_tensors_are_refused_where_they_would_have_no_gradient(function, arguments, name):
    call(function, {n: leaves(v) for n, v in arguments.items()})  # it works as it is
    assert_refused(function, arguments, name)


def leaves(value):
    """Return an argument with its arrays made tensors."""
    if not is_leaf(value):
        return value
    tensors = [ta.Tensor(v) for v in members(value)]
    return tensors if isinstance(value, list) else tensors[0]


def layer_call(kind, training=True):
    """Return a function of a layer's constructor arguments and input."""

    def made_and_run(x, target=None, **options):
        layer = kind(**options).train(training)
        return layer(x) if target is None else layer(x, target)

    return made_and_run


def layer_arguments(name):
    """Return what `layer_call` takes: images, or logits with probabilities."""
    if name == "CrossEntropyLoss":
        return {"x": normal(2, 4), "target": positive(2, 4), **LAYERS[name]}
    return {"x": IMAGES, **LAYERS[name]}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_layers(name, backend):
    kind, arguments = getattr(nn, name), layer_arguments(name)
    assert_gradients(layer_call(kind), arguments)
    layer = kind(**LAYERS[name])
    x, parameters = ta.Tensor(IMAGES), list(layer.parameters())
    assert not parameters or ta.gradcheck(lambda *_: layer(x), parameters)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, o)
        for name, given in LAYERS.items()
        for o, v in given.items()
        if not (is_leaf(v) or o in HARMLESS)
    ],
)
def test_layers_refuse_tensors_as_options(name, option):
    assert_refused(layer_call(getattr(nn, name)), layer_arguments(name), option)


@pytest.mark.parametrize("option", SGD)
def test_rates_that_want_a_gradient_are_refused(option):
    parameters = [ta.ones(2, requires_grad=True)]
    with pytest.raises(TypeError, match=option):
        ta.optim.SGD(parameters, **{**SGD, option: ta.Tensor(np.array(0.1), requires_grad=True)})


# --- nothing is forgotten -------------------------------------------------------------------------


def test_every_function_has_an_entry():
    public = {n: f for n, f in vars(F).items() if inspect.isfunction(f) and n[0] != "_"}
    assert {n for n, f in public.items() if f.__module__ == F.__name__} == set(FUNCTIONS)
    offered = {name for name in ta.__all__ if callable(getattr(ta, name))}
    assert offered == set(MAKING_AND_JOINING) | WITHOUT_GRADIENT
    assert set(nn.__all__) - set(LAYERS) == {
        *("Module", "Parameter", "Sequential", "data_dependent_", "init")
    }


def test_every_method_has_an_entry():
    public = {n for n in vars(ta.Tensor) if n[0] != "_" or n[:2] == "__"}
    ours = {n for n in public if n in METHODS or callable(getattr(ta.Tensor, n)) or n[0] != "_"}
    assert ours <= set(METHODS) | NOT_DIFFERENTIABLE, ours - set(METHODS) - NOT_DIFFERENTIABLE
    assert set(METHODS) <= public


@pytest.mark.parametrize("where", TABLE)
def test_every_argument_has_an_entry(where):
    function, arguments = TABLE[where]
    if where != "Tensor.T":  # a property
        assert set(inspect.signature(function).parameters) == set(arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_every_option_of_a_layer_has_an_entry(name):
    options = set(inspect.signature(getattr(nn, name)).parameters)
    assert options == set(LAYERS[name])
