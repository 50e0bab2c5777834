"""The update of all parameters: every form, size and memory layout."""

import numpy as np
import oracles
import pytest
from helpers import LAYOUTS, assert_close, normal

from simt.exercises import exercise, to_device, to_host
from tinyalex.backends.cuda import sgd
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.geometry import SGDOptions

OPTIONS = [
    # momentum, dampening, weight_decay, nesterov, form
    (0.0, 0.0, 0.1, False, "torch"),
    (0.9, 0.3, 0.01, False, "torch"),
    (0.9, 0.0, 0.01, True, "torch"),
    (0.0, 0.0, 0.1, False, "paper"),
    (0.9, 0.0, 0.01, False, "paper"),
]
# Two blocks, the second of 7 elements; exactly one; and parameters of less than a block.
SHAPES = (4103,), (3, 2, 5, 5), (4096,), (7,), (), (1, 9)


def draw(rng, shape, options, dtype):
    """Return a parameter, a gradient and, with momentum, a velocity."""
    param, grad, velocity = (normal(rng, shape, dtype) for _ in range(3))
    return param, grad, velocity if options[0] else None


def on_device(arrays):
    return [None if a is None else to_device(a) for a in arrays]


def check(found, arrays, lr, options):
    """Compare a parameter and its velocity on the device with the oracle's."""
    for ours, wanted in zip(
        (found[0], found[2]), oracles.sgd_step(*arrays, lr, *options), strict=True
    ):
        if ours is not None:
            assert_close(to_host(ours), wanted, 1e-12 if ours.dtype == np.float64 else 1e-6)


@exercise("sgd.cu")
def every_form_of_one_step(rng):
    for options in OPTIONS:
        for dtype in (np.float32, np.float64):
            arrays = draw(rng, (5, 13), options, dtype)
            device = on_device(arrays)
            assert sgd.sgd_step(*device, SGDOptions(0.1, *options)) is None
            check(device, arrays, 0.1, options)
            np.testing.assert_array_equal(to_host(device[1]), arrays[1])


@exercise("sgd.cu")
def many_parameters_with_rates_of_their_own(rng):
    cases = [
        (draw(rng, shape, options, dtype), 0.1 + 0.01 * i, options)
        for i, (shape, options) in enumerate(zip(SHAPES, (*OPTIONS, OPTIONS[0]), strict=True))
        for dtype in (np.float32, np.float64)
    ]
    devices = [on_device(arrays) for arrays, _, _ in cases]
    options = [SGDOptions(lr, *o) for _, lr, o in cases]
    sgd.sgd_steps([Piece(*d, o) for d, o in zip(devices, options, strict=True)])
    for device, case in zip(devices, cases, strict=True):
        check(device, *case)


@exercise("sgd.cu")
def a_table_that_is_filled_again(rng):
    """What a recorded graph does: the same launch, other rates and gradients."""
    arrays = [draw(rng, shape, OPTIONS[1], np.float32) for shape in ((11,), (1031,))]
    device = [on_device(a) for a in arrays]
    table = StepTable([Piece(*d, SGDOptions(0.5, *OPTIONS[1])) for d in device])
    for lr in (0.1, 0.2):
        grads = [normal(rng, a[0].shape, np.float32) for a in arrays]
        before = [(to_host(d[0]), g, to_host(d[2])) for d, g in zip(device, grads, strict=True)]
        device = [(w, to_device(g), v) for (w, _, v), g in zip(device, grads, strict=True)]
        table.fill([Piece(*d, SGDOptions(lr, *OPTIONS[1])) for d in device])
        table.launch()
        for d, b in zip(device, before, strict=True):
            check(d, b, lr, OPTIONS[1])


def strided(x, layout):
    """Return a device array whose memory is in this layout, with gaps where it has some."""
    host = LAYOUTS[layout](x)
    if layout == "sliced":
        return to_device(host.base)[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    axes = np.argsort([-s for s in host.strides], kind="stable")
    dense = to_device(np.ascontiguousarray(host.transpose(axes)))
    return dense.transpose(*np.argsort(axes).tolist())


@exercise("sgd.cu")
def parameters_and_gradients_of_any_layout(rng):
    options = OPTIONS[2]
    for layout in ("channels-last", "sliced", "swapped"):
        for grad_layout in ("contiguous", layout):
            arrays = draw(rng, (3, 2, 5, 7), options, np.float32)
            w, v = (strided(a, layout) for a in arrays[::2])
            assert not w.flags.c_contiguous
            device = (w, strided(arrays[1], grad_layout), v)
            sgd.sgd_step(*device, SGDOptions(0.1, *options))
            check(device, arrays, 0.1, options)


@exercise("sgd.cu")
def a_table_is_for_parameters_of_one_kind(rng):
    (w, v), other = (to_device(np.ones(5, np.float32)) for _ in range(2)), to_device(np.ones(5))
    table = StepTable([Piece(w, w, v, SGDOptions(0.1, *OPTIONS[1]))])
    shorter = w[:4]
    for piece in ((w, other, v), (other, other, other), (shorter, shorter, shorter)):
        with pytest.raises(ValueError, match=r"made for float32 parameters of \[5\]"):
            table.fill([Piece(*piece, SGDOptions(0.1, *OPTIONS[1]))])


@exercise("sgd.cu")
def parameters_without_elements(rng):
    empty, full = (draw(rng, shape, OPTIONS[1], np.float32) for shape in ((0, 3), (5,)))
    device = [on_device(a) for a in (empty, full, empty)]
    sgd.sgd_steps([Piece(*d, SGDOptions(0.1, *OPTIONS[1])) for d in device])
    check(device[1], full, 0.1, OPTIONS[1])
    sgd.sgd_step(*device[0], SGDOptions(0.1, *OPTIONS[1]))
    sgd.sgd_steps([])
