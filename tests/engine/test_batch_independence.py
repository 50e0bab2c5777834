"""Images and rows of a batch do not depend on each other."""

import numpy as np
import pytest
from convolution import padded, problem, relu_output
from helpers import assert_close, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models
from tinyalex.backends.cpu.conv import choose, im2col, strided, winograd
from tinyalex.backends.cpu.conv.winograd_tiles import lay_out

LARGEST = np.float32(3e38)


def first_is(value):
    """Return a function that sets one number of each companion."""

    def change(image):
        image.flat[0] = value

    return change


def all_times(factor):
    """Return a function that scales companions."""

    def change(image):
        image *= factor

    return change


COMPANIONS = {
    "one NaN": first_is(np.nan),
    "NaN": all_times(np.nan),
    "one infinity": first_is(np.inf),
    "minus infinity": all_times(-np.inf),
    "one 3e38": first_is(LARGEST),
    "zeros": all_times(0),
    **{f"times {factor:.0e}": all_times(factor) for factor in (1e-30, 1e-9, 1e3, 1e9, 1e30)},
}


def beside(change, batch, place):
    """Return the batch with all but the image at ``place`` changed."""
    batch = batch.copy()
    for i, image in enumerate(batch):
        if i != place:
            change(image)
    return batch


# --- all ops --------------------------------------------------------------------------------------


