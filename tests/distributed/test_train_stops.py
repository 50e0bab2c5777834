"""Training on several ranks that is stopped, killed, and resumed on others."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
from commands import draw_photos, finish, result
from test_train_ranks import MPIEXEC, OPTIONS, spoil, train, trained

from tinyalex.training import Checkpoints, load_checkpoint

TRIALS = int(os.environ.get("TINYALEX_KILLS", "2"))
LONG = (*OPTIONS, "--epochs", "6")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of photographs."""
    return draw_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return what an undisturbed process finds."""
    return trained(0, tmp_path_factory.mktemp("alone") / "run", "--data", photos, *LONG)


@pytest.fixture
def spoilt(tmp_path):
    """Return photographs, too many of which cannot be read."""
    photos = draw_photos(tmp_path / "photos")
    for name in ("ash/03.png", "birch/17.png", "birch/19.png", "elm/11.png"):
        spoil(photos / name)
    return photos


def ranks_of(job):
    """Return the processes of a job's ranks, by number."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        rank = next((v for v in variables if v.startswith(b"PMI_RANK=")), None)
        if rank and str(job.args[-1]).encode() in words:
            found[int(rank[9:])] = int(process.name)
    return [found[rank] for rank in sorted(found)]


def alive(process):
    """Return whether a process is there and not merely waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_step(job, out, step):
    """Wait until a step is saved."""
    last = Checkpoints(out).last
    for _ in range(600):
        if last.exists() and load_checkpoint(last)["state"]["step"] >= step:
            return
        assert job.poll() is None, finish(job)
        time.sleep(0.02)
    raise AssertionError("no step was saved")


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_jobs_are_resumed_on_any_number_of_ranks(photos, undisturbed, tmp_path, trial):
    out, rng = tmp_path / "run", random.Random(trial)
    arguments = ("--data", photos, *LONG, "--out", out)
    for ranks, step in ((2, rng.randint(0, 8)), (4, rng.randint(9, 18))):
        job = train(ranks, *arguments)
        wait_for_step(job, out, step)
        os.kill(rng.choice(ranks_of(job)), signal.SIGKILL)
        assert finish(job)[0] != 0
        arguments = ("--resume", out)
    assert finish(train(0, "--resume", out))[0] == 0
    assert result(out) == undisturbed


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_signals_save_all_ranks_at_one_step(photos, undisturbed, tmp_path, signum, code, trial):
    out = tmp_path / "run"
    job = train(3, "--data", photos, *LONG, "--out", out)
    wait_for_step(job, out, 2 + trial)
    job.send_signal(signum)
    found, said, complaints = finish(job)
    assert found == code, said + complaints
    (step,) = re.findall(r"stopped by SIG\w+ and saved at step (\d+) of 24", said)
    assert load_checkpoint(Checkpoints(out).last)["state"]["step"] == int(step)
    assert finish(train(2, "--resume", out))[0] == 0
    assert result(out) == undisturbed


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_stands_still_ends_the_job(photos, tmp_path, ranks):
    out = tmp_path / "run"
    job = train(ranks, "--data", photos, *LONG, "--exchange-timeout", "3", "--out", out)
    wait_for_step(job, out, 3)
    processes = ranks_of(job)
    assert len(processes) == ranks
    os.kill(processes[-1], signal.SIGSTOP)
    begun = time.monotonic()
    code, _, complaints = finish(job)
    assert time.monotonic() - begun < 3 + 2
    assert code != 0
    assert re.search(rf"step \d+, .*: nothing came for 3 s from rank {ranks - 1}\b", complaints)
    time.sleep(1)  # the kernel takes a moment to end what was killed
    assert not any(map(alive, processes))
    assert finish(train(0, "--resume", out))[0] == 0


def test_too_many_unreadable_images_are_measured_by_all_ranks(spoilt, tmp_path):
    """Each rank has images of its own, and another number of bad ones; none is to blame."""
    words = (*OPTIONS, "--mean", "image", "--out", tmp_path / "run")
    code, _, complaints = finish(train(3, "--data", spoilt, *words))
    assert code == 2
    assert re.match(r"error: \d of 57 images cannot be read, 1 is allowed", complaints)
    assert complaints.count("\n") == 1


def test_too_many_unreadable_images_end_all_ranks_alike(spoilt, tmp_path):
    code, _, complaints = finish(train(3, "--data", spoilt, *OPTIONS, "--out", tmp_path / "run"))
    assert code == 2
    assert re.search(r"\d of 57 images cannot be read, 1 is allowed", complaints)
    assert complaints.count("error:") == 1, complaints
    assert "--resume" in complaints


def test_a_mistake_is_told_once(photos, tmp_path):
    for option, expected in (
        ("--lr -1", "lr"),
        ("--dry-run", "mpiexec"),
        ("--nonsense", "nonsense"),
    ):
        out = tmp_path / "run"
        code, _, complaints = finish(
            train(3, "--data", photos, *OPTIONS, *option.split(), "--out", out)
        )
        assert code == 2
        assert complaints.count(expected) == 1, complaints
        assert not out.exists()


def test_an_output_folder_that_cannot_be_written_is_told_once(photos, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/run"
    code, _, complaints = finish(train(2, "--data", photos, *OPTIONS, "--out", out))
    expected = f"error: {out} cannot be written to ({tmp_path / 'file'}: Not a directory): "
    assert complaints == f"{expected}give another place with --out\n"
    assert code == 2


def each(*arguments):
    """Start one rank with each of these lists of arguments."""
    words = ["-n", "1", sys.executable, commands.__file__, "train"]
    jobs = [[*words, *map(str, own), ":"] for own in arguments]
    return subprocess.Popen(
        [MPIEXEC, *itertools.chain(*jobs)][:-1],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_that_begin_with_other_things_are_refused(photos, tmp_path):
    arguments = ("--data", photos, *OPTIONS, "--out", tmp_path / "run")
    code, _, complaints = finish(each(arguments, (*arguments, "--seed", "5")))
    assert code == 2
    assert re.search(r"rank 1 \(.*\) begins with another seed than rank 0, 5 for 0", complaints)
    assert complaints.count("error:") == 1, complaints


def test_what_one_rank_cannot_read_is_said_by_it(photos, tmp_path):
    arguments = (*OPTIONS, "--mean", "image", "--out", tmp_path / "run")
    nowhere = ("--data", tmp_path / "nowhere", *arguments)
    code, _, complaints = finish(each(("--data", photos, *arguments), nowhere))
    assert code == 2, complaints
    assert re.search(r"rank 1 \(.*\): error: .*nowhere", complaints)


def test_ranks_that_fail_at_once_are_told_apart(photos, tmp_path):
    """The first says why; beside one that is at work, each that failed does."""
    arguments = (*OPTIONS, "--mean", "image", "--out", tmp_path / "run")
    nowhere = [("--data", tmp_path / f"nowhere{number}", *arguments) for number in range(2)]
    code, _, complaints = finish(each(*nowhere))
    assert code == 2, complaints
    assert re.fullmatch(r"rank 0 \(.*\): error: .*nowhere0.*\n", complaints)
    code, _, complaints = finish(each(("--data", photos, *arguments), *nowhere))
    assert code == 2, complaints
    told = re.findall(r"^rank (\d) \(.*\): error: .*nowhere(\d)", complaints, re.MULTILINE)
    assert 1 <= len(told) == complaints.count(": error: "), complaints
    assert {*told} <= {("1", "0"), ("2", "1")}


def test_divergence_ends_all_ranks_alike(photos, tmp_path):
    arguments = ("--data", photos, *OPTIONS, "--lr", "1e10", "--out", tmp_path / "run")
    code, _, complaints = finish(train(2, *arguments))
    assert code == 3, complaints
    assert complaints.count("error:") == 1, complaints
    assert "resume from there with a lower rate" in complaints


def test_unreadable_validation_images_end_all_ranks_alike(tmp_path):
    photos = tmp_path / "photos"
    draw_photos(photos / "train", 18)
    draw_photos(photos / "val", 6)
    for path in sorted(photos.glob("val/ash/*"))[2:5]:
        spoil(path)
    arguments = ("--data", photos, *OPTIONS, "--batch-size", "12", "--shards", "6")
    code, _, complaints = finish(train(2, *arguments, "--out", tmp_path / "run"))
    assert code == 2, complaints
    assert complaints.count("error:") == 1, complaints
    assert "of 18 images cannot be read" in complaints
