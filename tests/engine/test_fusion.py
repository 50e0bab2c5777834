"""Fused layers: the same values and gradients as one by one."""

import weakref

import numpy as np
import pytest
from helpers import assert_close

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.nn.fusion import FUNCTIONS
from tinyalex.ops import fused

BACKENDS = ("cpu", "reference")


def conv_relu(channels=16, outputs=32, **options):
    return [nn.Conv2d(channels, outputs, 3, padding=1, **options), nn.ReLU()]


def norm_pool(size=5, groups=1, **options):
    norm = nn.LocalResponseNorm(size, alpha=1.0, beta=0.75, k=2.0, groups=groups)
    return [norm, nn.MaxPool2d(**{"kernel_size": 3, "stride": 2, **options})]


RUNS = {
    "conv, relu": (conv_relu(), 9),
    "conv, relu, by im2col": (conv_relu(5, 7), 9),
    "conv, relu, in groups of odd size": (conv_relu(34, 38, groups=2), 8),
    "conv, relu, dilated": (conv_relu(dilation=2), 9),
    "conv, relu, strided": ([nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU()], 51),
    "conv without a bias, relu": (conv_relu(bias=False), 9),
    "linear, relu": ([nn.Linear(9, 7), nn.ReLU()], 9),
    "norm, pool": (norm_pool(), 9),
    "norm, pool, even size": (norm_pool(4), 9),
    "norm, pool, groups": (norm_pool(3, 4), 9),
    "norm, pool, padding": (norm_pool(padding=1), 8),
    "norm, pool, ceil_mode": (norm_pool(ceil_mode=True), 8),
    "norm, pool, stride 1": (norm_pool(stride=1), 7),
    "norm, pool, windows apart": (norm_pool(kernel_size=2, stride=3), 11),
    "norm, pool, one window": (norm_pool(kernel_size=7, stride=7), 7),
    "all": ([*conv_relu(), *norm_pool(), *conv_relu(32, 16), nn.Flatten()], 13),
}


def results(layers, together, images, backend, dtype=np.float32):
    """Return the output and all gradients, for a random weighting of the outputs."""
    x = ta.Tensor(images.astype(dtype), requires_grad=True)
    network = nn.Sequential(*layers).to(np.dtype(dtype))
    network.zero_grad()
    with ta.use_backend(backend):
        y = network(x) if together else one_by_one(layers, x)
        factors = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        (y * ta.Tensor(factors)).sum().backward()
    return [y.data, x.grad, *(p.grad for p in network.parameters())]


def one_by_one(layers, x):
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("layers", "size"), RUNS.values(), ids=RUNS.keys())
def test_same_values_and_gradients(rng, layers, size, batch, dtype):
    channels = getattr(layers[0], "in_channels", 16)
    images = rng.standard_normal((batch, channels, size, size))
    expected = results(layers, False, images, "reference", np.float64)
    for backend in BACKENDS:
        for actual, wanted in zip(
            results(layers, True, images, backend, dtype), expected, strict=True
        ):
            assert actual.dtype == dtype
            assert_close(actual, wanted, {"float32": 2e-5, "float64": 1e-12}[dtype])


def test_fused_where_the_backend_can(rng):
    layers = [*conv_relu(), *norm_pool()]
    x = ta.Tensor(rng.standard_normal((1, 16, 9, 9), np.float32))
    kinds = {"cpu": fused.LocalResponseNormMaxPool2d, "reference": ta.ops.pool.MaxPool2d}
    for backend, kind in kinds.items():
        with ta.use_backend(backend):
            assert type(nn.Sequential(*layers)(x).grad_fn) is kind
    assert type(nn.Sequential(*conv_relu())(x).grad_fn) is fused.Conv2dReLU


class LoudReLU(nn.ReLU):
    pass


