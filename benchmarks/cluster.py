"""Steps on two ranks over an emulated link of a given rate.

    sudo .venv/bin/python benchmarks/cluster.py                  # 0.5, 1, 1.5, 2.5 Gbit/s
    sudo .venv/bin/python benchmarks/cluster.py --rates 1 --steps 5

Each rank has a network namespace of its own and one core; a token bucket holds what it sends to the
rate. Rounds of steps are interleaved: without exchange, with gradients sent after backward, and as
in training with data, hybrid and, where the network has them, towers. The bytes are those of the
network device. Needs root and the commands ip and tc; results go to
benchmarks/results/cluster.json, the table to docs/cluster.md (`--table`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared import report
from tinyalex import models, optim, random
from tinyalex.data import Batch
from tinyalex.distributed.communicator import Single
from tinyalex.distributed.launch import together
from tinyalex.distributed.plan import STRATEGIES, Machine, cost, has_towers, layers_of
from tinyalex.tensor import Tensor
from tinyalex.threads import set_num_threads
from tinyalex.training.ranks import Ranks
from tinyalex.training.sharded_step import ShardedSteps
from tinyalex.training.split_step import SplitSteps

MPIEXEC = Path(sys.executable).with_name("mpiexec")
LATENCY = 5e-5
"""Seconds of a message on the emulated link, beside its bytes: as plans have it."""
SHARE = 0.65
"""Share of the time of data within which hybrid pays off clearly."""
KINDS = {
    "none": "no exchange",
    "after": "data, sent after backward",
    "data": "data",
    "hybrid": "hybrid",
    "towers": "towers",
}
"""Kinds of steps; towers are of networks that have two."""


# --- on each rank ---------------------------------------------------------------------------------


class SendingAfter(ShardedSteps):
    """`ShardedSteps` whose gradients are sent once backward is done."""

    def _sender(self, name: str) -> Any:
        send = super()._sender(name)
        return lambda parameter: self._later.append((send, parameter))

    def take(self, batch: Batch) -> None:
        """Take a step."""
        self._later: list[tuple[Any, Tensor]] = []
        super().take(batch)

    def _wait(self) -> None:
        for send, parameter in self._later:
            send(parameter)
        super()._wait()


class NoLoader:
    """Loader of which a step asks the size of its batches only."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.unreadable: dict[int, str] = {}

    def leave_out(self, reasons: dict[int, str]) -> None:
        """Leave out nothing: there is nothing to read."""


def busy() -> float:
    """Return the seconds for which this machine's cores have worked so far.

    The system's own work for messages is in it, which is no process's.
    """
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    idle = ticks[3] + ticks[4]  # as exact as a clock, unlike the others
    cores = os.cpu_count() or 1
    return cores * time.monotonic() - idle / os.sysconf("SC_CLK_TCK")


def device_bytes() -> int:
    """Return the bytes that this host has sent so far."""
    return int(Path("/sys/class/net/wire/statistics/tx_bytes").read_text())


def work(arguments: argparse.Namespace) -> None:
    """Take steps of all kinds; print this rank's times and bytes."""
    set_num_threads(1)
    with together() as link:
        model = models.alexnet(arguments.variant, 1000).train()
        size, images = model.variant.input_size, arguments.batch_size // link.size
        rng = np.random.default_rng(link.rank)
        pixels = rng.standard_normal((arguments.batch_size, size, size, 3), np.float32)
        labels, numbers = rng.integers(0, 1000, len(pixels)), np.arange(len(pixels))
        whole = Batch(np.moveaxis(pixels, -1, 1), labels, numbers)  # for towers
        batch = Batch(whole.images[:images], labels[:images], numbers[:images])
        optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        loader: Any = NoLoader(images)
        array = np.zeros(1 << 25, np.float32)
        for _ in range(2):  # the first warms up
            link.share("begin", None).wait()
            begun, bytes_before = busy(), link.sent
            link.sum("to see what a byte costs", array, (0, 1)).wait()
            per_byte = (busy() - begun) / link.size / (link.sent - bytes_before)
        found: dict[str, list[list[float]]] = {
            kind: [] for kind in KINDS if kind != "towers" or has_towers(model.variant)
        }
        for number in range(arguments.steps + 1):
            for kind in found:
                ranks = Ranks(link, link.size, kind if kind in ("hybrid", "towers") else "data")
                loader.batch_size = images if kind == "none" else len(pixels)
                if kind == "none":
                    ranks = Ranks(Single(), 1)
                made = {"after": SendingAfter, "none": ShardedSteps, "data": ShardedSteps}
                steps = made.get(kind, SplitSteps)(model, optimizer, ranks, loader)
                random.start_step(number)
                link.share("begin", None).wait()
                begun, bytes_before = time.perf_counter(), device_bytes()
                steps.take(whole if kind == "towers" else batch)
                found[kind].append([time.perf_counter() - begun, device_bytes() - bytes_before])
                steps.close()
        everything = link.share("found", {**found, "per_byte": per_byte}).wait()
    if link.rank == 0:
        print(json.dumps(everything))


