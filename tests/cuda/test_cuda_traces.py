"""Memory use of kernels: bank conflicts and sectors, counted during exercises.

A ratio of 1 is ideal. The exercises are tiny and odd on purpose, so that rows begin anywhere in a
sector and end early; the bounds leave room for that, and none for a warp whose lanes read from all
over (4 for floats and more) or for a column of a tile without padding (32).
"""

from fnmatch import fnmatch

import numpy as np
import pytest
from simt import build, exercises, run, traces
from simt.trying import kernel

pytestmark = pytest.mark.usefixtures("standin")

# The first that fits counts.
BOUNDS = (
    ("*", "shared", 1.05),
    # What the steps after it mend: neighbours in a warp work on filters that lie far apart.
    ("conv_forward_naive<*", "global", 5.2),
    ("conv_*_naive<*", "global", 2.7),
    # Windows of photographs: 88 bytes in a row of bfloat16, beginning anywhere. Halves of sectors.
    ("conv_*<WarpgroupTile<*, 4>>", "global", 2.3),
    # Tiles that reach over the end of few filters, and split sums of a few of them.
    ("conv_*", "global", 2.0),
    # Windows of few pixels and few channels. (Arrays here begin at 16 bytes, on a device at 256:
    # some ratios vary by a fifth from run to run.)
    # In bfloat16 a few channels fill half as much of the sectors that they lie in.
    ("norm_max_pool<bfloat16>", "global", 4.2),
    ("max_pool*<bfloat16>", "global", 2.8),
    ("norm_max_pool[<_]*", "global", 3.2),
    ("max_pool[<_]*", "global", 2.1),
    ("col2im<*", "global", 2.7),
    # Four doubles are two accesses, each of which uses half of its sectors.
    ("*<double>", "global", 2.2),
    # A warp's 64 bytes that begin anywhere touch three sectors, not two.
    ("*<bfloat16>", "global", 2.1),
    # 128 bytes that begin anywhere touch five sectors, not four; ends of rows do the rest.
    ("*", "global", 1.7),
)


def bound(kernel_name, space):
    """Return the largest ratio that this kernel may have."""
    fitting = (most for name, of, most in BOUNDS if of == space and fnmatch(kernel_name, name))
    return next(fitting)


def test_kernels_waste_little():
    run.prepare("trace")
    tracer = traces.trace_exercises()
    lines = tracer.lines()
    with build.using(mode="trace"):
        entries = {name for _, name in exercises.launched()}
    assert {line.kernel for line in lines} == entries
    wasteful = [
        f"{line.kernel}, {line.space}: {line.ratio:.2f} times the least, bound "
        f"{bound(line.kernel, line.space)}; worst at {line.place}"
        for line in traces.by_kernel(lines).values()
        if line.ratio > bound(line.kernel, line.space)
    ]
    assert not wasteful, "\n".join(wasteful)


TRANSPOSE = """
extern "C" __global__ void k(const float* x, float* y) {
  __shared__ float tile[32][WIDTH];
  tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
  __syncthreads();
  y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
"""


def traced(standin, code, block=(32, 32), size=1024, offset=0):
    """Return {(memory, line): traffic} of a launch on arrays that begin at a sector."""
    tracer = traces.Tracer()
    x, y = (_at_a_sector(standin.zeros(size + 16, np.float32)) for _ in range(2))
    with build.using(mode="trace", observer=tracer):
        kernel(code)((1,), block, (x[offset:], y))
    return {(line.space, int(line.place.split(":")[1])): line for line in tracer.lines()}


def _at_a_sector(array):
    return array[-array.data.ptr % 32 // 4 :]


@pytest.mark.parametrize(("width", "ratio"), [(32, 32), (33, 1), (36, 4)])
def test_bank_conflicts_are_counted(standin, width, ratio):
    found = traced(standin, TRANSPOSE.replace("WIDTH", str(width)))
    assert found["shared", 6].ratio == ratio
    assert found["shared", 4].ratio == 1
    assert found["global", 6].moved == found["global", 6].least == 128
    assert found["global", 6].place == "test.cu:6"


@pytest.mark.parametrize(
    ("index", "offset", "ratio"),
    [("i", 0, 1), ("i", 1, 5 / 4), ("4 * i", 0, 4), ("8 * i", 0, 8), ("i / 32", 0, 1)],
)
def test_sectors_are_counted(standin, index, offset, ratio):
    code = f"""extern "C" __global__ void k(const float* x, float* y) {{
      const int i = threadIdx.x;
      y[i] = x[{index}];
    }}"""
    found = traced(standin, code.replace("y[i] =", "\ny[i] =\n"), (32,), offset=offset)
    assert found["global", 5].ratio == ratio
    assert found["global", 4].ratio == 1


def test_four_floats_are_one_access(standin):
    code = """
    struct alignas(16) Four { float at[4]; };
    extern "C" __global__ void k(const float* x, float* y) {
      __shared__ __align__(16) float tile[32][4];
      const int i = threadIdx.x;
      const float4 v = *reinterpret_cast<const float4*>(x + 4 * i);
      *reinterpret_cast<float4*>(tile[i]) = make_float4(v.w, v.x, v.y, v.z);
      Four four = *reinterpret_cast<const Four*>(tile[i ^ 1]);
      four.at[2] += v.x;
      *reinterpret_cast<Four*>(y + 4 * i) = four;
    }"""
    found = traced(standin, code, (32,))
    assert [found[key].requests for key in sorted(found)] == [1, 1, 1, 1]
    assert [found[key].moved for key in sorted(found)] == [16, 16, 4, 4]
    assert all(line.ratio == 1 for line in found.values())
