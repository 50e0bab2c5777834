"""Helpers for the shim's tests: kernels from text, launches under schedules."""

import itertools

from simt import build

WAYS = list(itertools.product(build.SCHEDULES, build.COPIES))


def kernel(code, name="k"):
    """Return a kernel of this source, whose first line is `test.cu:1`."""
    return build.RawModule(code='#line 1 "test.cu"\n' + code).get_function(name)


def in_every_way(launch):
    """Return what `launch()` returns under each schedule and either time of copying."""
    results = {}
    for schedule, copies in WAYS:
        with build.using(schedule=schedule, copies=copies):
            results[schedule, copies] = launch()
    return results
