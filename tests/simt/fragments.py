"""Golden fragments: results of every PTX wrapper on a real GPU.

The twins of the wrappers are a second implementation, written from the same manual as the first: a
misreading would be in both. So each wrapper runs on random registers, in a tiny kernel of its own,
on a GPU; inputs and outputs are kept in tests/golden/ with the GPU's name, and the twins must give
the same. On a machine with a GPU, from the project's folder:

    PYTHONPATH=tests:tests/support python -m simt.fragments tests/golden
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.gpu import cupy

FOLDER = Path(__file__).parent.parent / "golden"
STAND_IN = "stand-in"
# A tensor core adds the products of an element in an order and with guard bits of its own. With
# K <= 32 products that is at most some 2**-19 of the largest sum; a wrong element is off by 1.
SUM_TOLERANCE = 2.0**-18
KERNEL = """
extern "C" __global__ void __launch_bounds__({threads}) fragment(const unsigned* all_in,
                                                                 unsigned* all_out) {{
  const int thread = blockIdx.x * {threads} + threadIdx.x, lane = threadIdx.x;
  const unsigned* in = all_in + thread * {taken};
  unsigned* out = all_out + thread * {given};
  {body}
}}
"""


@dataclass(frozen=True)
class Fragment:
    """One wrapper at work: in each thread ``body`` turns ``in[taken]`` into ``out[given]``.

    ``inputs`` says which bits to draw, ``outputs`` how to read the result; ``covers`` names the
    wrappers of ``header`` that the body calls.
    """

    covers: tuple[str, ...]
    taken: int
    given: int
    inputs: str
    outputs: str
    body: str
    header: str = "ptx.cuh"
    form: str = ""
    blocks: int = 16
    threads: int = 32

    @property
    def name(self) -> str:
        """Return the name of the first wrapper, in this form; it is also that of the file."""
        return self.covers[0] + self.form

    def source(self) -> str:
        """Return the whole CUDA source."""
        numbers = {"taken": self.taken, "given": self.given, "threads": self.threads}
        body = KERNEL.format(body=self.body, **numbers)
        return launch.read_source(self.header) + '\n#line 1 "fragment"' + body

    @property
    def hopper(self) -> bool:
        """Whether no other generation of GPUs has these instructions."""
        return self.header == "wgmma.cuh"


MULTIPLY = """float d[4];
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(in[i]);
  for (int i = 0; i < 4; ++i) a[i] = in[4 + i];
  for (int i = 0; i < 2; ++i) b[i] = in[8 + i];
  {wrapper}(d, a, b);
  for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(d[i]);"""
COPY = """__shared__ __align__(16) float landed[2][128];
  const float* from = reinterpret_cast<const float*>(in);
  cp_async<16>(landed[0] + 4 * lane, from, in[8] % 9 * 2);
  cp_async_commit();
  cp_async<8>(landed[1] + 4 * lane, from + 4, in[9] % 5 * 2);
  cp_async_commit();
  cp_async_wait<1>();
  for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(landed[0][4 * lane + i]);
  cp_async_wait<0>();
  for (int i = 0; i < 2; ++i) out[4 + i] = __float_as_uint(landed[1][4 * lane + i]);"""
FETCH = """__shared__ __align__(16) float rows[32][4];
  for (int i = 0; i < 4; ++i) rows[lane][i] = __uint_as_float(in[i]);
  __syncwarp();
  float part[4];
  ldmatrix(part, rows[in[4] % 32]);
  for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(part[i]);"""
WARPGROUP = """__shared__ __align__(1024) unsigned a[64 * 32], b[128 * 32];
  float d[16][4];
  for (int i = 0; i < 64; ++i) d[i / 4][i % 4] = __uint_as_float(in[i]);
  for (int i = 0; i < 16; ++i) a[i * 128 + lane] = in[64 + i];
  for (int i = 0; i < 32; ++i) b[i * 128 + lane] = in[80 + i];
  make_visible();
  __syncthreads();
  Multiplication work;
  work.begin();
  for (int k = 0; k < 128 / sizeof({E}); k += 32 / sizeof({E})) {{
    const int place_a = place_in_tile<64, {lies}, {E}>(0, k);
    const int place_b = place_in_tile<128, {lies}, {E}>(0, k);
    work.multiply_add<{E}, {lies}, {lies}>(
        d, descriptor<{lies}>(reinterpret_cast<const {E}*>(a) + place_a),
        descriptor<{lies}>(reinterpret_cast<const {E}*>(b) + place_b));
  }}
  work.commit();
  work.wait<0>();
  hold(d);
  for (int i = 0; i < 64; ++i) out[i] = __float_as_uint(d[i / 4][i % 4]);"""

FRAGMENTS = (
    Fragment(("to_tf32",), 1, 1, "edges", "tf32", "out[0] = to_tf32(__uint_as_float(in[0]));"),
    Fragment(("tf32_value",), 1, 1, "bits", "bits", "out[0] = __float_as_uint(tf32_value(in[0]));"),
    Fragment(
        ("to_bf16x2",),
        2,
        1,
        "edges",
        "two bf16",
        "out[0] = to_bf16x2(__uint_as_float(in[0]), __uint_as_float(in[1]));",
    ),
    Fragment(
        ("mma_m16n8k8_tf32",), 10, 4, "floats", "sums", MULTIPLY.format(wrapper="mma_m16n8k8_tf32")
    ),
    Fragment(
        ("mma_m16n8k16_bf16",),
        10,
        4,
        "pairs",
        "sums",
        MULTIPLY.format(wrapper="mma_m16n8k16_bf16"),
    ),
    Fragment(("ldmatrix",), 5, 4, "bits", "bits", FETCH),
    Fragment(("cp_async", "cp_async_commit", "cp_async_wait"), 12, 6, "bits", "bits", COPY),
    *(
        Fragment(
            ("multiply_add", "begin", "commit", "wait", "hold", "make_visible"),
            112,
            64,
            inputs,
            "sums",
            WARPGROUP.format(E=element, lies=lies),
            header="wgmma.cuh",
            form=form,
            blocks=1,
            threads=128,
        )
        for form, element, lies, inputs in (
            ("_tf32", "float", "SWIZZLED", "floats"),
            ("_bf16", "bfloat16", "SWIZZLED", "pairs"),
            ("_bf16_mn", "bfloat16", "SWIZZLED_MN", "pairs"),
        )
    ),
)


def draw(fragment: Fragment, rng: np.random.Generator) -> np.ndarray:
    """Return registers [threads, taken] as uint32."""
    shape = (fragment.blocks * fragment.threads, fragment.taken)
    normal = rng.standard_normal(shape).astype(np.float32)
    if fragment.inputs == "bits":
        return rng.integers(0, 2**32, shape, dtype=np.uint32)
    bits = normal.view(np.uint32)
    if fragment.inputs == "pairs":  # of bf16 in a, b, after d: the upper halves of two numbers
        others = rng.standard_normal(shape).astype(np.float32).view(np.uint32)
        factors = np.s_[:, fragment.given :]
        bits[factors] = bits[factors] >> 16 | (others[factors] & 0xFFFF0000)
    if fragment.inputs == "edges":
        # Any number, then any tie between two neighbours, then what is no ordinary number.
        bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
        half = 0x1000 if fragment.outputs == "tf32" else 0x8000
        ties = slice(0, len(bits) // 4)
        bits[ties] = (bits[ties] & ~np.uint32(2 * half - 1)) | half
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -1.1754944e-38, 1e-41]
        bits[-len(special) :] = np.array(special, np.float32).view(np.uint32)[:, None]
    return bits


def run(fragment: Fragment, registers: np.ndarray, source: str | None = None) -> np.ndarray:
    """Run the fragment on whatever ``cupy`` is there; return uint32 [threads, given]."""
    xp = cupy()
    options = ("-arch=sm_90a",) if fragment.hopper else ()
    module = xp.RawModule(code=source or fragment.source(), options=("-std=c++17", *options))
    out = xp.empty((len(registers), fragment.given), np.uint32)
    inputs = xp.asarray(np.ascontiguousarray(registers))
    blocks = len(registers) // fragment.threads
    module.get_function("fragment")((blocks,), (fragment.threads,), (inputs, out))
    return xp.asnumpy(out)


def record(folder: Path) -> list[Path]:
    """Run all fragments that this GPU can run, and write one file each; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    xp = cupy()
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.get_device_id())
    written = []
    for number, fragment in enumerate(FRAGMENTS):
        if fragment.hopper and not products.on_hopper():
            continue
        registers = draw(fragment, np.random.default_rng(number))
        path = folder / f"{fragment.name}.npz"
        np.savez_compressed(
            path,
            registers=registers,
            results=run(fragment, registers),
            device=properties["name"].decode(),
            date=datetime.date.today().isoformat(),
            driver=xp.cuda.runtime.driverGetVersion(),
        )
        written.append(path)
    return written


