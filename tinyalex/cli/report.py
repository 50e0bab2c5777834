"""Write a page on a run, one HTML file without requests.

tinyalex report RUN                   report.html in the folder of the run
tinyalex report RUN --out page.html   the same elsewhere
tinyalex report RUN --data DIR        where the images of the run have moved

It has the run's curves, confusion matrix, worst mistakes, filters, nearest neighbours, classes,
recipe and machine, and how to repeat the run and use its network. Training writes it at its end.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinyalex.backends.devices import check
from tinyalex.calls import call_of
from tinyalex.cli.common import (
    EXPECTED_ERRORS,
    add_device,
    add_threads,
    check_picture,
    command,
    complain,
    readable,
)
from tinyalex.cli.evaluate import CONFUSED, MISTAKES
from tinyalex.cli.look import HELD_OUT, neighbours_of, of_all_classes, spread
from tinyalex.cli.network import Network, prefix_of, read_network, recipe_of, weights_of
from tinyalex.cli.parser import Parser, name_in, parser_of, path_in, whole
from tinyalex.data import Dataset, Loader, loader_on
from tinyalex.data.dataset import Subset
from tinyalex.data.folder import check_root
from tinyalex.folders import write_atomically
from tinyalex.interrupts import DONE, FAILED
from tinyalex.pictures.charts import NUMBERED, confusion_png, curves_as_svg
from tinyalex.pictures.features import hidden_vectors, nearest
from tinyalex.pictures.report import data_uri, jpeg, load_template, png
from tinyalex.pictures.sheets import first_filters
from tinyalex.pictures.why_sheet import MEANINGS, explain
from tinyalex.progress import Progress, one_sentence, say
from tinyalex.text import printable
from tinyalex.threads import set_num_threads
from tinyalex.training import (
    Answers,
    Classifier,
    Settings,
    checkpoint_path,
    examine,
    read_metrics,
)
from tinyalex.training.checkpoint import BEST, is_checkpoint, settings_in, state_in
from tinyalex.training.datasets import title
from tinyalex.training.divergence import REPORT as DIVERGED
from tinyalex.training.evaluation import device_of_model
from tinyalex.training.metrics import METRICS, rows_of
from tinyalex.training.run_folder import RECORD, read_record

EXIT_CODES = (
    "0 done, perhaps without parts, each of which is named with the reason; 1 failed on the way, "
    "or a part by a fault of tinyalex itself; 2 arguments or a run that cannot be used"
)
MOST_IMAGES = 1000
"""Images that a page is made from: of those held out, and of those learned from."""
SIDE = {"mistakes": 208, "neighbours": 144, "why": 224}
"""Pixels of the images on the page."""
MOST_CLASSES, MOST_ROWS = 2000, 1000
"""Classes of a confusion matrix, and rows of the table of classes, at most."""
ANSWERS = 5
"""Most classes of an answer."""
BATCH = 32

Part = TypeVar("Part")


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = make_parser().parse_args(argv)
    check(args.device)
    set_num_threads(args.threads)
    path = checkpoint_path(args.run)
    if not is_checkpoint(path):
        raise ValueError(
            f"{printable(path)} is a file of weights, and a report is of a run: give its folder, "
            "or draw the weights with `look`"
        )
    out = args.out or path.parent / f"{prefix_of(path)}report.html"
    check_picture(out, ".html", "pages")
    if args.data is not None:
        check_root(Path(args.data))
    network = read_network(path)
    network.classifier.model.to(args.device)
    images, side = network.run_images(args.data), network.classifier.resizing
    if images is None:
        raise ValueError(f"{printable(path)} has no run to report on")
    splits = Splits(partial(images.held_out, *side), partial(images.training, *side))
    try:
        missing = write_report(network, splits, out, Progress(), args.images)
    except EXPECTED_ERRORS:
        raise
    except Exception as error:
        return complain(f"no page: {fault(error)}", FAILED)
    for name, reason in missing.items():
        say(f"without {name}: {reason}")
    say(f"written to {printable(out)}")
    return FAILED if missing.faulty else DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = parser_of("report", __doc__, EXIT_CODES)
    parser.add_argument(
        "run",
        type=name_in,
        metavar="RUN",
        help="folder of a run, of which the best network is taken, or one of its .safetensors",
    )
    parser.add_argument(
        "--data",
        type=name_in,
        metavar="DIR",
        help="where the images of the run are, if they have moved",
    )
    parser.add_argument(
        "--images",
        type=whole(),
        default=MOST_IMAGES,
        metavar="N",
        help="images to look at, at most, spread over the classes: of those held out, for "
        "accuracies and mistakes, and of those learned from, for neighbours",
    )
    parser.add_argument(
        "--out",
        type=path_in,
        metavar="HTML",
        help="the page (default: report.html in the folder of the run)",
    )
    add_threads(parser)
    add_device(parser)
    return parser


class Missing(dict[str, str]):
    """Parts that a page lacks, each with the reason."""

    faulty = False
    """True once a part was lost to a fault of tinyalex."""

    def attempt(self, name: str, make: Callable[[], Part]) -> Part | None:
        """Return a part; None, and remember why, if it cannot be made."""
        try:
            return make()
        except EXPECTED_ERRORS as error:
            self[name] = one_sentence(error)
        except Exception as error:
            self.faulty = True
            self[name] = fault(error)
        return None


def fault(error: Exception) -> str:
    """Return an unexpected error in words, with its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"a fault of tinyalex: {one_sentence(error)} ({where})"


