"""The fast backend: blocks, workspace, threads and compilation.

That its kernels compute the right thing at all shapes is tested for every backend together.
"""

import importlib
import os
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import LAYOUTS, assert_close, normal, run_python
from threadpoolctl import threadpool_info

import tinyalex.threads
from tinyalex.backends import cpu, reference
from tinyalex.backends.cpu.conv import im2col
from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.microkernel import ROWS, WIDTH
from tinyalex.backends.cpu.vectors import LANES
from tinyalex.backends.geometry import ConvOptions, NormOptions
from tinyalex.backends.layout import as_nchw, channels_last

# (C, H, K, kernel size, stride, padding, groups): the five convolutions of the paper
LAYERS = {
    "conv1": (3, 224, 96, 11, 4, 2, 1),
    "conv2": (96, 27, 256, 5, 1, 2, 2),
    "conv3": (256, 13, 384, 3, 1, 1, 1),
    "conv4": (384, 13, 384, 3, 1, 1, 2),
    "conv5": (384, 13, 256, 3, 1, 1, 2),
}


def conv_problem(rng, layer, batch, dtype=np.float32):
    """Return a layer's x, weight, bias, output gradient and geometry."""
    C, H, K, R, stride, padding, groups = layer
    x = normal(rng, (batch, C, H, H), dtype)
    weight = normal(rng, (K, C // groups, R, R), dtype)
    Ho = (H + 2 * padding - R) // stride + 1
    grad = normal(rng, (batch, K, Ho, Ho), dtype)
    return (
        x,
        weight,
        normal(rng, K, dtype),
        grad,
        ConvOptions((stride,) * 2, ((padding,) * 2,) * 2, groups=groups),
    )


def conv_kernels(backend, x, weight, bias, grad, geometry):
    """Return what the three convolution kernels of ``backend`` compute."""
    return {
        "y": backend.conv2d(x, weight, bias, geometry),
        "dx": backend.conv2d_input_grad(grad, weight, x.shape, geometry),
        "dweight": backend.conv2d_weight_grad(grad, x, weight.shape, geometry),
    }


@pytest.fixture
def threads():
    """Return the function that sets the number of threads; the old number comes back afterwards."""
    return tinyalex.threads.set_num_threads


two_cores = pytest.mark.skipif(tinyalex.threads.available_cores() < 2, reason="needs two cores")


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [1, 2, 7, 50])
@pytest.mark.parametrize("depth", [1, 12, 10_000], ids=lambda depth: f"depth{depth}")
def test_convolution_does_not_depend_on_where_blocks_begin(rng, monkeypatch, pixels, depth):
    """Blocks that end inside an image row, between images, and between rows of taps."""
    problem = conv_problem(rng, (6, 7, 4, 3, 2, 1, 2), 3, np.float64)
    monkeypatch.setattr(im2col, "BLOCK_BYTES", 0)  # so that every block has MIN_PIXELS pixels
    monkeypatch.setattr(im2col, "MIN_PIXELS", pixels)
    monkeypatch.setattr(im2col, "DEPTH", depth)
    monkeypatch.setattr(im2col, "DEPTH_OF_WEIGHT_GRAD", depth)
    expected = conv_kernels(reference, *problem)
    for name, actual in conv_kernels(cpu, *problem).items():
        assert_close(actual, expected[name], what=name)


def test_more_partial_sums_than_memory_for_them(rng, monkeypatch):
    problem = conv_problem(rng, (4, 9, 4, 3, 1, 1, 1), 2, np.float64)
    monkeypatch.setattr(im2col, "PARTIAL_BYTES", 1)
    expected = conv_kernels(reference, *problem)["dweight"]
    assert_close(conv_kernels(cpu, *problem)["dweight"], expected)


@pytest.mark.parametrize("inputs", [1, 129])
@pytest.mark.parametrize("outputs", [1, 3, 4, 7, 515])
@pytest.mark.parametrize("images", [1, 2])
def test_linear_at_the_edges_of_its_tiles(rng, images, inputs, outputs):
    x, weight = normal(rng, (images, inputs)), normal(rng, (outputs, inputs))
    bias, grad = normal(rng, outputs), normal(rng, (images, outputs))
    assert_close(cpu.linear(x, weight, bias), x @ weight.T + bias)
    assert_close(cpu.linear_input_grad(grad, weight), grad @ weight)
    assert_close(cpu.linear_weight_grad(grad, x), grad.T @ x)


linear_module = importlib.import_module("tinyalex.backends.cpu.linear")
LINEAR_LAYERS = {
    # outputs, inputs
    "one tile": (ROWS[-1], LANES),
    "one number": (1, 1),
    "half a panel left": (linear_module.TASK + ROWS[-1], 2 * WIDTH + LANES),
    "many outputs": (3 * linear_module.DEPTH + ROWS[-1], WIDTH),
    "many inputs": (2 * ROWS[0], linear_module.COLUMNS + 3 * LANES),
    "deeper than the cache": (ROWS[0] + ROWS[1], linear_module.PANELS // 32 + LANES),
    "ten outputs": (10, 3 * LANES),
    "ten outputs, deeper than the cache": (10, linear_module.PANELS // 32 + LANES),
    "fewer outputs than a tile": (ROWS[-1] - 1, 2 * LANES),
    "17 inputs": (2 * ROWS[-1], 17),
    "nothing fits": (515, 129),
}


def check_linear(x, weight, bias, grad):
    """Compare three kernels with NumPy in float64, their arguments left unchanged."""
    arguments = x, weight, bias, grad
    kept = [argument.copy() for argument in arguments]
    exact_x, exact_weight, exact_bias, exact_grad = (a.astype(np.float64) for a in kept)
    for name, actual, expected in (
        ("y", cpu.linear(x, weight, bias), exact_x @ exact_weight.T + exact_bias),
        ("y without bias", cpu.linear(x, weight, None), exact_x @ exact_weight.T),
        ("dx", cpu.linear_input_grad(grad, weight), exact_grad @ exact_weight),
        ("dweight", cpu.linear_weight_grad(grad, x), exact_grad.T @ exact_x),
    ):
        assert actual.dtype == x.dtype
        assert_close(actual, expected, what=name)
    for argument, before in zip(arguments, kept, strict=True):
        np.testing.assert_array_equal(argument, before)


def linear_problem(rng, images, outputs, inputs, dtype):
    """Return x, weight, bias and an output gradient."""
    shapes = (images, inputs), (outputs, inputs), (outputs,), (images, outputs)
    return [normal(rng, shape, dtype) for shape in shapes]


@pytest.mark.parametrize("images", [0, 1, 2, 3, 4, 5, 31, 32, 33, 65])
@pytest.mark.parametrize("layer", LINEAR_LAYERS.values(), ids=LINEAR_LAYERS.keys())
def test_linear_layers_of_all_kinds(rng, dtype, layer, images):
    check_linear(*linear_problem(rng, images, *layer, dtype))


@pytest.mark.parametrize("depth", [LANES, 40, 100, 1000])
def test_linear_does_not_depend_on_where_blocks_begin(rng, monkeypatch, depth):
    arguments = linear_problem(rng, 2 * WIDTH, 2 * ROWS[-1], 7 * LANES, np.float32)
    monkeypatch.setattr(linear_module, "PANELS", depth * 2 * WIDTH)
    check_linear(*arguments)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("layer", ["half a panel left", "17 inputs"])
def test_linear_accepts_any_memory_layout(rng, dtype, layer, images, layout):
    arguments = linear_problem(rng, images, *LINEAR_LAYERS[layer], dtype)
    check_linear(*map(LAYOUTS[layout], arguments))


def test_linear_lets_nan_through(rng):
    x, weight, bias, grad = linear_problem(rng, 3, 2 * ROWS[-1], 2 * LANES, np.float32)
    x[1, 5] = weight[2, 3] = grad[0, 1] = np.nan
    check_linear(x, weight, bias, grad)


# --- memory ---------------------------------------------------------------------------------------


def extra_bytes(kernel, *arguments):
    """Return a kernel's peak memory beside its results."""
    kernel(*arguments)  # compile
    tracemalloc.start()
    result = kernel(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - result.nbytes


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_convolution_needs_no_column_buffer_of_the_batch(rng, layer):
    """The workspace stays within its bound, which does not know the size of the batch."""
    x, weight, bias, grad, geometry = conv_problem(rng, layer, 16)
    x, grad = (as_nchw(channels_last(a)) for a in (x, grad))
    threads = tinyalex.threads.get_num_threads()
    column = weight[0].nbytes
    columns_of_batch = grad.shape[0] * grad.shape[2] * grad.shape[3] * column * geometry.groups
    bound = threads * max(im2col.BLOCK_BYTES, im2col.MIN_PIXELS * column) + 100_000

    assert bound < columns_of_batch / 4
    bound += weight.nbytes
    assert extra_bytes(im2col.forward, x, weight, bias, geometry) < bound
    assert extra_bytes(im2col.input_grad, grad, weight, x.shape, geometry) < bound
    bound += weight.nbytes * max(threads, 2)
    assert extra_bytes(im2col.weight_grad, grad, x, weight.shape, geometry) < bound


def test_other_kernels_allocate_their_results_only(rng):
    x = normal(rng, (4, 13, 13, 96), np.float32).transpose(0, 3, 1, 2)
    small, norm = 100_000, NormOptions(5, 1e-4, 0.75, 2.0)
    assert extra_bytes(cpu.relu, x) < small
    assert extra_bytes(cpu.relu_input_grad, x, x) < small
    assert extra_bytes(cpu.local_response_norm, x, norm) < small
    assert extra_bytes(cpu.local_response_norm_input_grad, x, x, norm) < small


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=two_cores)])
def test_same_bits_every_time_at_a_fixed_number_of_threads(rng, threads, count):
    threads(count)
    problem = conv_problem(rng, (8, 27, 16, 5, 1, 2, 2), 5)
    first = conv_kernels(cpu, *problem)
    for _ in range(5):
        for name, again in conv_kernels(cpu, *problem).items():
            np.testing.assert_array_equal(again, first[name], err_msg=name)


@two_cores
def test_any_number_of_threads_computes_the_same(rng, threads):
    problem = conv_problem(rng, (8, 27, 16, 5, 1, 2, 1), 5, np.float64)
    threads(1)
    expected = conv_kernels(cpu, *problem)
    threads(2)
    for name, actual in conv_kernels(cpu, *problem).items():
        assert_close(actual, expected[name], what=name)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=two_cores)])
