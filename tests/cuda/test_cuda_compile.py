"""Kernels compile for their GPUs and stay within resource limits."""

import importlib
import os
import re
import shutil
import subprocess
from itertools import product

import pytest
from simt import resources

from gpu import loops
from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv.tiles import IMAGES, MMA_SYNC, TILES, WGMMA

FILES = sorted(path.name for path in launch.source_folder().glob("*.cu"))


@pytest.fixture(autouse=True)
def nvrtc():
    """Return CuPy's binding of the compiler, which needs no driver; skip where it is not there."""
    try:
        nvrtc = importlib.import_module("cupy.cuda").nvrtc
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"needs cupy and nvidia-cuda-nvrtc: {error}")
    return nvrtc


@pytest.mark.parametrize("file", FILES)
def test_kernels_keep_to_the_budget(file):
    code = launch.read_source(file)
    for architecture in resources.architectures(code):
        rows = resources.usage(code, file, architecture)
        print(resources.table(rows))
        assert {row.entry for row in rows} == {e for f, e in resources.entries() if f == file}
        assert all(row.registers and row.architecture == architecture for row in rows)
        assert not [fault for row in rows for fault in row.faults]


def test_only_wgmma_is_for_hopper_alone():
    """A word in a comment of a header once kept all tensor-core kernels from other GPUs."""
    alone = {file for file in FILES if launch.for_hopper_alone(launch.read_source(file))}
    assert alone == {"conv_wgmma.cu"}


def test_blocks_that_fit_are_those_of_the_source():
    """The plan counts on them: threads, and blocks for whose registers there is room."""
    file = "conv_mma.cu"
    rows = {row.entry: row for row in resources.usage(launch.read_source(file), file, "sm_90")}
    for which, tiles in TILES.items():
        for kernels, tile in product(MMA_SYNC.values(), tiles):
            row = rows[kernels.instance(which, tile)]
            block = kernels.block(tile)
            assert (row.threads, row.blocks) == (block.threads, block.fit)
    file = "conv_wgmma.cu"
    rows = {row.entry: row for row in resources.usage(launch.read_source(file), file, "sm_90a")}
    for kernels in (*WGMMA.values(), IMAGES):
        for which, tiles in kernels.tiles.items():
            for tile in tiles:
                row, block = rows[kernels.instance(which, tile)], kernels.block(tile)
                assert (row.threads, row.blocks) == (block.threads, block.fit)
                assert row.shared == 0  # the ring may have all that a block can get


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_the_benchmarks_loops_keep_to_the_budget(architecture):
    rows = resources.usage(loops.source(), "loops.cu", architecture)
    assert {row.entry for row in rows} == {"read_l2", "multiply_tf32", "multiply_bf16"}
    assert not [fault for row in rows for fault in row.faults]


HUNGRY = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* x) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
  for (int r = 0; r < 64; ++r)
    for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + r) % 64] + x[r];
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = v[i];
}
extern "C" __global__ void stacked(float* x, int n) {
  float v[64];
  for (int i = 0; i < 64; ++i) v[i] = x[i];
  for (int i = 0; i < n; ++i) v[i * i % 64] += v[i % 64];
  x[0] = v[n % 64];
}
extern "C" __global__ void __launch_bounds__(64) modest(float* x) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[63 - threadIdx.x];
}
"""


def test_what_goes_over_the_budget_is_named():
    rows = {row.entry: row for row in resources.usage(HUNGRY, "hungry.cu", "sm_80")}
    assert any("spills" in fault for fault in rows["spilling"].faults)
    assert rows["stacked"].faults == ["stacked of hungry.cu for sm_80 has a stack of 256 bytes"]
    assert rows["modest"].faults == []
    modest = rows["modest"]
    assert (modest.threads, modest.shared, rows["stacked"].threads) == (64, 256, 1024)
    assert modest._replace(registers=255, threads=512).faults == [
        "modest of hungry.cu for sm_80 255 registers x 512 threads x 1 blocks > 65536"
    ]


def test_what_does_not_compile_is_named():
    with pytest.raises(resources.CompileError, match=r"bad.cu for sm_80.*\n?.*bad.cu\(1\)"):
        resources.usage("nonsense;", "bad.cu", "sm_80")


def test_a_wait_that_the_compiler_adds_is_refused():
    """Then products would run one after the other, and the threads with them."""
    code = launch.read_source("conv_wgmma.cu")
    touched = code.replace("work.wait<1>();", "sums[0][0][0] += 1;\nwork.wait<1>();")
    assert touched != code
    with pytest.raises(resources.CompileError, match=r"wait is injected"):
        resources.compile_source(
            touched, "test.cu", "sm_90a", ["conv_forward<WarpgroupTile<float, 128, 128>>"]
        )


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs NVIDIA's toolkit")
@pytest.mark.parametrize("file", FILES)
def test_nvcc_compiles_them_too(file, tmp_path):
    """Of each template one instance per type: what it refuses, it refuses in all of them."""
    code = launch.read_source(file)
    kinds = {re.sub(r", \d.*", "", name): name for name in resources.instances(file)}
    uses = [f"auto* use_{i} = &{name};" for i, name in enumerate(kinds.values())]
    (tmp_path / file).write_text("\n".join([code, *uses]))
    target = resources.architectures(code)[-1]
    command = ["nvcc", f"-arch={target}", "-std=c++17", "-Werror", "all-warnings", "--cubin"]
    result = subprocess.run(
        [*command, "-o", "out.cubin", file], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
