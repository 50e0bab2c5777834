"""Times of all kernels in a step: PyTorch's by layer, and tinyalex's.

CUPTI, which torch.profiler reads, sees every kernel of the process, ours as well. The names answer
what decides the race: whether PyTorch's convolutions are made for this generation of GPUs, and how
much of a step turns images from one layout into another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu import machine
from gpu.cases import Case, Net
from gpu.contestants import Contestant
from gpu.run import Campaign

STEPS = 5
WARM_UP = 10
IMAGES = 128


def run(campaign: Campaign, net: Net) -> None:
    """Profile a training step of each layout and class."""
    if reason := machine.why_no_torch():
        print(f"no profile: {reason}", flush=True)
        return
    from gpu.contestant_tinyalex import Tinyalex
    from gpu.contestant_torch import AUTOCAST, EAGER, LAYOUTS, Setting, Torch

    for precision in ("B", "C", "A"):
        case = Case(net, "train", IMAGES, precision)
        cast = AUTOCAST if precision == "C" else ""
        builders: dict[str, Callable[[], Contestant]] = {
            layout: partial(Torch, case, Setting(layout, EAGER, "fused", cast))
            for layout in LAYOUTS
        }
        builders["tinyalex"] = partial(Tinyalex, case)
        for name, build in builders.items():
            if campaign.time_is_up():
                print("the time is up", flush=True)
                return
            try:
                contestant = build()
                found = profile(contestant)
                contestant.close()
            except Exception as error:
                print(
                    f"{name}, class {precision}: {type(error).__name__}: {error}",
                    flush=True,
                )
                continue
            found = {"facts": campaign.facts, "quick": campaign.quick, **found}
            campaign.keep(f"gpu-profile-{name}-{IMAGES}-{precision}", found)
            _show(f"{name}, class {precision}", found)


def profile(contestant: Contestant) -> dict[str, Any]:
    """Return microseconds per step of each kernel, and of each operation."""
    import torch
    from torch.profiler import ProfilerActivity

    for _ in range(WARM_UP):
        contestant.step()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(STEPS):
            contestant.step()
        contestant.stream.synchronize()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name, []).append(event.device_time_total)
    operations = [
        {
            "operation": row.key,
            "shapes": row.input_shapes,
            "us": row.self_device_time_total / STEPS,
            "calls": row.count / STEPS,
        }
        for row in profiler.key_averages(group_by_input_shape=True)
        if row.self_device_time_total and row.device_type == torch.autograd.DeviceType.CPU
    ]
    return {
        "settings": contestant.settings,
        "kernels": sorted(
            (
                {"kernel": name, "us": sum(times) / STEPS, "calls": len(times) / STEPS}
                for name, times in kernels.items()
            ),
            key=lambda row: -row["us"],
        ),
        "operations": sorted(operations, key=lambda row: -row["us"]),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    total = sum(row["us"] for row in found["kernels"])
    print(f"{name}: {total / 1e3:.2f} ms of kernels a step", flush=True)
    for row in found["kernels"][:15]:
        print(f"  {row['us']:8.1f} us in {row['calls']:.0f}  {row['kernel'][:110]}", flush=True)