def convolution(C, K, taps, groups=1, with_relu=False, **options):
    """Return a convolution as a function of x, with fixed weights."""
    rng = np.random.default_rng(0)
    weight, bias = normal(rng, (K, C // groups, taps, taps)), normal(rng, (K,))

    def op(x):
        arrays = (ta.tensor(a, dtype=x.dtype, device=x.device) for a in (weight, bias))
        function = F.conv2d_relu if with_relu else F.conv2d
        return function(x, *arrays, groups=groups, **options)

    return op


def linear(x):
    """Return a linear layer of x, with fixed weights."""
    rng = np.random.default_rng(0)
    arrays = (normal(rng, shape, x.dtype) for shape in ((37, x.shape[1]), (37,)))
    return F.linear(x, *(ta.tensor(a, device=x.device) for a in arrays))


def cross_entropy(x):
    """Return one loss for each row of x."""
    target = ta.tensor(np.full(len(x), 3), device=x.device)
    return F.cross_entropy(x, target, reduction="none")


OPS = {
    # the shape of one image or row, and the op
    "Winograd, 3 taps": ((16, 13, 13), convolution(16, 16, 3, padding=1)),
    "Winograd, 5 taps": ((16, 9, 9), convolution(16, 16, 5, padding=2)),
    "Winograd in groups": ((32, 13, 13), convolution(32, 32, 3, 2, padding=1, with_relu=True)),
    "Winograd, stride 4": ((3, 47, 47), convolution(3, 16, 11, stride=4, padding=2)),
    "im2col": ((3, 9, 9), convolution(3, 4, 3, stride=2, padding=1)),
    "im2col, 1 x 1 taps": ((16, 13, 13), convolution(16, 16, 1, with_relu=True)),
    "max_pool2d": ((3, 9, 9), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d": ((3, 9, 9), lambda x: F.avg_pool2d(x, 3, 2)),
    "adaptive_avg_pool2d": ((3, 9, 9), lambda x: F.adaptive_avg_pool2d(x, (4, 6))),
    "local_response_norm": ((8, 5, 5), lambda x: F.local_response_norm(x, 5, 0.9)),
    "norm and pool": (
        (8, 9, 9),
        lambda x: F.local_response_norm_max_pool2d(x, 5, 0.9, 0.75, 2, 1, 3, 2),
    ),
    "within_channel": ((3, 9, 9), lambda x: F.within_channel_response_norm(x, 3, 0.9)),
    "pad": ((3, 5, 5), lambda x: F.pad(x, (1, 2, 3, 4))),
    "relu": ((70,), F.relu),
    "linear": ((70,), linear),
    "softmax": ((70,), lambda x: F.softmax(x, 1)),
    "log_softmax": ((70,), lambda x: F.log_softmax(x, 1)),
    "cross_entropy": ((70,), cross_entropy),
}


def results(op, device, x, grad):
    """Return what the op computes, and the gradient with respect to x."""
    x = ta.tensor(x, device=device, requires_grad=True)
    y = op(x)
    y.backward(ta.tensor(grad, device=device))
    return {"y": y.detach().to("cpu").numpy(), "dx": ta.Tensor(x.grad).to("cpu").numpy()}


def check_apart(rng, device, dtype, shape, op, companions):
    """Compare every image alone, and in a batch whose other images and gradients are hostile."""
    with np.errstate(all="ignore"):
        x = normal(rng, (4, *shape), dtype)  # as many as share a canvas
        grad = normal(rng, op(ta.Tensor(x)).shape, dtype)
        for place in range(len(x)):
            one = slice(place, place + 1)
            alone = results(op, device, x[one], grad[one])
            for what in companions:
                others = (beside(COMPANIONS[what], array, place) for array in (x, grad))
                batch = results(op, device, *others)
                for name, expected in alone.items():
                    assert_close(batch[name][one], expected, what=f"{what}: {name}")


@pytest.mark.parametrize(("shape", "op"), OPS.values(), ids=OPS.keys())
def test_ops_keep_the_images_of_a_batch_apart(rng, backend, dtype, shape, op):
    check_apart(rng, "cpu", dtype, shape, op, COMPANIONS)


@pytest.mark.parametrize("name", [name for name in OPS if not name.startswith("Winograd,")])
def test_ops_keep_them_apart_on_a_gpu(rng, cuda, name):
    """Without the large convolutions, which would take minutes in the simulation."""
    check_apart(rng, "cuda", np.float32, *OPS[name], ("NaN", "one infinity", "times 1e+30"))


# --- Winograd's convolution -----------------------------------------------------------------------

SHAPES = {
    # C, (H, W), K, taps, padding, groups; with 5 taps, canvases of several images save nothing
    "13x13": (16, (13, 13), 16, 3, padded(1), 1),
    "two down": (16, (7, 13), 17, 3, padded(0), 1),
    "two across": (17, (8, 11), 16, 3, padded(0), 1),
    "in groups": (34, (5, 9), 38, 3, padded(1), 2),
    "asymmetric": (16, (5, 9), 16, 3, padded(2, 0, 1, 3), 1),
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
EACH_CHANGE = pytest.mark.parametrize("change", COMPANIONS.values(), ids=COMPANIONS.keys())


def directions(x, weight, bias, grad, geometry, mask):
    """Return what depends on one image only."""
    return {
        "y": winograd.forward(x, weight, bias, geometry),
        "relu": winograd.forward(x, weight, bias, geometry, rectify=True),
        "dx": winograd.input_grad(grad, weight, x.shape, geometry),
        "dx behind a relu": winograd.input_grad(grad, weight, x.shape, geometry, mask=mask),
    }


@EACH_CHANGE
@EACH_SHAPE
def test_images_on_a_canvas_do_not_touch_each_other(rng, shape, change):
    for N in range(2, 10):
        x, weight, bias, grad, geometry = problem(rng, N, *shape)
        mask = relu_output(rng, grad.shape)
        place = rng.integers(N)
        one = slice(place, place + 1)
        with np.errstate(all="ignore"):
            others = beside(change, x, place), weight, bias, beside(change, grad, place)
            batch = directions(*others, geometry, mask)
        alone = directions(x[one], weight, bias, grad[one], geometry, mask[one])
        for name, expected in alone.items():
            assert_close(batch[name][one], expected, what=f"{name}, {N} images")


@EACH_SHAPE
def test_these_shapes_share_their_tiles(rng, shape):
    grad = problem(rng, 4, *shape)[3]
    assert lay_out(4, grad.shape[2:], 3)[:2] != (1, 1)


@EACH_SHAPE
def test_what_a_mask_hides_does_not_count(rng, shape):
    """Neither for the magnitude of an image nor as a NaN."""
    x, weight, _, grad, geometry = problem(rng, 4, *shape)
    mask = relu_output(rng, grad.shape)
    hidden = mask <= 0
    expected = winograd.input_grad(np.where(hidden, 0, grad), weight, x.shape, geometry)
    for value in (1e9, np.nan):
        grad[0][hidden[0]] = value
        dx = winograd.input_grad(grad, weight, x.shape, geometry, mask=mask)
        assert_close(dx, expected)


@pytest.mark.parametrize("factor", [1e-30, 1e-9, 1e9, 1e30])
@EACH_SHAPE
def test_a_large_image_with_a_small_gradient_leaves_the_weights_to_the_others(rng, shape, factor):
    """Their share in dweight is equal, and none is lost in another's rounding errors."""
    x, weight, _, grad, geometry = problem(rng, 4, *shape)
    grad[0], x[1] = 0, 0
    expected = winograd.weight_and_bias_grad(grad, x, weight.shape, geometry)
    x[0] *= factor
    grad[1] *= factor
    mask = relu_output(rng, grad.shape)
    grads = winograd.weight_and_bias_grad(grad, x, weight.shape, geometry)
    assert_close(grads[0], expected[0])
    assert_close(grads[1], grad.sum((0, 2, 3), np.float64))
    behind_relu = winograd.weight_and_bias_grad(grad, x, weight.shape, geometry, mask=mask)
    grad = np.where(mask <= 0, 0, grad)
    assert_close(behind_relu[0], im2col.weight_grad(grad, x, weight.shape, geometry))


@EACH_SHAPE
def test_nothing_below_zero_comes_of_what_is_not(rng, shape):
    x, weight, _, _, geometry = problem(rng, 4, *shape)
    x, weight = abs(x), abs(weight)
    x *= np.float32([1, 1e9, 1e-9, 1e3])[:, None, None, None]
    for y in winograd.forward(x, weight, None, geometry):
        assert y.min() >= -1e-5 * y.max()


NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
LAYERS = {
    # the algorithm, N, C, (H, W), K, taps, padding, groups, stride
    "four on a canvas": (winograd, 5, 16, (13, 13), 16, 3, padded(1), 1, 1),
    "one on a canvas": (winograd, 2, 32, (27, 27), 32, 5, padded(2), 2, 1),
    "stride 4": (strided, 2, 3, (67, 67), 16, 11, padded(2), 1, 4),
    "stride 2": (strided, 3, 5, (26, 26), 17, 5, padded(0), 1, 2),
}
EACH_LAYER = pytest.mark.parametrize(
    ("algorithm", "layer"), [(a, layer) for a, *layer in LAYERS.values()], ids=LAYERS.keys()
)


def as_directly(algorithm, x, weight, bias, grad, geometry):
    """Compare all directions with those of im2col, and see that some of them are finite."""
    problem = choose.Problem(grad.shape, weight.shape, geometry, x.dtype)
    assert choose.algorithm(problem) is algorithm
    shapes = x.shape, weight.shape
    mask = np.ones_like(grad)
    with np.errstate(all="ignore"):
        for actual, expected in (
            (
                algorithm.forward(x, weight, bias, geometry),
                im2col.forward(x, weight, bias, geometry),
            ),
            (
                algorithm.forward(x, weight, bias, geometry, rectify=True),
                im2col.forward(x, weight, bias, geometry, rectify=True),
            ),
            (
                algorithm.input_grad(grad, weight, shapes[0], geometry, mask=mask),
                im2col.input_grad(grad, weight, shapes[0], geometry, mask=mask),
            ),
            (
                algorithm.weight_and_bias_grad(grad, x, shapes[1], geometry)[0],
                im2col.weight_grad(grad, x, shapes[1], geometry),
            ),
        ):
            assert_close(actual, expected, 1e-4)
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(actual[~finite], expected[~finite])
            yield finite


@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE.keys())
@EACH_LAYER
def test_what_is_not_finite_reaches_only_the_windows_that_see_it(rng, algorithm, layer, value):
    x, weight, bias, grad, geometry = problem(rng, *layer)
    x[1, 2, 7, 8] = grad[0, 3, 4, 2] = value
    for finite in as_directly(algorithm, x, weight, bias, grad, geometry):
        assert finite.any()
        assert not finite.all()


@pytest.mark.parametrize(
    ("of_x", "of_weight", "of_grad"),
    [(3e37, 1e-3, 1e-3), (1e-3, 3e37, 1e-3), (1e-3, 1e-3, 3e37), (1e-30, 7e37, 1e-30)],
)
@EACH_LAYER
def test_large_numbers_do_not_overflow(rng, algorithm, layer, of_x, of_weight, of_grad):
    """Where the outputs are finite, nothing on the way to them is not."""
    x, weight, bias, grad, geometry = problem(rng, *layer)
    x, weight, bias, grad = x * of_x, weight * of_weight, bias * of_x, grad * of_grad
    for finite in as_directly(algorithm, *map(np.float32, (x, weight, bias, grad)), geometry):
        assert finite.all()


# --- a whole network ------------------------------------------------------------------------------


def logits_and_gradient(model, photographs, grad):
    """Return both for each photograph."""
    x = ta.Tensor(photographs, requires_grad=True)
    y = model(x)
    y.backward(grad)
    return y.data, x.grad


@pytest.fixture(scope="module")
def network():
    """Return the paper's network, photographs, output gradients, and the results of each alone."""
    ta.manual_seed(0)
    model = models.alexnet("paper", 10).eval()
    rng = np.random.default_rng(0)
    arrays = normal(rng, (4, 3, 224, 224), np.float32), normal(rng, (4, 10), np.float32)
    alone = [logits_and_gradient(model, *(a[i : i + 1] for a in arrays)) for i in range(4)]
    return model, arrays, alone


@EACH_CHANGE
def test_the_network_sees_each_photograph_alone(network, change):
    model, arrays, alone = network
    for place in (0, 3):
        with np.errstate(all="ignore"):
            batch = logits_and_gradient(model, *(beside(change, a, place) for a in arrays))
        assert_close(batch[0][place], alone[place][0][0])
        # A rounding may let another pixel of a pool win: the gradient then takes another way.
        assert_close(batch[1][place], alone[place][1][0], 0.2)
