"""All exercises: under all schedules on the CPU, once on a GPU."""

import numpy as np
import pytest
from simt import build
from simt.exercises import all_exercises
from simt.trying import in_every_way

from tinyalex.backends.cuda import launch

EXERCISES = all_exercises()


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name.rpartition("exercises.")[2])
def test_values(cuda, exercise):
    def run():
        exercise.run(np.random.default_rng(2012))

    if cuda.RawModule is build.RawModule:
        in_every_way(run)
    else:
        run()


def test_every_file_is_exercised():
    files = {path.name for path in launch.source_folder().glob("*.cu")}
    assert files == {file for exercise in EXERCISES for file in exercise.files}
