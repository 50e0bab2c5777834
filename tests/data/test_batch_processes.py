"""Batches made by processes: as by threads; dead or stuck ones noticed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import images
import numpy as np
import pytest
from test_data_loader import assert_same
from trouble import Trouble

from tinyalex.data import (
    DataError,
    EvalTransform,
    ImageFolder,
    Loader,
    TenCropTransform,
    TrainTransform,
    WorkerError,
    worker_processes,
)
from tinyalex.training import Checkpoints, load_checkpoint


@pytest.fixture(autouse=True)
def _no_process_survives():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def loaders():
    """Return a function that makes a Loader with processes; they end with the test."""
    made = []

    def make(*args, **options):
        made.append(Loader(*args, **{"workers": 2, "processes": True, **options}))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def test_the_same_batches_as_with_threads(loaders):
    options = {"seed": 7, "batch_size": 16, "transform": TrainTransform(10, jitter=0.3)}
    threads = Loader(Trouble(), **options)
    processes = loaders(Trouble(), **options, prefetch=5)
    for epoch, start in ((5, 0), (2, 2)):
        assert_same(processes.epoch(epoch, start), threads.epoch(epoch, start))
    views = {"batch_size": 16, "transform": TenCropTransform(10), "shuffle": False}
    assert_same(loaders(Trouble(), **views).epoch(0), Loader(Trouble(), **views).epoch(0))
    batch = next(processes.epoch(0))
    assert batch.images.transpose(0, 2, 3, 1).flags.c_contiguous  # channels last


def test_an_epoch_left_early_does_not_disturb_the_next(loaders):
    processes = loaders(Trouble(), 4, EvalTransform(10), prefetch=6)
    for _ in range(3):
        next(processes.epoch(0)).images[:] = -1  # a batch is the consumer's own
    assert_same(processes.epoch(1), Loader(Trouble(), 4, EvalTransform(10)).epoch(1))


@pytest.mark.parametrize("shuffle", [True, False])
def test_broken_images_are_replaced_and_listed_as_with_threads(shuffle, loaders, tmp_path):
    images.folder(tmp_path, cats=20, dogs=16)
    for name in ("cats/005x.jpg", "cats/005y.jpg", "dogs/zzz.jpg"):
        images.text(tmp_path / name)
    dataset = ImageFolder(tmp_path, shorter_side=8)
    options = {"batch_size": 13, "transform": EvalTransform(8), "shuffle": shuffle}
    threads = Loader(dataset, **options, max_bad=0.1)
    processes = loaders(dataset, **options, max_bad=0.1)
    assert_same(processes.epoch(1), threads.epoch(1))
    assert processes.bad == threads.bad
    assert len(threads.bad) == 3
    with pytest.raises(DataError, match="of 39 images cannot be read, 0 are allowed"):
        list(loaders(dataset, **options, max_bad=0).epoch(1))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kill", r"worker process \d+ \(\d of 2\) was ended by SIGKILL"),
        ("leave", r"worker process \d+ \(\d of 2\) ended with exit code 7"),
    ],
)
def test_a_dead_process_is_an_error_that_names_it(what, message, loaders):
    loader = loaders(Trouble(what, at=35), 10, EvalTransform(10), shuffle=False)
    batches = loader.epoch(0)
    for k in range(3):
        assert next(batches).indices[0] == 10 * k
    start = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        list(batches)
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 5
    assert len(next(loader.epoch(0))) == 10  # another epoch has new processes


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_process_that_is_stuck_is_replaced_and_its_image_left_out(shuffle, loaders, monkeypatch):
    assert worker_processes.PATIENCE == 8
    monkeypatch.setattr(worker_processes, "PATIENCE", 0.9)
    options = {"batch_size": 10, "transform": EvalTransform(10), "shuffle": shuffle}
    loader = loaders(Trouble("stop", at=35), **options)
    assert_same(loader.epoch(1), Loader(Trouble("tear", at=35), **options).epoch(1))
    assert loader.bad == [("image 35", "not read within 1 s")]
    assert_same(loader.epoch(2), Loader(Trouble("tear", at=35), **options).epoch(2))


def test_processes_that_are_all_stuck_are_an_error(loaders, monkeypatch):
    monkeypatch.setattr(worker_processes, "PATIENCE", 0.9)
    loader = loaders(Trouble("stop", at="all"), 10, EvalTransform(10))
    with pytest.raises(WorkerError, match=r"[234] images were not read within 1 s, the last"):
        list(loader.epoch(0))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [False, True])
def test_a_stop_of_all_processes_is_no_silence(processes):
    """Ctrl-Z, and `fg` when the patience would have come to its end."""
    code = f"""
