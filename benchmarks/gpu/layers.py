"""Every layer's passes on the GPU, beside floor and PyTorch.

The caches are cold: before each call half a gigabyte is written, which also gives Python the time
to queue the call, so that what is measured is the GPU's work alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

import tinyalex as ta
from gpu import machine, run, timing
from gpu.cases import Net, distance
from gpu.contestant_tinyalex import WORDS
from gpu.layer_rows import Row, rows
from gpu.run import Campaign
from gpu.rungs import PASSES
from tinyalex import nn
from tinyalex.backends import cuda
from tinyalex.backends.bfloat16 import as_float32, bfloat16
from tinyalex.backends.cuda.channels import widened
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import MMA_SYNC, TILES, Cut
from tinyalex.backends.cuda.linear import FEW, few_rows, pixels, shape_of
from tinyalex.backends.gpu import cupy, download
from tinyalex.backends.layout import as_nchw, copy_with_room, in_fours

Call = Callable[[], Any]
LETTERS = {word: letter for letter, word in WORDS.items()}
FLUSHED = 1 << 29  # bytes; the caches have a tenth of it
# Positions of the images and of the filters, or of their shapes, among the arguments.
OPERANDS = {"conv2d": (0, 1), "conv2d_input_grad": (2, 1), "conv2d_weight_grad": (1, 2)}


def name_of(net: Net, images: int, row: Row, precision: str) -> str:
    """Return the name of a result."""
    words = f"{net.name} {images} {row.work.layer} {row.work.part} {precision}"
    return f"gpu-layers-{words.replace(' ', '-')}"


def measure(
    net: Net,
    images: int,
    classes: Iterable[str],
    campaign: Campaign,
    sweep: bool = False,
    kind: type[nn.Module] = nn.Conv2d,
) -> None:
    """Measure all passes of layers, in a ``sweep`` in all versions."""
    behind = machine.last_failure()
    waiting = behind.startswith("gpu-layers-")  # for the row that it began anew in
    flush = cupy().empty(FLUSHED // 4 // net.thin**2, np.float32)
    for row in rows(net, images, kind if sweep else nn.Module):
        row = replace(row, arguments=tuple(map(placed, row.arguments)))
        if sweep and not versions(row):
            continue
        expected = None
        for precision in classes:
            name = name_of(net, images, row, precision)
            waiting = waiting and not behind.startswith(f"{name} ")
            if waiting:
                continue
            if run.measured_already(name, campaign):
                print(f"{name}: measured already", flush=True)
                continue
            if campaign.time_is_up():
                print(f"{name}: not begun, the time is up", flush=True)
                return
            expected = _expected(row) if expected is None else expected
            measured = _row(name, row, precision, expected, campaign, flush, sweep)
            about = {"net": net.name, "images": images, "quick": campaign.quick}
            about |= {"facts": campaign.facts, "ceilings": asdict(campaign.ceilings)}
            campaign.keep(name, {**about, **measured})
            _show(measured)
        run.tidy()


def _expected(row: Row) -> Any:
    """Return the float64 result: PyTorch's on the GPU, or the CPU's."""
    if machine.usable_torch() is None:
        arguments = tuple(host(a) if isinstance(a, cupy().ndarray) else a for a in row.arguments)
        return replace(row, arguments=arguments).expected()
    from gpu import torch_layers

    return torch_layers.expected(row)


def _distance(result: Any, expected: Any) -> float:
    if isinstance(result, cupy().ndarray):
        result = as_float32(result)
    if isinstance(expected, np.ndarray):
        return distance(host(result), expected)
    from gpu import torch_layers

    return torch_layers.distance(result, expected)


def _row(
    row_name: str,
    row: Row,
    precision: str,
    expected: Any,
    campaign: Campaign,
    flush: Any,
    sweep: bool,
) -> dict[str, Any]:
    ta.set_float32_matmul_precision(WORDS[precision])
    builders: dict[str, Callable[[], Call]] = {run.OURS: lambda: ours(stored(row, precision))}
    if sweep:
        builders |= versions(row)
    flags: dict[str, Any] = {}
    if machine.usable_torch() is not None:
        from gpu import contestant_torch, torch_layers

        flags = contestant_torch.set_flags(precision)
        builders |= torch_layers.calls(row, precision)
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    before = machine.failures()
    for name, build in builders.items():
        key = f"{row_name} {name}"
        if campaign.only and not any(word in name for word in campaign.only):
            continue
        if key in before:
            failed[name] = before[key]
            continue
        try:
            with timing.until(campaign.until):
                call = build()
                _poison(expected.size if isinstance(expected, np.ndarray) else expected.numel())
                errors[name] = _distance(call(), expected)
            if not errors[name] <= row.tolerance(precision):
                raise ValueError(
                    f"wrong result: off by {errors[name]:.1e}, allowed are "
                    f"{row.tolerance(precision):.0e}"
                )
            calls[name] = call
        except Exception as error:
            failed[name] = run.words_of(error)
            machine.restart_if_dead({key: failed[name]})
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(campaign.protocol.rounds):
        for name, call in calls.items():
            times[name].append(cold(call, flush, campaign.protocol.calls))
    return {
        "layer": row.work.layer,
        "part": row.work.part,
        "precision": precision,
        "flags": flags | {"tinyalex": ta.get_float32_matmul_precision()},
        "cache": f"cold: {FLUSHED >> 20} MiB are written before each call",
        "floor_seconds": row.work.seconds(campaign.ceilings, precision),
        "times": times,
        "errors": errors,
        "failed": failed,
    }


def versions(row: Row) -> dict[str, Callable[[], Call]]:
    """Return builders of a convolution's tiles, Hopper's too, or of `_few_rows`."""
    if row.kernel not in OPERANDS:
        return _few_rows(row) if row.kernel == "linear" else {}
    options = row.arguments[-1]
    given = row.arguments if options.groups > 1 else tuple(map(in_room, row.arguments))
    image, weight = (getattr(a, "shape", a) for a in itemgetter(*OPERANDS[row.kernel])(given))
    shape = ConvShape.of(image, weight, options)
    which, _, wrap, tensor = next(p for p in PASSES if p[1] == row.kernel)
    sizes = shape.channels, shape.filters, which
    if not products.applicable(*sizes, np.dtype(np.float32)):
        return {}
    channels = weight[1] if which == "weight_grad" else None  # the others were not asked for
    precision = ta.get_float32_matmul_precision()
    found: dict[str, tuple[Call, tuple[Any, ...]]] = {
        f"{run.OURS} {tile[0]} x {tile[1]}": (
            partial(tensor, kernels=MMA_SYNC[precision], cut=Cut(tile)),
            given,
        )
        for tile in TILES[which]
    }
    halves = stored(replace(row, arguments=given), LETTERS[precision]).arguments
    dtype = halves[0].dtype
    if products.on_hopper() and (
        precision == "high" if dtype == np.float32 else products.applicable(*sizes, dtype)
    ):
        kernels = products.wgmma(shape, dtype)
        for tile in kernels.tiles.get(which, ()):
            version = partial(tensor, kernels=kernels, cut=Cut(tile))
            found[f"{run.OURS} wgmma {tile[0]} x {tile[1]}"] = version, halves
    return {
        name: lambda version=version, arrays=arrays: lambda: wrap(version, *arrays)[:, :channels]
        for name, (version, arrays) in found.items()
    }


def stored(row: Row, precision: str) -> Row:
    """Return a row with the numbers that this class has in memory."""
    few = len(row.arguments[0]) <= FEW or row.kernel == "sgd_step"
    kind = bfloat16() if precision == "C" and products.on_hopper() and not few else None
    if kind is None:
        return row

    def half(argument: Any) -> Any:
        numbers = getattr(argument, "dtype", None) == np.float32 and argument.ndim > 1
        return argument.astype(kind) if numbers else argument

    return replace(row, arguments=tuple(map(half, row.arguments)))


def _few_rows(row: Row) -> dict[str, Callable[[], Call]]:
    """Return builders of both versions of linear layers of few rows."""
    x, weight, bias = row.arguments
    if len(x) > FEW:
        return {}
    operands = pixels(x), pixels(weight), bias, shape_of(*x.shape, len(weight))
    kernels = MMA_SYNC[ta.get_float32_matmul_precision()]
    return {
        f"{run.OURS} few rows": lambda: lambda: few_rows(x, weight, bias),
        f"{run.OURS} tensor cores": lambda: (
            lambda: products.forward(*operands, kernels=kernels).reshape(len(x), -1)
        ),
    }


def in_room(argument: Any) -> Any:
    """Return images or weights with channels of zeros, `in_fours`."""
    if getattr(argument, "ndim", 0) != 4:
        return argument
    return as_nchw(widened(argument, in_fours(argument.shape[1])))


def ours(row: Row) -> Call:
    """Return our call, on copies: an update writes into its arguments.

    Images of a convolution lie as the loader places them.
    """
    xp, function = cupy(), getattr(cuda, row.kernel)
    arguments = [xp.array(a) if isinstance(a, xp.ndarray) else a for a in row.arguments]
    for image in OPERANDS.get(row.kernel, ())[:1]:
        if isinstance(arguments[image], xp.ndarray):
            arguments[image] = copy_with_room(arguments[image])
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
