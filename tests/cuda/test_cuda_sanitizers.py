"""All kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

NumPy's arrays, which stand in for those on a device, and the shared arrays of a block have red
zones round them; a fiber is a thread, and barriers are what orders them. Planted faults must be
reported, or silence would mean nothing.
"""

import pytest
from simt import run

from tinyalex.backends.cuda import launch

pytestmark = pytest.mark.usefixtures("standin")

# The tile belongs to the block; in `mine` a warp keeps what it alone reads. The last of both blocks
# adds up what they have written.
SOUND = (
    (launch.source_folder() / "last_block.cuh").read_text()
    + """
extern "C" __global__ void k(const float* x, float* y, int one, float* parts, unsigned* arrived) {
  __shared__ __align__(16) float tile[64], mine[64];
  extern __shared__ float ring[];
  const int i = threadIdx.x;
  tile[i] = x[i];
  ring[i] = mine[i] = 1.0f;
  __syncwarp();
  const float neighbour = mine[i ^ 1];
  __syncthreads();
  const float4 four = *reinterpret_cast<const float4*>(tile + i / 4 * 4);
  parts[blockIdx.x * 64 + i] = four.x + ring[63 - i] + neighbour;
  if (last_to_arrive(arrived, gridDim.x)) y[i] = parts[63 - i] + parts[127 - i];
}
"""
)
LAUNCH = """
import sys
from simt import build, standin
standin.install()
import cupy
with build.using(mode=sys.argv[1]):
    kernel = build.RawModule(code=sys.argv[2]).get_function("k")
    x, y, parts = (cupy.zeros(size, "float32") for size in (64, 64, 128))
    arrived = cupy.zeros(1, "uint32")
    for _ in range(2):
        kernel((2,), (64,), (x, y, build.np.int32(1), parts, arrived), shared_mem=256)
        assert y.sum() == 64 * 4, y
"""
PLANTED = {
    "load past an array": ("address", "x[i]", "x[i + one]", "heap-buffer-overflow"),
    "store past an array": ("address", "y[i]", "y[i + one]", "heap-buffer-overflow"),
    "past dynamic shared memory": ("address", "ring[i]", "ring[i + one]", "use-after-poison"),
    "past a static shared array": ("address", "tile[i] =", "*(tile + i + one) =", "after-poison"),
    "past a row of it": ("address", "tile[i] =", "tile[i + one] =", "index 64 out of bounds"),
    "misaligned": ("address", "i / 4 * 4", "i / 4 * 4 + one", "misaligned address"),
    "no barrier": ("thread", "  __syncthreads();\n  const float4", "  const float4", "data race"),
    "no barrier before the count": ("thread", "__syncthreads();  // all", "// all", "data race"),
    "no barrier after it": ("thread", "syncthreads_or(", "any_sync(~0u, ", "data race"),
    "no fence before it": ("thread", "__threadfence();  // which", "// which", "data race"),
    "no fence after it": ("thread", "__threadfence();  // what", "// what", "data race"),
    "no barrier in a warp": ("thread", "__syncwarp();", "", "data race"),
    "a shuffle is no barrier": ("thread", "__syncwarp();", "__any_sync(~0u, i);", "data race"),
}


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_no_kernel_is_reported(mode):
    run.prepare(mode)
    status, output = run.run(mode, "--schedule", "greedy")
    assert status == 0, output
    assert "Sanitizer" not in output and "runtime error" not in output, output  # noqa: PT018


@pytest.mark.parametrize("mode", ["address", "thread"])
def test_sound_code_is_not_reported(mode):
    assert run.python(mode, "-c", LAUNCH, mode, SOUND) == (0, "")


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_reported(fault):
    mode, right, wrong, message = PLANTED[fault]
    code = SOUND.replace(right, wrong, 1)
    assert code != SOUND
    status, output = run.python(mode, "-c", LAUNCH, mode, '#line 1 "planted.cu"\n' + code)
    assert message in output
    assert "planted.cu:" in output
    assert status == run.REPORTED
