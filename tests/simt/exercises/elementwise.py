"""ReLU, dropout and the finiteness check, at sizes around blocks.

A block has 1024 elements: 2053 are two blocks and five elements, the last of them alone.
"""

import itertools

import numpy as np
import oracles
import oracles_random
from helpers import assert_close, normal

from simt.exercises import BFLOAT16, HALVES, assert_same, exercise, to_device, to_host
from tinyalex import random
from tinyalex.backends.cuda import elementwise
from tinyalex.backends.cuda.step_state import KeySlots

SHAPES = (2053,), (2, 3, 5, 7), (1,), (), (0, 3)
DTYPES = np.float32, np.float64, BFLOAT16


def channels_last(x):
    """Return a copy on the device whose channels lie last in memory."""
    return to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


@exercise("relu.cu")
def relu_of_any_shape(rng):
    for shape in SHAPES:
        for dtype in DTYPES:
            x, grad = normal(rng, shape, dtype), normal(rng, shape, dtype)
            y = elementwise.relu(to_device(x))
            np.testing.assert_array_equal(to_host(y), oracles.relu(x))
            dx = to_host(elementwise.relu_input_grad(to_device(grad), y))
            np.testing.assert_array_equal(dx, oracles.relu_input_grad(grad, oracles.relu(x)))
            assert dx.dtype == dtype


@exercise("relu.cu")
def relu_at_the_edges(rng):
    edges = [np.nan, -np.inf, -1, -0.0, 0, 1, np.inf]
    for dtype in DTYPES:
        y = elementwise.relu(to_device(edges, dtype))
        assert_same(y, [np.nan, 0, 0, 0, 0, 1, np.inf])
        dx = elementwise.relu_input_grad(to_device(np.arange(1, 8), dtype), y)
        np.testing.assert_array_equal(to_host(dx), [1, 0, 0, 0, 0, 6, 7])


@exercise("relu.cu")
def relu_of_arrays_that_lie_otherwise(rng):
    for dtype in HALVES:
        x, grad = normal(rng, (2, 5, 7, 3), dtype), normal(rng, (2, 5, 7, 3), dtype)
        y = elementwise.relu(channels_last(x))
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous, "the result lies as the argument does"
        np.testing.assert_array_equal(to_host(y), oracles.relu(x))
        expected = oracles.relu_input_grad(grad, oracles.relu(x))
        for each in (to_device(grad), channels_last(grad)):
            np.testing.assert_array_equal(to_host(elementwise.relu_input_grad(each, y)), expected)
        beginning_at_any_element = to_device(np.ravel(x))[1:]
        y = to_host(elementwise.relu(beginning_at_any_element))
        np.testing.assert_array_equal(y, oracles.relu(np.ravel(x)[1:]))


@exercise("dropout.cu")
def philox_gives_the_known_answers(rng):
    counters, keys, words = zip(*oracles_random.KNOWN_ANSWERS, strict=True)
    whole_keys = np.array([low + (high << 32) for low, high in keys], np.uint64)
    counters = np.array(counters, np.uint32).view(np.int32)
    found = elementwise.philox_words(to_device(counters), to_device(whole_keys))
    np.testing.assert_array_equal(to_host(found).view(np.uint32), np.array(words, np.uint32))


@exercise("dropout.cu")
def dropout_of_any_shape(rng):
    for shape in SHAPES:
        for dtype, p, key in zip(
            DTYPES * 2, (0.5, 0.3, 0.2, 0.0, 1.0, 1.0), (1, 2**64 - 1, 3, 5, 5, 5), strict=True
        ):
            x = normal(rng, shape, dtype)
            y = to_host(elementwise.dropout(to_device(x), p, key))
            assert y.dtype == dtype
            assert_close(y, oracles_random.dropout(x, p, key), 1e-7)


@exercise("dropout.cu")
def dropout_counts_in_index_order_whatever_the_layout(rng):
    x = np.ones((2, 5, 3, 7), np.float32)
    y = elementwise.dropout(channels_last(x), 0.5, 7)
    np.testing.assert_array_equal(to_host(y), oracles_random.dropout(x, 0.5, 7))


@exercise("dropout.cu")
def dropout_does_not_hide_nan(rng):
    for dtype, p in itertools.product(DTYPES, (0.5, 1)):
        y = elementwise.dropout(to_device(np.full(64, np.nan), dtype), p, 7)
        assert np.isnan(to_host(y)).all()


@exercise("dropout.cu")
def dropout_reads_its_key_when_it_runs(rng):
    """The n-th key of a step is that of slot n, and a slot filled anew is a new key."""
    x, slots = normal(rng, (1031,), np.float32), KeySlots(3)
    with random.keys_from(slots):
        keys = [random.next_key() for _ in range(3)]
    for step in ([2**63 + 1, 5, 6], [7, 8, 2**32]):
        slots.fill(step)
        for key, value in zip(keys, step, strict=True):
            y = to_host(elementwise.dropout(to_device(x), 0.5, key))
            np.testing.assert_array_equal(y != 0, oracles_random.dropout(x, 0.5, value) != 0)


@exercise("dropout.cu")
def dropout_of_parts_side_by_side(rng):
    """Parts that begin at any element, no multiple of 4 either, drop what the whole drops."""
    slots = KeySlots(1)
    slots.fill([2**63 + 1])
    with random.keys_from(slots):
        slot_key = random.next_key()
    keys = (7, 7), (slot_key, 2**63 + 1), (slot_key, 2**63 + 1)
    for dtype, (key, value) in zip(DTYPES, keys, strict=True):
        x = normal(rng, (2053,), dtype)
        whole = oracles_random.dropout(x, 0.5, value)
        ends = 0, 1, 7, 8, 1030, 1030, 2052, 2053
        parts = [
            elementwise.dropout(to_device(x[first:end]), 0.5, key, first)
            for first, end in itertools.pairwise(ends)
        ]
        assert_close(np.concatenate([to_host(part) for part in parts]), whole, 1e-7)
    far = 2**33 - 5  # elements of a batch that no GPU holds, and the last that a counter numbers
    y = elementwise.dropout(to_device(np.ones(5), np.float32), 0.5, 7, far)
    assert_close(to_host(y), oracles_random.dropout(np.ones(5), 0.5, 7, far), 1e-7)


@exercise("all_finite.cu")
def all_finite_of_anything(rng):
    for dtype in (np.float32, np.float64):
        for shape in SHAPES:
            assert elementwise.all_finite(to_device(normal(rng, shape, dtype)))
        assert elementwise.all_finite(to_device(np.full(5, np.finfo(dtype).max)))


@exercise("all_finite.cu")
def all_finite_looks_everywhere(rng):
    """More elements than the grid has places, so that every thread comes round again."""
    x = np.ones(1024 * 8 * elementwise.multiprocessors() + 1, np.float32)
    x[-1] = np.nan
    assert elementwise.all_finite(to_device(x)) is False
    for place, value in ((0, np.nan), (1029, np.inf), (1030, -np.inf)):
        x = np.ones(1031)
        x[place] = value
        assert elementwise.all_finite(to_device(x)) is False


@exercise("all_finite.cu")
def all_finite_of_many_arrays(rng):
    arrays = [np.ones(1031, np.float32), np.ones((2, 3)), np.ones(0), np.ones(5, np.float32)]
    assert bool(elementwise.all_finite_many([to_device(a) for a in arrays]))
    for i in (0, 1, 3):
        arrays[i].flat[-1] = np.nan
        assert not bool(elementwise.all_finite_many([to_device(a) for a in arrays]))
        arrays[i].flat[-1] = 1
