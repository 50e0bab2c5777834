"""Twins of inline PTX against recordings of a GPU, and the recorder."""

import re

import numpy as np
import pytest
from simt import compiler, fragments
from simt.fragments import FOLDER, FRAGMENTS

from tinyalex.backends.cuda import launch

BY_NAME = {fragment.name: fragment for fragment in FRAGMENTS}
RECORDED = [f for f in FRAGMENTS if (FOLDER / f"{f.name}.npz").exists()]
AWAITED = [f for f in FRAGMENTS if f not in RECORDED]
DOCUMENT = FOLDER.parent.parent / "docs" / "gpu.md"


@pytest.fixture(params=FRAGMENTS, ids=lambda f: f.name)
def fragment(request):
    return request.param


WRAPPER = re.compile(r"__device__ __forceinline__ [\w ]+?(\w+)\(")


@pytest.mark.parametrize("header", ["ptx.cuh", "wgmma.cuh"])
def test_every_wrapper_has_a_fragment(header):
    text = (launch.source_folder() / header).read_text(encoding="utf-8")
    wrappers = set(WRAPPER.findall(text))
    assert wrappers
    assert wrappers == {name for f in FRAGMENTS if f.header == header for name in f.covers}


def test_inline_ptx_is_in_these_headers_only():
    files = [p for p in launch.source_folder().iterdir() if p.suffix in (".cu", ".cuh")]
    with_asm = {p.name for p in files if re.search(r"\basm\b", p.read_text(encoding="utf-8"))}
    assert with_asm == {fragment.header for fragment in FRAGMENTS}


NONE_YET = pytest.param(
    None,
    id="no_recording_from_hardware_yet",
    marks=pytest.mark.skip(reason="no GPU has recorded fragments: docs/gpu.md says what awaits it"),
)


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("fragment", RECORDED or [NONE_YET], ids=lambda f: f.name)
def test_twin_agrees_with_hardware(fragment):
    fragments.replay(fragment, FOLDER / f"{fragment.name}.npz")


@pytest.mark.documents
@pytest.mark.parametrize("fragment", AWAITED, ids=lambda f: f"{f.name}_awaits_hardware")
def test_documented_as_awaiting_hardware(fragment):
    """No GPU has run these yet, so there is nothing to compare with: the document must say so."""
    awaits = DOCUMENT.read_text(encoding="utf-8").split("## What awaits hardware")[1]
    assert all(f"`{name}`" in awaits for name in fragment.covers)


def test_no_recording_without_a_fragment():
    assert {path.stem for path in FOLDER.glob("*.npz")} <= set(BY_NAME)


@pytest.fixture
def recording(standin, fragment, tmp_path, monkeypatch):
    """Record the twins' results as those of a GPU."""
    device = {"name": b"a GPU of the tests"}
    monkeypatch.setattr(standin.cuda.runtime, "getDeviceProperties", lambda index: device)
    paths = fragments.record(tmp_path)
    return next(path for path in paths if path.stem == fragment.name)


def test_replay_of_what_was_recorded_agrees(fragment, recording):
    fragments.replay(fragment, recording)


@pytest.mark.usefixtures("standin")
def test_the_stand_in_cannot_pass_for_hardware(fragment, tmp_path):
    fragments.record(tmp_path)
    with pytest.raises(ValueError, match="recorded on the stand-in"):
        fragments.replay(fragment, tmp_path / f"{fragment.name}.npz")


CHANGES = {
    "to_tf32": ("bits + 0x1000u", "bits + 0x0fffu"),  # ties go down
    "tf32_value": ("twin::value_of(bits & 0xffffe000u)", "twin::value_of(bits)"),
    "to_bf16x2": ("0x7fffu + (bits >> 16 & 1u)", "0x8000u"),  # ties go up
    "mma_m16n8k8_tf32": ("values[0] = tf32_value(bits);", "values[0] = twin::value_of(bits);"),
    "mma_m16n8k16_bf16": ("values[0] = twin::value_of(bits << 16)", "values[0] = 0.0f"),
    "ldmatrix": ("lane % 4", "lane / 8"),
    "cp_async": ("global, SIZE, bytes", "global, SIZE, SIZE"),
    "multiply_add_tf32": ("(address >> 7 & 7) << 4", "0"),  # no exchange within 128 bytes
    "multiply_add_bf16": ("row / 8 * stride", "row / 8 * leading"),
    "multiply_add_bf16_mn": ("row / (8 * T) * leading", "row / (8 * T) * stride"),
}


def test_replay_fails_for_a_changed_twin(fragment, recording):
    right, wrong = CHANGES[fragment.name]
    source = compiler.with_twins(fragment.source())
    assert right in source, "the twin has changed: plant another fault"
    changed = source.replace(right, wrong)
    with pytest.raises(AssertionError, match=fragment.name):
        fragments.replay(fragment, recording, changed)


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("  work.begin();\n", "", "without begin"),
        (
            "  make_visible();\n  __syncthreads();",
            "  __syncthreads();\n  make_visible();",
            "do not see yet",
        ),
    ],
)
def test_a_fence_left_out_or_too_late_shows(rng, right, wrong, error):
    fragment = BY_NAME["multiply_add_tf32"]
    source = fragment.source()
    assert right in source
    with pytest.raises(Exception, match=error):
        fragments.run(fragment, fragments.draw(fragment, rng), source.replace(right, wrong))


def test_a_wrong_number_of_registers_is_refused(fragment):
    results = np.zeros((32, fragment.given), np.uint32)
    with pytest.raises(AssertionError, match="number of registers"):
        fragments.compare(fragment, results[:, :0], results, "a GPU")
