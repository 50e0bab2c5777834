"""The shim for CUDA kernels: threads, barriers, shared memory, asynchronous copies.

Each kernel here is right or wrong on purpose; the wrong ones must show.
"""

import numpy as np
import pytest
from simt import build
from simt.trying import in_every_way, kernel

pytestmark = pytest.mark.usefixtures("standin")

i32, f32 = np.int32, np.float32


REVERSE = """
template <int SIZE> __device__ void reverse(const float* x, float* y) {
  __shared__ float tile[SIZE];
  for (int round = 0; round < 3; ++round) {
    const int i = (round * gridDim.x + blockIdx.x) * SIZE + threadIdx.x;
    tile[threadIdx.x] = x[i];
    __syncthreads();
    y[i] = tile[SIZE - 1 - threadIdx.x];
    __syncthreads();
  }
}
extern "C" __global__ void __launch_bounds__(128) k(const float* x, float* y) {
  reverse<128>(x, y);
}
"""
BARRIER = "    __syncthreads();\n"
FIRST_REMOVED = REVERSE.replace(BARRIER, "", 1)
SECOND_REMOVED = BARRIER.join(REVERSE.rsplit(BARRIER, 1)[:1]) + REVERSE.rsplit(BARRIER, 1)[1]


def reversed_in_every_way(cupy, code):
    x = np.arange(3 * 2 * 128, dtype=f32)
    expected = x.reshape(-1, 128)[:, ::-1].reshape(-1)

    def launch():
        y = cupy.empty(x.shape, f32)
        kernel(code)((2,), (128,), (cupy.asarray(x), y))
        return np.array_equal(y.get(), expected)

    return list(in_every_way(launch).values())


def test_every_schedule_computes_the_same(standin):
    assert all(reversed_in_every_way(standin, REVERSE))


@pytest.mark.parametrize("code", [FIRST_REMOVED, SECOND_REMOVED])
def test_some_schedule_shows_a_missing_barrier(standin, code):
    assert code.count("__syncthreads") == 1
    assert not all(reversed_in_every_way(standin, code))


def test_a_build_for_any_machine_computes_the_same(standin):
    with build.using(mode="portable"):
        assert all(reversed_in_every_way(standin, REVERSE))


@pytest.mark.parametrize(
    ("schedule", "order"),
    [
        # The last thread at a barrier resumes at once: the reversed order is no mirror image.
        ("greedy", [0, 1, 0, 1, 32, 33, 32, 33]),
        ("reversed", [33, 32, 32, 33, 1, 0, 0, 1]),
        ("in turns", [0, 1, 32, 33, 0, 1, 32, 33]),
    ],
)
def test_schedules(standin, schedule, order):
    code = """extern "C" __global__ void k(int* out, int* count) {
      if (threadIdx.x % 32 > 1) return;
      for (int i = 0; i < 2; ++i) {
        out[(*count)++] = threadIdx.x;
        __syncwarp();
      }
    }"""
    out = standin.zeros(8, i32)
    with build.using(schedule=schedule):
        kernel(code)((1,), (64,), (out, standin.zeros(1, i32)))
    assert np.array_equal(out.get(), order)


def test_indices(standin):
    code = """
    extern "C" __global__ void k(int* out) {
      const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] += thread * 1000 + block;
    }"""
    out = standin.zeros((24, 30), i32)
    kernel(code)((2, 3, 4), (5, 3, 2), (out,))
    assert np.array_equal(out.get(), np.arange(30) * 1000 + np.arange(24)[:, None])


def test_shared_memory_is_nan_until_written_in_every_block(standin):
    code = """
    template <class T> __device__ float unwritten() {
      __shared__ T one, many[3][5];
      const float sum = one + many[2][4];
      one = many[2][4] = 1;
      return sum;
    }
    extern "C" __global__ void k(float* out) {
      extern __shared__ __align__(16) float dynamic[];
      out[2 * blockIdx.x] = unwritten<float>();
      out[2 * blockIdx.x + 1] = dynamic[7];
      dynamic[7] = 1.0f;
    }"""
    out = standin.zeros(6, f32)
    kernel(code)((3,), (1,), (out,), shared_mem=32)
    assert np.isnan(out.get()).all()


