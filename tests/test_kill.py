"""Runs that are killed, stopped and resumed end with the same bits as one that was left alone."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import finish, result, start

from tinyalex.training import Checkpoints, load_checkpoint

pytest_plugins = ("trained",)

KILLS = 20
RUN = ("--variant", "tiny", "--epochs", 4, "--threads", 1)


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return the result of a run that nothing happened to, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    code, said, complaints = finish(start("train_alexnet", *RUN, "--data", photos, "--out", out))
    assert (code, complaints) == (0, "")
    assert "\r" not in said  # stdout is a pipe
    return result(out), time.monotonic() - began


def begin_or_resume(photos, out):
    if Checkpoints(out).last.exists():
        return start("train_alexnet", "--resume", out)
    return start("train_alexnet", *RUN, "--data", photos, "--out", out)


def wait_for_a_write(process, folder):
    """Return as soon as a file is being written."""
    while process.poll() is None and not any(folder.glob(".*.tmp")):
        time.sleep(0.0002)


def test_kill_at_any_moment(photos, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = np.random.default_rng(42)
    kills = half_written = round_ = 0
    while kills < KILLS:
        out, code = tmp_path / f"run{round_}", None
        round_ += 1
        while code != 0:
            process = begin_or_resume(photos, out)
            if kills < KILLS:
                try:
                    process.wait(timeout=rng.uniform(0, 1.1 * seconds))
                except subprocess.TimeoutExpired:
                    if kills % 2:
                        wait_for_a_write(process, out)
            if process.poll() is None and kills < KILLS:
                process.kill()
                kills += 1
            code, _, complaints = finish(process)
            assert code in (0, -signal.SIGKILL), complaints
            half_written += any(out.glob(".*.tmp"))
        assert result(out) == expected
        assert not any(out.glob(".*.tmp"))
    assert half_written  # at least one of the kills came in the middle of writing a file


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(photos, undisturbed, tmp_path, signum, code):
    expected, _ = undisturbed
    out = tmp_path / "a run"
    process = start("train_alexnet", *RUN, "--data", photos, "--out", out)
    while not Checkpoints(out).best.exists():  # in the second epoch, or a little later
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signum)
    stopped, said, _ = finish(process)
    assert stopped == code
    step = load_checkpoint(Checkpoints(out).last)["state"]["step"]
    assert f"stopped and saved at step {step} of 28" in said
    assert f"train_alexnet.py --resume '{out}'" in said
    assert finish(start("train_alexnet", "--resume", out))[0] == 0
    assert result(out) == expected


def test_second_signal_stops_at_once():
    program = """if True:
        import os, signal
        from tinyalex.training import StopRequest
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum == signal.SIGINT
            os.kill(os.getpid(), signal.SIGTERM)
            print("still here")
    """
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert process.returncode == -signal.SIGTERM
    assert b"still here" not in process.stdout
    assert process.stderr.count(b"\n") == 2
