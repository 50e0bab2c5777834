"""Counts, logs and messages of a run."""

import errno
import io
import math
import os
import re
import sys

import numpy as np
import pytest

from tinyalex.progress import duration, one_sentence, say
from tinyalex.training import Average, MetricsFile, Progress, hits, read_metrics
from tinyalex.training.metrics import Throughput

pytest_plugins = ("trained",)


def test_hits_count_the_k_best_scores():
    scores = np.array([[0.1, 0.5, 0.4], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    labels = np.array([1, 2, 1])
    assert hits(scores, labels).tolist() == [True, False, False]
    assert hits(scores, labels, 2).tolist() == [True, False, False]  # 0 comes before 1 in a tie
    assert hits(scores, labels, 5).all()


def test_a_network_that_always_says_the_same_gets_no_credit():
    labels = np.arange(10)
    assert hits(np.zeros((10, 10)), labels).sum() == 1
    assert hits(np.zeros((10, 10)), labels, 5).sum() == 5


def test_averages_weigh_batches_by_their_size():
    total = Average(2.0 * 3, 1, 3) + Average(4.0 * 1, 1, 1)
    assert (total.loss, total.top1, total.count) == (2.5, 0.5, 4)
    assert math.isnan(Average().loss)


def test_metrics_are_cut_to_the_rows_that_a_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for i in range(5):
        metrics.append({"i": i})
    with path.open("a") as file:
        file.write('{"i": 5, "torn')
    assert [row["i"] for row in read_metrics(path)] == [0, 1, 2, 3, 4]

    metrics = MetricsFile(path, keep=3)
    metrics.append({"i": "new"})
    assert metrics.rows == 4
    assert [row["i"] for row in read_metrics(path)] == [0, 1, 2, "new"]
    said = []
    assert MetricsFile(path, 9, said.append).rows == len(read_metrics(path)) == 4
    assert MetricsFile(tmp_path / "missing", 1, said.append).rows == 0
    assert [re.search(r"has . whole rows, the checkpoint counts .", one)[0] for one in said] == [
        "has 4 whole rows, the checkpoint counts 9",
        "has 0 whole rows, the checkpoint counts 1",
    ]


def test_rows_that_a_full_disk_refuses_are_written_later(tmp_path, disk):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"i": 0})
    disk(12)
    for i in (1, 2):
        with pytest.raises(OSError, match="too large"):
            metrics.append({"i": i})
    disk(None)
    metrics.append({"i": 3})
    assert path.read_text() == "".join(f'{{"i": {i}}}\n' for i in range(4))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, seconds=0.0):
    progress = Progress(stream, seconds)
    progress.start("epoch 1/2", 3)
    for done in (1, 2, 3):
        progress.update(done, f"loss {done}")
        if done == 2:
            progress.say("a remark")
    progress.stop()
    return stream and stream.getvalue()


def test_progress_in_a_pipe_is_plain_lines():
    assert show(io.StringIO()).splitlines() == [
        "epoch 1/2  step 1/3  loss 1",
        "epoch 1/2  step 2/3  loss 2",
        "a remark",
        "epoch 1/2  step 3/3  loss 3",
    ]
    assert show(io.StringIO(), seconds=60).splitlines() == [
        "epoch 1/2  step 1/3  loss 1",
        "a remark",
    ]


def test_progress_on_a_terminal_is_a_bar():
    pytest.importorskip("tqdm")
    shown = show(Terminal())
    assert "\repoch 1/2 2/3 |#####3  | loss 2" in shown
    assert "\r" in shown
    assert "a remark\n" in shown


def test_progress_on_a_terminal_without_tqdm_is_plain_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert show(Terminal()) == show(io.StringIO())


class Broken(Terminal):
    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("kind", ["pipe", "terminal", "none"])
def test_progress_that_nobody_reads_goes_silent(monkeypatch, kind):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", {"pipe": pipe, "terminal": Broken(), "none": None}[kind])
        show(None)
        say("the end")
        silent = os.path.samestat(os.fstat(writing), os.stat(os.devnull))
        assert silent == (kind == "pipe")


def test_a_line_that_a_full_disk_refuses_is_the_only_one_lost(tmp_path, disk):
    with (tmp_path / "log").open("w") as log:
        say("one", log)
        disk(6)
        say("two", log)
        disk(None)
        os.ftruncate(log.fileno(), log.seek(4))  # room again, and half a line less
        say("three", log)
    assert (tmp_path / "log").read_text() == "one\nthree\n"


def test_a_pipe_that_is_full_for_a_while_is_written_again():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading) as reader, open(writing, "w") as pipe:
        say("x" * 100_000, pipe)
        os.read(reading, 200_000)
        say("there is room again", pipe)
        assert reader.readline() == "there is room again\n"


def test_pace_tells_waiting_from_computing_and_estimates_the_end():
    throughput = Throughput(total_steps=100, epochs=2)
    throughput.add(waited=5.0, worked=55.0, results=[Average(1.0, 1, 8)])  # the first step compiles
    assert throughput.seconds_left(step=1, epoch=0) is None
    assert throughput.typical_step == 60.0
    for _ in range(9):
        throughput.add(waited=1.0, worked=3.0, results=[Average(8.0, 4, 8)])
        assert throughput.seconds_left(step=10, epoch=2) == 90 * 4.0
    throughput.validation_seconds = 7.0
    assert throughput.average.loss == 73 / 80
    assert throughput.images_per_second() == 72 / 36
    assert throughput.images_per_second(whole_epoch=True) == 80 / 96
    assert throughput.data_share(whole_epoch=True) == 14 / 96
    assert throughput.seconds_left(step=10, epoch=1) == 90 * 4.0 + 7.0
    assert not throughput.waits(epoch_ends=True)
    throughput.start_epoch()
    assert throughput.as_row(whole_epoch=True) == {"images_per_second": 0.0, "data_share": 0.0}


def test_pace_tells_a_slow_disk_once_it_is_sure():
    throughput = Throughput(total_steps=100, epochs=2)
    for step in range(20):
        assert throughput.waits(epoch_ends=True) == (step > 5)  # seconds
        assert not throughput.waits(epoch_ends=False)
        throughput.add(waited=1.0, worked=1.0, results=[Average(8.0, 4, 8)])
    assert throughput.waits(epoch_ends=False)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.84, "0.8 s"), (59.4, "59 s"), (185, "3:05"), (7650, "2:07:30")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_errors_become_one_sentence(tmp_path):
    with pytest.raises(OSError, match="Is a directory") as caught:
        tmp_path.read_bytes()
    assert one_sentence(caught.value) == f"{tmp_path}: Is a directory"
    assert one_sentence(ValueError("two\nlines")) == "two\\nlines"
    assert one_sentence(MemoryError()) == "MemoryError"
