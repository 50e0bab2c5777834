"""Data set for worker processes, in a file that imports no tests."""

import os
import signal
import time

import numpy as np

from tinyalex.data import ImageError


class Trouble:
    """Random images; what loading the image `at`, or "all", does is in the method `what`."""

    def __init__(self, what=None, at=None, size=60):
        self.classes = ["a", "b"]
        self.labels = np.arange(size, dtype=np.int64) % 2
        self.what, self.at = what, at

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        if self.at in (index, "all"):
            getattr(self, self.what)()
        return np.random.default_rng(index).integers(0, 256, (12, 14, 3), np.uint8)

    def describe(self, index):
        return f"image {index}"

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def linger(self):
        time.sleep(0.1)

    def leave(self):
        os._exit(7)

    def tear(self):
        raise ImageError("it", "is torn")

    def fail(self):
        raise RuntimeError("the disk is gone")
