"""Compile CUDA source with g++, cached by hash.

Two forms of ``__shared__`` are rewritten, and headers of inline PTX give way to their twins here.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simt.runtime import CompileException

HERE = Path(__file__).parent
ENGINE = ("scheduler.cpp", "barriers.cpp")

COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing")
DEBUG = ("-gdwarf-4", "-O1", "-march=native", "-fno-omit-frame-pointer")
# Calls in place of inlined checks, and no checks that AddressSanitizer makes as well: so the large
# kernels compile in a third of the time.
ADDRESS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "-fno-sanitize-recover=undefined",
    "--param=asan-instrumentation-with-call-threshold=0",
)
# For the trace: ThreadSanitizer's calls, one at each access, are linked with our own functions of
# these names. A GPU copies a float4 in one access; some optimisations split it into its elements.
WHOLE_COPIES = ("-gdwarf-4", "-O1", "-fno-tree-sra", "-fno-tree-fre", "-fno-tree-pre")
# Of each mode: flags for the kernels, the define by which the shim knows it, flags for linking.
# Pointers into CUDA source are often reinterpreted (float to float4); nvcc allows it, and so the
# kernels are compiled without strict aliasing.
MODES = {
    "plain": (("-O2", "-march=native"), "SIMT_PLAIN", ()),
    "quick": (("-O1", "-march=native"), "SIMT_PLAIN", ()),
    "portable": (("-O2",), "SIMT_UCONTEXT", ()),
    "address": ((*DEBUG, *ADDRESS), "SIMT_ADDRESS", ("-fsanitize=address,undefined",)),
    "thread": ((*DEBUG, "-fsanitize=thread"), "SIMT_THREAD", ("-fsanitize=thread",)),
    "trace": ((*WHOLE_COPIES, "-fsanitize=thread"), "SIMT_TRACE", ()),
}

ENTRY = re.compile(
    r'(?:(?:extern\s+"C"|template\s*<(?P<template>[^<>]*)>)\s+__global__\s+void'
    r"|(?P<typed>KERNEL_FOR)\([\w\s,]+\))\s+"
    r"(?:__launch_bounds__\s*\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*)?"
    r"(?P<name>\w+)\s*\([^)]*\)\s*\{"
)
FILE = re.compile(r'^#line \d+ "(\w+\.cuh)"\n(.*?)(?=^#line |\Z)', re.MULTILINE | re.DOTALL)
DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
    r"(?P<type>[^;]+?)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)
STATIC = re.compile(
    r"__shared__\s+(?:(?:__align__|alignas)\s*\((?P<alignment>[^)]*)\)\s*)?"
    r"(?P<type>(?:volatile\s+)?[\w:]+(?:\s*<[^;{}]*?>)?(?:\s+(?:int|char|short|long))*)"
    r"\s+(?P<names>\w[^;]*);"
)


class CompileError(CompileException):
    """g++ refused the source, or is missing; as CuPy's CompileException."""


def available() -> bool:
    """Whether this machine can run kernels in the shim: Linux with g++."""
    return platform.system() == "Linux" and shutil.which("g++") is not None