class DoubleConv2d(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class OtherNorm(nn.LocalResponseNorm):
    pass


class OtherPool(nn.MaxPool2d):
    pass


def hooked(layers, position):
    layers[position].register_forward_hook(lambda layer, inputs, output: None)
    return layers


def overwritten(layers):
    layers[1].forward = lambda x: F.relu(x) * 2
    return layers


@pytest.mark.parametrize(
    "layers",
    [
        hooked(conv_relu(), 0),
        hooked(conv_relu(), 1),
        hooked(norm_pool(), 0),
        hooked(norm_pool(), 1),
        [nn.Conv2d(16, 16, 3), LoudReLU()],
        [DoubleConv2d(16, 16, 3), nn.ReLU()],
        [OtherNorm(5), nn.MaxPool2d(3)],
        [nn.LocalResponseNorm(5), OtherPool(3)],
        overwritten(conv_relu()),
        norm_pool(dilation=2),
        [nn.ReLU(), nn.Conv2d(16, 16, 3)],
    ],
)
def test_left_alone_where_somebody_could_tell(rng, layers):
    x = ta.Tensor(rng.standard_normal((2, 16, 9, 9), np.float32), requires_grad=True)
    y = nn.Sequential(*layers)(x)
    assert not isinstance(y.grad_fn, (fused.Conv2dReLU, fused.LocalResponseNormMaxPool2d))
    np.testing.assert_array_equal(y.data, one_by_one(layers, x).data)


CHANGES = {
    "forward": lambda layer: (type(layer), "forward"),
    "__call__": lambda layer: (type(layer), "__call__"),
    "__call__ of every module": lambda layer: (nn.Module, "__call__"),
    "forward of the layer": lambda layer: (layer, "forward"),
    "function": lambda layer: (F, FUNCTIONS[type(layer)]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("first", "position"), [(0, 0), (0, 1), (0, 2), (0, 3), (2, 2), (2, 3)])
def test_what_is_replaced_later_runs(rng, monkeypatch, change, first, position):
    layers = [*conv_relu(), *norm_pool()]
    x = ta.Tensor(rng.standard_normal((2, 16 if first == 0 else 32, 9, 9), np.float32))
    network, calls = nn.Sequential(*layers[first:]), []
    place, name = change(layers[position])
    original = getattr(place, name)

    def replacement(*args):
        calls.append(args)
        return original(*args) * 2

    undisturbed = network(x).data
    with monkeypatch.context() as patch:
        patch.setattr(place, name, replacement)
        calls.clear()
        y = network(x).data
        assert len(calls) > (place is nn.Module)  # where the network itself is one call
        assert not np.array_equal(y, undisturbed)
        if place is not nn.Module:  # which would double what the network returns as well
            np.testing.assert_array_equal(y, one_by_one(layers[first:], x).data)
    np.testing.assert_array_equal(network(x).data, undisturbed)


def test_a_hook_of_the_class_runs(rng, monkeypatch):
    seen = []
    with nn.ReLU().register_forward_hook(lambda *call: seen.append(call[0])) as handle:
        monkeypatch.setattr(nn.ReLU, "_forward_hooks", handle._owner._forward_hooks)
    layers = conv_relu()
    nn.Sequential(*layers)(ta.randn(1, 16, 9, 9))
    assert seen == layers[1:]


def test_a_sequential_runs_what_its_iterator_gives():
    class Backwards(nn.Sequential):
        def __iter__(self):
            return reversed(list(self.children()))

    conv, relu = conv_relu()
    x = ta.randn(1, 16, 9, 9)
    np.testing.assert_array_equal(Backwards(relu, conv)(x).data, relu(conv(x)).data)


def test_indices_asked_for_later_are_refused_too():
    layers = norm_pool()
    layers[1].return_indices = True
    for network in (layers[1], nn.Sequential(*layers)):
        with pytest.raises(ValueError, match="return_indices=True"):
            network(ta.randn(1, 16, 9, 9))


def test_a_hook_sees_the_output_between(rng):
    seen = []
    layers = conv_relu()
    layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.data.min()))
    nn.Sequential(*layers)(ta.randn(1, 16, 9, 9))
    assert seen[0] < 0


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("make", [conv_relu, norm_pool])
def test_a_hook_sees_what_its_layer_returns_until_it_is_removed(rng, make, position):
    layers, seen = make(), []
    x = ta.Tensor(rng.standard_normal((2, 16, 9, 9), np.float32), requires_grad=True)
    network = nn.Sequential(*layers)
    fused_type = type(network(x).grad_fn)
    hook = layers[position].register_forward_hook(lambda *call: seen.append(call[2].data))
    y = network(x)
    assert type(y.grad_fn) is not fused_type
    np.testing.assert_array_equal(seen.pop(), one_by_one(layers[: position + 1], x).data)
    seen.clear()
    hook.remove()
    assert type(network(x).grad_fn) is fused_type
    assert not seen


