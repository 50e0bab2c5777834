"""How long does it take to find out which images lie in a folder of a million, and how much memory?

    python benchmarks/bench_index.py --files 1300000 --classes 1000

makes that many empty files in a temporary folder, indexes it in fresh processes (the first and
second time with the cache, then without) and removes it again. The system has the folders in
memory, for it has just written them; a first reading from a disk takes as long as the disk does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INDEX = """
import re, sys, time
from pathlib import Path
from tinyalex.data import ImageFolder
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
start = time.perf_counter()
images = ImageFolder(sys.argv[1], cache=sys.argv[2] == "cached")
seconds = time.perf_counter() - start
print(f"{len(images):,} images, {len(images.classes)} classes: {seconds:.2f} s, "
      f"peak {peak():.0f} MiB, {before:.0f} MiB of it before")
"""


def main() -> None:
    """Make the files, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", help="where to make the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        photos = Path(name, "photos")
        start = time.perf_counter()
        for label in range(args.classes):
            folder = photos / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(label, args.files, args.classes):
                os.close(os.open(folder / f"n{label:08}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))
        print(f"made in {time.perf_counter() - start:.0f} s", flush=True)
        time.sleep(3)  # folders that have just changed are not remembered
        environment = {**os.environ, "XDG_CACHE_HOME": str(Path(name, "cache"))}
        for title in ("cached, first", "cached, second", "uncached"):
            command = [sys.executable, "-c", INDEX, str(photos), title.partition(",")[0]]
            print(f"{title:15}", end="", flush=True)
            subprocess.run(command, env=environment, check=True)
        size = sum(file.stat().st_size for file in Path(name, "cache").rglob("*") if file.is_file())
        print(f"cache file     {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
