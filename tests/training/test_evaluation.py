"""Evaluation of a network whose answers are known."""

import numpy as np
import pytest
from commands import TINY, Watcher

import tinyalex as ta
from tinyalex import nn
from tinyalex.data import EvalTransform, Loader, TenCropTransform
from tinyalex.models import alexnet
from tinyalex.tensor import Tensor
from tinyalex.training import StopRequest, evaluate, examine
from tinyalex.training.evaluation import Scores, log_probabilities
from tinyalex.training.ranks import Ranks


class FirstPixel(nn.Module):
    """A network whose logits are the colour of the first pixel: red, green and blue are classes."""

    def forward(self, x):
        return Tensor(x.numpy()[:, :, 0, 0])


class Pictures:
    """Images with labels, as a data set."""

    classes = ("red", "green", "blue")

    def __init__(self, images, labels):
        self.images = np.asarray(images, np.uint8)
        self.labels = np.array(labels)

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        return self.images[index]

    def describe(self, index):
        return f"image {index}"


def one_pixel(*coloured):
    """Return a data set of one-pixel images from pairs of colour and label."""
    return Pictures([[[colour]] for colour, _ in coloured], [label for _, label in coloured])


MISTAKEN = one_pixel(
    ((9, 0, 0), 0),
    ((0, 4, 0), 0),  # green, but not very sure
    ((0, 9, 0), 1),
    ((0, 0, 7), 1),  # blue
    ((0, 0, 9), 1),  # blue, the surest mistake
    ((5, 0, 0), 2),  # red
    ((1, 1, 1), 1),  # undecided, so red, the first; the least sure mistake
)


def answers_to(dataset, transform, batch_size=2):
    """Return what FirstPixel answers."""
    return examine(FirstPixel(), Loader(dataset, batch_size, transform, shuffle=False))


@pytest.mark.parametrize(
    ("counts", "right", "guessed"),
    [
        ([50] * 10, [50] + [0] * 9, True),  # one answer to all
        ([50] * 10, [6] * 9 + [5], True),
        ([50] * 10, [7] * 9 + [4], False),
        ([90, 10], [90, 2], True),  # most are of one class
        ([90, 10], [82, 8], False),
        ([1] * 1000, [1] * 2 + [0] * 998, True),
        ([1] * 1000, [1] * 5 + [0] * 995, False),
        ([9, 0], [5, 0], False),  # there is nothing to tell apart
        ([90, 10, 0], [60, 0, 0], False),  # chance is less where a class has no image
        ([9] * 2 + [0] * 998, [7, 2] + [0] * 998, False),
        ([2, 2], [2, 2], False),  # too few to be told from chance, and all right
        ([2, 2], [1, 1], False),
        ([5, 5], [3, 3], True),
    ],
)
def test_scores_that_may_be_chance(counts, right, guessed):
    hits = np.array(right)
    assert Scores(1.0, np.array(counts), hits, hits).guessed == guessed


def test_known_answers():
    answers = answers_to(MISTAKEN, EvalTransform(1))
    assert list(answers) == [1]
    centre = answers[1]
    assert centre.confusion.tolist() == [[1, 1, 0], [1, 1, 2], [1, 0, 0]]
    assert centre.most_confused() == [(1, 2, 2), (0, 1, 1), (1, 0, 1), (2, 0, 1)]
    assert centre.most_confused(2) == [(1, 2, 2), (0, 1, 1)]
    assert centre.indices[centre.worst_mistakes()].tolist() == [4, 3, 5, 1, 6]
    assert centre.worst_mistakes(2).tolist() == [4, 3]
    assert centre.scores.class_top1.tolist() == [1, 1, 0]
    assert centre.scores.class_counts.tolist() == [2, 4, 1]
    assert (centre.scores.top1, centre.scores.top5) == (2 / 7, 1)


def test_a_network_without_mistakes():
    answers = answers_to(one_pixel(((9, 0, 0), 0), ((0, 9, 0), 1)), EvalTransform(1))[1]
    assert answers.most_confused() == []
    assert answers.worst_mistakes().tolist() == []