def without_comments(code: str) -> str:
    """Blank out comments, so that text in them is not taken for code; lines stay where they are."""

    def blank(match):
        text = match.group()
        return text if text.startswith('"') else re.sub(r"[^\n]", " ", text)

    return re.sub(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', blank, code, flags=re.DOTALL)


def with_twins(code: str) -> str:
    """Put the file of the same name in this folder in place of what a header has in inline PTX."""

    def twin(match):
        name, text = match.groups()
        own = f'#line 1 "tests/simt/{name}"\n'
        return own + (HERE / name).read_text() if "asm" in text else match[0]

    return FILE.sub(twin, without_comments(code))


def symbol(name: str) -> str:
    """Return what stands for a kernel in a library's symbols; templates' arguments are in it."""
    return re.sub(r"\W+", "_", name)


def exports(code: str, instances: tuple[str, ...]) -> Iterator[str]:
    """Yield what makes kernels known outside: plain ones, and of templates the `instances`."""
    for entry in ENTRY.finditer(code):
        name, bounds = entry["name"], f"simt::first({entry['bounds'] or 1024})"
        template = "class T" if entry["typed"] else entry["template"]
        if template is None:
            yield f"SIMT_EXPORT({name}, ({bounds}), {name})"
            continue
        yield f"template <{template}> constexpr int simt_threads_{name} = {bounds};"
        for instance in instances:
            base, _, arguments = instance.partition("<")
            if base == name:
                threads = f"(simt_threads_{name}<{arguments})"
                yield f"SIMT_EXPORT({symbol(instance)}, {threads}, {instance})"


def translate(code: str, instances: tuple[str, ...] = ()) -> str:
    """Return C++ of CUDA source: shared arrays as calls of the shim, and the kernels' exports."""
    code = without_comments(with_twins(code))

    def dynamic(match):
        return f"SIMT_DYNAMIC_SHARED({match['name']}, {match['type']});" + lines(match)

    def static(match):
        declared = []
        for name in re.split(r",(?![^[<(]*[])>])", match["names"]):
            bare, _, extent = name.strip().partition("[")
            extent = f"[{extent}" if extent else ""
            declared.append(
                f"SIMT_STATIC_SHARED({bare.strip()}, {match['alignment'] or 1}, "
                f"{match['type']}{extent});"
            )
        return " ".join(" ".join(declared).split()) + lines(match)

    def lines(match):
        return "\n" * match.group().count("\n")

    translated = STATIC.sub(static, DYNAMIC.sub(dynamic, code))
    return "\n".join([translated, *exports(code, instances), ""])


@functools.cache
def shim_text() -> str:
    """Return all that goes into a build beside the kernel's source."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    own = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")])
    return "".join([version.stdout, *(path.read_text() for path in own)])


def default_folder() -> Path:
    """Return where builds are kept: a folder among the temporary files, of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"tinyalex-simt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CompileError(f"{folder} belongs to another user: what lies there is not run")
    return folder


def _run(*command, text=None):
    command = ["g++", *map(str, command)]
    # The compiler itself need not run under a sanitizer that this process was started with.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise CompileError(result.stderr)


def _kept(folder: Path, suffix: str, parts: list[str], make) -> Path:
    """Return the file of this content, made by `make(path)` if it is not there yet."""
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    path = folder / f"{key}{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            aside = Path(name) / path.name
            make(aside)
            os.replace(aside, path)  # whole or not at all, also when two processes compile it
    return path


def compile_module(
    code: str,
    mode: str = "plain",
    defines: tuple[str, ...] = (),
    folder: Path | None = None,
    instances: tuple[str, ...] = (),
) -> Path:
    """Return the shared library of the CUDA source `code`, with these instances of templates.

    Raises:
        CompileError: g++ is missing, or refuses the source.
    """
    if not available():
        raise CompileError("the SIMT shim needs Linux and g++ (Debian, Ubuntu: apt install g++)")
    folder = folder or default_folder()
    flags, define, link_flags = MODES[mode]

    def make_object(source):
        command = (*COMMON, "-O2", "-c", f"-D{define}", HERE / source, "-o")
        return _kept(folder, ".o", [source, define, shim_text()], lambda o: _run(*command, o))

    def make_header(path):
        _run(*options, "-x", "c++-header", HERE / "simt.h", "-o", path)

    def make_library(path):
        # g++ reads simt.h once for all kernels: half of what most of them take.
        header = _kept(folder, ".h.gch", ["simt.h", mode, shim_text()], make_header)
        own = path.with_suffix(".o")
        include = ("-include", header.with_suffix(""), "-x", "c++", "-c", "-")
        _run(*options, *defines, *include, "-o", own, text=translated)
        _run("-shared", *link_flags, own, *objects, "-o", path)

    options = (*COMMON, *flags, "-w", f"-D{define}", "-I", HERE)
    translated = translate(code, instances)
    objects = [make_object(s) for s in (*ENGINE, *(("trace.cpp",) if mode == "trace" else ()))]
    return _kept(folder, ".so", [translated, mode, *defines, shim_text()], make_library)
