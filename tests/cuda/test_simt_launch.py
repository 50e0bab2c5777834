"""CUDA names and launches of the shim: shuffles, mathematics, arguments, limits."""

import ml_dtypes
import numpy as np
import pytest
from helpers import run_python
from simt import build
from simt.trying import in_every_way, kernel

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch

pytestmark = pytest.mark.usefixtures("standin")

i32, f32 = np.int32, np.float32


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("__shfl_sync(ALL, v, 5)", lambda i: 5),
        ("__shfl_sync(ALL, v, i + 1, 8)", lambda i: i // 8 * 8 + (i + 1) % 8),
        ("__shfl_up_sync(ALL, v, 3)", lambda i: i - 3 if i >= 3 else i),
        ("__shfl_down_sync(ALL, v, 3)", lambda i: i + 3 if i < 29 else i),
        ("__shfl_down_sync(ALL, v, 2, 4)", lambda i: i + 2 if i % 4 < 2 else i),
        ("__shfl_xor_sync(ALL, v, 17)", lambda i: i ^ 17),
        ("i < 16 ? __shfl_xor_sync(0xffffu, v, 1) : v", lambda i: i ^ 1 if i < 16 else i),
        ("__popc(__ballot_sync(ALL, i % 3 == 0) & 0xff)", lambda i: 3),
        ("__any_sync(ALL, i == 9) + __any_sync(ALL, i < 0)", lambda i: 1),
        ("__all_sync(ALL, i < 32) + __all_sync(ALL, i < 9)", lambda i: 1),
        ("__syncthreads_count(threadIdx.x % 5 == 0)", lambda i: 13),
        ("__syncthreads_or(threadIdx.x == 63) + __syncthreads_or(i > 31)", lambda i: 1),
        ("__syncthreads_and(i < 32) + __syncthreads_and(threadIdx.x < 63)", lambda i: 1),
    ],
)
def test_exchanges(standin, call, expected):
    code = f"""
    constexpr unsigned ALL = 0xffffffffu;
    extern "C" __global__ void k(float* out) {{
      const int i = threadIdx.x % 32;
      const float v = i;
      out[threadIdx.x] = {call};
    }}"""

    def launch():
        out = standin.empty(64, f32)
        kernel(code)((1,), (64,), (out,))
        return out.get()

    for out in in_every_way(launch).values():
        assert np.array_equal(out, [expected(i) for i in range(32)] * 2)


def test_a_lane_that_is_not_there_gives_nan(standin):
    code = """extern "C" __global__ void k(float* out) {
      out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 16);
    }"""
    out = standin.zeros(20, f32)
    kernel(code)((1,), (20,), (out,))
    assert np.array_equal(np.isnan(out.get()), (np.arange(20) >= 4) & (np.arange(20) < 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("__shfl_xor_sync(0xfu, 1.0f, 1)", r"lane 4 meets others under mask 0x0000000f"),
        (
            "threadIdx.x < 9 ? __shfl_sync(0xffffffffu, 1.0f, 0) : __any_sync(0xffffffffu, 1)",
            "different instructions",
        ),
    ],
)
def test_lanes_must_agree(standin, call, message):
    code = f'extern "C" __global__ void k(float* out) {{ out[threadIdx.x] = {call}; }}'
    with pytest.raises(build.LaunchError, match=message):
        kernel(code)((1,), (32,), (standin.zeros(32, f32),))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("max(NAN, 1.0f) + max(1.0f, NAN) + min(1.0, (double)NAN) + fmaxf(NAN, 1.0f)", 4),
        ("max(-3, 2) + min(7u, 9u)", 9),
        ("__umulhi(0x80000000u, 6u) + __mul64hi(1ll << 62, 12ll)", 6),
        ("__popc(255u) + __clz(1) + __ffs(8)", 8 + 31 + 4),
        ("__uint_as_float(__float_as_uint(2.5f) ^ 0x80000000u)", -2.5),
        ("rsqrtf(0.25f) + __expf(0.0f) + __powf(2.0f, 3.0f) + fmaf(2.0f, 3.0f, 4.0f)", 21),
        ("sizeof(float4) + alignof(int2) + make_uchar4(1, 2, 3, 4).w", 28),
    ],
)
def test_mathematics(standin, expression, value):
    code = f'extern "C" __global__ void k(double* out) {{ out[0] = {expression}; }}'
    out = standin.zeros(1)
    kernel(code)((1,), (1,), (out,))
    assert out.get()[0] == value


