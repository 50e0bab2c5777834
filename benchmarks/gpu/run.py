"""One case of the GPU benchmark, from first check to last turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpu import cases, floors, journal, machine, timing
from gpu.cases import Case
from gpu.contestants import Contestant, check
from gpu.journal import Result
from gpu.timing import Protocol, Times
from tinyalex.backends.gpu import cupy

FINALISTS = 3  # of PyTorch's settings take turns with tinyalex; the others are timed alone
OURS = "tinyalex"


@dataclass
class Candidate:
    """A contestant to be built; a ``final`` one always takes turns."""

    name: str
    build: Callable[[], Contestant]
    final: bool = False


@dataclass
class Campaign:
    """Settings that all cases share; ``until`` is the end (`time.monotonic`).

    Results go to ``journal`` line by line, unless only some contestants take part.
    """

    journal: Path
    facts: dict[str, Any]
    ceilings: floors.Ceilings
    protocol: Protocol
    quick: bool
    only: list[str] = field(default_factory=list)
    until: float = float("inf")
    # PyTorch's fastest settings of a mode and class, once all of them were tried: what is slow at
    # the first size is not tried at all others.
    favourites: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def time_is_up(self) -> bool:
        """Return True if nothing more should be begun."""
        return time.monotonic() > self.until

    def keep(self, name: str, result: Result) -> None:
        """Write a result down, or the part of it that there is."""
        if not self.only:
            journal.append(self.journal, name, result)


def campaign(
    path: Path,
    protocol: Protocol,
    quick: bool,
    only: Sequence[str] = (),
    until: float = float("inf"),
    thin: int = 1,
) -> Campaign:
    """Find out about the machine, measure its ceilings and print both."""
    facts = machine.facts()
    print(machine.one_line(facts), flush=True)
    if reason := machine.why_no_torch():
        print(f"without PyTorch: {reason}", flush=True)
    ceilings = machine.ceilings(thin)
    tidy()
    print(machine.rates(asdict(ceilings)), flush=True)
    print(f"environment: {facts['environment']}; clock {machine.clock()}", flush=True)
    return Campaign(path, facts, ceilings, protocol, quick, list(only), until)


def candidates(case: Case, campaign: Campaign) -> Iterator[Candidate]:
    """Yield all possible contestants, in the order in which they are tried."""
    if case.precision != "as shipped":
        from gpu.contestant_tinyalex import Tinyalex, TinyalexGraph

        for ours in (Tinyalex, TinyalexGraph):
            yield Candidate(ours.name, lambda ours=ours: ours(case), final=True)
    if machine.usable_torch() is not None:
        from gpu.contestant_torch import Torch, settings

        favourites = campaign.favourites.get((case.mode, case.precision))
        for setting in settings(case, campaign.quick):
            if favourites and setting.name not in favourites:
                continue
            yield Candidate(setting.name, lambda setting=setting: Torch(case, setting))


def run(case: Case, campaign: Campaign) -> Result:
    """Check, time alone and then in turns; list failures with their reason."""
    work = case.net, case.images, case.training
    expected = reference(*work)
    failed: dict[str, str] = {}
    if reason := machine.why_no_torch():
        failed["torch"] = reason
    alive: dict[str, Contestant] = {}
    found: dict[str, dict[str, Any]] = {}
    result = {
        "complete": False,
        "facts": campaign.facts,
        "quick": campaign.quick,
        "case": asdict(case),
        "ceilings": asdict(campaign.ceilings),
        "clock": [machine.clock()],
        "protocol": asdict(campaign.protocol),
        "floor_seconds": floors.floor(*work, campaign.ceilings, case.floor_class),
        "contestants": found,
        "failed": failed,
    }
    before = machine.failures()
    for candidate in candidates(case, campaign):
        key = f"{case.name} {candidate.name}"
        if campaign.only and not any(word in candidate.name for word in campaign.only):
            continue
        if key in before:
            failed[candidate.name] = before[key]
            continue
        if campaign.time_is_up():
            failed[candidate.name] = "not tried: the time was up"
            continue
        try:
            with timing.until(campaign.until):
                contestant = candidate.build()
                alive[candidate.name] = contestant
                found[candidate.name] = admit(contestant, case, expected, campaign.protocol)
        except Exception as error:  # whatever it is, the others stay
            failed[candidate.name] = words_of(error)
            print(f"  {candidate.name}: {failed[candidate.name]}", flush=True)
            machine.restart_if_dead({key: failed[candidate.name]})
            if candidate.name in alive:
                _close(alive.pop(candidate.name))
            found.pop(candidate.name, None)
        else:
            print(f"  {candidate.name}: {_line(found[candidate.name])}", flush=True)
            _drop_slow(alive, found)
        campaign.keep(case.name, result)
    in_time = not campaign.time_is_up()
    for turns in timing.take_turns(list(alive.values()), campaign.protocol) if alive else ():
        for name, turn in turns.items():
            found[name].setdefault("turns", []).append(turn)
        campaign.keep(case.name, result)
    for contestant in alive.values():
        _close(contestant)
    tidy()
    result["clock"].append(machine.clock())
    result["complete"] = in_time and bool(alive)
    campaign.keep(case.name, result)
    return result


def admit(
    contestant: Contestant, case: Case, expected: dict[str, Any], protocol: Protocol
) -> dict[str, Any]:
    """Time a contestant alone. Raises ValueError if its results are wrong."""
    errors = check(contestant, case, expected)
    if wrong := cases.objection(errors, case.precision):
        raise ValueError(wrong)
    steps = timing.steps_for(contestant, protocol)
    alone = timing.turn(contestant, steps, replace(protocol, windows=1))
    return {
        "settings": contestant.settings,
        "errors": errors,
        "peak_bytes": contestant.peak_bytes,
        "alone": alone["device"][0],
    }


@lru_cache(maxsize=1)
def reference(net: cases.Net, images: int, training: bool) -> dict[str, Any]:
    """Return `cases.expected`, cached for the next class of precision.

    It is PyTorch's, on the GPU, if that can be: quicker, and no work of ours.
    """
    print(f"  float64: {net.name}, {images} images", flush=True)
    if machine.usable_torch() is None:
        return cases.expected(net, images, training)
    from gpu import contestant_torch

    return contestant_torch.expected(net, images, training)


def _drop_slow(alive: dict[str, Contestant], found: dict[str, dict[str, Any]]) -> None:
    """Close the slowest of PyTorch's settings beyond `FINALISTS`."""
    theirs = [name for name in alive if not name.startswith(OURS)]
    if len(theirs) > FINALISTS:
        slowest = max(theirs, key=lambda name: found[name]["alone"])
        _close(alive.pop(slowest))


