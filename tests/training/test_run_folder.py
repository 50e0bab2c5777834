"""The folder of a run, while others change it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import (
    TRAIN,
    Watcher,
    draw_photos,
    finish,
    load,
    resumed,
    run,
    start,
    tiny_settings,
    train_on,
    trainer,
)

from tinyalex.cli.finish import finish as end
from tinyalex.folders import locked
from tinyalex.training import (
    Checkpoints,
    StoppedError,
    StopRequest,
    Trainer,
    load_checkpoint,
    new_run,
    read_metrics,
)
from tinyalex.training.run_folder import open_run_folder

pytest_plugins = ("trained",)
pytestmark = [pytest.mark.usefixtures("tiny"), pytest.mark.timeout(30)]

GARBAGE = b"\0\xff{}[]\n" * 20 + b"[" * 100_000 + b"\n5\n" + b"x" * 200_000


def removed(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def emptied(path):
    removed(path)
    path.touch()


def a_folder(path):
    removed(path)
    (path / "deep").mkdir(parents=True)


def a_pipe(path):
    removed(path)
    os.mkfifo(path)


def garbage(path):
    removed(path)
    path.write_bytes(GARBAGE)


def a_device(path):
    removed(path)
    path.symlink_to("/dev/zero")


def foreign(path):
    """Return a file outside the folder of the run, in which nothing may change."""
    other = path.parent.parent / f"foreign {path.name}"
    other.write_bytes(b'{"kind": "step"}\n' * 3)
    removed(path)
    return other


def a_link(path):
    path.symlink_to(foreign(path))


def a_hard_link(path):
    os.link(foreign(path), path)


WAYS = [removed, emptied, a_folder, a_pipe, garbage, a_device, a_link, a_hard_link]
AUXILIARY = (
    "metrics.jsonl",
    "run.json",
    "run.lock",
    "tensorboard",
    "filters.png",
    "curves.png",
    "diverged.json",
    "diverged.safetensors",
    "previous.safetensors",
)


@pytest.mark.parametrize("spoil", WAYS)
@pytest.mark.parametrize("when", ["before", "while it trains"])
def test_nothing_auxiliary_stops_a_run(trained, copy, spoil, when):
    def spoil_all(title="", done=0):
        if (title, done) in (("", 0), ("epoch 4/4", 2)):
            for name in AUXILIARY:
                spoil(copy / name)

    said = []
    if when == "before":
        spoil_all()
        code, out, complaints = run(TRAIN, "--resume", copy, "--epochs", 4, "--tensorboard")
        assert (code, complaints) == (0, "")
        said = out.splitlines()
    else:
        longer = resumed(copy, epochs=4)
        with open_run_folder(longer, Checkpoints(copy), StopRequest(), "again") as training:
            training.progress = Watcher(spoil_all)
            training.metrics.say = training.progress.say
            training.checkpoints.seconds, training.checkpoints.share = 0, 1e9
            training.train()
            end(training, StopRequest())
        said = training.progress.said
    last = load_checkpoint(Checkpoints(copy).last)
    assert (last["state"]["step"], last["state"]["epoch"]) == (28, 4)
    rows = [row for row in read_metrics(copy / "metrics.jsonl") if row.get("kind") == "epoch"]
    assert rows[-1]["epoch"] == 4
    assert sum("metrics.jsonl has " in line for line in said) == 1
    for path in copy.parent.glob("foreign *"):
        assert path.read_bytes() == b'{"kind": "step"}\n' * 3
    assert run(TRAIN, "--resume", copy)[0] == 0
    assert run("look", copy, "curves", "--out", copy / "look.png")[0] == 0


@pytest.mark.parametrize("spoil", [a_folder, a_pipe, garbage, a_device])
def test_curves_of_what_is_no_file_of_metrics(copy, spoil):
    spoil(copy / "metrics.jsonl")
    code, _, complaints = run("look", copy, "curves")
    assert code == 2
    assert complaints.count("\n") == 1
    assert "metrics.jsonl" in complaints or "before the end of the first epoch" in complaints


@pytest.mark.parametrize("spoil", [removed, emptied, a_folder, a_pipe, garbage, a_device, a_link])
def test_a_run_ends_without_its_best_network(photos, tmp_path, copy, spoil, monkeypatch):
    monkeypatch.setattr(Checkpoints, "keep_best", lambda self, run: False)  # no better epoch
    spoil(copy / "best.safetensors")
    code, said, complaints = run(TRAIN, "--resume", copy, "--epochs", 4)
    assert (code, complaints) == (0, "")
    assert said.count("; the network of the last epoch takes its place") == (spoil is not removed)
    assert not (copy / "best.safetensors").exists()
    assert (copy / "curves.png").exists()
    assert run("evaluate", copy)[0] == 0


@pytest.mark.parametrize(
    ("moment", "wanted", "under_way", "missing"),
    [
        ("evaluate", "--report", "ending the test", "the test, the pictures and the report can"),
        ("evaluate", "--no-report", "ending the test", "the test and the pictures can follow"),
        ("first_filters", "--no-report", "finishing the pictures", "nothing is missing"),
        ("first_filters", "--report", "finishing the pictures", "the report can follow: "),
        ("draw_report", "--report", "finishing the report", "nothing is missing"),
    ],
)
def test_a_signal_after_training_says_what_is_missing(
    tmp_path, monkeypatch, capfd, moment, wanted, under_way, missing
):
    def kill(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    for split in ("train", "test") if moment == "evaluate" else ("train", "val"):
        draw_photos(tmp_path / "photos" / split, count=6)
    monkeypatch.setattr(f"tinyalex.cli.finish.{moment}", kill)
    out = tmp_path / "run"
    code, said, _ = train_on(tmp_path / "photos", out, "--epochs", 1, wanted)
    assert code == 143
    expected = f"\nall is saved: {under_way} (once more to stop at once)\n"
    assert capfd.readouterr().err == expected
    assert f"stopped by SIGTERM once training was over and saved; {missing}" in said
    assert (out / "curves.png").exists() == (moment != "evaluate")


@pytest.mark.parametrize("how", ["signal", "time limit"])
def test_a_stop_after_the_last_epoch_says_what_is_missing(photos, tmp_path, monkeypatch, how):
    def end_epoch(self, scores):
        before(self, scores)
        if self.run.state.epoch == 3 and how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.run.state.epoch == 3:
            monkeypatch.setattr(time, "monotonic", lambda: 1e12)

    before = Trainer._end_epoch
    monkeypatch.setattr(Trainer, "_end_epoch", end_epoch)
    out = tmp_path / "run"
    limit = ("--time-limit", "1h") if how == "time limit" else ()
    code, said, _ = train_on(photos, out, "--report", *limit)
    assert code == (143 if how == "signal" else 0)
    assert "once training was over and saved; the report can follow: " in said
    assert f"tinyalex report {out}" in said
    assert (out / "curves.png").exists()
    assert not (out / "report.html").exists()


def test_a_signal_says_what_a_second_one_would_lose(photos, tmp_path, capfd):
    def interrupt(title, done):
        if (title, done) == ("epoch 2/3", 3):
            os.kill(os.getpid(), signal.SIGINT)

    training = trainer(new_run(tiny_settings(photos)), tmp_path, Watcher(interrupt), share=1e-9)
    with StopRequest() as stop, pytest.raises(StoppedError):
        training.train(stop)
    words = "finishing this step, then saving (once more to stop at once, without what it learned "
    assert capfd.readouterr().err == f"\n{words}after step 7)\n"
    assert stop.lost() == ""


def test_rows_that_are_spoilt_or_of_another_time_are_left_out_of_the_curves(copy):
    path = copy / "metrics.jsonl"
    spoilt = [{}, {"kind": 3}, {"kind": "epoch", "epoch": 0}, {"kind": "step", "loss": "low"}]
    for row in read_metrics(path):
        for key in row:
            for value in (None, "x", [], 1e999, -1, {}):
                spoilt.append({**row, key: value})
    path.write_text("".join(json.dumps(row) + "\n" for row in spoilt) + path.read_text())
    code, _, complaints = run("look", copy, "curves")
    assert (code, complaints) == (0, "")


def test_metrics_that_cannot_be_written_are_said_once_and_come_later(photos, tmp_path, monkeypatch):
    training = trainer(new_run(tiny_settings(photos)), tmp_path, seconds=0, share=1e9)
    opened, refused = training.metrics._open, []

    def refuse():
        if 7 <= training.run.state.step < 20:
            refused.append(training.run.state.step)
            raise PermissionError(13, "Permission denied")
        return opened()

    monkeypatch.setattr(training.metrics, "_open", refuse)
    training.train()
    assert len(refused) > 5
    warnings = [line for line in training.progress.said if "warning" in line]
    assert warnings == [
        f"warning: {tmp_path / 'metrics.jsonl'} cannot be written now (Permission denied)"
    ]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == training.run.state.rows == 8


def test_metrics_that_are_rotated_go_on_and_the_run_is_resumed(photos, tmp_path):
    def rotate(title, done):
        if (title, done) == ("epoch 2/3", 4):
            (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.jsonl.1")
        if (title, done) == ("epoch 3/3", 7):
            os.truncate(tmp_path / "metrics.jsonl", 10)

    whole = trainer(new_run(tiny_settings(photos)), tmp_path, Watcher(rotate))
    whole.train()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl.1")] == [7, 7, 10]
    assert len([line for line in whole.progress.said if "had more a moment ago" in line]) == 2
    again = trainer(resumed(tmp_path, epochs=4), tmp_path)
    again.train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert again.run.state.rows == len(rows)
    assert rows[-1]["epoch"] == 4
    assert not again.progress.said[0].startswith("warning")


@pytest.mark.parametrize("error", [OSError(5, "no"), RuntimeError("broken"), ImportError("older")])
def test_pictures_that_cannot_be_drawn_cost_nothing(copy, monkeypatch, error):
    def refuse(*arguments):
        raise error

    for name in ("first_filters", "learning_curves"):
        monkeypatch.setattr(f"tinyalex.cli.finish.{name}", refuse)
    code, said, complaints = run(TRAIN, "--resume", copy)
    assert (code, complaints) == (0, "")
    assert said.count("\nno ") == 2


# --- the folder itself


def gone(out):
    shutil.rmtree(out)


def with_all_above(out):
    shutil.rmtree(out.parent)


def with_another_run_in_its_place(out):
    shutil.rmtree(out)
    shutil.copytree(out.parent / "other", out)


def behind_a_link(out):
    shutil.rmtree(out)
    out.symlink_to("other")


def with_another_lock(out):
    """Let another process take the lock where the folder's own lock is not known, as on NFS."""
    (out / "run.lock").unlink()
    with_another_lock.process = subprocess.Popen(
        [sys.executable, "-c", LOCKING, out / "run.lock"], stdout=subprocess.PIPE
    )
    with_another_lock.process.stdout.readline()


