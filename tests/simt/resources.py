"""Registers and memory of every kernel, by NVRTC and ptxas.

No GPU is needed.

Run ``python tests/simt/resources.py`` to see the table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = map(str, (tests / "support", tests, tests.parent))

from tinyalex.backends.cuda import launch
from tinyalex.backends.cuda.conv.tiles import INSTANCES

MOST_THREADS = 1024  # of a block that says nothing of its size
REGISTERS = 65536  # of a multiprocessor, for all the threads of a block at least
ARCHITECTURES = ("sm_80", "sm_90")
WARP_GROUPS = ("sm_90a",)  # what has the instructions wgmma


class Usage(NamedTuple):
    """What one entry takes; bytes are of a block for shared memory, else of a thread."""

    file: str
    entry: str
    architecture: str
    threads: int  # of a block, by its __launch_bounds__
    blocks: int  # that shall fit on a multiprocessor, by the same
    registers: int  # of a thread
    stack: int
    spills: int  # bytes stored and loaded because registers did not suffice
    shared: int  # static

    @property
    def faults(self) -> list[str]:
        """What goes over the budget."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.stack:
            found.append(f"has a stack of {self.stack} bytes")
        if self.registers * self.threads * self.blocks > REGISTERS:
            threads = f"{self.threads} threads x {self.blocks} blocks"
            found.append(f"{self.registers} registers x {threads} > {REGISTERS}")
        if self.shared > 48 << 10:
            found.append(f"has {self.shared} bytes of static shared memory")
        return [f"{self.entry} of {self.file} for {self.architecture} {fault}" for fault in found]


class CompileError(Exception):
    """The compiler refused a source; the text is its log."""


def entries() -> list[tuple[str, str]]:
    """Return file and name of every kernel; of templates, the instances that are launched."""
    files = sorted(path.name for path in launch.source_folder().glob("*.cu"))
    return [
        (file, each)
        for file in files
        for name in launch.parameters(file)
        for each in INSTANCES.get((file, name), (name,))
    ]


def instances(file: str) -> list[str]:
    """Return the instances of templates in a file."""
    return [name for each, name in entries() if each == file and "<" in name]


def compile_source(
    code: str, name: str, architecture: str, names: Sequence[str] = ()
) -> tuple[str, str]:
    """Compile CUDA source with NVRTC; return its PTX and what ptxas says of it.

    ``names`` are those of instances of templates; both texts call them so.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(code, name, (), ())
    for instance in names:
        nvrtc.addNameExpression(program, instance)
    # The two in the middle are those that CuPy adds by itself.
    flags = (f"-arch={architecture}", "-ftz=true", "-std=c++17", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, flags)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise CompileError(f"{name} for {architecture}: {error}\n{log}") from error
    ptx, log = nvrtc.getPTX(program), nvrtc.getProgramLog(program)
    if remark := re.search(r".*\(C75\d\d\).*", log):  # that ptxas puts waits between wgmma's
        raise CompileError(f"{name} for {architecture}: {remark[0]}")
    ptx = ptx.decode() if isinstance(ptx, bytes) else ptx
    for instance in names:
        lowered = nvrtc.getLoweredName(program, instance)
        ptx, log = (text.replace(lowered, instance) for text in (ptx, log))
    return ptx, log


def architectures(code: str) -> tuple[str, ...]:
    """Return what a source is to be compiled for."""
    return WARP_GROUPS if launch.for_hopper_alone(code) else ARCHITECTURES


_ENTRY = re.compile(
    r"Compiling entry function '(?P<entry>[^']+)'(?P<text>.*?)(?=Compiling entry function|\Z)",
    re.DOTALL,
)


_BOUNDS = re.compile(
    r"\.entry ([^(]+)\([^)]*\)\s*\.maxntid (\d+)[^\n]*(?:\s*\.minnctapersm (\d+))?"
)


@cache
def usage(code: str, name: str, architecture: str) -> list[Usage]:
    """Compile a source and return what each of its entries takes."""
    ptx, log = compile_source(code, name, architecture, instances(name))
    bounds = {entry: (int(most), int(fit or 1)) for entry, most, fit in _BOUNDS.findall(ptx)}

    def of(entry, text):
        def count(pattern):
            return sum(int(number) for number in re.findall(pattern, text))

        return Usage(
            name,
            entry,
            architecture,
            *bounds.get(entry, (MOST_THREADS, 1)),
            registers=count(r"Used (\d+) registers"),
            stack=count(r"(\d+) bytes stack frame"),
            spills=count(r"(\d+) bytes spill"),
            shared=count(r"(\d+) bytes smem"),
        )

    return [of(match["entry"], match["text"]) for match in _ENTRY.finditer(log)]


def all_usage() -> list[Usage]:
    """Return what every entry in ``kernels/`` takes, for all that it is compiled for."""
    found = []
    for path in sorted(launch.source_folder().glob("*.cu")):
        code = launch.read_source(path.name)
        for architecture in architectures(code):
            found += usage(code, path.name, architecture)
    return found


def table(rows: list[Usage]) -> str:
    """Return a Markdown table."""
    lines = [
        "| file | kernel | for | threads | blocks | registers | stack | spills | static shared |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in sorted(rows)])


if __name__ == "__main__":
    print(table(all_usage()))
