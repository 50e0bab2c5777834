"""The ladder in kernels/README.md lists all kernels, and each row runs."""

import json
import re
from pathlib import Path

import pytest
from simt import resources

from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv import tiles
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import MMA_SYNC
from tinyalex.backends.geometry import ConvOptions

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
  float* own = out + 12 * threadIdx.x;
  own[0] = row - a;
  own[1] = column - b;
  for (int i = 0; i < 4; ++i) own[2 + i] = of_a[0][i];
  for (int i = 0; i < 2; ++i) own[6 + i] = of_b[0][i];
  for (int i = 0; i < 4; ++i) own[8 + i] = sum[i];
}
"""


@pytest.mark.documents
def test_the_worked_example_is_what_a_lane_holds(standin):
    source = launch.read_source("tensor_tile.cuh") + EXAMPLE
    kernel = standin.RawModule(code=source, options=("-std=c++17",)).get_function("example")
    room = MMA_SYNC["high"].shared_bytes((64, 64))
    kernel.max_dynamic_shared_size_bytes = room
    out = standin.empty((128, 12), "float32")
    kernel((1,), (128,), (out,), shared_mem=room)
    row, column, *numbers = map(int, out.get()[10])
    places = [f"{'A' if i < 4 else 'C'}[{n // 32}, {n % 32}]" for i, n in enumerate(numbers)]
    places[4:6] = [f"B[{numbers[i] % 32}, 2]" for i in (1, 3)]  # the k's of A's fragment
    lines = ["| lane 10 | place | number |", "|---|---|---:|"]
    lines.append(f"| names to `ldmatrix` the line of | A[{row // 36}, {row % 36}] | at {row} |")
    lines.append(f"| and that of | B[{column % 36}, {column // 36}] | at {column} |")
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "d0", "d1", "d2", "d3"]
    lines += [f"| {n} | {p} | {v} |" for n, p, v in zip(names, places, numbers, strict=True)]
    text = TEXT.split("<!-- worked-example -->\n")[1].split("<!-- /worked-example -->")[0]
    assert text == "\n".join([*lines, ""])


FETCHED = """
extern "C" __global__ void __launch_bounds__(256) fetched(int* out, ConvShape shape) {
  using T = Tile<Tf32, 128, 192>;
  float* none = nullptr;
  WindowRows<T::A> rows(none, 0, windows_of_y(shape), 0, shape.N * shape.Ho * shape.Wo, 0);
  if (threadIdx.x != 75) return;
  const int4 corner = rows.table()[rows.row];
  const int found[] = {rows.row, rows.LINES, rows.VISITS, rows.k, rows.tap.low, corner.y, corner.z};
  for (int i = 0; i < 7; ++i) out[i] = found[i];
  for (int k_tile = 0; k_tile < 30; ++k_tile) rows.tap.add(rows.step, 3, 256);
  out[7] = rows.tap.high, out[8] = rows.tap.middle, out[9] = rows.tap.low;
}
"""


@pytest.mark.documents
def test_the_thirty_minutes_have_the_numbers_of_conv3(standin):
    walk = TEXT.split("in thirty minutes\n")[1].split("\n## ")[0]
    walk = " ".join(walk.split())

    def says(*phrases):
        assert [phrase for phrase in phrases if phrase not in walk] == []

    options = ConvOptions((1, 1), ((1, 1), (1, 1)))
    shapes = [ConvShape.of((n, 256, 13, 13), (384, 256, 3, 3), options) for n in (128, 1)]
    many, one = (tiles.sizes(shape, "forward") for shape in shapes)
    kernels, gpu = MMA_SYNC["high"], (132, 227 << 10)
    plan, alone = (tiles.plan_for("forward", s, kernels, tiles.CHOSEN, *gpu) for s in (many, one))
    says(f"`{kernels.instance('forward', plan.tile)}`", f"{plan.split_k_tiles} steps of 32 k's")
    says(f"{many.rows:,} rows, {many.columns} columns and {many.depth:,} k's")
    says(f"{many.rows * many.depth * 4e-6:.0f} MB", f"{128 * 169 * 256 * 4e-6:.0f} MB")
    says(
        f"169 x 2 = {tiles.blocks(many, plan.tile)} blocks", f"{2 * many.rows * 384 * 4e-6:.0f} MB"
    )
    says(f"{sum(plan.tile) * 128 // 1024} KB", "128 x 192 x 32 = 786,432 multiply-adds")
    assert plan.splits == 1
    assert kernels.block(plan.tile)[:2] == (256, 3)  # threads and stages
    says(f"{one.rows} rows", "tiles of 64 x 64", f"{tiles.blocks(one, alone.tile)} blocks for 132")
    assert (alone.tile, alone.splits, alone.split_k_tiles) == ((64, 64), 9, 8)
    says("given to nine blocks, eight each", f"{9 * tiles.blocks(one, alone.tile)} blocks")

    source = launch.read_source("conv_mma.cu") + FETCHED
    kernel = standin.RawModule(code=source, options=("-std=c++17",)).get_function("fetched")
    kernel.max_dynamic_shared_size_bytes = room = kernels.shared_bytes(plan.tile)
    out = standin.empty(10, "int32")
    kernel((1,), (256,), (out, launch._struct(shapes[0])), shared_mem=room)
    row, lines, visits, k, channel, h, w, *later = map(int, out.get())
    first, *rows, last = (row + lines * visit for visit in range(visits))
    says(f"thread 75 has row 75 / 8 = {first} and k = 75 % 8 * 4 = {k}")
    says(f"the rows {', '.join(map(str, rows))} and {last}", f"channel {channel};")
    says(f"window (0, 0, {row}), corner ({h}, {w})", f"pixel ({h + 1}, {w})", f"line {h}, which is")
    r, s, channel = later
    says(f"k = {30 * 32 + k} = 3 * 256 + {channel}: tap ({r}, {s}), channel {channel}")


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
