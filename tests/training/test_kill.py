"""Runs killed, stopped and resumed end like an undisturbed one."""

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import images
import numpy as np
import pytest
from commands import finish, result, run_and_save_always, start, train_on

from tinyalex.interrupts import STOP_SIGNALS
from tinyalex.training import Checkpoints, StopRequest, load_checkpoint, run_folder

pytest_plugins = ("trained",)

KILLS = 20
RUN = ("--variant", "tiny", "--threads", 1)

# Twenty runs and more: each is a process of its own, forked from one that has imported everything.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tinyalex.cli.train_options", "matplotlib.figure"])


def begin_or_resume(photos, out, errors):
    if Checkpoints(out).last.exists():
        arguments = ("--resume", out)
    else:
        arguments = (*RUN, "--data", photos, "--out", out)
    process = processes.Process(target=run_and_save_always, args=("train", arguments, errors))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return the result of a run that nothing happened to, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("first", "run"):  # what is imported late takes its time once
        began = time.monotonic()
        process = begin_or_resume(photos, folder / name, folder / "errors")
        process.join()
        assert process.exitcode == 0, (folder / "errors").read_text()
    return result(folder / "run"), time.monotonic() - began


def freeze_amid_a_write(process, folder):
    """Stop the process while it is writing a file, unless it ends before it writes again."""
    while process.is_alive():
        if any(folder.glob(".*.tmp")):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.002)  # until it has stopped
            if any(folder.glob(".*.tmp")):
                return
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.0002)


def test_kill_at_any_moment(photos, undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng = np.random.default_rng(42)
    errors = tmp_path / "errors"
    kills = half_written = round_ = 0
    while kills < KILLS:
        out, code = tmp_path / f"run{round_}", None
        round_ += 1
        while code != 0:
            process = begin_or_resume(photos, out, errors)
            if kills < KILLS:
                process.join(timeout=rng.uniform(0, seconds))
                if kills % 2:
                    freeze_amid_a_write(process, out)
                if process.is_alive():
                    process.kill()
                    kills += 1
                    half_written += any(out.glob(".*.tmp"))
            process.join()
            code = process.exitcode
            assert code in (0, -signal.SIGKILL), errors.read_text()
        assert result(out) == expected
        assert not any(out.glob(".*.tmp"))
    assert half_written  # some of the kills came in the middle of writing a file


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 0)],
)
def test_signals_save_and_say_how_to_go_on(photos, tmp_path, signum, code):
    out = tmp_path / "a run"
    process = start("train", *RUN, "--epochs", 8, "--data", photos, "--out", out)
    while not Checkpoints(out).best.exists():  # from the second epoch on
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signum)
    stopped, said, _ = finish(process)
    assert stopped == code
    step = load_checkpoint(Checkpoints(out).last)["state"]["step"]
    name = signal.Signals(signum).name
    assert f"stopped by {name} and saved at step {step} of {8 * 7}" in said
    assert f"tinyalex train --resume '{out}'" in said
    resumed, said, _ = finish(start("train", "--resume", out))
    assert resumed == 0
    assert f"from step {step} on" in said
    assert load_checkpoint(Checkpoints(out).last)["state"]["step"] == 8 * 7


def test_ctrl_c_while_the_images_are_measured_leaves_nothing(tmp_path):
    images.write(tmp_path / "photos/ash/0.png", size=(4000, 4000))  # long to decode
    (tmp_path / "photos/elm").mkdir()
    for number in range(1, 99):
        name = f"{('ash', 'elm')[number % 2]}/{number}.png"
        shutil.copy(tmp_path / "photos/ash/0.png", tmp_path / "photos" / name)
    arguments = ("--mean", "image", "--data", tmp_path / "photos", "--out", tmp_path / "run")
    process = start("train", *RUN, *arguments)
    assert process.stdout.readline().endswith("are measured now\n")
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "\nstopped by SIGINT, with nothing to save\n")
    assert os.listdir(tmp_path) == ["photos"]


