"""Faults in large numbers, and their table in docs/trust.md.

    python tests/faults/faults.py               # some minutes; ends with 1 if anything did not hold
    python tests/faults/faults.py --photos DIR  # with photographs instead of drawn pictures
    python tests/faults/faults.py --quick       # a tenth of everything, and no table

What is done here in numbers is done once or a few times by the tests, which hold every change.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from commands import ROOT, hear_signals
from faults_campaign import campaigns, spoilt_kernels
from faults_code import bare_import, counted, removed_guards
from faults_images import mutants_read_badly, mutated_images
from faults_loader import troubled_loaders
from faults_prepare import damaged_photos
from faults_row import Row, processes, temporary_folder
from faults_runs import Runs, cuts, signals, two_equal_runs
from faults_saving import changed_bytes, full_disks, kills_of_savez, kills_while_saving

PAGE = ROOT / "docs" / "trust.md"
ZOO = ("test_odd_image", "test_broken_image", "test_unreadable_image")


def all_rows(scale: float, photos: Path | None) -> Iterator[Row]:
    """Try everything, in the order of the table."""
    yield kills_while_saving(round(200 * scale))
    yield kills_of_savez(round(200 * scale))
    with temporary_folder() as folder:
        runs = Runs(folder)
        yield cuts(round(30 * scale), runs)
        yield signals(round(20 * scale), runs)
    yield full_disks(round(50 * scale))
    yield changed_bytes(round(2000 * scale))
    yield counted("order of system calls: content on the disk, then the name, then the folder",
                "tests/engine/test_files.py", "-k", "on_the_disk_before", least=1)  # fmt: skip
    yield counted("odd and broken images of every kind: read right, or refused with the reason",
                *(f"tests/data/test_bad_images.py::{test}" for test in ZOO), least=28)  # fmt: skip
    yield mutated_images(round(10_000 * scale))
    yield mutants_read_badly()
    yield from damaged_photos(round(200 * scale), round(50 * scale), photos)
    yield troubled_loaders(round(10 * scale))
    yield counted("a NaN planted in each of the 8 layers, forward and backward: layer named",
                "tests/training/test_divergence.py", "-k", "planted", least=16)  # fmt: skip
    yield two_equal_runs()
    refusals = "cannot_be or found_out_before or refusals"
    yield counted("mistakes in arguments, data, disk: one sentence, exit code 2, before training",
                "tests/cli/test_train_errors.py", "tests/training/test_train_resume.py",
                "-k", refusals, least=45)  # fmt: skip
    yield counted("images that would take minutes or gigabytes to decode, and broken metadata",
                "tests/data/test_image_files.py", least=64)  # fmt: skip
    yield counted("a run's folder renamed, removed, replaced, or its files spoilt, on the way",
                "tests/training/test_run_folder.py", least=47)  # fmt: skip
    yield counted("runs and images that moved; training images that are evaluated",
                "tests/training/test_held_out.py", least=40)  # fmt: skip
    yield counted("links, pipes and folders where a file is to be written",
                "tests/engine/test_files_folders.py", least=33)  # fmt: skip
    yield counted("each part of a checkpoint exchanged, the digest right; sizes that it claims",
                "tests/engine/test_schema.py", least=16)  # fmt: skip
    yield counted("three processes that sort into one folder, one of them killed; full disks",
                "tests/cli/test_predict_sort.py", least=14)  # fmt: skip
    yield spoilt_kernels(round(200 * scale))
    yield from campaigns("campaign" if scale == 1 else "default")
    yield bare_import()
    yield removed_guards()


def main() -> int:
    """Read the command line, try everything, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, no table")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder to copy and damage")
    args = parser.parse_args()
    if args.photos and not args.photos.is_dir():
        parser.error(f"--photos needs a folder of class folders, {args.photos} is none")
    hear_signals()
    processes.set_forkserver_preload(
        ["__main__", "tinyalex.cli.train_options", "matplotlib.figure"]
    )
    began, rows = time.monotonic(), []
    for row in all_rows(0.1 if args.quick else 1.0, args.photos):
        rows.append(row)
        verdict = "held  " if row.held else "BROKEN"
        print(
            f"\r{time.monotonic() - began:4.0f} s  {verdict}  {row.fault}: {row.result}", flush=True
        )
    minutes = (time.monotonic() - began) / 60
    if not args.quick:
        sys.path.append(str(ROOT / "benchmarks"))
        from shared import report

        lines = ["| fault | what happened | held |", "|---|---|---|"]
        lines += [f"| {r.fault} | {r.result} | {'yes' if r.held else '**no**'} |" for r in rows]
        lines += ["", f"{report.one_line(report.machine())}; {minutes:.1f} minutes."]
        report.replace_table(PAGE, "faults", "\n".join(lines))
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
