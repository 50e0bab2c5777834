"""Errors for wrong calls: the right exception, the facts in it."""

import importlib
import pickle
import pkgutil
import re

import numpy as np
import pytest

import tinyalex as ta
import tinyalex.functional as F
from tinyalex.data.dataset import ImageError
from tinyalex.data.worker_processes import StuckError
from tinyalex.interop.onnx_nodes import Maps, MisfitError
from tinyalex.interop.unpickling import UnknownNameError
from tinyalex.interrupts import StoppedError
from tinyalex.schema import SettingError


def t(*shape, dtype=np.float32):
    return ta.zeros(shape, dtype=dtype)


def error(name, call, kind, *facts):
    """A mistake, and the facts that its message must state."""
    return pytest.param(call, kind, facts, id=name)


X4, W4 = (2, 4, 8, 8), (6, 4, 3, 3)


def conv(**options):
    """Return a call of conv2d with these options, on what fits."""
    return lambda: F.conv2d(t(*X4), t(*W4), **options)


def entropy(*targets, **options):
    """Return a call of cross_entropy for two rows of five classes."""
    first, *rest = targets
    target = np.array(first) if isinstance(first, list) else first
    return lambda: F.cross_entropy(t(2, 5), target, *rest, **options)


ERRORS = [
    error("conv2d channels", lambda: F.conv2d(t(2, 3, 8, 8), t(6, 4, 3, 3)), ValueError, "3", "4"),
    error("conv2d groups", lambda: F.conv2d(t(*X4), t(6, 1, 3, 3), groups=3), ValueError, "3", "4"),
    error("conv2d zero groups", conv(groups=0), ValueError, "groups"),
    error(
        "conv2d group outputs", lambda: F.conv2d(t(*X4), t(5, 2, 3, 3), groups=2), ValueError, "5"
    ),
    error("conv2d bias", lambda: F.conv2d(t(*X4), t(*W4), t(5)), ValueError, "6", "5"),
    error("conv2d input axes", lambda: F.conv2d(t(4, 8), t(*W4)), ValueError, "(4, 8)"),
    error("conv2d weight axes", lambda: F.conv2d(t(*X4), t(6, 4, 3)), ValueError, "(6, 4, 3)"),
    error("conv2d stride 0", conv(stride=0), ValueError, "stride", "0"),
    error("conv2d stride -1", conv(stride=(1, -1)), ValueError, "stride", "-1"),
    error("conv2d padding -1", conv(padding=-1), ValueError, "padding", "-1"),
    error("conv2d dilation 0", conv(dilation=0), ValueError, "dilation"),
    error("conv2d array", lambda: F.conv2d(t(*X4), np.ones(W4)), TypeError, "weight", "ndarray"),
    error("conv2d groups 2.0", conv(groups=2.0), TypeError, "2.0"),
    error("dropout p", lambda: F.dropout(t(3), "a"), TypeError, "probability", "'a'"),
    error("lrn alpha", lambda: F.local_response_norm(t(*X4), 5, "a"), TypeError, "alpha"),
    error("stack arrays", lambda: ta.stack([np.zeros(3)]), TypeError, "stack", "ndarray"),
    error("to None", lambda: t(3).to(None), TypeError, "None"),
    error("to float16", lambda: t(3).to("float16"), ValueError, "float32", "'float16'"),
    error("conv2d stride 1.5", conv(stride=1.5), TypeError, "1.5"),
    error("conv2d stride of 3", conv(stride=(1, 2, 3)), (TypeError, ValueError), "(1, 2, 3)"),
    error("conv2d padding word", conv(padding="full"), ValueError, "full"),
    error("conv2d same stride 2", conv(stride=2, padding="same"), ValueError, "same", "2"),
    error(
        "conv2d image too small", lambda: F.conv2d(t(2, 4, 2, 8), t(*W4)), ValueError, "3x3", "2, 8"
    ),
    error(
        "conv2d dtypes",
        lambda: F.conv2d(t(*X4), t(*W4, dtype=np.float64)),
        TypeError,
        "float32",
        "float64",
    ),
    error(
        "conv2d integers",
        lambda: F.conv2d(t(*X4, dtype=np.int64), t(*W4, dtype=np.int64)),
        TypeError,
        "int64",
    ),
    error("conv2d array", lambda: F.conv2d([[1.0]], t(*W4)), TypeError, "list"),
    error(
        "max_pool2d padding", lambda: F.max_pool2d(t(*X4), 3, padding=2), ValueError, "padding", "2"
    ),
    error("max_pool2d window 0", lambda: F.max_pool2d(t(*X4), 0), ValueError, "kernel_size", "0"),
    error("max_pool2d stride -2", lambda: F.max_pool2d(t(*X4), 2, -2), ValueError, "stride", "-2"),
    error("max_pool2d too large", lambda: F.max_pool2d(t(*X4), 9), ValueError, "9x9", "8, 8"),
    error("max_pool2d axes", lambda: F.max_pool2d(t(8, 8), 2), ValueError, "(8, 8)"),
    error(
        "max_pool2d integers", lambda: F.max_pool2d(t(*X4, dtype=np.int32), 2), TypeError, "int32"
    ),
    error("avg_pool2d padding", lambda: F.avg_pool2d(t(*X4), 3, padding=2), ValueError, "padding"),
    error(
        "avg_pool2d divisor 0",
        lambda: F.avg_pool2d(t(*X4), 3, divisor_override=0),
        ValueError,
        "divisor_override",
        "0",
    ),
    error("avg_pool2d too large", lambda: F.avg_pool2d(t(*X4), (1, 9)), ValueError, "1x9"),
    error("adaptive size -1", lambda: F.adaptive_avg_pool2d(t(*X4), -1), ValueError, "-1"),
    error("adaptive size 1.5", lambda: F.adaptive_avg_pool2d(t(*X4), 1.5), TypeError, "1.5"),
    error("lrn size 0", lambda: F.local_response_norm(t(*X4), 0), ValueError, "size", "0"),
    error("lrn size 2.5", lambda: F.local_response_norm(t(*X4), 2.5), TypeError, "2.5"),
    error("lrn axes", lambda: F.local_response_norm(t(4, 8), 5), ValueError, "(4, 8)"),
    error("lrn groups", lambda: F.local_response_norm(t(*X4), 5, groups=3), ValueError, "3", "4"),
    error(
        "lrn integers", lambda: F.local_response_norm(t(*X4, dtype=np.int64), 5), TypeError, "int64"
    ),
    error(
        "within_channel size 2", lambda: F.within_channel_response_norm(t(*X4), 2), ValueError, "2"
    ),
    error("dropout p 1.5", lambda: F.dropout(t(3), 1.5), ValueError, "1.5"),
    error("dropout p -0.1", lambda: F.dropout(t(3), -0.1), ValueError, "-0.1"),
    error("dropout p NaN", lambda: F.dropout(t(3), float("nan")), ValueError, "nan"),
    error("linear sizes", lambda: F.linear(t(2, 5), t(3, 4)), ValueError, "5", "4"),
    error("linear bias", lambda: F.linear(t(2, 5), t(3, 5), t(2)), ValueError, "3", "2"),
    error("linear weight axes", lambda: F.linear(t(2, 5), t(5)), ValueError, "(5,)"),
    error(
        "linear dtypes",
        lambda: F.linear(t(2, 5), t(3, 5, dtype=np.float64)),
        TypeError,
        "float32",
        "float64",
    ),
    error("linear bias array", lambda: F.linear(t(2, 5), t(3, 5), [1]), TypeError, "list"),
    error("pad 1.5", lambda: F.pad(t(*X4), (1.5, 1)), TypeError, "1.5"),
    error("pad one", lambda: F.pad(t(*X4), 1), ValueError, "got 1"),
    error("pad odd", lambda: F.pad(t(*X4), (1, 2, 3)), ValueError, "3"),
    error("pad too many", lambda: F.pad(t(3), (1, 2, 3, 4)), ValueError, "4"),
    error("pad mode", lambda: F.pad(t(*X4), (1, 1), mode="mirror"), ValueError, "mirror"),
    error("pad below zero", lambda: F.pad(t(2, 3), (-2, -2)), ValueError, "-2"),
    error("softmax dim", lambda: F.softmax(t(2, 3), dim=2), (ValueError, IndexError), "2"),
    error("cross_entropy rows", entropy([0, 0, 0]), ValueError, "3"),
    error(
        "cross_entropy no classes",
        lambda: F.cross_entropy(t(2, 0), np.array([0, 0])),
        ValueError,
        "class",
        "(2, 0)",
    ),
    error("cross_entropy class too large", entropy([0, 5]), ValueError, "5"),
    error("cross_entropy class negative", entropy([0, -1]), ValueError, "-1"),
    error("cross_entropy reduction", entropy([0, 1], reduction="average"), ValueError, "average"),
    error("cross_entropy smoothing", entropy([0, 1], label_smoothing=1.5), ValueError, "1.5"),
    error("cross_entropy weight", entropy([0, 1], t(4)), ValueError, "4", "5"),
    error("cross_entropy probabilities", entropy(t(2, 4)), ValueError, "(2, 4)"),
    error("cross_entropy booleans", entropy([True, False]), TypeError, "bool"),
    error(
        "cross_entropy integers",
        lambda: F.cross_entropy(t(2, 5, dtype=np.int64), np.array([0, 1])),
        TypeError,
        "int64",
    ),
]


