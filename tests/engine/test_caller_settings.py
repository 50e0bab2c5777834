"""Independence of all operations from the caller's settings of NumPy and Python."""

import contextlib
import decimal
import gc
import warnings

import numpy as np
import pytest
from test_ranges import ELEMENTWISE, EMPTY, FUNCTIONS, ends, values_and_gradients

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim


@contextlib.contextmanager
def warnings_raise():
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def small_buffers():
    before = np.setbufsize(16)
    yield
    np.setbufsize(before)


@contextlib.contextmanager
def odd_numbers():
    """Set unusual print options, decimals and another seed."""
    state = np.random.get_state()
    np.random.seed(1)
    with np.printoptions(precision=1, floatmode="fixed"), decimal.localcontext() as context:
        context.prec = 1
        yield
    np.random.set_state(state)


@contextlib.contextmanager
def no_collection():
    gc.disable()
    yield
    gc.enable()


SETTINGS = {
    "seterr": lambda: np.errstate(all="raise"),
    "warnings": warnings_raise,
    "setbufsize": small_buffers,
    "formats and seeds": odd_numbers,
    "gc": no_collection,
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def setting(request):
    return request.param


def with_and_without(setting, compute):
    """Check that ``compute()`` returns the same bits under the setting."""
    ta.manual_seed(5)
    with np.errstate(all="ignore"):
        expected = compute()
    ta.manual_seed(5)
    with setting():
        actual = compute()
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_one_number(backend, setting, dtype, name):
    function = ELEMENTWISE[name][0]
    x = ends(dtype)
    with_and_without(setting, lambda: values_and_gradients(function, [x]))


@pytest.mark.parametrize("value", [1e-30, 1.0, 1e30, np.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(backend, setting, name, value):
    shapes, call = FUNCTIONS[name]
    arrays = [np.full(shape, value, np.float32) for shape in shapes]
    with_and_without(setting, lambda: values_and_gradients(call, arrays))


@pytest.mark.parametrize("name", EMPTY)
def test_nothing(backend, setting, name):
    shapes, call, _ = EMPTY[name]
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    with_and_without(setting, lambda: values_and_gradients(call, arrays))


def conversions():
    x = ta.Tensor([1e300, 1e-300, np.nan])
    y = ta.tensor([1.0, np.nan], dtype=np.float64, requires_grad=True)
    (y.to(np.float32) * 1e300).backward(np.full(2, 1e300))
    yield from (x.data, y.grad, ta.tensor([1e300], dtype=np.float32).data, (x * 1e300).data)
    yield from ((x < 1e300).data, (x == x).data, np.array(ta.Tensor(np.float32([1, 1])).argmax()))
    yield ta.full((2,), 1e30).data
    z = ta.zeros(2)
    z[:1], z[1] = np.array([1e300]), 1e300
    yield z.data


def steps():
    for update in ("torch", "paper"):
        for value in (1e-30, 1e30, np.inf):
            w = nn.Parameter(np.full(3, value, np.float32))
            optimizer = optim.SGD([w], lr=1e20, momentum=0.9, weight_decay=1e-20, update=update)
            for _ in range(2):
                w.grad = np.full(3, value, np.float32)
                optimizer.step()
                yield w.data.copy()


def initial_values():
    layer = nn.Linear(3, 2)
    for fill in (nn.init.xavier_normal_, nn.init.kaiming_uniform_):
        yield fill(layer.weight).data.copy()
    yield nn.init.normal_(layer.weight, std=1e-40).data.copy()
    yield nn.init.uniform_(layer.weight, -1e-40, 1e-40).data.copy()


def a_step_of_training():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = optim.SGD(model.parameters(), lr=1e30, momentum=0.9)
    for _ in range(3):
        F.cross_entropy(model(ta.ones(2, 3) * 1e10), np.array([0, 1])).backward()
        optimizer.step()
    yield from (p.data for p in model.parameters())


@pytest.mark.parametrize("compute", [conversions, steps, initial_values, a_step_of_training])
def test_everything_else(backend, setting, compute):
    with_and_without(setting, lambda: list(compute()))