class Splits(NamedTuple):
    """Functions that open the images of a run."""

    held_out: Callable[[], Dataset]
    training: Callable[[], Dataset]


def write_report(
    network: Network, splits: Splits, out: Path, progress: Progress, most: int = MOST_IMAGES
) -> Missing:
    """Write the page on a run; return what it lacks.

    `most` images held out, and as many of those learned from, are looked at. A section that cannot
    be filled in says so. Raises PackageError where Jinja does not work, OSError where the disk
    refuses, and any error of what stands above the sections; then what was there stays.
    """
    render = load_template()
    missing = Missing()
    parts = {
        **about(network, missing),
        **pictures(network.classifier, splits, most, missing, progress),
        "missing": missing,
    }
    page = render(parts).encode()
    write_atomically(out, lambda file: file.write(page))
    return missing


def about(network: Network, missing: Missing) -> dict[str, Any]:
    """Return the parts of a page that need no images."""
    classifier, path, content = network
    assert content is not None
    folder, model = path.parent, classifier.model
    record = read_record(folder)
    if "environment" not in record:
        missing["machine and versions"] = f"there is no {RECORD} that can be read"
    settings = settings_in(content, path)
    with suppress(LookupError, TypeError, ValueError):  # those of the last session
        settings = Settings(**record["settings"])
    place, num_classes = path.parent if path.name == BEST else path, len(classifier.classes)
    read = missing.attempt("curves", lambda: read_metrics(folder / METRICS))
    rows = read or []
    epochs, steps = rows_of("epoch", rows), rows_of("step", rows)
    return {
        "meanings": MEANINGS.values(),
        "run": folder.absolute().name,
        "classifier": classifier,
        "model": model,
        "parameters": sum(p.size for p in model.parameters()),
        "settings": settings,
        "recipe": {**asdict(settings.recipe), **asdict(settings)},
        "recipe_words": missing.attempt("recipe", lambda: recipe_of(settings)),
        "weights": missing.attempt("initial weights", lambda: beginning(network, settings)),
        "state": state_in(content, path),
        "epochs": sorted(epochs, key=lambda row: row["epoch"]),
        # Training tests the best network.
        "test": next(reversed(rows_of("test", rows)), None) if path.name == BEST else None,
        "spoilt": sum(row.get("kind") in ("step", "epoch") for row in rows)
        - len(epochs)
        - len(steps),
        "diverged": DIVERGED if (folder / DIVERGED).exists() else "",
        "record": record,
        "chance_loss": math.log(num_classes),
        "curves": None
        if read is None
        else missing.attempt("curves", lambda: curves_as_svg(rows, num_classes)),
        "filters": missing.attempt("filters", lambda: png(first_filters(model))),
        "place": ascii(str(place)),
        "calls": {what: call_of(what, place) for what in ("predict", "evaluate", "report")},
    }


def beginning(network: Network, settings: Settings) -> str:
    """Return a sentence on the initial weights."""
    content, names = network.content or {}, list(network.classifier.model.weight_layers)
    if "origin" in content:
        frozen = names[: names.index(settings.freeze) + 1] if settings.freeze else []
        return weights_of(settings, network.classifier, content["origin"], frozen)
    scaled = ", then scaled by images" if settings.initial_weights == "data" else ""
    return f"random, drawn as the variant says{scaled}; seed {settings.seed}"


def pictures(
    classifier: Classifier, splits: Splits, most: int, missing: Missing, progress: Progress
) -> dict[str, Any]:
    """Return the parts of a page made from images of the run."""
    parts: dict[str, Any] = dict.fromkeys(PICTURES)
    held_out = missing.attempt(
        "confusion matrix, mistakes, why-maps, classes and neighbours", splits.held_out
    )
    if held_out is None:
        return parts
    training = missing.attempt("neighbours", splits.training)
    answers = missing.attempt(
        "confusion matrix, mistakes and classes",
        lambda: answers_to(classifier, held_out, most, progress),
    )
    if answers is not None:
        parts["answered"] = {"scores": answers.scores, "count": len(held_out)}
        parts["confusion"] = missing.attempt(
            "confusion matrix", lambda: confusion(answers, held_out.classes)
        )
        parts["mistakes"] = missing.attempt("mistakes", lambda: mistakes(answers, held_out))
        parts["classes"] = missing.attempt(
            "classes", lambda: per_class(answers, held_out.classes, training)
        )
    parts["whys"] = missing.attempt("why-maps", lambda: whys(classifier, held_out, progress))
    if training is not None:
        parts["neighbours"] = missing.attempt(
            "neighbours", lambda: neighbours(classifier, held_out, training, most, progress)
        )
    return parts