def _close(contestant: Contestant) -> None:
    try:
        contestant.close()
    except Exception as error:
        print(f"  {contestant.name} did not close: {words_of(error)}", flush=True)


def tidy() -> None:
    """Give back what allocators keep, and forget what was compiled."""
    cupy().get_default_memory_pool().free_all_blocks()
    if machine.usable_torch() is not None:
        from gpu import contestant_torch

        contestant_torch.tidy()
        contestant_torch.forget_compiled()


def words_of(error: Exception) -> str:
    """Return an error's kind and message on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _line(found: dict[str, Any]) -> str:
    errors = ", ".join(f"{name} {error:.1e}" for name, error in found["errors"].items())
    return f"{found['alone'] * 1e3:.3f} ms alone; off by {errors}; {found['settings']}"


def show(result: Result) -> None:
    """Print the turns of a case."""
    print(f"  clock before and after: {' and '.join(map(str, result['clock']))}", flush=True)
    images, floor = result["case"]["images"], result["floor_seconds"]
    final = {n: c["turns"] for n, c in result["contestants"].items() if "turns" in c}
    ours = min(
        (name for name in final if name.startswith(OURS)),
        key=lambda name: Times.of(final[name]).median,
        default=None,
    )
    for name, turns in final.items():
        times, wall = Times.of(turns), Times.of(turns, "wall")
        text = (
            f"  {name:45}{times.median * 1e3:9.3f} ms ({times.least * 1e3:.3f} .. "
            f"{times.most * 1e3:.3f}), wall {wall.median * 1e3:.3f}, "
            f"{images / times.median:10.0f} img/s"
        )
        if floor:
            text += f", {floor / times.median:4.0%} of the floor's speed"
        if ours and name != ours:
            text += f", {timing.compare(turns, final[ours])}"
        print(text, flush=True)


def measured_already(name: str, campaign: Campaign) -> Result | None:
    """Return what this program measured on such a machine, or None.

    What a quick run measured counts for another quick run only.
    """
    result = journal.load(campaign.journal.parent).get(name)
    if not result or not result.get("complete", True) or result["quick"] > campaign.quick:
        return None
    same = ("commit", "gpu", "driver", "versions")
    edited = "dirty" in (campaign.facts["commit"] or "")
    known = bool(campaign.facts["commit"])
    alike = known and all(result["facts"][key] == campaign.facts[key] for key in same)
    return result if alike and not edited else None


def remember_favourites(result: Result, campaign: Campaign) -> None:
    """Keep the fastest settings of each mode's and class's first case."""
    key = result["case"]["mode"], result["case"]["precision"]
    alone = {n: c["alone"] for n, c in result["contestants"].items() if not n.startswith(OURS)}
    if alone and key not in campaign.favourites:
        campaign.favourites[key] = sorted(alone, key=alone.__getitem__)[:FINALISTS]
