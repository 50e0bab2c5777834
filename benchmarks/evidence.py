"""Mean values of why-maps inside and outside of patterns.

    python benchmarks/evidence.py runs/patterns-torchvision   # minutes

RUN is a run of README's first command: of its images it is known which pixels are the pattern, all
that tells the class (`Patterns.mask`), and which are background. Beside it stands a network with
random weights: what its maps show is contrast, not evidence. --table writes docs/why.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shared import report
from tinyalex import nn
from tinyalex.data import Patterns
from tinyalex.grad_mode import no_grad
from tinyalex.models import alexnet
from tinyalex.pictures.why import grad_cam, input_gradient, occlusion
from tinyalex.random import manual_seed
from tinyalex.tensor import Tensor
from tinyalex.training import Classifier, load_classifier

METHODS: dict[str, Callable[..., np.ndarray]] = {
    "occlusion": occlusion,
    "gradient of the input": input_gradient,
    "Grad-CAM": grad_cam,
    "gradient of the input, without noisy copies": partial(input_gradient, samples=1),
}
NETWORKS = {"trained": "trained", "random": "random weights"}


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = report.parser(__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run on the embedded patterns")
    parser.add_argument("--images", type=int, default=100, help="test images (default: 100)")
    parser.add_argument(
        "--stride", type=int, help="pixels between squares that hide (default: a third of one)"
    )
    parser.add_argument("--table", action="store_true", help="write the table into docs/why.md")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that an interrupted call measured"
    )
    arguments = parser.parse_args()
    result: dict[str, Any] = report.load("evidence") if arguments.resume else {}
    asked = {name: str(getattr(arguments, name)) for name in ("run", "images", "stride")}
    if (begun := result.get("asked", asked)) != asked:
        parser.error(f"--resume expects the arguments that it began with, {begun}, got {asked}")
    result = {"found": {}, "machine": report.machine(), **result, "asked": asked}
    classifier = load_classifier(arguments.run)
    images, masks = seen_and_masks(classifier, Patterns("test", 1000), arguments.images)
    for name in NETWORKS:
        found = result["found"].setdefault(name, {})
        model = classifier.model if name == "trained" else random_twin(classifier)
        missing = {method: METHODS[method] for method in METHODS if method not in found}
        inputs = classifier.inputs(images)
        for method, figures in measure(model, inputs, masks, arguments.stride, missing):
            found[method] = {**figures, "machine": report.machine()}
            print(name, method, figures, flush=True)
            report.save("evidence", result)
    print("\n" + table(result))
    if arguments.table:
        report.replace_table(report.ROOT / "docs" / "why.md", "evidence", table(result))


def seen_and_masks(
    classifier: Classifier, dataset: Patterns, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return images, and the masks of their patterns, bool [N, S, S]."""
    masks = [dataset.mask(i)[..., None].repeat(3, axis=2).astype(np.uint8) for i in range(count)]
    seen = np.stack([classifier.seen(255 * mask) for mask in masks])
    return [dataset.load(i) for i in range(count)], seen[..., 0] > 127


def random_twin(classifier: Classifier) -> nn.Module:
    """Return a network like the classifier's with new random weights."""
    manual_seed(0)
    return alexnet(classifier.model.variant, len(classifier.classes))


def measure(
    model: nn.Module,
    inputs: np.ndarray,
    masks: np.ndarray,
    stride: int | None = None,
    methods: Mapping[str, Callable[..., np.ndarray]] = METHODS,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each method with its `factors`, for the most probable class."""
    parts = [slice(start, start + 20) for start in range(0, len(inputs), 20)]
    labels = np.concatenate([_answers(model, inputs[part]) for part in parts])
    for name, method in methods.items():
        options = {"stride": stride} if method is occlusion else {}
        maps = [method(model, inputs[part], labels[part], **options) for part in parts]
        yield name, factors(np.concatenate(maps), masks)


def _answers(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with no_grad():
        return model.eval()(Tensor(inputs)).data.argmax(axis=1)


def factors(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Return how much larger maps are inside the masks than outside.

    maps [N, H, W], of which what is below 0 counts as 0; masks bool [N, H, W]. "all": the mean
    inside over the mean outside, over all images; "share": the share of images with twice as much
    inside as outside.
    """
    evidence = np.maximum(maps, 0)
    inside = np.array([one[mask].mean() for one, mask in zip(evidence, masks, strict=True)])
    outside = np.array([one[~mask].mean() for one, mask in zip(evidence, masks, strict=True)])
    twice = (inside >= 2 * outside) & (inside > 0)
    return {"all": float(inside.mean() / outside.mean()), "share": float(twice.mean())}


def table(result: dict[str, Any]) -> str:
    """Return the table of all methods and networks, in Markdown."""
    rows = [
        "| method | "
        + " | ".join(
            f"{name}: inside / outside | {name}: images with twice as much"
            for name in NETWORKS.values()
        )
        + " |",
        "|---" * (1 + 2 * len(NETWORKS)) + "|",
    ]
    for method in METHODS:
        cells = [method]
        for name in NETWORKS:
            found = result["found"][name][method]
            cells += [f"{found['all']:.2f}{report.TIMES}", f"{found['share']:.0%}"]
        rows.append(f"| {' | '.join(cells)} |")
    measured = [row for found in result["found"].values() for row in found.values()]
    below = f"{result['asked']['images']} test images. {report.measured_on(result, measured)}."
    return "\n".join([*rows, "", below])


if __name__ == "__main__":
    main()
