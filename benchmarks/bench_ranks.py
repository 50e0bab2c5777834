"""Speed of sums over ranks, and the cost of waiting for ranks.

    mpiexec -n 2 .venv/bin/python benchmarks/bench_ranks.py

Both sum the gradient of fc6 (151 MB), in turns. MPI's own sum has other bits on other numbers of
ranks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from tinyalex.distributed.communicator import Communicator, Tree
from tinyalex.distributed.launch import together

ROUNDS = 7
IDLE = 3.0


def main() -> None:
    """Measure on all ranks; print on the first."""
    with together() as ranks:
        gradient = np.ones((4096, 9216), np.float32)
        tree: Tree = 0
        for rank in range(1, ranks.size):
            tree = (tree, rank)

        def ours() -> None:
            ranks.sum("fc6.weight", gradient, tree).wait()

        def theirs() -> None:
            from mpi4py import MPI

            # In the thread that makes all calls.
            ranks._ask("all", lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, gradient)).wait()

        times: dict[str, list[float]] = {"sum": [], "Allreduce": []}
        for _ in range(ROUNDS):
            for name, call in zip(times, (ours, theirs), strict=True):
                gradient[:] = 1
                times[name].append(seconds(ranks, call))
        busy = processor_share(ranks)
        if ranks.rank == 0:
            for name, all_ in times.items():
                print(
                    f"{name:9} {1e3 * statistics.median(all_):6.0f} ms "
                    f"({1e3 * min(all_):.0f} .. {1e3 * max(all_):.0f}), "
                    f"{gradient.nbytes / 1e6 / statistics.median(all_):.0f} MB/s"
                )
            print(f"waiting   {max(busy):.1%} of a core")


def seconds(ranks: Communicator, call: Callable[[], None]) -> float:
    """Return the time that a call takes once all ranks are there."""
    ranks.share("start", None).wait()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def processor_share(ranks: Communicator) -> list[float]:
    """Return the share of a core that waiting takes."""
    ranks.share("start", None).wait()
    if ranks.rank == 0:
        time.sleep(IDLE)
    wall, processor = time.perf_counter(), time.process_time()
    ranks.share("late", None).wait()
    share = (time.process_time() - processor) / (time.perf_counter() - wall)
    return ranks.share("share", share if ranks.rank else 0.0).wait()


if __name__ == "__main__":
    main()