PARAMETERS = """
struct Shape { int rows, columns; };
struct bfloat16 { unsigned short bits; };
extern "C" __global__ void k(const float* x, int n, double s, Shape shape, unsigned long long key,
                             const bfloat16* half) {
  const_cast<float*>(x)[0] = n + s + 10 * shape.rows + 100 * shape.columns + key;
}"""
SHAPE = np.array([(3, 4)], [("rows", i32), ("columns", i32)])
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def test_arguments_arrive(standin):
    x = standin.zeros(1, f32)
    kernel(PARAMETERS)((1,), (1,), (x, i32(1), 0.5, SHAPE, 2, standin.zeros(1, BFLOAT16)))
    assert x.get()[0] == 433.5


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, np.zeros(1, f32), "lies on the host"),
        (0, "double", "an array of float64"),
        (0, "half", "an array of bfloat16"),
        (1, 7, "int64 of 8 bytes, the parameter int of 4"),
        (1, f32(7), "float32 of 4 bytes, the parameter int"),
        (2, f32(7), "float32 of 4 bytes, the parameter float of 8"),
        (3, i32(7), "the parameter struct of 8 bytes"),
        (3, SHAPE.astype([("rows", np.int64), ("columns", np.int64)]), "of 16 bytes"),
        (4, "array", "is an array, the parameter unsigned"),
        (4, "text", "unsupported type str"),
        (5, "array", "an array of float32, the parameter a pointer to struct of 2 bytes"),
    ],
)
def test_a_wrong_argument_is_refused(standin, position, wrong, message):
    arrays = {"double": np.float64, "array": f32, "half": BFLOAT16}
    right = [standin.zeros(1, f32), i32(1), 0.5, SHAPE, 2, standin.zeros(1, BFLOAT16)]
    is_array = isinstance(wrong, str) and wrong in arrays
    right[position] = standin.zeros(1, arrays[wrong]) if is_array else wrong
    with pytest.raises(TypeError, match=f"k: argument {position}.*{message}"):
        kernel(PARAMETERS)((1,), (1,), right)
    with pytest.raises(TypeError, match="4 arguments for 6 parameters"):
        kernel(PARAMETERS)((1,), (1,), right[:4])


TWO_ARRAYS = """
constexpr int THREADS = 64;
extern "C" __global__ void __launch_bounds__(THREADS, 2) k(int* out, int n) {
  extern __shared__ float dynamic[];
  __shared__ float some[8000];
  some[0] = dynamic[0] = 1.0f;
  if (n > 0) {
    __shared__ float more[8000];
    more[0] = 1.0f;
  }
}"""


@pytest.mark.parametrize(
    ("grid", "block", "shared", "n", "message"),
    [
        ((1,), (65,), 0, 0, "65 threads; its __launch_bounds__ allow 64"),
        ((1,), (1025,), 0, 0, "block .1025, 1, 1."),
        ((1,), (2, 513), 0, 0, "1026 threads; at most 1024"),
        ((1, 65536), (1,), 0, 0, "grid .1, 65536, 1."),
        ((0,), (1,), 0, 0, "grid .0, 1, 1."),
        ((1,), (1,), 100_001, 0, "100001 bytes of dynamic.*is 100000"),
        ((1,), (1,), 0, 1, "64000 bytes of static shared memory; at most 49152"),
    ],
)
def test_a_launch_beyond_the_limits_is_refused(grid, block, shared, n, message):
    launch = kernel(TWO_ARRAYS)
    launch.max_dynamic_shared_size_bytes = 100_000
    launch((1,), (64,), (None, i32(0)), shared_mem=100_000)
    with pytest.raises(build.LaunchError, match=message):
        launch(grid, block, (None, i32(n)), shared_mem=shared)


