"""Loops that only read the L2 cache, or only multiply.

What they reach is above what any kernel of `mma.sync` and `cp.async` can, and says by what a
convolution is held up: its bytes through the L2 cache, or its products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyalex.backends.cuda import launch
from tinyalex.backends.gpu import cupy, multiprocessors

THREADS = 128
BLOCKS = 8  # per multiprocessor
READ = 16 << 20  # bytes that every round reads: a third of an H100's L2 cache
READ_L2 = """
// Four copies of 16 bytes per thread are a group, and three groups are on their way.
extern "C" __global__ void read_l2(const float* from, int quads, int rounds) {
  __shared__ __align__(16) float landed[3][4][4 * 128];
  const int step = 4 * gridDim.x * 128;
  int stage = 0;
  for (int round = 0; round < rounds; ++round)
    for (int first = 4 * blockIdx.x * 128 + threadIdx.x; first < quads; first += step) {
      for (int i = 0; i < 4; ++i) {
        const int quad = first + i * 128;
        cp_async<16>(&landed[stage][i][4 * threadIdx.x], from + 4 * quad,
                     quad < quads ? 16 : 0);
      }
      cp_async_commit();
      cp_async_wait<2>();
      stage = stage == 2 ? 0 : stage + 1;
    }
  cp_async_wait<0>();
}
"""
MULTIPLY = """
// Eight products that do not wait for each other, of numbers from 1 to 2 and -2 to -1: zeros and
// denormals would cost less power. As bits they are numbers in either format.
extern "C" __global__ void multiply_WORD(int rounds, float* out) {
  float d[8][4] = {};
  const unsigned x = 0x3f803f80u + threadIdx.x * 0x10001u;
  unsigned a[4] = {x, x ^ 0x802a802au, x ^ 0x00550055u, x ^ 0x807f807fu}, b[2] = {a[2], a[1]};
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int i = 0; i < 8; ++i) MMA(d[i], a, b);
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  out[blockIdx.x * 128 + threadIdx.x] = sum;
}
"""
WARPS = THREADS // 32
# Wrapper of the instruction, and its operations.
PRODUCTS = {
    "tf32": ("mma_m16n8k8_tf32", 2 * 16 * 8 * 8),
    "bf16": ("mma_m16n8k16_bf16", 2 * 16 * 8 * 16),
}


def source() -> str:
    """Return the CUDA source of all loops."""
    texts = [MULTIPLY.replace("WORD", w).replace("MMA", mma) for w, (mma, _) in PRODUCTS.items()]
    return "".join([launch.read_source("ptx.cuh"), READ_L2, *texts])


def rates(scale: int, seconds: Callable[[Callable[[], Any]], float]) -> dict[str, float]:
    """Return the bytes or operations per second of each loop.

    ``scale`` divides the work; ``seconds`` measures a call.
    """
    xp = cupy()
    module = xp.RawModule(code=source(), options=("-std=c++17",))
    blocks = max(1, BLOCKS * multiprocessors() // scale**2)
    grid, block = (blocks,), (THREADS,)
    numbers = xp.empty(READ // 4 // scale**2, np.float32)
    numbers[...] = 0
    rounds = 1 + 63 // scale
    read = module.get_function("read_l2")
    arguments = numbers, np.int32(numbers.size // 4), np.int32(rounds)
    found = {"L2": numbers.nbytes * rounds / seconds(lambda: read(grid, block, arguments))}
    out = xp.empty(blocks * THREADS, np.float32)
    rounds = 1 + 4095 // scale**2
    for kind, (_, operations) in PRODUCTS.items():
        multiply = module.get_function(f"multiply_{kind}")
        work = blocks * WARPS * rounds * 8 * operations
        passed = seconds(lambda multiply=multiply: multiply(grid, block, (np.int32(rounds), out)))
        found[f"mma.sync {kind}"] = work / passed
    return found
