"""Example of docs/weights.md: its commands, and its figures.

    python benchmarks/weights_example.py flowers   # minutes; the folder has train/ and val/

Runs the shell commands that stand in the document, in a folder of its own (--store), and writes
what the probe printed and where the trainings ended into the document, and the probe's picture to
docs/images. A training that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from shared import report
from tinyalex.cli.network import prefix_of

DOCUMENT = report.ROOT / "docs" / "weights.md"


def main() -> None:
    """Read the command line, run the example and write its figures."""
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="photographs of flowers, in train/ and val/")
    parser.add_argument("--store", type=Path, default=Path("runs/weights-example"))
    arguments = parser.parse_args()
    arguments.store.mkdir(parents=True, exist_ok=True)
    link = arguments.store / "flowers"
    if not link.exists():
        link.symlink_to(arguments.data.absolute())
    said = {}
    for command in commands():
        print(f"$ {command}", flush=True)
        said[command] = run(command, arguments)
    report.save("weights-example", {"machine": report.machine(), "said": figures(said)})
    for name, text in blocks(report.load("weights-example")).items():
        report.replace_table(DOCUMENT, name, text)
    picture = probe_picture(arguments.store)
    shutil.copy(picture, report.ROOT / "docs" / "images" / "probe.png")


def probe_picture(store: Path) -> Path:
    """Return the picture that `probe runs/three --data two` draws."""
    here = store.resolve()  # as a command sees the folder that it runs in
    network = here / "runs" / "three" / "best.safetensors"
    return network.with_name(f"{prefix_of(network, [str(here / 'two')])}probe.png")


def commands() -> list[str]:
    """Return the example's commands; the copying of classes is one."""
    (block,) = re.findall(r"```sh\n(for split .*?)```", DOCUMENT.read_text(), re.DOTALL)
    copying, rest = block.split("done\n")
    return [f"{copying}done", *rest.splitlines()]


def run(command: str, arguments: argparse.Namespace) -> str:
    """Run a command in the example's folder; return what it printed."""
    words = shlex.split(command)
    if "--out" in words and (arguments.store / (out := words[-1]) / "last.safetensors").exists():
        command = f".venv/bin/tinyalex train --resume {out}"
    called = f"{shlex.quote(sys.executable)} -m tinyalex"
    done = subprocess.run(
        ["bash", "-ec", command.replace(".venv/bin/tinyalex", called)],
        cwd=arguments.store,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout, flush=True)
    return done.stdout


def figures(said: dict[str, str]) -> dict[str, str]:
    """Return the probe's table and the accuracies of both networks."""
    (probe,) = (text for command, text in said.items() if "tinyalex probe" in command)
    first, second = (text for command, text in said.items() if "tinyalex train" in command)
    (judged,) = (text for command, text in said.items() if "tinyalex evaluate" in command)
    rows = re.search(r"^.*untrained.*\nshots.*(\n +\d+ .*)+", probe, re.MULTILINE)
    assert rows is not None, probe
    accuracy = re.compile(r"validation accuracy:\s+([\d.]+%)")
    return {
        "probe": rows[0],
        "first": accuracy.findall(first)[-1],
        "second": accuracy.findall(second)[-1],
        "images": re.findall(r"on the (\d+) images", judged)[-1],
    }


def blocks(result: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return what stands between the document's markers."""
    said = result["said"]
    ended = (
        f"The first network ends at {said['first']} of its own validation images, the second, "
        f"which began with it, at {said['second']} of the {said['images']} of the two others. "
        f"{report.one_line(result['machine'])}."
    )
    return {"probe": f"```\n{said['probe']}\n```", "example": ended}


if __name__ == "__main__":
    main()
