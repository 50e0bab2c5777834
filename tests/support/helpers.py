"""Helpers to draw arrays, lay them out and compare them."""

import os
import subprocess
import sys
import threading

import numpy as np

import tinyalex as ta

# float64: the only differences are in the order of additions. float32: sums of a few hundred
# products, each rounded to 6e-8, leave about 1e-6 of the largest value; Winograd's transforms
# cost another factor of a few.
TOLERANCE = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 1e-5}


def spread(arguments):
    """Return the arguments with the fields of option records in the records' places."""
    return [each for a in arguments for each in (a if hasattr(a, "_fields") else (a,))]


def assert_close(actual, expected, tolerance=None, what="result"):
    """Fail unless every element is within ``tolerance`` of the largest expected value.

    A bfloat16 is a float32, rounded to nearest once: by 2^-8 of itself at most.
    """
    actual, expected, rounding = np.asarray(actual), np.asarray(expected), 0.0
    if actual.dtype.name == "bfloat16":
        actual, rounding = actual.astype(np.float32), 2**-8
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), f"{what}: NaN in other places"
    if tolerance is None:
        tolerance = TOLERANCE[actual.dtype]
    finite = np.abs(expected[np.isfinite(expected)])
    scale = finite.max(initial=0.0) or 1.0
    np.testing.assert_allclose(
        actual, expected, rtol=rounding, atol=tolerance * scale, err_msg=what
    )


def normal(rng, shape, dtype=np.float64):
    """Draw from N(0, 1)."""
    return rng.standard_normal(shape).astype(dtype)


def distinct(rng, shape, dtype=np.float64):
    """Draw values at least 0.01 apart and at least 0.005 from 0: no ties, no kinks nearby."""
    size = int(np.prod(shape))
    return ((rng.permutation(size) - size // 2 + 0.5) / 100).reshape(shape).astype(dtype)


def tied(rng, shape, dtype=np.float64):
    """Draw from {-3, -2, -1}: every window has ties, and all of it is below the padding's 0."""
    return rng.integers(-3, 0, shape).astype(dtype)


def _channels_last(x):
    if x.ndim != 4:
        return np.array(x, order="F")
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _sliced(x):
    if x.ndim == 0:
        return x
    big = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
    view = big[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = x
    return view


def _backwards(x):
    flip = (slice(None, None, -1),) * x.ndim
    return np.array(x[flip], order="C")[flip]


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _broadcast(x):
    """One column for the whole last axis, stride 0: the gradient that mean() and sum() send."""
    return np.broadcast_to(x[..., :1] if x.ndim else x, x.shape)


LAYOUTS = {
    "contiguous": lambda x: np.array(x, order="C"),
    "channels-last": _channels_last,
    "swapped": lambda x: (
        np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) if x.ndim > 1 else x
    ),
    "sliced": _sliced,
    "backwards": _backwards,
    "read-only": _read_only,
    "broadcast": _broadcast,
}


def run_python(code, **environment):
    """Run ``code`` in a new process, which must end well; return all that it wrote."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def leaf(*values, dtype=np.float64):
    """Return a 1-D leaf that wants a gradient."""
    return ta.Tensor(np.array(values, dtype), requires_grad=True)


def finished(function, *args, seconds=20):
    """Return what `function` returns or raises; fail, and do not hang, where it never ends."""
    outcome = []

    def call():
        try:
            outcome.append(function(*args))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout=seconds)
    assert outcome, f"{function} {args} hangs"
    return outcome[0]
