"""The CPU's benchmark with tinyalex alone, and its tables."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpu import tables

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BENCHMARKS)))}
HOLD = """
import time
from cpu.workers import busy_processes, stop_cleanly_on_sigterm
if __name__ == "__main__":
    stop_cleanly_on_sigterm()
    with busy_processes(2) as processes:
        print(*processes, flush=True)
        {then}
"""


def lives(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def work(process):
    """Return the time that a process has worked, in ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


ENDS = {
    "by itself": ("pass", None),
    "by an error": ("1 / 0", None),
    "by Ctrl-C": ("time.sleep(60)", signal.SIGINT),
    "by SIGTERM": ("time.sleep(60)", signal.SIGTERM),
    "by SIGKILL": ("time.sleep(60)", signal.SIGKILL),
}


@pytest.mark.parametrize(("then", "end"), ENDS.values(), ids=ENDS.keys())
def test_busy_processes_work_and_end_however_the_benchmark_does(then, end, tmp_path):
    script = tmp_path / "hold.py"  # from which the processes start anew
    script.write_text(HOLD.format(then=then))
    with subprocess.Popen(
        [sys.executable, script], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        processes = list(map(int, holder.stdout.readline().split()))
        assert len(processes) == 2
        if end is not None:
            before = list(map(work, processes))
            deadline = time.monotonic() + 20
            while any(map(int.__le__, map(work, processes), before)):
                assert time.monotonic() < deadline, "a busy process does nothing"
                time.sleep(0.05)
            holder.send_signal(end)
        holder.wait(20)
    deadline = time.monotonic() + 20
    while any(map(lives, processes)):
        assert time.monotonic() < deadline, "a busy process is still running"
        time.sleep(0.05)


BROKEN = """
import bench_cpu
from cpu import peers
def fail(case, folder):
    raise RuntimeError("no compiler was found")
if __name__ == "__main__":
    broken = peers.Contestant("torch compiled", fail, 0)
    peers.CONTESTANTS["infer"] = (peers.CONTESTANTS["infer"][0], broken)
    bench_cpu.main()
"""


def test_after_pauses_and_beside_a_busy_process(tmp_path):
    """With a peer that fails, which is left out and named."""
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ["--idle", "--busy", "1", "--variant", "torchvision", "--rounds", "1", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, tmp_path / "broken.py", *words, "--only", "torch compiled"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    for moment in (
        "back to back | after 20 ms | after 100 ms | after 1000 ms |",
        "1 busy, after 100",
    ):
        assert moment in done.stdout
    assert "tinyalex, one thread, quiet" in done.stdout
    assert "Left out: torch compiled: RuntimeError: no compiler was found." in done.stdout
    assert "not saved" in done.stdout


def test_another_checkout_is_named_by_its_commit_and_imported(tmp_path):
    (tmp_path / "tinyalex.py").write_text("print('another'); raise SystemExit")
    git = ["git", "-C", tmp_path, "-c", "user.name=A", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    code = f"from cpu import peers; other = peers.checkout({str(tmp_path)!r}); print(other.name)"
    command = [sys.executable, "-c", f"{code}; other.build(None, None)"]
    said = subprocess.check_output(command, env=ENVIRONMENT, text=True)
    assert re.fullmatch(r"tinyalex [0-9a-f]{7,}\nanother\n", said)


def result(ours, **theirs):
    """Return a saved result, of rounds of one call each."""
    times = {"tinyalex": ours, **{name.replace("_", " "): of for name, of in theirs.items()}}
    runs = {name: [{"seconds": [second]} for second in of] for name, of in times.items()}
    return {"batch_size": 1, "runs": runs}


@pytest.mark.parametrize(
    ("compiled", "goal", "measured", "moved"),
    [
        (
            2.4,
            1.15,
            "1.20x (1.20 .. 1.20), torch compiled: **met**",
            "without torch.compile: 1.50x",
        ),
        (4.0, 1.6, "1.50x (1.45 .. 1.55), OpenVINO: **missed**", "torch.compile: 2.00x"),
    ],
)
def test_a_goal_counts_the_best_peer_and_says_what_compiling_changes(
    compiled, goal, measured, moved
):
    times = result([2.0] * 3, OpenVINO=[3.0, 3.1, 2.9], torch_compiled=[compiled] * 3)
    text = tables._speed_goal(times, tables.PREDICTORS, goal)
    assert f"{measured}<br>{moved}" in text.replace(tables.TIMES, "x")


@pytest.mark.parametrize(("goal", "verdict"), [(1.0, "met"), (1.05, "missed")])
def test_a_difference_inside_the_spread_is_equal(goal, verdict):
    times = result([2.0, 2.2, 2.1], OpenVINO=[2.1, 1.9, 2.1])
    text = tables._speed_goal(times, ("OpenVINO",), goal)
    assert f"equal (0.86 .. 1.05), OpenVINO: **{verdict}**" in text
