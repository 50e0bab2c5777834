"""Training loop, checkpoints, metrics, and use of trained networks.

A `Run` is put together from `Settings` by `new_run`; a `Trainer` trains it, and writes its
`Checkpoints` and its `MetricsFile` into a folder; `load_classifier` takes the result from there.
tinyalex/cli/train.py shows all of it.
"""

from tinyalex.interrupts import StoppedError, StopRequest
from tinyalex.progress import Progress
from tinyalex.training.build import new_run
from tinyalex.training.checkpoint import (
    Checkpoints,
    checkpoint_path,
    classifier_in,
    load_checkpoint,
    load_classifier,
    save_classifier,
    settings_in,
)
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import open_dataset
from tinyalex.training.divergence import DivergedError
from tinyalex.training.evaluation import Answers, Scores, evaluate, examine
from tinyalex.training.features import features
from tinyalex.training.metrics import Average, MetricsFile, hits, read_metrics
from tinyalex.training.run import Run, State
from tinyalex.training.settings import CHANGEABLE, Settings
from tinyalex.training.step import train_step
from tinyalex.training.trainer import Trainer
from tinyalex.training.transfer import freeze, layer_rates, replace_head, set_training

__all__ = [
    "CHANGEABLE",
    "Answers",
    "Average",
    "Checkpoints",
    "Classifier",
    "DivergedError",
    "MetricsFile",
    "Progress",
    "Run",
    "Scores",
    "Settings",
    "State",
    "StopRequest",
    "StoppedError",
    "Trainer",
    "checkpoint_path",
    "classifier_in",
    "evaluate",
    "examine",
    "features",
    "freeze",
    "hits",
    "layer_rates",
    "load_checkpoint",
    "load_classifier",
    "new_run",
    "open_dataset",
    "read_metrics",
    "replace_head",
    "save_classifier",
    "set_training",
    "settings_in",
    "train_step",
]
