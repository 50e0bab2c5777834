"""Problems for convolution algorithms, with their expected results."""

import numpy as np
from helpers import assert_close, normal

from tinyalex.backends import cpu, reference
from tinyalex.backends.geometry import ConvOptions, conv_output_size


def padded(top, bottom=None, left=None, right=None):
    """Return a padding; what is not given is as ``top``."""
    bottom, left, right = (top if p is None else p for p in (bottom, left, right))
    return (top, bottom), (left, right)


def problem(rng, N, C, size, K, taps, padding, groups=1, stride=1, dtype=np.float32):
    """Return x, weight, bias, an output gradient and the geometry."""
    geometry = ConvOptions((stride, stride), padding, groups=groups)
    size_out = conv_output_size(size, (taps, taps), geometry)
    shapes = (N, C, *size), (K, C // groups, taps, taps), (K,), (N, K, *size_out)
    arrays = [normal(rng, shape, dtype) for shape in shapes]
    return *arrays, geometry


def relu_output(rng, shape, dtype=np.float32):
    """Draw what may stand behind a ReLU: a gradient passes where it is positive, or NaN."""
    y = normal(rng, shape, dtype)
    y[rng.random(shape) < 0.2] = 0
    y[rng.random(shape) < 0.1] = np.nan
    return y


def run(algorithm, x, weight, bias, grad, geometry):
    """Return what the three functions of an algorithm compute."""
    return {
        "y": algorithm.forward(x, weight, bias, geometry),
        "dx": algorithm.input_grad(grad, weight, x.shape, geometry),
        "dweight": algorithm.weight_grad(grad, x, weight.shape, geometry),
    }


def run_with_relu(algorithm, x, weight, bias, grad, geometry, mask):
    """Return what they compute with a ReLU behind the convolution, whose output is ``mask``."""
    grads = algorithm.weight_and_bias_grad(grad, x, weight.shape, geometry, mask=mask)
    return {
        "y": algorithm.forward(x, weight, bias, geometry, rectify=True),
        "dx": algorithm.input_grad(grad, weight, x.shape, geometry, mask=mask),
        "dweight": grads[0],
        "dbias": grads[1],
    }


def expected(x, weight, bias, grad, geometry):
    """Return what the reference computes, in float64."""
    x, weight, bias, grad = (a.astype(np.float64) for a in (x, weight, bias, grad))
    return {
        "y": reference.conv2d(x, weight, bias, geometry),
        "dx": reference.conv2d_input_grad(grad, weight, x.shape, geometry),
        "dweight": reference.conv2d_weight_grad(grad, x, weight.shape, geometry),
    }


def expected_with_relu(x, weight, bias, grad, geometry, mask):
    """Return what the reference computes with a ReLU behind the convolution."""
    grad = reference.relu_input_grad(grad, mask)
    results = expected(x, weight, bias, grad, geometry)
    dbias = reference.conv2d_bias_grad(grad.astype(np.float64))
    return {**results, "y": reference.relu(results["y"]), "dbias": dbias}


def assert_right(rng, algorithm, *arguments, layout=np.asarray):
    """Fail unless an algorithm computes what is expected, without a ReLU behind it and with one."""
    mask = layout(relu_output(rng, arguments[3].shape))
    for actual, results in (
        (run(algorithm, *arguments), expected(*arguments)),
        (run_with_relu(algorithm, *arguments, mask), expected_with_relu(*arguments, mask)),
    ):
        for name, result in results.items():
            assert actual[name].dtype == np.float32
            assert_close(actual[name], result, what=name)


def assert_chosen(algorithm, x, weight, bias, grad, geometry):
    """Fail unless the backend computes all directions by an algorithm, bit for bit."""
    results = run(algorithm, x, weight, bias, grad, geometry)
    for name, array in {
        "y": cpu.conv2d(x, weight, bias, geometry),
        "dx": cpu.conv2d_input_grad(grad, weight, x.shape, geometry),
        "dweight": cpu.conv2d_weight_grad(grad, x, weight.shape, geometry),
    }.items():
        np.testing.assert_array_equal(array, results[name])