def replay(fragment: Fragment, path: Path, source: str | None = None) -> None:
    """Hold the twins against a recording. Raises AssertionError where they differ, ValueError for
    a recording of the stand-in, which is the twins' own.
    """
    with np.load(path) as recorded:
        device = str(recorded["device"])
        if STAND_IN in device:
            raise ValueError(f"{path.name} was recorded on the stand-in; only a GPU's counts")
        registers, results = recorded["registers"], recorded["results"]
    compare(fragment, run(fragment, registers, source), results, device)


def compare(fragment: Fragment, ours: np.ndarray, theirs: np.ndarray, device: str) -> None:
    """Fail unless the results mean the same: the same bits, any NaN for NaN, sums within rounding.

    Of a TF32 register the lower 13 bits mean nothing.
    """
    assert ours.shape == theirs.shape, f"{fragment.name}: recorded with another number of registers"
    tolerance = 0.0
    if fragment.outputs == "tf32":
        ours, theirs = (bits & 0xFFFFE000 for bits in (ours, theirs))
    if fragment.outputs == "two bf16":
        ours, theirs = (
            np.stack([bits << 16, bits & 0xFFFF0000]).astype(np.uint32) for bits in (ours, theirs)
        )
    if fragment.outputs == "bits":
        assert np.array_equal(ours, theirs), f"{fragment.name}: other bits than on {device}"
        return
    ours, theirs = (np.ascontiguousarray(bits).view(np.float32) for bits in (ours, theirs))
    if fragment.outputs == "sums":
        tolerance = SUM_TOLERANCE * float(np.abs(theirs).max())
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance, err_msg=f"{fragment.name}: not as on {device}"
    )


if __name__ == "__main__":
    for file in record(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(file)