def test_much_shared_memory_must_be_asked_for():
    launch = kernel(TWO_ARRAYS)
    with pytest.raises(build.LaunchError, match="max_dynamic_shared_size_bytes is 49152"):
        launch((1,), (1,), (None, i32(0)), shared_mem=49153)
    with pytest.raises(build.LaunchError, match="at most 232448"):
        launch.max_dynamic_shared_size_bytes = 232449
    launch.max_dynamic_shared_size_bytes = 232448
    with pytest.raises(build.LaunchError, match="264448 bytes of shared memory; at most 232448"):
        launch((1,), (1,), (None, i32(0)), shared_mem=232448)


def test_what_does_not_compile_is_named(monkeypatch, tmp_path):
    with pytest.raises(build.CompileError, match=r"test.cu:2:.*nonsense"):
        kernel('extern "C" __global__ void k() {\n nonsense;\n}')
    with pytest.raises(build.LaunchError, match="named symbol not found: other"):
        kernel('extern "C" __global__ void k() {}', "other")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.CompileError, match="needs Linux and g"):
        kernel('extern "C" __global__ void k(int unseen) {}')


def test_comments_and_macros_are_no_kernels(standin):
    code = """
    // extern "C" __global__ void commented(int n) {
    /* __shared__ float commented[3]; */
    #define VALUE 7  // extern "C"
    extern "C" __global__ void k(int* out) { out[0] = VALUE; }"""
    out = standin.zeros(1, i32)
    kernel(code)((1,), (1,), (out,))
    assert out.get()[0] == 7


def test_processes_may_compile_the_same_at_once(tmp_path):
    code = f"""
import multiprocessing, pathlib, sys
sys.path.insert(0, {str(build.compiler.HERE.parent)!r})
from simt import compiler
def compiled(_):
    code = 'extern "C" __global__ void k() {{}}'
    return compiler.compile_module(code, "quick", folder=pathlib.Path({str(tmp_path)!r}))
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(len(set(pool.map(compiled, range(3), chunksize=1))))
"""
    assert run_python(code) == "1\n"
    kept = sorted(path.suffix for path in tmp_path.iterdir())
    assert kept == [".gch", ".o", ".o", ".so"]  # the header, the engine, the kernel


TEMPLATE = """
constexpr int FOUR = 4;
template <class T, int N>
__global__ void __launch_bounds__(N * FOUR, 2) fill(T* x) { x[threadIdx.x] = N; }
"""


def test_instances_of_a_template_are_known_by_name(standin):
    names = "fill<float, 8>", "fill<double, FOUR>"
    module = standin.RawModule(code=TEMPLATE, options=("-std=c++17",), name_expressions=names)
    for name, dtype, value in zip(names, (f32, np.float64), (8, 4), strict=True):
        filled, fill = standin.zeros(4 * value, dtype), module.get_function(name)
        assert fill.max_threads_per_block == 4 * value
        fill((1,), (4 * value,), (filled,))
        assert np.array_equal(filled.get(), np.full(4 * value, value))
    with pytest.raises(build.LaunchError, match="not found: fill<float, 4>"):
        module.get_function("fill<float, 4>")


def test_an_instance_takes_arrays_of_its_type(standin):
    factor, dweight = (standin.zeros((1, 8), np.float32) for _ in range(2))
    args = factor, factor, dweight, ConvShape(*[1] * 17), 1
    with pytest.raises(TypeError, match=r"argument 0 \(bfloat16\*\) expects bfloat16, got float32"):
        launch(
            "conv_wgmma.cu",
            "conv_weight_grad<WarpgroupTile<bfloat16, 128, 256>>",
            (1,),
            (256,),
            args,
        )


def test_instances_want_a_standard_of_the_language(standin):
    with pytest.raises(ValueError, match="need to specify C"):
        standin.RawModule(code=TEMPLATE, name_expressions=("fill<float, 8>",))