# --- around them ----------------------------------------------------------------------------------


def run(*words: str) -> None:
    """Run a command; raise its complaint as an error."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def two_hosts(gbit: float, folder: Path) -> Any:
    """Make two network namespaces joined by a link; yield mpiexec's words."""
    with ExitStack() as held:
        for host in ("tinyalex-1", "tinyalex-2"):
            run("ip", "netns", "add", host)
            held.callback(subprocess.run, ["ip", "netns", "del", host], capture_output=True)
        wire = ("link", "add", "wire", "netns", "tinyalex-1", "type", "veth")
        run("ip", *wire, "peer", "name", "wire", "netns", "tinyalex-2")
        for number in (1, 2):
            inside = ("ip", "-n", f"tinyalex-{number}")
            run(*inside, "addr", "add", f"10.78.0.{number}/24", "dev", "wire")
            for device in ("lo", "wire"):
                run(*inside, "link", "set", device, "up")
            rate = f"{gbit * 1000:g}mbit"
            bucket = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
            run("tc", "-n", f"tinyalex-{number}", "qdisc", "add", "dev", "wire", *bucket)
        time.sleep(1)  # until the devices are up
        shell = folder / "shell"
        shell.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done  # options of ssh\n'
            'host=tinyalex-${1##*.}; shift; exec ip netns exec "$host" sh -c "$*"\n'
        )
        shell.chmod(0o700)
        yield [
            *("ip", "netns", "exec", "tinyalex-1", str(MPIEXEC), "-n", "2", "-ppn", "1"),
            *("-launcher", "ssh", "-launcher-exec", str(shell), "-iface", "wire"),
            *("-hosts", "10.78.0.1,10.78.0.2"),
            # MPICH would send through shared memory, and past the link.
            *("-genv", "UCX_TLS", "tcp,self", "-genv", "UCX_NET_DEVICES", "wire"),
            # What one kind of steps frees is kept: each would find other pages than in training.
            *("-genv", "MALLOC_MMAP_MAX_", "0", "-genv", "MALLOC_TRIM_THRESHOLD_", str(10**11)),
        ]