LOCKING = """if True:
    import fcntl, sys, time
    file = open(sys.argv[1], "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    time.sleep(60)
"""


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "lose",
    [gone, with_all_above, with_another_run_in_its_place, behind_a_link, with_another_lock],
)
@pytest.mark.parametrize("at", ["epoch 2/3", "validating", "testing"])
def test_a_run_whose_folder_is_lost_saves_beside_it_and_stops(
    photos, trained, tmp_path, monkeypatch, capsys, lose, at
):
    out = tmp_path / "runs/run"
    shutil.copytree(trained, tmp_path / "runs/other")
    new, stop = new_run(tiny_settings(photos)), StopRequest()
    before = {}

    def act(title, done):
        if title == at and not before:
            lose(out)
            for folder in (out, tmp_path / "runs/other"):
                before[folder] = files_of(folder) if folder.exists() else None

    if at == "testing":
        new.test_data = new.val_data
    with open_run_folder(new, Checkpoints(out), stop, "again") as training:
        training.progress.update = lambda done, text: act(training.progress._title, done)
        code = load(TRAIN).train(training, stop)
    if lose is with_another_lock:
        lose.process.kill()
        lose.process.communicate()
    said = capsys.readouterr().out
    assert code == 1
    rescued = tmp_path / "runs/run-rescued"
    found = re.search(r"stopped by the loss of its folder \((.+)\) and saved at step (\d+) of 21; "
                      r"resume: (.+)", said)  # fmt: skip
    assert found
    assert str(out) in found[1]
    assert int(found[2]) == load_checkpoint(Checkpoints(rescued).last)["state"]["step"]
    for folder, files in before.items():
        assert (files_of(folder) if folder.exists() else None) == files
    *_, option, place = shlex.split(found[3])
    assert (option, Path(place)) == ("--resume", rescued)
    code, said, complaints = run(TRAIN, "--resume", place)
    assert code == 0
    # The images to test this one on are those of the validation.
    assert complaints == "" or (at == "testing" and " to val and to test" in complaints)
    assert "warning" not in said