def test_evaluate_and_examine_agree():
    scores = evaluate(FirstPixel(), Loader(MISTAKEN, 3, EvalTransform(1), shuffle=False))
    colours = MISTAKEN.images[:, 0, 0].astype(float)
    exact = np.exp(colours) / np.exp(colours).sum(axis=1, keepdims=True)
    loss = -np.log(exact[np.arange(7), MISTAKEN.labels]).mean()
    assert scores.loss == pytest.approx(loss, rel=1e-6)
    kept = answers_to(MISTAKEN, EvalTransform(1))[1]
    assert kept.scores.loss == pytest.approx(loss, rel=1e-6)
    assert kept.scores.class_top1.tolist() == scores.class_top1.tolist()
    np.testing.assert_allclose(np.exp(kept.log_probabilities), exact, rtol=1e-6)


def test_ten_crops_average_probabilities_and_not_logits():
    # Crops of one pixel from 3 x 3: four corners that are rather red, a centre that is very green.
    image = np.zeros((3, 3, 3))
    image[::2, ::2] = (4, 0, 0)
    image[1, 1] = (0, 30, 0)
    answers = answers_to(Pictures([image], [0]), TenCropTransform(1))
    assert answers[1].predicted.tolist() == [1]
    assert answers[10].predicted.tolist() == [0]
    logits = np.array([4 * [(4, 0, 0)] + [(0, 30, 0)]], float)[0]
    assert logits.mean(axis=0).argmax() == 1  # the mean logits would say green
    mean = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(np.exp(answers[10].log_probabilities[0]), mean, rtol=1e-6)
    loader = Loader(Pictures([image], [0]), 1, TenCropTransform(1), shuffle=False)
    assert evaluate(FirstPixel(), loader).loss == pytest.approx(-np.log(mean[0]), rel=1e-6)


def test_the_centre_is_the_same_among_ten_crops(rng):
    images = rng.integers(0, 20, (5, 6, 9, 3))
    dataset = Pictures(images, rng.integers(0, 3, 5))
    alone = answers_to(dataset, EvalTransform(3))[1]
    among = answers_to(dataset, TenCropTransform(3))
    assert (alone.log_probabilities == among[1].log_probabilities).all()
    assert (among[1].log_probabilities != among[10].log_probabilities).any()
    assert among[10].indices.tolist() == [0, 1, 2, 3, 4]


def test_a_probability_too_small_for_a_number_has_a_loss():
    answers = answers_to(one_pixel(((255, 0, 0), 1)), TenCropTransform(1))
    assert np.exp(answers[10].log_probabilities[0, 1]) == 0
    assert answers[10].scores.loss == pytest.approx(255, rel=1e-6)


def test_reflections_of_a_symmetric_image_have_equal_logits(rng):
    half = rng.integers(0, 256, (32, 18, 3), np.uint8)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    views = TenCropTransform(28, mean=100.0, std=60.0)(image, rng)
    model = alexnet(TINY, num_classes=4).eval()
    with ta.use_backend("reference"):
        answers = log_probabilities(model, np.moveaxis(views, -1, -3)[None])[0]
    assert answers.shape == (10, 4)
    assert (answers[[5, 6, 7, 8, 9]] == answers[[1, 0, 3, 2, 4]]).all()
    assert len(np.unique(answers[:5], axis=0)) == 5


@pytest.mark.parametrize("shards", [1, 2])
def test_a_stop_leaves_no_scores(shards):
    loader = Loader(MISTAKEN, 1, EvalTransform(1), shuffle=False)
    stop = StopRequest(steps=2)
    seen = []

    def act(_, done):
        seen.append(done)
        stop.step = done

    ranks = Ranks(shards=shards)
    assert evaluate(FirstPixel(), loader, Watcher(act), stop, ranks=ranks) is None
    assert seen == [1, 2]