from tinyalex.data import EvalTransform, Loader, worker_processes
from trouble import Trouble

worker_processes.PATIENCE = 1.0
dataset = Trouble("linger", "all", size=20)
for batch in Loader(dataset, 2, EvalTransform(9), processes={processes}).epoch(0):
    print(len(batch), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "2\n"
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.stdout.read() == "2\n" * 9
    process.communicate()


def test_killed_while_idle(loaders):
    loader = loaders(Trouble(), 10, EvalTransform(10))
    list(loader.epoch(0))
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="was ended by SIGKILL"):
        list(loader.epoch(1))


def test_an_error_comes_in_the_place_of_its_batch_and_says_where_it_arose(loaders):
    batches = loaders(Trouble("fail", at=25), 10, EvalTransform(10), shuffle=False).epoch(0)
    assert next(batches).indices[0] == 0
    assert next(batches).indices[0] == 10
    with pytest.raises(RuntimeError, match="the disk is gone") as caught:
        next(batches)
    assert "in fail" in str(caught.value.__cause__)


def test_what_cannot_be_pickled_is_refused():
    dataset = Trouble()
    dataset.lock = lambda: None
    with pytest.raises(TypeError, match="data set and a transform that can be pickled"):
        next(Loader(dataset, 10, EvalTransform(10), processes=True).epoch(0))


def test_a_dropped_loader_ends_its_processes():
    loader = Loader(Trouble(), 10, EvalTransform(10), processes=True)
    list(loader.epoch(0))
    assert len(multiprocessing.active_children()) == 2
    del loader
    assert multiprocessing.active_children() == []


def resident_bytes(pids):
    """Return how much memory the processes hold."""
    pages = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in pids)
    return os.sysconf("SC_PAGESIZE") * sum(map(int, pages))


@pytest.mark.parametrize("processes", [False, True])
def test_memory_stays_flat_over_an_epoch(processes, loaders, tmp_path):
    """A leak of a kilobyte an image would show, one of pixels long before."""
    images.folder(tmp_path, cats=2, dogs=2)
    dataset = ImageFolder(tmp_path, shorter_side=30)
    chosen = np.arange(4000) % 4
    dataset.paths, dataset.labels = [dataset.paths[i] for i in chosen], chosen % 2
    loader = loaders(dataset, 20, TrainTransform(24), processes=processes)
    sizes = []
    for number, _ in enumerate(loader.epoch(0)):
        if number in (49, 199):
            pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            sizes.append(resident_bytes(pids))
    assert sizes[1] - sizes[0] < 3e6


def test_training_with_processes_has_the_same_result(tmp_path):
    photos = commands.draw_photos(tmp_path / "photos")
    weights = []
    for out, *options in (("threads",), ("processes", "--worker-processes")):
        arguments = ("--variant", "tiny", "--threads", 1, "--epochs", 1, "--workers", 1)
        with commands.tiny_variant():
            code, _, errors = commands.run(
                "train", *arguments, "--data", photos, "--out", tmp_path / out, *options
            )
        assert code == 0, errors
        weights.append(load_checkpoint(Checkpoints(tmp_path / out).last)["classifier"]["weights"])
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


@pytest.fixture
def _blocked():
    """Block SIGUSR1, as a program does that waits for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("_blocked")
def test_a_polite_signal_to_all_processes_is_the_parent_s_to_answer(loaders):
    processes = loaders(Trouble(), 4, EvalTransform(10))
    epoch = processes.epoch(0)
    batches = [next(epoch)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1}
    for worker in multiprocessing.active_children():
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, signum)
    assert_same([*batches, *epoch], Loader(Trouble(), 4, EvalTransform(10)).epoch(0))
