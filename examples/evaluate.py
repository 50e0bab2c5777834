"""Measure a trained network: top-1 and top-5 accuracy, and the accuracy of every class.

python examples/evaluate.py runs/flowers-torchvision               on the run's held-out images
python examples/evaluate.py best.safetensors --data more-flowers   on other images
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tinyalex.data import DataError, Dataset, ImageFolder, Loader
from tinyalex.threads import set_num_threads
from tinyalex.training import (
    Classifier,
    Progress,
    Scores,
    checkpoint_path,
    classifier_in,
    evaluate,
    load_checkpoint,
    open_dataset,
    settings_in,
)
from tinyalex.training.command import (
    DONE,
    EXPECTED_ERRORS,
    Help,
    Parser,
    add_network_arguments,
    complain,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        args = make_parser().parse_args(argv)
        set_num_threads(args.threads)
        path = checkpoint_path(args.checkpoint)
        checkpoint = load_checkpoint(path)
        classifier, settings = classifier_in(checkpoint, path), settings_in(checkpoint, path)
        if args.data is None:
            dataset = open_dataset(settings, "val" if settings.data else "test")
            assert dataset is not None
            if dataset.classes != classifier.classes:
                raise DataError(
                    f"the classes in {settings.data} are no longer those that the network learned: "
                    f"{', '.join(dataset.classes[:10])}, not {', '.join(classifier.classes[:10])}; "
                    "put the folders back, or give others with --data"
                )
        else:
            dataset = open_folder(args.data, classifier)
        size = min(args.batch_size, len(dataset))
        loader = Loader(dataset, size, classifier.transform, shuffle=False)
        print(f"{path}, {settings.variant}, on {args.data or settings.data or dataset}", flush=True)
        scores = evaluate(classifier.model, loader, Progress())
    except EXPECTED_ERRORS as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    assert scores is not None
    print_table(scores, classifier.classes)
    for name, reason in loader.bad:
        print(f"left out: {name}: {reason}")
    return DONE


def make_parser() -> Parser:
    """Return the parser."""
    parser = Parser(description=__doc__, formatter_class=Help)
    add_network_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder with one folder of images per class, or with train/ and val/ of such, of "
        "which val/ is taken (default: the images that the run held out)",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    return parser


def open_folder(root: str, classifier: Classifier) -> Dataset:
    """Open a folder of images whose classes are some or all of the classifier's."""
    split = "val" if (Path(root) / "val").is_dir() else None
    dataset = ImageFolder(root, split, shorter_side=classifier.shorter_side)
    unknown = sorted(set(dataset.classes) - set(classifier.classes))
    if unknown:
        raise DataError(
            f"{root} has classes that this network does not know: {', '.join(unknown[:5])}; it "
            f"knows {', '.join(classifier.classes[:10])}"
        )
    positions = np.array([classifier.classes.index(name) for name in dataset.classes])
    dataset.classes, dataset.labels = classifier.classes, positions[dataset.labels]
    return dataset


def print_table(scores: Scores, classes: list[str]) -> None:
    """Print the accuracy of each class, worst first, and of all together."""
    width = max(5, *map(len, classes))
    print(f"{'class':{width}}  images   top-1   top-5")
    share = scores.class_top1 / np.maximum(scores.class_counts, 1)
    for label in np.argsort(share, kind="stable"):
        if count := scores.class_counts[label]:
            top5 = scores.class_top5[label] / count
            print(f"{classes[label]:{width}} {count:7} {share[label]:7.1%} {top5:7.1%}")
    print(f"{'all':{width}} {scores.count:7} {scores.top1:7.1%} {scores.top5:7.1%}")
    print(f"loss {scores.loss:.4f}; guessing: {np.log(len(classes)):.4f}")


if __name__ == "__main__":
    sys.exit(main())