PICTURES = ("answered", "confusion", "mistakes", "classes", "whys", "neighbours")
"""Parts that `pictures` returns."""


def some_of(dataset: Dataset, most: int) -> np.ndarray:
    """Return positions of at most so many images, classes in proportion."""
    order = np.argsort(dataset.labels, kind="stable")
    return np.sort(order[spread(min(most, len(order)), len(order))])


def answers_to(classifier: Classifier, dataset: Dataset, most: int, progress: Progress) -> Answers:
    """Return the answers to at most so many images."""
    chosen = some_of(dataset, most)
    loader = loader_for(classifier, Subset(dataset, chosen))
    answers = examine(classifier.model, loader, progress)[1]
    return replace(answers, indices=chosen[answers.indices])


def loader_for(classifier: Classifier, dataset: Dataset) -> Loader:
    """Return the loader of images to be looked at."""
    device, size = device_of_model(classifier.model), min(BATCH, len(dataset))
    return loader_on(device, dataset, size, classifier.transform, shuffle=False)


def confusion(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix: numbers, or a picture of many classes."""
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"it is drawn for up to {MOST_CLASSES} classes, here are {len(classes)}")
    counts, many = answers.confusion, len(classes) > NUMBERED
    return {
        "counts": None if many else counts.tolist(),
        "picture": data_uri("png", confusion_png(counts, classes)) if many else None,
        "pairs": answers.most_confused(CONFUSED),
    }


def mistakes(answers: Answers, dataset: Dataset) -> list[dict[str, Any]]:
    """Return the wrong answers that were given most surely."""
    position = {int(answers.indices[row]): int(row) for row in answers.worst_mistakes(MISTAKES)}
    found = []
    for place, image in readable(dataset.load, position, [], dataset.describe):
        shares = np.exp(answers.log_probabilities[position[place]])
        best = np.argsort(-shares, kind="stable")[:ANSWERS]
        label = int(answers.labels[position[place]])
        found.append(
            {
                "image": jpeg(image, SIDE["mistakes"]),
                "title": title(dataset, place),
                "answers": [
                    (dataset.classes[one], float(shares[one]), one == label) for one in best
                ],
            }
        )
    return found


def per_class(
    answers: Answers, classes: Sequence[str], training: Dataset | None
) -> list[dict[str, Any]]:
    """Return a row for each class, those with most mistakes first."""
    scores, wrong = answers.scores, answers.predicted != answers.labels
    pairs = Counter(
        zip(answers.labels[wrong].tolist(), answers.predicted[wrong].tolist(), strict=True)
    )
    taken_for = {right: answer for (right, answer), _ in reversed(pairs.most_common())}
    learned = None if training is None else np.bincount(training.labels, minlength=len(classes))
    rows = [
        {
            "name": name,
            "learned": None if learned is None else int(learned[label]),
            "count": int(count),
            "top1": scores.class_top1[label] / count if count else None,
            "top5": scores.class_top5[label] / count if count else None,
            "taken_for": classes[taken_for[label]] if label in taken_for else "",
        }
        for label, (name, count) in enumerate(zip(classes, scores.class_counts, strict=True))
    ]
    rows.sort(key=lambda row: 2.0 if row["top1"] is None else row["top1"])
    return rows[:MOST_ROWS]


def whys(classifier: Classifier, dataset: Dataset, progress: Progress) -> list[dict[str, Any]]:
    """Return images held out with their answers and maps of evidence."""
    found = []
    chosen = of_all_classes(dataset.labels, HELD_OUT["why"])
    for place, image in readable(dataset.load, chosen, [], dataset.describe):
        why = explain(classifier, image, progress=progress)
        pixels = {"The image": why.seen}
        for map_name, (heading, _) in MEANINGS.items():
            coloured, figure = why.heat(map_name)
            pixels[f"{heading}, at most {figure or 0}"] = coloured
        found.append(
            {
                "title": title(dataset, place),
                "answer": classifier.classes[why.target],
                "share": float(why.probabilities[why.target]),
                "images": {name: jpeg(some, SIDE["why"]) for name, some in pixels.items()},
            }
        )
    return found


def neighbours(
    classifier: Classifier, held_out: Dataset, training: Dataset, most: int, progress: Progress
) -> dict[str, Any]:
    """Return images held out with the nearest of those learned from."""
    chosen = of_all_classes(held_out.labels, HELD_OUT["neighbours"])
    images = dict(readable(held_out.load, chosen, [], held_out.describe))
    among = some_of(training, most)
    queries = hidden_vectors(classifier.model, classifier.inputs(list(images.values())))
    loader = loader_for(classifier, Subset(training, among))
    found, far = nearest(classifier.model, queries, loader, progress=progress)
    rows, titles = neighbours_of(
        held_out, [*images], [*images.values()], training, among[found], far
    )
    return {
        "among": len(among),
        "of": len(training),
        "rows": [
            [
                (jpeg(image, SIDE["neighbours"]), text.split("\n"))
                for image, text in zip(*row, strict=True)
            ]
            for row in zip(rows, titles, strict=True)
        ],
    }