def test_blas_inside_the_kernels_has_one_thread(threads, count):
    threads(count)
    libraries = {
        i["filepath"]: i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"
    }
    inside = {path: n for path, n in libraries.items() if "scipy" in path.split(os.sep)[-2]}
    assert set((inside or libraries).values()) == {1}


def test_two_python_threads_may_call_kernels_at_once(rng):
    problems = [conv_problem(rng, (8, 13, 16, 3, 1, 1, 1), 8) for _ in range(2)]
    expected = [conv_kernels(cpu, *problem)["y"] for problem in problems]
    if "workqueue" in tinyalex.threads.description():
        pytest.skip("Numba's own thread pool admits one caller at a time")
    failures = []

    def work(problem, y):
        for _ in range(20):
            if not np.array_equal(cpu.conv2d(*problem[:3], problem[4]), y):
                failures.append(y)

    workers = [
        threading.Thread(target=work, args=pair) for pair in zip(problems, expected, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


# --- compilation ----------------------------------------------------------------------------------

# One loop over the threads: there is not much to compile.
CHECK = """
import numpy as np
from tinyalex.backends import cpu
x = np.random.default_rng(0).standard_normal(100_000)
np.testing.assert_array_equal(cpu.relu(x), np.maximum(x, 0))
print("agrees")
"""


def test_works_where_no_directory_for_the_cache_is_writable(tmp_path):
    occupied = tmp_path / "file"
    occupied.touch()
    only = "UserProvidedCacheLocator"
    environment = {"NUMBA_CACHE_DIR": str(occupied / "cache"), "NUMBA_CACHE_LOCATOR_CLASSES": only}
    assert run_python(CHECK, **environment).endswith("agrees\n")


# By im2col and by Winograd, both with memory for each thread: shared, it shows in a few tries.
CONVOLUTIONS = """
import numpy as np
from tinyalex.backends import cpu, reference
from tinyalex.backends.geometry import ConvOptions
draw = np.random.default_rng(0).standard_normal
for groups, channels in (2, 2), (1, 16):
    options = ConvOptions(padding=((1, 1), (0, 2)), groups=groups)
    x, weight = draw((32, channels * groups, 19, 19)), draw((16, channels, 3, 3))
    expected = reference.conv2d(x, weight, None, options)
    for _ in range(20):
        y = cpu.conv2d(x.astype("f"), weight.astype("f"), None, options)
        np.testing.assert_allclose(y, expected, atol=1e-4)
print("agrees")
"""


def test_convolutions_work_with_numbas_own_thread_pool():
    assert run_python(CONVOLUTIONS, NUMBA_THREADING_LAYER="workqueue").endswith("agrees\n")


def test_works_with_a_numba_that_lacks_the_strided_blas(tmp_path):
    code = """
import numpy as np, numba
from numba import _helperlib
numba.njit(lambda a: np.dot(a, a))(np.eye(2))  # Numba itself keeps its way to BLAS
del _helperlib.c_helpers["xxgemm"]
from tinyalex.backends.cpu.gemm import HAS_STRIDED_BLAS, gemm
assert not HAS_STRIDED_BLAS
for flags in (True, False, True), (False, True, False):
    whole = np.random.default_rng(0).standard_normal((3, 9, 8))
    a, b, c = whole[:, 1:6, 2:7]
    expected = (a.T if flags[0] else a) @ (b.T if flags[1] else b) + (c if flags[2] else 0)
    gemm(a, b, c, *flags)
    np.testing.assert_allclose(c, expected, atol=1e-12)
print("agrees")
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).endswith("agrees\n")


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(5, 7, 3), (1, 4, 6), (4, 1, 1), (1, 1, 0)])
def test_gemm_on_parts_of_matrices(rng, dtype, m, n, k, transpose_a, transpose_b, accumulate):
    def part(rows, columns):
        return normal(rng, (rows + 2, columns + 3), dtype)[1 : 1 + rows, 2 : 2 + columns]

    a, b = (part(k, m) if transpose_a else part(m, k)), (part(n, k) if transpose_b else part(k, n))
    whole = normal(rng, (m + 2, n + 3), dtype)
    c = whole[1 : 1 + m, 2 : 2 + n]
    expected = whole.copy()
    product = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    expected[1 : 1 + m, 2 : 2 + n] = product + (c if accumulate else 0)
    gemm(a, b, c, transpose_a, transpose_b, accumulate)
    assert_close(whole, expected)