def test_a_hook_may_replace_what_the_next_layer_gets(rng):
    layers = conv_relu()
    layers[0].register_forward_hook(lambda layer, inputs, output: -output)
    x = ta.Tensor(rng.standard_normal((2, 16, 9, 9), np.float32))
    expected = F.relu(-F.conv2d(x, layers[0].weight, layers[0].bias, padding=1))
    np.testing.assert_array_equal(nn.Sequential(*layers)(x).data, expected.data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_layers_twice(rng, backend):
    """Their parameters collect both gradients."""
    layers = [*conv_relu(16, 16), *norm_pool(kernel_size=3, stride=1)] * 2
    images = rng.standard_normal((2, 16, 9, 9))
    expected = results(layers, False, images, "reference", np.float64)
    for actual, wanted in zip(results(layers, True, images, backend), expected, strict=True):
        assert_close(actual, wanted, 2e-5)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "images"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(rng, frozen):
    images = rng.standard_normal((5, 16, 9, 9), np.float32)

    def gradients(fused_run):
        x, layers = ta.Tensor(images, requires_grad=frozen != "images"), conv_relu()
        ta.manual_seed(7)
        layers[0].reset_parameters()
        layers[0].weight.requires_grad = frozen not in ("weight", "both")
        layers[0].bias.requires_grad = frozen not in ("bias", "both")
        y = nn.Sequential(*layers)(x) if fused_run else one_by_one(layers, x)
        y.sum().backward()
        return x.grad, layers[0].weight.grad, layers[0].bias.grad

    for actual, expected in zip(gradients(True), gradients(False), strict=True):
        if expected is None:
            assert actual is None
        else:
            assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid", "stride": (2, 1)},
        {"padding": (2, 0), "dilation": 2},
        {"groups": 4},
    ],
    ids=str,
)
def test_conv2d_relu_takes_what_conv2d_takes(rng, backend, options):
    x = ta.Tensor(rng.standard_normal((2, 4, 9, 8)))
    weight = ta.Tensor(rng.standard_normal((8, 4 // options.get("groups", 1), 3, 3)))
    bias = ta.Tensor(rng.standard_normal(8))
    with ta.use_backend(backend):
        for images in (x, x[0]):
            y = F.conv2d_relu(images, weight, bias, **options)
            assert_close(y.data, F.relu(F.conv2d(images, weight, bias, **options)).data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "window", [(3,), ((2, 3), None, (1, 0)), (3, (1, 2), 1, True), (2, 3, 0, True)], ids=str
)
def test_norm_max_pool_takes_what_max_pool_takes(rng, backend, window):
    x, norm = ta.Tensor(rng.standard_normal((2, 4, 9, 8))), (3, 0.5, 0.75, 1.0, 2)
    kernel_size, stride, padding, ceil_mode = (*window, *(None, 0, False)[len(window) - 1 :])
    with ta.use_backend(backend):
        y = F.local_response_norm_max_pool2d(x, *norm, *window)
        normalised = F.local_response_norm(x, *norm)
        expected = F.max_pool2d(normalised, kernel_size, stride, padding, ceil_mode=ceil_mode)
        assert_close(y.data, expected.data)


def test_nothing_is_kept_without_gradients(rng):
    images = rng.standard_normal((1, 16, 9, 9), np.float32)
    alive = weakref.ref(images)
    with ta.no_grad():
        y = nn.Sequential(*conv_relu(), *norm_pool())(ta.Tensor(images))
    assert y.grad_fn is None
    del images
    assert alive() is None


def test_one_image_without_a_batch(rng):
    x = ta.randn(16, 9, 9)
    layers = [*conv_relu(), *norm_pool()]
    assert_close(nn.Sequential(*layers)(x).data, one_by_one(layers, x).data)


def test_nan_passes():
    x = np.zeros((1, 16, 9, 9), np.float32)
    x[0, 3, 4, 4] = np.nan
    for layers in (conv_relu(), norm_pool()):
        assert np.isnan(nn.Sequential(*layers)(ta.Tensor(x)).data).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (norm_pool(groups=2), (1, 5, 7, 7), "groups must divide"),
        (norm_pool(), (1, 4, 2, 2), "max_pool2d"),
        (norm_pool(kernel_size=5, stride=1), (1, 4, 2, 2), "max_pool2d"),
        (conv_relu(), (1, 3, 7, 7), "input channels"),
    ],
)
def test_bad_input_is_refused_as_by_the_layers_alone(backend, layers, shape, message):
    with ta.use_backend(backend), pytest.raises(ValueError, match=message):
        nn.Sequential(*layers)(ta.randn(*shape))


@pytest.mark.parametrize(
    "layers", [conv_relu(3, 4), norm_pool(3), [*conv_relu(3, 4), *norm_pool(3)]]
)
def test_gradients_by_finite_differences(rng, layers):
    network = nn.Sequential(*layers).to(np.dtype("float64"))
    assert ta.gradcheck(network, ta.Tensor(rng.standard_normal((1, 3, 5, 5)), requires_grad=True))


def nodes_behind(y):
    """Return the names of the functions in the graph of ``y``."""
    names, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [edge for edge in node.edges if isinstance(edge, ta.Function)]
    return names


def test_use_fusion_lets_each_layer_run_its_own_op(rng):
    network = nn.Sequential(*conv_relu(), *norm_pool())
    x = ta.Tensor(rng.standard_normal((2, 16, 9, 9)).astype(np.float32))
    apart = {"Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"}
    together = {"Conv2dReLU", "LocalResponseNormMaxPool2d"}
    with ta.use_backend("cpu"):
        assert nodes_behind(network(x)) == together
        with ta.use_fusion(False):
            assert nodes_behind(network(x)) == apart
            with ta.use_fusion(True):
                assert nodes_behind(network(x)) == together
            assert nodes_behind(network(x)) == apart
        assert nodes_behind(network(x)) == together


@pytest.mark.parametrize("value", [0, None, "no"])
def test_use_fusion_takes_a_bool(value):
    with pytest.raises(TypeError, match="use_fusion expects True or False, got"):
        ta.use_fusion(value)
