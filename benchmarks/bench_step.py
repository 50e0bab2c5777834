"""A training step against PyTorch: time and peak memory, each contestant in a process of its own.

    python benchmarks/bench_step.py --variant paper --batch-size 128 --rounds 3

The processes take turns (A B A B ...), so that a slow minute of the machine hits all of them. Every
process trains the same network from the same weights on the same batch; the losses must agree
before a time counts. PyTorch runs as installed, in both memory layouts, its ReLUs in place.

Writes benchmarks/results/step-VARIANT-N.json, and with --table the table in the README.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import report

CONTESTANTS = ("tinyalex", "torch", "torch channels_last")
LR, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 5e-4  # a rate at which no variant diverges
LOSS_TOLERANCE = 1e-3  # float32, and every step amplifies the rounding of the one before


def batch(size: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that every contestant trains on."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, 3, pixels, pixels), np.float32)
    return images, rng.integers(0, 1000, size)


def tinyalex_step(folder: Path, variant: str, size: int, pixels: int) -> Any:
    """Return a function that trains one step and returns the loss."""
    import tinyalex as ta
    import tinyalex.functional as F

    model = ta.models.alexnet(variant, dropout=0.0)
    model.load_state_dict(ta.load(folder / "weights"))
    optimizer = ta.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    images, labels = batch(size, pixels)
    x = ta.Tensor(images)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def torch_step(folder: Path, channels_last: bool, size: int, pixels: int) -> Any:
    """Return a function that trains one step and returns the loss."""
    import torch

    model = torch.load(folder / "twin.pt", weights_only=False)  # written by this very script
    images, labels = batch(size, pixels)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def run_contestant(arguments: argparse.Namespace) -> None:
    """Train a few steps and print what was measured, as JSON."""
    size, pixels = arguments.batch_size, arguments.pixels
    if arguments.contestant == "tinyalex":
        step = tinyalex_step(arguments.folder, arguments.variant, size, pixels)
    else:
        channels_last = arguments.contestant.endswith("channels_last")
        step = torch_step(arguments.folder, channels_last, size, pixels)
    losses = [step()]  # the first step compiles, allocates and warms the caches
    seconds = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"losses": losses, "seconds": seconds, "peak_bytes": peak}))


def prepare(folder: Path, variant: str) -> int:
    """Write the weights that all contestants begin with; return the size of the images."""
    import torch
    from torch_twin import twin

    import tinyalex as ta

    ta.manual_seed(0)
    model = ta.models.alexnet(variant, dropout=0.0)
    # He's initial weights: the paper's own would need raw pixels for the losses to move at all.
    for layer in model.weight_layers.values():
        ta.nn.init.kaiming_normal_(layer.weight)
        ta.nn.init.zeros_(layer.bias)
    ta.save(model.state_dict(), folder / "weights")
    torch.save(twin(model), folder / "twin.pt")
    return model.variant.input_size


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the contestants take turns and return all that they measured."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = prepare(folder, arguments.variant)
        for turn in range(arguments.rounds):
            for contestant in CONTESTANTS:
                command = [sys.executable, __file__, "--contestant", contestant]
                command += ["--folder", name, "--pixels", pixels, "--steps", arguments.steps]
                command += ["--variant", arguments.variant, "--batch-size", arguments.batch_size]
                output = subprocess.run(
                    [str(part) for part in command], check=True, capture_output=True, text=True
                ).stdout
                run = json.loads(output)
                expected = next(iter(runs.values()))[0]["losses"] if any(runs.values()) else []
                if expected and not np.allclose(run["losses"], expected, rtol=LOSS_TOLERANCE):
                    raise SystemExit(f"{contestant} has losses {run['losses']}, not {expected}")
                runs[contestant].append(run)
                rate = arguments.batch_size / statistics.median(run["seconds"])
                peak = run["peak_bytes"] / 2**20
                print(f"round {turn + 1}  {contestant:20}  {rate:6.1f} img/s  {peak:6.0f} MiB")
    return {
        "machine": report.machine(),
        "threads": "one per core for all, as each library chooses by default",
        "variant": arguments.variant,
        "batch_size": arguments.batch_size,
        "runs": runs,
    }


def table(result: dict[str, Any]) -> str:
    """Return the medians over all rounds as a Markdown table."""
    size = result["batch_size"]
    head = f"training step, `{result['variant']}`, batch {size}"
    lines = [f"| {head} | img/s (min .. max) | peak memory |", "|---|---|---|"]
    for name, runs in result["runs"].items():
        seconds = [s for run in runs for s in run["seconds"]]
        rates = size / statistics.median(seconds), size / max(seconds), size / min(seconds)
        peak = statistics.median(run["peak_bytes"] for run in runs) / 2**20
        lines.append(
            f"| {name} | {rates[0]:.1f} ({rates[1]:.1f} .. {rates[2]:.1f}) | {peak:.0f} MiB |"
        )
    lines += ["", f"{report.one_line(result['machine'])}; one process each, in turns"]
    return "\n".join(lines)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contestant")
    parser.add_argument("--table", action="store_true", help="update the table in README.md")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pixels", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        run_contestant(arguments)
        return
    result = compare(arguments)
    name = f"step-{arguments.variant}-{arguments.batch_size}"
    report.save(name, result)
    print("\n" + table(result))
    if arguments.table:
        report.replace_table(report.ROOT / "README.md", name, table(result))


if __name__ == "__main__":
    main()