def test_a_run_goes_on_and_saves_where_nobody_reads_what_it_says(photos, tmp_path):
    out = tmp_path / "run"
    process = start("train", *RUN, "--epochs", 8, "--data", photos, "--out", out)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    while not Checkpoints(out).best.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.stderr.close()  # as `2>&1 | tee` does, which ends by the same Ctrl-C
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert 7 < load_checkpoint(Checkpoints(out).last)["state"]["step"] < 8 * 7


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "expected"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), ("SIGUSR1", 0)]
)
@pytest.mark.parametrize("moment", ["train.environment", "dry_run.load_checkpoint"])
def test_signals_before_training_leave_nothing(
    photos, tmp_path, monkeypatch, capfd, moment, name, expected
):
    signum = signal.Signals[name]
    before = signal.getsignal(signum)
    kill = functools.partial(os.kill, os.getpid(), signum)
    monkeypatch.setattr(f"tinyalex.cli.{moment}", lambda *arguments: kill())
    assert train_on(photos, tmp_path / "run", "--dry-run")[0] == expected
    assert capfd.readouterr().err == f"\nstopped by {name}, with nothing to save\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signum) == before


@pytest.mark.usefixtures("tiny")
def test_a_signal_amid_the_first_checkpoint_leaves_a_run_to_go_on_with(
    photos, tmp_path, monkeypatch
):
    kill = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(run_folder, "load_checkpoint", lambda path: kill())
    code, said, _ = train_on(photos, tmp_path / "run")
    assert code == 143
    assert "stopped by SIGTERM and saved at step 1 of 21; resume: " in said
    assert load_checkpoint(Checkpoints(tmp_path / "run").last)["state"]["step"] == 1


def test_second_signal_stops_at_once():
    program = """if True:
        import os, signal
        from tinyalex.training import StopRequest
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.reason == "SIGINT"
            stop.lost = lambda: ", without this"
            os.kill(os.getpid(), signal.SIGTERM)
            print("still here")
    """
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert process.returncode == -signal.SIGTERM
    assert b"still here" not in process.stdout
    assert process.stderr.count(b"\n") == 4
    assert process.stderr.endswith(b"\nstopped at once, without this\n")


def test_second_signal_stops_where_nobody_reads_what_it_says():
    program = """if True:
        import os, signal, threading
        from tinyalex.training import StopRequest
        threading.Timer(30, os._exit, [1]).start()
        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, bytes(4096))
        except BlockingIOError:
            os.set_blocking(2, True)
        with StopRequest():
            for delay in (0.2, 0.6):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Event().wait()
    """
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    with process.stderr:
        assert process.wait(timeout=60) == -signal.SIGINT


def test_a_closed_terminal_may_say_so_twice_and_nohup_holds():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.reason, stop.exit_code) == ("SIGTERM", 143)
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    assert signal.signal(signal.SIGHUP, previous) == signal.SIG_IGN


def test_sigusr1_may_be_repeated_and_followed_by_another():
    with StopRequest() as stop:
        assert not stop
        for signum, code in ((signal.SIGUSR1, 0), (signal.SIGUSR1, 0), (signal.SIGTERM, 143)):
            os.kill(os.getpid(), signum)
            assert stop
            assert stop.exit_code == code
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_what_a_test_starts_hears_signals_even_under_nohup():
    def begin_deaf():
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    code = "import commands, os; commands.hear_signals(); "
    code += "os.execlp('grep', 'grep', '-E', 'Sig(Blk|Ign)', '/proc/self/status')"
    support = Path(__file__).parents[1] / "support"
    status = subprocess.check_output(
        [sys.executable, "-c", code], cwd=support, preexec_fn=begin_deaf, text=True
    )
    deaf = [int(line.split()[1], 16) for line in status.splitlines()]
    assert len(deaf) == 2
    assert not any(mask >> signum - 1 & 1 for mask in deaf for signum in STOP_SIGNALS)
