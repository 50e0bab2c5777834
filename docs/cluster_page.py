"""Fill docs/cluster.md with the table and the picture of `tinyalex plan`.

    python docs/cluster_page.py

All of it is arithmetic, the same on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tinyalex.distributed.plan import STRATEGIES, Machine, cost, layers_of
from tinyalex.folders import write_atomically
from tinyalex.models import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from shared import report  # noqa: E402

PAGE = ROOT / "docs" / "cluster.md"
PICTURE = ROOT / "docs" / "images" / "cluster-plan.png"
LAYERS = layers_of(VARIANTS["source2012"], 1000, 224)
MACHINES = {
    "100 images/s, 1 Gbit/s": Machine(100, 1, 20e-6),
    "100 images/s, 10 Gbit/s": Machine(100, 10, 20e-6),
    "100 images/s, 100 Gbit/s": Machine(100, 100, 2e-6),
    "GPUs: 40,000 images/s, 400 Gbit/s": Machine(40000, 400, 2e-6),
}
BATCH, PER_RANK = 256, 128
RANKS = (2, 8, 64, 1024)
DRAWN_BATCH = 1024


def table() -> str:
    """Return the speed-ups of data / towers / hybrid."""
    columns = [
        *((f"{BATCH} on {ranks}", ranks, BATCH) for ranks in RANKS[:-1]),
        *((f"{PER_RANK} each on {ranks:,}", ranks, PER_RANK * ranks) for ranks in RANKS[1:]),
    ]
    head = ["a rank and its link", *(title for title, _, _ in columns)]
    rows = [head, ["---", *["---:"] * len(columns)]]
    for name, machine in MACHINES.items():
        cells = []
        for _, ranks, batch in columns:
            costs = [cost(LAYERS, strategy, ranks, batch, machine) for strategy in STRATEGIES]
            speeds = [found.speed_up(machine.rate) for found in costs]
            cells.append(" / ".join(f"{s:.1f}" if s < 10 else f"{s:.0f}" for s in speeds))
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw() -> None:
    """Draw speed-up over ranks at three links."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from tinyalex.pictures.sheets import BLUE, INK, PALE, RED

    ranks = [2**power for power in range(11)]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (name, machine) in zip(
        figure.subplots(1, 3, sharey=True), [*MACHINES.items()][:3], strict=True
    ):
        axes.plot(ranks, ranks, "--", color=PALE, lw=1, label="ideal")
        for strategy, colour in zip(STRATEGIES, (BLUE, INK, RED), strict=True):
            possible = [number for number in ranks if number > 1 or strategy != "towers"]
            speeds = [
                cost(LAYERS, strategy, number, DRAWN_BATCH, machine).speed_up(machine.rate)
                for number in possible
            ]
            axes.plot(possible, speeds, "o-", color=colour, ms=3.5, lw=1.5, label=strategy)
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylim=(0.8, 400))
        axes.set_title(name.partition(", ")[2], fontsize=11)
        axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
        axes.set_yticks([1, 2, 5, 10, 20, 50, 100, 200])
        axes.set_yticklabels(["1", "2", "5", "10", "20", "50", "100", "200"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("speed-up over one rank")
            handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    write_atomically(PICTURE, lambda file: figure.savefig(file, format="png", dpi=130))


if __name__ == "__main__":
    report.replace_table(PAGE, "cluster-plan", table())
    draw()
    print(f"wrote {PAGE} and {PICTURE}")
