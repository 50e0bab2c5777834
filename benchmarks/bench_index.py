"""Time and memory of the search for a million images in folders.

    python benchmarks/bench_index.py

makes 1,300,000 empty files in 1,000 folders in a temporary one, indexes them in fresh processes
(the first and second time with the cache, then without) and removes them again. The system has the
folders in memory, for it has just written them; a first reading takes as long as the disk does.
Writes benchmarks/results/index.json, and with --table the table in docs/cpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared import report

INDEX = """
import json, re, sys, time
from pathlib import Path
from tinyalex.data import ImageFolder
start = time.perf_counter()
images = ImageFolder(sys.argv[1], cache=sys.argv[2] == "cached")
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"images": len(images), "seconds": seconds, "mebibytes": peak}))
"""
TIMES = {
    "cached": "the first time",
    "cached again": "later, while nothing has changed",
    "uncached": "without the cache",
}


def main() -> None:
    """Make the files, measure, remove them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", help="where to make the temporary folder")
    parser.add_argument("--table", action="store_true", help="update docs/cpu.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        photos = Path(name, "photos")
        for label in range(args.classes):
            folder = photos / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(label, args.files, args.classes):
                os.close(os.open(folder / f"n{label:08}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
        time.sleep(3)  # folders that have just changed are not remembered
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(name, "cache"))}
        found = {}
        for time_of in TIMES:
            command = [sys.executable, "-c", INDEX, str(photos), time_of.partition(" ")[0]]
            found[time_of] = json.loads(subprocess.check_output(command, env=environment))
        size = sum(file.stat().st_size for file in Path(name, "cache").rglob("*") if file.is_file())
    result = {"machine": report.machine(), "found": found, "cache": size, "classes": args.classes}
    report.save("index", result)
    print(table(result))
    if args.table:
        report.replace_table(report.ROOT / "docs" / "cpu.md", "index", table(result))


def table(result: dict[str, Any]) -> str:
    """Return time and memory of each kind of indexing."""
    images = result["found"]["cached"]["images"]
    rows = [
        f"| list of {images:,} images in {result['classes']:,} folders | seconds | memory |",
        "|---|---|---|",
    ]
    for name, title in TIMES.items():
        found = result["found"][name]
        rows.append(f"| {title} | {found['seconds']:.1f} | {found['mebibytes']:.0f} MiB |")
    caption = f"The cache takes {result['cache'] / 1e6:.1f} MB on the disk. "
    return "\n".join([*rows, "", caption + report.one_line(result["machine"])])


if __name__ == "__main__":
    main()
