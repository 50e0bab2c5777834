"""The ladder in kernels/README.md lists all kernels, and each row runs."""

import json
import re
from pathlib import Path

import pytest
from simt import resources

from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv.tiles import MMA_SYNC

ROOT = Path(__file__).parents[2]
README = ROOT / "kernels" / "README.md"
TEXT = README.read_text(encoding="utf-8")
TABLE = TEXT.split("<!-- kernel-ladder -->")[1].split("<!-- /kernel-ladder -->")[0]
# Of the norm, in float32, TF32 (rounded, or cut off: 2.6 times as far) and bfloat16.
BOUNDS = {"A": 1e-6, "B": 1.5e-3, "C": 5e-3}


@pytest.fixture
def ladder(standin):
    import kernel_ladder

    return kernel_ladder


@pytest.fixture
def rungs(ladder):
    from gpu.rungs import RUNGS

    return RUNGS


def test_every_entry_is_on_one_rung(rungs):
    entries = [(rung.file, entry) for rung in rungs for entry in rung.entries]
    assert len(entries) == len(set(entries))
    assert set(entries) == set(resources.entries())


@pytest.mark.documents
def test_the_table_has_a_row_for_each_rung(ladder, rungs):
    first_cells = re.findall(r"^\|.*?(\[\w+\.cu\].*?) \|", TABLE, re.MULTILINE)
    assert first_cells == [
        f"[{rung.file}]({rung.file}): {ladder.names_of(rung)}" for rung in rungs
    ], "run python benchmarks/kernel_ladder.py --table"


def test_rungs_of_a_convolution_are_numbered_by_flop_per_byte(rungs):
    ladder = {rung.number: rung.flop_per_byte() for rung in rungs if rung.file.startswith("conv_")}
    assert sorted(ladder) == [1, 2, 3, 4, 5, 6, 7]
    assert ladder[1] == [0.25]
    assert ladder[2] == [32]
    assert ladder[6] == pytest.approx([32, 54.86], abs=0.01)
    assert ladder[4] == pytest.approx([16, 38.4])


def test_each_version_computes_its_operation(ladder, rungs):
    errors = ladder.errors()
    assert set(errors) == {rung.entries[0] for rung in rungs if rung.call}
    for rung in rungs:
        if rung.call:
            assert errors[rung.entries[0]] < BOUNDS[rung.precision], rung.entries[0]


EXAMPLE = """
extern "C" __global__ void __launch_bounds__(128) example(float* out) {
  using T = Tile<Tf32, 64, 64>;
  float* a = stage_of_ring<T>(0);
  float* b = a + T::A::SIZE;
  for (int i = threadIdx.x; i < 64 * K_TILE; i += T::THREADS) {
    const int line = i / K_TILE, k = i % K_TILE;
    a[place_in_tile<64, K_MAJOR>(line, k)] = i;
    b[place_in_tile<64, K_MAJOR>(line, k)] = line == k;
  }
  __syncthreads();
  const float* row = a + place_of_lane<64, K_MAJOR, OPERAND_A>(warp_row<T>());
  const float* column = b + place_of_lane<64, K_MAJOR, OPERAND_B>(warp_column<T>());
  float of_a[1][4], of_two_b[4], sum[4] = {};
  load_fragment<64, K_MAJOR, OPERAND_A>(of_a[0], row, 0, 0);
  load_fragment<64, K_MAJOR, OPERAND_B>(of_two_b, column, 0, 0);
  const float of_b[1][2] = {{of_two_b[0], of_two_b[1]}};
  Tf32::multiply_add(sum, Tf32::pack(of_a), Tf32::pack(of_b));
  float* own = out + 11 * threadIdx.x;
  own[0] = row - a;
  for (int i = 0; i < 4; ++i) own[1 + i] = of_a[0][i];
  for (int i = 0; i < 2; ++i) own[5 + i] = of_b[0][i];
  for (int i = 0; i < 4; ++i) own[7 + i] = sum[i];
}
"""


@pytest.mark.documents
def test_the_worked_example_is_what_a_lane_holds(standin):
    source = launch.read_source("tensor_tile.cuh") + EXAMPLE
    kernel = standin.RawModule(code=source, options=("-std=c++17",)).get_function("example")
    room = MMA_SYNC["high"].shared_bytes((64, 64))
    kernel.max_dynamic_shared_size_bytes = room
    out = standin.empty((128, 11), "float32")
    kernel((1,), (128,), (out,), shared_mem=room)
    named, *numbers = map(int, out.get()[10])
    places = [f"{'A' if i < 4 else 'C'}[{n // 32}, {n % 32}]" for i, n in enumerate(numbers)]
    places[4:6] = [f"B[{numbers[i] % 32}, 2]" for i in (1, 3)]  # the k's of A's fragment
    lines = ["| lane 10 | place | number |", "|---|---|---:|"]
    lines.append(
        f"| names to `ldmatrix` the line of | A[{named // 36}, {named % 36}] | at {named} |"
    )
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "d0", "d1", "d2", "d3"]
    lines += [f"| {n} | {p} | {v} |" for n, p, v in zip(names, places, numbers, strict=True)]
    text = TEXT.split("<!-- worked-example -->\n")[1].split("<!-- /worked-example -->")[0]
    assert text == "\n".join([*lines, ""])


@pytest.mark.documents
def test_times_are_those_of_the_file_or_awaited():
    path = ROOT / "benchmarks" / "results" / "gpu-ladder.json"
    measured = set(json.loads(path.read_text())["rungs"]) if path.exists() else set()
    awaited = TABLE.count("not yet measured on hardware")
    assert bool(awaited) == (not measured)


def test_a_row_shows_time_and_share_of_the_floor(ladder):
    found = {"times": [[3e-6, 2e-6, 1e-6], [2e-6]], "floor_seconds": 1e-6}
    assert ladder._time(found) == "2.0 us | 50%"
    assert ladder._time({"failed": "CompileError: no"}) == "CompileError: no | -"


def test_floors_of_operations_are_those_of_conv3(ladder):
    values = ladder.arguments("conv2d", ladder.FULL)
    result = ladder.np.empty((128, 384, 13, 13), ladder.np.float32)
    work = ladder.work("conv2d", values, result)
    assert work.operations == 2 * 384 * 256 * 9 * 13 * 13 * 128
    assert work.bytes("A") == 4 * (128 * 169 * (256 + 384) + 384 * 256 * 9 + 384)