@pytest.mark.parametrize(("call", "kind", "facts"), ERRORS)
def test_error_says_what_is_wrong(call, kind, facts):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    missing = [fact for fact in facts if not re.search(rf"(?<![\w.]){re.escape(fact)}", message)]
    assert not missing, f"{missing} not in: {message}"
    assert "\n" not in message, "one sentence"


WITH_ATTRIBUTES = [
    SettingError("lr", "must be positive"),
    ImageError("a.jpg", "cut off", lasting=False),
    StuckError("a thread is stuck", 3),
    StoppedError("SIGTERM", 143, "evaluation", "tinyalex evaluate"),
    UnknownNameError("os.system"),
    MisfitError("fc6 does not fit", Maps((3, 4, 4))),
]


@pytest.mark.parametrize("error", WITH_ATTRIBUTES, ids=lambda error: type(error).__name__)
def test_error_with_attributes_is_whole_after_pickling(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert (there.args, repr(vars(there))) == (error.args, repr(vars(error)))


def test_longer_message_is_whole_after_pickling():
    error = UnknownNameError("os.system")
    error.args = (f"weights.pth: {error}",)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_error_with_attributes_is_pickled_above():
    for module in pkgutil.walk_packages(ta.__path__, "tinyalex."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds, seen = [BaseException], set()
    while kinds:
        for kind in kinds.pop().__subclasses__():
            if kind not in seen:
                seen.add(kind)
                kinds.append(kind)
    ours = {k for k in seen if k.__module__.startswith("tinyalex.") and "__init__" in vars(k)}
    assert ours == {type(error) for error in WITH_ATTRIBUTES}