def measure(gbit: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and bytes per kind of step at a rate."""
    with two_hosts(gbit, arguments.folder) as mpiexec:
        words = [sys.executable, __file__, "--work", "--variant", arguments.variant]
        words += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
        done = subprocess.run([*mpiexec, *words], stdout=subprocess.PIPE, text=True, check=True)
    ranks = json.loads(done.stdout.splitlines()[-1])
    costs = [rank.pop("per_byte") for rank in ranks]
    found: dict[str, Any] = {"gbit": gbit, "per_byte": statistics.mean(costs)}
    for kind in ranks[0]:
        # A step takes as long as its slowest rank; the first one warms up.
        both = zip(*(rank[kind] for rank in ranks), strict=True)
        seconds = [max(step[0] for step in steps) for steps in both][1:]
        sent = [max(statistics.median(step[1] for step in rank[kind][1:]) for rank in ranks)]
        found[kind] = {"seconds": seconds, "bytes": sent[0]}
    return found


def middle(found: dict[str, Any], kind: str) -> float:
    """Return the median seconds of a kind of step."""
    return statistics.median(found[kind]["seconds"])


def hidden(found: dict[str, Any]) -> float:
    """Return the share of the exchange of data that backward hides."""
    after = middle(found, "after")
    return (after - middle(found, "data")) / (after - middle(found, "none"))


def machine_of(found: dict[str, Any], batch: int) -> Machine:
    """Return the machine of a plan, from steps without exchange."""
    rate = batch / 2 / middle(found, "none")
    return Machine(rate, found["gbit"], LATENCY, payload=1, per_byte=found["per_byte"])


def planned(machine: Machine, kind: str, variant: str, batch: int) -> float:
    """Return the planned seconds of a step."""
    network = models.VARIANTS[variant]
    return cost(layers_of(network, 1000, network.input_size), kind, 2, batch, machine).step


def reach(found: dict[str, Any], variant: str, batch: int) -> str:
    """Return sentences on where hybrid takes `SHARE` of the time of data."""
    machine = machine_of(found, batch)

    def within(gbit: float, images: int) -> bool:
        there = replace(machine, link=gbit)
        steps = [planned(there, kind, variant, images) for kind in ("hybrid", "data")]
        return steps[0] <= SHARE * steps[1]

    links = [gbit / 100 for gbit in range(5, 500) if within(gbit / 100, batch)]
    images = [count for count in range(2, 4 * batch, 2) if within(found["gbit"], count)]
    link, most = max(links, default=0), max(images, default=0)
    alone = middle(found, "none") / middle(found, "data")
    return (
        f"Hybrid computes for as long as a step without exchange, and at {found['gbit']:g} Gbit/s "
        f"that alone takes {alone:.2f} of the time of data: fewer bytes cannot make it shorter. By "
        f"the plan hybrid takes {SHARE} of the time of data on links of up to {link:g} Gbit/s, or, "
        f"on this one, with up to {most} images."
    )


def table(results: list[dict[str, Any]], variant: str, batch: int) -> str:
    """Return a table with a row per rate and kind of step."""
    lines = [
        "| link | exchange | seconds per step | planned | relative to data | MB sent | hidden |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in results:
        for kind, title in KINDS.items():
            if kind not in found:
                continue
            seconds, plan = found[kind]["seconds"], ""
            if kind in STRATEGIES:
                plan = f"{planned(machine_of(found, batch), kind, variant, batch):.2f}"
            lines.append(
                f"| {found['gbit']:g} Gbit/s | {title} "
                f"| {middle(found, kind):.2f} ({min(seconds):.2f} .. {max(seconds):.2f}) | {plan} "
                f"| {middle(found, kind) / middle(found, 'data'):.2f} "
                f"| {found[kind]['bytes'] / 1e6:.1f} "
                f"| {f'{hidden(found):.0%}' if kind == 'data' else ''} |"
            )
    costs = ", ".join(f"{found['per_byte'] * 1e9:.2f}" for found in results)
    lines += ["", f"A byte costs a rank's core {costs} ns at these rates, measured by a sum alone."]
    for found in results:
        if found["gbit"] == 1:
            lines += ["", reach(found, variant, batch)]
    return "\n".join(lines)


def record(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Keep results, beside those at other rates."""
    saved = report.load("cluster")
    others = saved.get(arguments.variant, {}).get("results", [])
    found = {**found, "machine": report.machine()}
    results = [other for other in others if other["gbit"] != found["gbit"]] + [found]
    results.sort(key=lambda one: one["gbit"])
    known = saved.get(arguments.variant, {})
    report.save("cluster", {**saved, arguments.variant: {**known, "results": results}})


def main(argv: list[str] | None = None) -> int:
    """Read the command line; measure and record. Return the exit code."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--rates", nargs="*", type=float, default=[0.5, 1, 1.5, 2.5], metavar="GBIT"
    )
    parser.add_argument("--variant", default="paper")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="of each kind, after one to warm up")
    parser.add_argument("--folder", type=Path, default=Path("/run"), help="for a helper script")
    parser.add_argument("--table", action="store_true", help="write docs/cluster.md")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        work(arguments)
        return 0
    for gbit in arguments.rates:
        found = measure(gbit, arguments)
        print(table([found], arguments.variant, arguments.batch_size), flush=True)
        record(found, arguments)
    everything = report.load("cluster")[arguments.variant]
    results = everything["results"]
    if arguments.table:
        text = table(results, arguments.variant, arguments.batch_size)
        note = f"\n\nTwo ranks, {arguments.variant}, N={arguments.batch_size}. "
        note += report.measured_on(everything, results) + "."
        report.replace_table(report.ROOT / "docs" / "cluster.md", "cluster-measured", text + note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
