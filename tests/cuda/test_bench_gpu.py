"""The GPU benchmark at toy sizes, on the stand-in for CuPy."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simt import standin
from simt.exercises import BFLOAT16

import bench_gpu
import tinyalex as ta
from gpu import floors, journal, layers, run, tables, timing
from gpu.cases import Case, Net, distance, errors, expected, objection
from gpu.contestant_tinyalex import Tinyalex, TinyalexGraph
from gpu.layer_rows import rows
from gpu.timing import Times
from tinyalex import nn
from tinyalex.backends import cuda
from tinyalex.backends.cuda.conv.tiles import TILES
from tinyalex.backends.cuda.sgd import StepTable
from tinyalex.backends.layout import with_room

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
TOY = "--thin 32 --pixels 63 --classes 4 --groups 1 --norm on --rounds 2 --window 0 --warm-up 1"
MARKS = ("gpu-goals", "gpu-floors", "gpu-nets", "gpu-errors", "gpu-layers", "gpu-checks")
CASE = "gpu-{}-g1-lrn-thin32-63-1-{}"

pytestmark = pytest.mark.usefixtures("standin")  # for its word on a missing g++


def bench(folder, words):
    """Run the benchmark with its files in ``folder``; return its output."""
    if not (folder / "gpu.md").exists():
        empty = "\n".join(f"<!-- {mark} -->\n<!-- /{mark} -->" for mark in MARKS)
        (folder / "gpu.md").write_text(empty)
    words = [*f"{TOY} {words}".split(), f"--results={folder}", f"--document={folder / 'gpu.md'}"]
    printed = io.StringIO()
    # Expected values are computed on the CPU; NumPy has nothing to compile for them.
    with ta.use_backend("reference"), contextlib.redirect_stdout(printed):
        bench_gpu.main(words)
    return printed.getvalue()


def result(folder, name):
    return journal.load(folder)[name]


def between(path, mark):
    return path.read_text().split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder and output of a run over both modes and two classes."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in standin.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setenv("TINYALEX_COMMIT", "0123abc")
        return folder, bench(folder, "--images 1 --precision A --precision C --calls 1 --table")


def test_every_contestant_is_checked_and_timed(measured):
    folder, _ = measured
    for precision, limit in (("A", 1e-5), ("C", 1e-2)):
        found = result(folder, CASE.format("train", precision))["contestants"]
        assert set(found) == {"tinyalex", "tinyalex CUDA graph"}
        for contestant in found.values():
            assert 0 < contestant["errors"]["gradient"] < limit
            assert contestant["errors"]["update"] < 0.01
            assert contestant["peak_bytes"] > 0
            assert [len(turn["device"]) for turn in contestant["turns"]] == [3, 3]


def test_classes_compute_in_other_precisions(measured):
    folder, _ = measured
    fine, coarse = (
        result(folder, CASE.format("infer", p))["contestants"]["tinyalex"]["errors"]["result"]
        for p in ("A", "C")
    )
    assert coarse > 100 * fine


def test_switches_and_what_is_missing_are_printed(measured):
    folder, printed = measured
    assert "'float32_matmul_precision': 'highest'" in printed
    assert "'float32_matmul_precision': 'medium'" in printed
    assert "without PyTorch: " in printed
    assert result(folder, CASE.format("train", "A"))["failed"]["torch"]
    assert "cupy stand-in" in printed
    assert "commit" in printed


def test_percentages_are_of_measured_ceilings(measured):
    folder, _ = measured
    case = result(folder, CASE.format("train", "A"))
    ceilings = floors.Ceilings(**case["ceilings"])
    # A laptop's at the most: nothing was taken from a data sheet.
    assert 0 < ceilings.operations["A"] < floors.H100.operations["A"] / 10
    floor = floors.floor(Net(**case["case"]["net"]), 1, True, ceilings, "A")
    assert case["floor_seconds"] == pytest.approx(floor)
    share = floor / Times.of(case["contestants"]["tinyalex"]["turns"]).median
    row = next(
        line
        for line in between(folder / "gpu.md", "gpu-nets").splitlines()
        if line.startswith("| g1-lrn-thin32-63 | 1 | tinyalex | ")
    )
    assert f"| {share:.0%} | " in row
    # Of bfloat16 no rate was measured here, so that there is no percentage.
    assert result(folder, CASE.format("train", "C"))["floor_seconds"] is None


def test_every_pass_of_every_layer_has_a_row(measured):
    folder, _ = measured
    rows = [r for r in journal.load(folder).values() if "layer" in r]
    assert not [row for row in rows if row["failed"]]
    assert {row["precision"] for row in rows} == {"A", "C"}
    names = {(row["layer"], row["part"]) for row in rows}
    for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        assert {p for name, p in names if name == layer} == {
            "forward",
            "input gradient",
            "weight gradient",
        }
    assert ("conv1", "input gradient") not in names
    assert ("norm1+pool1", "input gradient") in names
    assert ("all weights", "SGD step") in names
    assert "| conv2 forward | A | " in between(folder / "gpu.md", "gpu-layers")


@pytest.mark.parametrize(
    ("commit", "more", "again"),
    [
        ("0123abc", "", False),
        ("0123abc", "--again", True),
        ("0123abc-dirty", "", True),  # a tree with changes may be any program
    ],
)
def test_what_was_measured_is_not_measured_again(measured, monkeypatch, commit, more, again):
    folder, _ = measured
    monkeypatch.setenv("TINYALEX_COMMIT", commit)
    printed = bench(folder, f"--mode infer --images 1 --precision C --no-layers {more}")
    assert (f"{CASE.format('infer', 'C')}: measured already" in printed) == (not again)


def wrong_gradient(patch):
    right = cuda.linear_weight_grad
    patch.setattr(cuda, "linear_weight_grad", lambda *arguments: right(*arguments) * 1.5)


def wrong_update(patch):
    right = StepTable.fill

    def half(table, pieces):
        slow = [p._replace(options=p.options._replace(lr=p.options.lr / 2)) for p in pieces]
        return right(table, slow)

    patch.setattr(StepTable, "fill", half)


def unwritten_result(patch):
    right = cuda.conv2d_relu

    def unwritten(*arguments):
        y = right(*arguments)
        y[0, 0, 0, 0] = float("nan")
        return y

    patch.setattr(cuda, "conv2d_relu", unwritten)


def no_room(patch):
    def fail(contestant):
        raise MemoryError("no room")

    patch.setattr(Tinyalex, "_train", fail)


FAULTS = {
    wrong_gradient: "ValueError: wrong result: gradient",
    wrong_update: "ValueError: wrong result: update",
    unwritten_result: "ValueError: wrong result: result is off by inf",
    no_room: "MemoryError: no room",
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=[f.__name__ for f in FAULTS])
def test_a_failing_contestant_is_refused(tmp_path, monkeypatch, fault, reason):
    fault(monkeypatch)
    printed = bench(tmp_path, "--mode train --images 1 --precision C --no-layers")
    assert f"tinyalex: {reason}" in printed
    found = result(tmp_path, CASE.format("train", "C"))
    assert not found["contestants"]
    assert found["failed"]["tinyalex"].startswith(reason)
    assert not found["complete"]


def test_the_others_are_measured_without_a_failing_one(tmp_path, monkeypatch):
    def fail(contestant, table):
        raise RuntimeError("no graph today")

    monkeypatch.setattr(TinyalexGraph, "_recorded", fail)
    bench(tmp_path, "--mode infer --images 2 --precision B --no-layers")
    found = result(tmp_path, "gpu-infer-g1-lrn-thin32-63-2-B")
    assert list(found["contestants"]) == ["tinyalex"]
    assert found["contestants"]["tinyalex"]["turns"]
    assert found["failed"]["tinyalex CUDA graph"] == "RuntimeError: no graph today"


def test_without_results_the_tables_say_so(tmp_path):
    bench(tmp_path, "--table-only")
    for mark in ("gpu-nets", "gpu-errors", "gpu-layers", "gpu-checks"):
        assert between(tmp_path / "gpu.md", mark) == "Not yet measured on hardware.\n"
    assert between(tmp_path / "gpu.md", "gpu-goals").count("not yet measured") == 12


def test_time_that_is_up_begins_nothing(tmp_path):
    words = "--images 1 --precision C --minutes 1e-9"
    assert "not begun, the time is up" in bench(tmp_path, words)
    assert not journal.load(tmp_path)


@pytest.mark.parametrize("words", [["bench_gpu.py"], ["kernel_ladder.py", "--measure"]])
def test_without_a_gpu_it_says_what_is_missing(words, tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / words[0], *words[1:], "--results", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("there is nothing to measure: ")
    assert done.stdout.count("\n") == 1


# --- floors, ratios, PyTorch ----------------------------------------------------------------------


def test_floors_are_those_calculated_by_hand():
    works = {(w.layer, w.part): w for w in floors.works(Net(), 128, True)}
    # 256 filters of 5 x 5 x 96 on 27 x 27 pixels of 128 images; x, w, y in float32.
    conv2 = works["conv2", "forward"]
    assert conv2.operations == 2 * 256 * 5 * 5 * 96 * 27 * 27 * 128
    numbers = 128 * 96 * 27 * 27 + 256 * 5 * 5 * 96 + 128 * 256 * 27 * 27
    assert conv2.bytes("B") == 4 * numbers
    assert conv2.bytes("C") == 2 * numbers
    assert conv2.seconds(floors.H100, "B") == conv2.operations / 495e12
    # Weights, 151 MB, are most of fc6: memory is the limit.
    fc6 = works["fc6", "weight gradient"]
    assert fc6.seconds(floors.H100, "B") == fc6.bytes("B") / 3.35e12
    assert works["all weights", "SGD step"].bytes("C") == 20 * 62_378_344
    assert ("conv1", "input gradient") not in works
    towers = {(w.layer, w.part): w for w in floors.works(Net(groups=2), 128, True)}
    assert towers["conv2", "forward"].operations == conv2.operations / 2


def test_class_a_may_use_the_tensor_cores():
    assert floors.Ceilings({"A": 60e12, "B": 300e12}, 3e12).rate("A") == 100e12
    assert floors.Ceilings({"A": 60e12, "B": 150e12}, 3e12).rate("A") == 60e12
    assert floors.Ceilings({"A": 60e12}, 3e12).rate("B") is None


def turns(*milliseconds):
    return [{"device": [t / 1e3], "wall": [t / 1e3]} for t in milliseconds]


def case_result(precision, ours, theirs):
    """Return a made-up result of three rounds."""
    return {
        "complete": True,
        "case": {
            "net": {"groups": 1, "norm": True},
            "mode": "train",
            "images": 128,
            "precision": precision,
        },
        "contestants": {"tinyalex": {"turns": ours}, "torch NCHW eager": {"turns": theirs}},
    }


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ((6, 6, 6), "2.00\N{MULTIPLICATION SIGN} (2.00 .. 2.00), torch NCHW eager: **met**"),
        ((2, 6, 2.5), "equal (0.67 .. 2.00), torch NCHW eager: **missed**"),
        ((2, 2, 2), "0.67\N{MULTIPLICATION SIGN} (0.67 .. 0.67), torch NCHW eager: **missed**"),
    ],
)
def test_goals_are_met_only_ahead_in_every_round(theirs, expected):
    table = tables.goals_table([case_result("B", turns(3, 3, 3), turns(*theirs))])
    row = next(line for line in table.splitlines() if line.startswith("| training step, class B"))
    assert row.endswith(f"goal: more than 1.2\N{MULTIPLICATION SIGN}<br>{expected} |")
    quick = case_result("B", turns(3, 3, 3), turns(*theirs)) | {"quick": True}
    assert "eager (without PyTorch's search for kernels): **" in tables.goals_table([quick])
    assert "cut short" in tables.goals_table([quick | {"complete": False}])
    # What was measured in one class says nothing about the others.
    assert table.count("not yet measured on hardware") == 11


def test_only_the_fastest_settings_are_tried_at_other_sizes():
    campaign = run.Campaign(Path(), {}, None, None, quick=False)
    alone = {"torch a": 5, "torch b": 1, "torch c": 3, "torch d": 2, "tinyalex": 0.5}
    found = case_result("B", turns(1), turns(1))
    found["contestants"] = {name: {"alone": time} for name, time in alone.items()}
    run.remember_favourites(found, campaign)
    assert campaign.favourites == {("train", "B"): ["torch b", "torch d", "torch c"]}
    found["contestants"]["torch a"]["alone"] = 0  # at another size: the choice is made
    run.remember_favourites(found, campaign)
    assert campaign.favourites["train", "B"][0] == "torch b"


def test_a_quick_run_does_not_stand_for_a_full_one(tmp_path):
    facts = {"commit": "c", "gpu": "g", "driver": "d", "versions": {}}
    path = tmp_path / "gpu.jsonl"
    journal.append(path, "case", {"facts": facts, "quick": True, "complete": True})
    journal.append(path, "cut", {"facts": facts, "quick": True, "complete": False})
    for quick in (True, False):
        campaign = run.Campaign(path, facts, None, None, quick)
        assert bool(run.measured_already("case", campaign)) == quick
        assert not run.measured_already("cut", campaign)
    other = run.Campaign(path, {**facts, "gpu": "another"}, None, None, True)
    assert not run.measured_already("case", other)


def test_pytorch_in_every_setting_that_a_cpu_can_run(standin, monkeypatch):
    torch = pytest.importorskip("torch")
    from gpu import contestant_torch as peer
    from gpu.contestants import check

    monkeypatch.setattr(peer, "DEVICE", "cpu")
    stream = type("Stream", (), {"cuda_stream": 0})
    for name, value in {"current_stream": stream, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    before = peer.flags()
    net = Net(thin=32, pixels=63, classes=4)
    want = expected(net, 2, training=True)
    assert max(errors(peer.expected(net, 2, training=True), want).values()) < 1e-9
    answers = peer.expected(net, 2, training=False), expected(net, 2, training=False)
    assert errors(*answers)["result"] < 1e-9
    seen = []
    try:
        with monkeypatch.context() as patch:
            patch.setattr(peer, "legacy", True)
            for precision, rounded in (("B", True), ("A", False)):
                older = peer.set_flags(precision)
                assert older["cudnn.allow_tf32"] is older["cuda.matmul.allow_tf32"] is rounded
        for precision in ("A", "C", "as shipped"):
            case = Case(net, "train", 2, precision)
            for setting in peer.settings(case, quick=False):
                # A CPU has no graphs, and cannot pool the norm's squares in bfloat16.
                if setting.run != peer.EAGER or setting.bfloat16 == peer.PURE:
                    continue
                contestant = peer.Torch(case, setting)
                assert objection(check(contestant, case, want), precision) is None, setting
                seen.append((setting.name, contestant.settings["cudnn.conv.fp32_precision"]))
                contestant.close()
    finally:
        peer.set_flags("as shipped")
    assert peer.flags() == before
    assert ("torch channels_last eager foreach", "ieee") in seen
    assert ("torch NCHW eager fused autocast bf16", "tf32") in seen
    assert ("torch NCHW eager foreach as shipped", before["cudnn.conv.fp32_precision"]) in seen
    assert len(seen) == 9


def test_pytorchs_passes_are_those_of_ours(monkeypatch):
    pytest.importorskip("torch")
    from gpu import torch_layers

    monkeypatch.setattr(torch_layers, "DEVICE", "cpu")
    for row in rows(Net(thin=32, pixels=63, classes=4), 2):
        want = torch_layers.expected(row)
        assert torch_layers.distance(row.expected(), want) < 1e-7, row.work  # once in float32
        for name, build in torch_layers.calls(row, "A").items():
            if "compile" not in name:
                assert torch_layers.distance(build()(), want) < row.tolerance("A"), (row.work, name)


def test_every_tile_of_a_convolution_is_a_version_of_it(standin):
    found = set()
    for thin, layer in ((8, "conv1"), (32, "conv3")):  # widths of whole fours
        found_rows = rows(Net(thin=thin, pixels=63, classes=4), 1, nn.Conv2d)
        for row in [row for row in found_rows if row.work.layer == layer]:
            want = row.expected()
            row = replace(row, arguments=tuple(map(layers.placed, row.arguments)))
            for name, build in layers.versions(row).items():
                assert distance(layers.host(build()()), want) < row.tolerance("A")
                found.add((row.work.layer, row.work.part, name))
    tiles = {which: len(tiles) for which, tiles in TILES.items()}
    assert len(found) == 2 * sum(tiles.values()) - tiles["input_grad"]  # which conv1 needs none of


@pytest.mark.parametrize(
    ("precision", "images", "own"),
    [
        ("highest", 9, (0, 0, 0)),
        ("high", 9, (4, 4, 0)),
        ("medium", 9, (4, 4, 2)),
        ("medium", 8, (0, 0, 0)),  # too few for bfloat16
    ],
)
def test_hoppers_own_tiles_are_versions(standin, precision, images, own):
    ta.set_float32_matmul_precision(precision)
    try:
        convolutions = rows(Net(thin=8, pixels=63, classes=8), images, nn.Conv2d)
        of_conv3 = [row for row in convolutions if row.work.layer == "conv3"]
        of_conv3 = [
            replace(row, arguments=tuple(map(layers.placed, row.arguments))) for row in of_conv3
        ]
        found = [sum("wgmma" in name for name in layers.versions(row)) for row in of_conv3]
        assert tuple(found) == own
        for row in of_conv3:
            kind = layers.stored(row, layers.LETTERS[precision]).arguments[0].dtype
            assert kind == (BFLOAT16 if own[2] else np.float32)
    finally:
        ta.set_float32_matmul_precision("highest")


def test_linear_layers_of_few_rows_have_two_versions(standin):
    for row in rows(Net(thin=32, pixels=63, classes=4), 2, nn.Linear):
        versions = layers.versions(replace(row, arguments=tuple(map(layers.placed, row.arguments))))
        assert len(versions) == (2 if row.work.part == floors.FORWARD else 0)
        for build in versions.values():
            assert distance(layers.host(build()()), row.expected()) < row.tolerance("A")


def test_our_images_lie_with_room_as_those_of_the_loader(standin, monkeypatch):
    seen = []
    monkeypatch.setattr(cuda, "conv2d", lambda x, *_: seen.append(with_room(x)))
    row = next(iter(rows(Net(thin=32, pixels=63, classes=4), 1, nn.Conv2d)))
    layers.ours(replace(row, arguments=tuple(map(layers.placed, row.arguments))))()
    assert seen[0] is not None


@pytest.mark.parametrize(("commit", "known"), [("0123abc", True), (None, False), ("", False)])
def test_without_a_commit_nothing_counts_as_measured(tmp_path, commit, known):
    facts = {"commit": commit, "gpu": "g", "driver": "d", "versions": {}}
    lines = tmp_path / "gpu.jsonl"
    journal.append(lines, "gpu-x", {"quick": False, "facts": facts})
    campaign = run.Campaign(lines, facts, floors.H100, timing.Protocol(), False)
    assert bool(run.measured_already("gpu-x", campaign)) == known


def test_time_ends_even_for_what_catches_its_end():
    def stubborn():
        with contextlib.suppress(TimeoutError):
            time.sleep(30)
        time.sleep(30)

    began, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), timing.until(began + 0.05):
        stubborn()
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) is before


def test_distance_counts_what_was_not_written():
    assert distance(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert distance(np.array([np.nan, 4.0]), np.array([3.0, 4.0])) == np.inf
    assert distance(np.zeros((2, 1)), np.ones(2)) == np.inf
