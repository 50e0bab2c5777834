"""Every layer's passes on the GPU, beside floor and PyTorch.

The caches are cold: before each call half a gigabyte is written, which also gives Python the time
to queue the call, so that what is measured is the GPU's work alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

import tinyalex as ta
from gpu import machine, run
from gpu.cases import Net, distance
from gpu.contestant_tinyalex import WORDS
from gpu.layer_rows import Row, rows
from gpu.run import Campaign
from shared import report
from tinyalex.backends import cuda
from tinyalex.backends.gpu import cupy, download

Call = Callable[[], Any]
FLUSHED = 1 << 29  # bytes; the caches have a tenth of it


def name_of(net: Net, images: int) -> str:
    """Return the name of the file that holds the result."""
    return f"gpu-layers-{net.name}-{images}"


def measure(net: Net, images: int, classes: list[str], campaign: Campaign) -> None:
    """Measure all rows in all classes; the file grows with every row."""
    name = name_of(net, images)
    if run.measured_already(name, campaign):
        print(f"{name}: measured already", flush=True)
        return
    result: dict[str, Any] = {
        "facts": campaign.facts,
        "ceilings": asdict(campaign.ceilings),
        "net": net.name,
        "images": images,
        "cache": f"cold: {FLUSHED >> 20} MiB are written before each call",
        "rows": [],
    }
    flush = cupy().empty(FLUSHED // 4 // net.thin**2, np.float32)
    for row in rows(net, images):
        if campaign.time_is_up():
            print(f"{name}: the rest was not begun, the time is up", flush=True)
            break
        expected = row.expected()
        for precision in classes:
            measured = _row(row, precision, expected, campaign, flush)
            result["rows"].append(measured)
            _show(measured)
        run.tidy()
        if not campaign.only:
            report.save(name, result, campaign.folder)


def _row(
    row: Row, precision: str, expected: np.ndarray, campaign: Campaign, flush: Any
) -> dict[str, Any]:
    ta.set_float32_matmul_precision(WORDS[precision])
    builders: dict[str, Callable[[], Call]] = {"tinyalex": lambda: ours(row)}
    flags: dict[str, Any] = {}
    if machine.usable_torch() is not None:
        from gpu import contestant_torch, torch_layers

        flags = contestant_torch.set_flags(precision)
        builders |= torch_layers.calls(row, precision)
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, build in builders.items():
        if campaign.only and not any(word in name for word in campaign.only):
            continue
        try:
            call = build()
            _poison(expected.size)
            errors[name] = distance(host(call()), expected)
            if not errors[name] <= row.tolerance(precision):
                raise ValueError(
                    f"wrong result: off by {errors[name]:.1e}, allowed are "
                    f"{row.tolerance(precision):.0e}"
                )
            calls[name] = call
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(campaign.protocol.rounds):
        for name, call in calls.items():
            times[name].append(cold(call, flush, campaign.protocol.calls))
    return {
        "layer": row.work.layer,
        "part": row.work.part,
        "precision": precision,
        "flags": flags | {"tinyalex": ta.get_float32_matmul_precision()},
        "floor_seconds": row.work.seconds(campaign.ceilings, precision),
        "times": times,
        "errors": errors,
        "failed": failed,
    }


def ours(row: Row) -> Call:
    """Return our call, its arguments on the GPU, images channels last."""
    arguments = [placed(a) for a in row.arguments]
    function = getattr(cuda, row.kernel)
    return lambda: row.result(function(*arguments), arguments)


def placed(argument: Any) -> Any:
    """Return arrays on the GPU, images channels last; anything else unchanged."""
    if not isinstance(argument, np.ndarray):
        return argument
    if argument.ndim != 4:
        return cupy().asarray(np.ascontiguousarray(argument))
    pixels = np.ascontiguousarray(argument.transpose(0, 2, 3, 1))
    return cupy().asarray(pixels).transpose(0, 3, 1, 2)


def host(result: Any) -> np.ndarray:
    """Return a result, ours or PyTorch's, as a NumPy array."""
    if isinstance(result, cupy().ndarray):
        return download(result)
    return result.detach().float().cpu().numpy()


def _poison(count: int) -> None:
    """Leave NaN in the memory that the result will probably get."""
    xp = cupy()
    spoiled = xp.empty(count, np.float32)
    spoiled[...] = np.nan
    del spoiled
    torch = machine.usable_torch()
    if torch:
        for kind in (torch.float32, torch.bfloat16):
            torch.full((count,), float("nan"), device="cuda", dtype=kind)


def cold(call: Call, flush: Any, count: int) -> list[float]:
    """Return the seconds of ``count`` calls, each with cold caches."""
    xp = cupy()
    stream = xp.cuda.Stream.null
    pairs = []
    for number in range(count + 1):
        flush[...] = number
        pair = xp.cuda.Event(), xp.cuda.Event()
        pair[0].record(stream)
        call()
        pair[1].record(stream)
        pairs.append(pair)
    pairs[-1][1].synchronize()
    return [xp.cuda.get_elapsed_time(*pair) / 1e3 for pair in pairs[1:]]


def _show(measured: dict[str, Any]) -> None:
    head = f"  {measured['layer']} {measured['part']}, class {measured['precision']}"
    floor = measured["floor_seconds"]
    for name, rounds in measured["times"].items():
        middle = statistics.median(statistics.median(times) for times in rounds)
        share = f", {floor / middle:.0%} of the floor's speed" if floor else ""
        error = measured["errors"][name]
        print(f"{head}, {name}: {middle * 1e6:.1f} us{share}, off by {error:.1e}", flush=True)
    for name, reason in measured["failed"].items():
        print(f"{head}, {name}: {reason}", flush=True)