@pytest.mark.parametrize("lose", [gone, with_all_above, with_another_lock])
@pytest.mark.parametrize(("here", "given"), [("run", "."), ("run/in", ".."), (".", "run")])
def test_a_run_is_saved_beside_a_lost_folder_that_was_given_relatively(
    photos, tmp_path, monkeypatch, capsys, lose, here, given
):
    out = tmp_path / "runs/run"
    (out / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / here)
    new, stop = new_run(tiny_settings(photos)), StopRequest()
    with open_run_folder(new, Checkpoints(given), stop, "again") as training:
        lose(out)
        assert load(TRAIN).train(training, stop) == 1
    if lose is with_another_lock:
        lose.process.kill()
        lose.process.communicate()
    said = capsys.readouterr().out
    assert "stays" not in said
    assert "stopped by the loss of its folder" in said
    *_, place = shlex.split(said)
    assert Path(place) == tmp_path / "runs/run-rescued"
    assert run(TRAIN, "--resume", place)[::2] == (0, "")


def test_a_lost_folder_beside_which_nothing_can_be_made_is_said(photos, tmp_path, capsys):
    out = tmp_path / "runs/run"
    new, stop = new_run(tiny_settings(photos)), StopRequest()
    with open_run_folder(new, Checkpoints(out), stop, "again") as training:
        shutil.rmtree(tmp_path / "runs")
        (tmp_path / "runs").write_text("")
        assert load(TRAIN).train(training, stop) == 1
    complaint = capsys.readouterr().err
    assert "run is gone, or another folder has its name, and nothing can be saved" in complaint
    assert "--resume" not in complaint