def test_a_deadlock_is_an_error(standin):
    code = """extern "C" __global__ void k(int* out) {
      int all = 1;
      if (threadIdx.x < blockIdx.x * 16)
        __syncthreads();
      else
        all = __all_sync(0xffffffffu, 1);
      out[threadIdx.x] = all;
    }"""
    message = r"deadlock in block \(1, 0, 0\): 16 of 96 threads wait at the barrier of test.cu:4"
    launch, out = kernel(code), standin.zeros(96, i32)
    with pytest.raises(build.LaunchError, match=message):
        launch((2,), (96,), (out,))
    launch((1,), (96,), (out,))  # and the shim still works
    assert (out.get() == 1).all()


def test_threads_must_meet_at_the_same_barrier():
    code = """extern "C" __global__ void k() {
      if (threadIdx.x < 32)
        __syncthreads();
      else
        __syncthreads();
    }"""
    with pytest.raises(build.LaunchError, match=r"different barriers, test.cu:3 and test.cu:5"):
        kernel(code)((1,), (64,), ())


def test_threads_that_returned_are_not_waited_for(standin):
    code = """extern "C" __global__ void k(int* out, int n) {
      if (threadIdx.x >= n) return;
      const unsigned here = __ballot_sync(0xffffffffu, 1);
      __syncthreads();
      __syncwarp();
      out[threadIdx.x] = __popc(here);
    }"""

    def launch():
        out = standin.zeros(64, i32)
        kernel(code)((1,), (64,), (out, i32(37)))
        return out.get()

    for out in in_every_way(launch).values():
        assert np.array_equal(out, [32] * 32 + [5] * 5 + [0] * 27)


COPY = """
extern "C" __global__ void k(const float* x, float* y) {
  __shared__ __align__(16) float ring[2][4];
  simt::cp_async(ring[0], x, 16, 16);
  simt::cp_commit();
  for (int i = 0; i < 3; ++i) {
    if (i < 2) simt::cp_async(ring[(i + 1) % 2], x + 4 * (i + 1), 16, 16);
    simt::cp_commit();
    simt::cp_wait(1);
    for (int j = 0; j < 4; ++j) y[4 * i + j] = ring[i % 2][j];
  }
  simt::cp_async(ring[0], x, 16, 12);
  simt::cp_commit();
  simt::cp_wait(0);
  y[12] = ring[0][3];
}"""


@pytest.mark.parametrize(
    ("code", "right_when"),
    [
        (COPY, {"lazy", "eager"}),
        (COPY.replace("simt::cp_wait(1)", ""), {"eager"}),
        (COPY.replace("(i + 1) % 2", "i % 2"), set()),
        (COPY.replace("simt::cp_wait(1)", "simt::cp_wait(2)"), {"eager"}),
    ],
    ids=["right", "no wait", "one buffer", "waits for too little"],
)
def test_asynchronous_copies_land_late_or_early(standin, code, right_when):
    x = np.arange(12, dtype=f32)

    def launch():
        y = standin.empty(13, f32)
        kernel(code)((1,), (1,), (standin.asarray(x), y))
        return np.array_equal(y.get(), [*x, 0])

    right = {copies for (_, copies), right in in_every_way(launch).items() if right}
    assert right == right_when


def test_a_misaligned_copy_is_an_error(standin):
    code = COPY.replace("ring[0], x,", "ring[0], x + 1,")
    with pytest.raises(build.LaunchError, match="16 bytes that are not aligned"):
        kernel(code)((1,), (1,), (standin.zeros(16, f32), standin.zeros(16, f32)))
