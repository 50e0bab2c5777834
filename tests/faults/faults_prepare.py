"""A folder of photographs, hundreds of them damaged: prepared, and checked later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import images
import numpy as np
from commands import ROOT, draw_photos
from faults_row import Row, temporary_folder

from tinyalex.data.image import EXTENSIONS
from tinyalex.data.manifest import LEFT_OUT, MANIFEST, read_manifest
from tinyalex.text import printable


def half(path: Path) -> None:
    """Lose the second half of the photograph itself."""
    os.truncate(path, path.stat().st_size // 2)


def no_beginning(path: Path) -> None:
    """Lose the bytes by which the format of the photograph is known."""
    with path.open("r+b") as file:
        file.write(bytes(16))


WAYS = {half: "", no_beginning: "not an image that can be read", **images.BROKEN}
"""Ways to damage a photograph, and what the reason must say."""


def damaged_photos(count: int, flips: int, photos: Path | None) -> Iterator[Row]:
    """Damage `count` photographs and prepare all; then change `flips` of the images made."""
    rng = np.random.default_rng(0)
    with temporary_folder() as folder:
        source, target = folder / "source", folder / "target"
        if photos:
            shutil.copytree(photos, source)
        else:
            draw_photos(source, 200)
        paths = [
            path for path in sorted(source.rglob("[!.]*")) if path.suffix.lower() in EXTENSIONS
        ]
        whose = f"photographs in `{photos.resolve().name}`" if photos else "drawn pictures"
        reasons = damage(source, rng.permutation(paths)[:count].tolist())
        done = run_prepare(folder, source, target)
        fault = f"{count} of {len(paths):,} {whose} damaged in {len(WAYS)} ways, then prepared"
        if done.returncode != 0:
            yield Row(fault, f"exit code {done.returncode}: {done.stderr[-300:]}", False)
            return
        yield Row(fault, *judge_prepared(done, target, reasons, len(paths) - count))
        untouched = run_prepare(folder, "--verify", target)
        made = [entry.path for entry in read_manifest(target / MANIFEST)[1]]
        changed = rng.choice(made, flips, replace=False).tolist()
        for path in changed:
            flip_a_byte(target / path, rng)
        found = run_prepare(folder, "--verify", target)
        complaints = found.stderr.splitlines()
        named = set(complaints) & {f"changed: {printable(path)}" for path in changed}
        others = len(complaints) - len(named)
        yield Row(
            "one byte changed in some of the prepared images, then `--verify`",
            f"{len(named)} of {flips} named, {others} others; nothing before",
            (untouched.returncode, untouched.stderr, found.returncode) == (0, "", 2)
            and (len(named), others) == (flips, 0),
        )


def damage(source: Path, paths: list[Path]) -> dict[str, str]:
    """Damage files, in all ways in turn; return what the reason for each must say, by path."""
    reasons = {}
    for number, path in enumerate(paths):
        way, reason = list(WAYS.items())[number % len(WAYS)]
        if way in images.BROKEN:
            path.unlink()
        way(path)
        reasons[str(path.relative_to(source))] = reason
    return reasons


def judge_prepared(
    done: subprocess.CompletedProcess, target: Path, reasons: dict[str, str], good: int
) -> tuple[str, bool]:
    """Say how many were left out, and whether they were all the damaged ones and no other."""
    lines = map(json.loads, (target / LEFT_OUT).read_text().splitlines())
    found = {line["source"]: line["reason"] for line in lines}
    complaints = done.stderr.splitlines()
    named = [
        path
        for path, reason in reasons.items()
        if reason.lower() in found.get(path, "").lower()
        and f"left out: {printable(path)}: {found.get(path)}" in complaints
    ]
    others = len(complaints) - len(named)
    counted = f"{good} images made, 0 were there, {len(reasons)} left out" in done.stdout
    said = f"{len(named)} of {len(reasons)} left out and named with the reason, {others} others; "
    said += f"{good:,} made" if counted else f"counted wrong: {done.stdout.splitlines()[0]}"
    return said, counted and (len(named), others) == (len(reasons), 0)


def flip_a_byte(path: Path, rng: np.random.Generator) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    path.unlink()
    path.write_bytes(content)


def run_prepare(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run the command, which must not remember the folders that it saw."""
    cache = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "tinyalex", "prepare", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
    )