def test_a_run_that_is_renamed_goes_on_under_the_new_name(photos, tmp_path, capsys):
    out, moved = tmp_path / "run", tmp_path / "moved"

    def move(title, done):
        if (title, done) == ("epoch 2/3", 3):
            out.rename(moved)
            out.mkdir()

    stop = StopRequest()
    with open_run_folder(
        new_run(tiny_settings(photos)), Checkpoints(out), stop, "again"
    ) as training:
        training.progress.update = lambda done, text: move(training.progress._title, done)
        assert load(TRAIN).train(training, stop) == 0
    said = capsys.readouterr().out
    assert said.count(f"{out} is called {moved} now, and the run continues there\n") == 1
    assert f"in {moved}:\n" in said
    assert str(moved) in said.partition("next:")[2]
    assert not list(out.iterdir())
    assert len(read_metrics(moved / "metrics.jsonl")) == 8
    assert run(TRAIN, "--resume", moved)[0] == 0


def test_a_lock_file_that_is_removed_opens_no_folder(photos, copy):
    with locked(copy) as lock:
        (copy / "run.lock").unlink()
        code, _, complaints = run(TRAIN, "--resume", copy)
        assert code == 2
        assert f"another process is at work in {copy}" in complaints
        (copy / "run.lock").unlink(missing_ok=True)
        assert lock.where() == copy
        assert (copy / "run.lock").exists()


def test_a_diverged_run_whose_folder_is_lost_says_both(photos, tmp_path, capsys):
    out = tmp_path / "run"
    new, stop = new_run(tiny_settings(photos, lr=1e30)), StopRequest()
    with open_run_folder(new, Checkpoints(out), stop, "again") as training:
        shutil.rmtree(out)
        out.mkdir()
        assert load(TRAIN).train(training, stop) == 3
    assert not list(out.iterdir())
    assert "is gone, or another folder has its name" in capsys.readouterr().err


def test_stopped_runs_say_which_error_it_was(photos, tmp_path):
    with open_run_folder(
        new_run(tiny_settings(photos)), Checkpoints(tmp_path / "a"), StopRequest(), "again"
    ) as training:
        shutil.rmtree(tmp_path / "a")
        with pytest.raises(StoppedError) as stopped:
            training.train()
    assert stopped.value.exit_code == 1


def test_training_in_a_process_of_its_own_while_the_folder_is_replaced(photos, tmp_path):
    out = tmp_path / "run"
    arguments = ("--variant", "tiny", "--threads", 1, "--epochs", 60, "--data", photos)
    first = start(TRAIN, *arguments, "--out", out)
    while not Checkpoints(out).best.exists():
        assert first.poll() is None
        time.sleep(0.005)
    while out.exists():  # it may be writing there
        shutil.rmtree(out, ignore_errors=True)
    code, _, complaints = train_on(photos, out)
    assert (code, complaints) == (0, "")
    before = files_of(out)
    code, said, _ = finish(first)
    assert code == 1
    assert f"--resume {tmp_path / 'run-rescued'}" in said
    assert files_of(out) == before
