"""Files, names and lines that documents, docstrings and comments promise."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
from test_rooms import PACKAGE

from tinyalex.models import VARIANTS

pytestmark = pytest.mark.documents

ROOT = PACKAGE.parent
FOLDERS = ("tinyalex", "kernels", "benchmarks", "examples", "tests", "docs")
CODE = (".py", ".cu", ".cuh", ".cpp", ".h")
FILES = sorted(
    path
    for path in (*ROOT.glob("*.*"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.*")))
    if path.suffix in (*CODE, ".md") and path != Path(__file__)
)
NAMES_OF_FILES = ["/" + path.relative_to(ROOT).as_posix() for path in FILES]
# Files of other projects, and of examples.
FOREIGN_FILES = {
    *("convdata_jpeg.py", "solvers/sgd_solver.cpp", "import-caffe.py", "kaffe/transformers.py"),
    *("test.cu", "b.py"),
}
# What may stand before a dot and is no module or class of this project: packages, tools, variables.
FOREIGN_OWNERS = {
    *("np", "torch", "cupy", "cupyx", "numba", "time", "dataclasses", "cudnn", "cuda"),
    *("cpu", "mma", "cp", "Thumbs", "graphviz"),
    *("self", "array", "args", "loss", "model", "optimizer", "variant", "rows", "columns"),
}
# Endings of names that programs write and read, and that are no attributes either.
DATA = (".html", ".json", ".jsonl", ".lock", ".safetensors", ".toml", ".unreadable")
FOREIGN_NAMES = {"test_set", "inference_mode", "numba_xxgemm", "numba_parallel_for"}

# A file: data/loader.py, kernels/relu.cu, tests/cuda/test_cuda_*.py; the end of a path is enough.
FILE = re.compile(r"(?<![\w./<*-])(?:\.\.?/)*([\w*][\w*./-]*\.(?:py|cuh?|cpp|h|md))\b(?![\w(])")
# A link: [text](target#anchor).
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
# Names after their file: [`files.py`](tinyalex/files.py): `save`, `load`; or | in a table; or has.
AFTER = re.compile(
    r"((?:\[[^\]]*\]\([^)#:\s]+\)(?:, )?)+)(?::| \||\s+has\b)((?:[^|;\[.]|\.(?=\w))*)"
)
# A name before its file: `VARIANTS` in (of, at the end of) `variants.py`.
BEFORE = re.compile(r"`(\w+)`+\s+(?:in|of|at\s+the\s+end\s+of)\s+\[?`+([\w./]+\.(?:py|cuh?|h))`")
# A name of a module, package or class: `backends.KERNELS`, `Folder.write`.
DOTTED = re.compile(r"`(\w+(?:\.\w+)*)\.(\w+)(?:\([^`]*\))?`")
# A name by itself, when an underscore says that it is one: `smallest_input`.
ALONE = re.compile(r"`(\w*[a-z]_[a-z]\w*)(?:\([^`]*\))?`")
# Lines of a function: `backward`, a walk of 22 lines; of a file or folder: [..](..) (230 lines).
LINES_OF_FUNCTION = re.compile(r"`(\w+)`,\s+a\s+\w+\s+of\s+(\d+)\s+lines")
LINES_IN_ALL = re.compile(r"These ([\d,]+) lines")
LINES_OF_FILE = re.compile(r"\]\(([^)]+)\) \(([\d,]+)(?: lines)?\)")


@cache
def python_in(path):
    """Return the docstrings of a Python file, the names that it defines, and its classes' names.

    Each file is parsed and walked once.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = list(ast.walk(tree))
    docstrings = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, described)]
    classes = [(n.name, names_among(ast.walk(n))) for n in nodes if isinstance(n, ast.ClassDef)]
    return docstrings, names_among(nodes), classes


@cache
def text_of(path):
    """Return a document whole, and of code the docstrings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix != ".py":
        return "\n".join(re.findall(r"//(.*)", text))
    docstrings, _, _ = python_in(path)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    commands = re.findall(r"python [\w./]+\.py", text)  # also in messages
    return "\n\n".join([*docstrings, "\n".join(comments), *commands])


@cache
def files_called(name):
    """Return the files whose paths end with ``name``, in which * stands for anything but /."""
    pattern = re.compile("/" + re.escape(name).replace(r"\*", "[^/]*") + "$")
    return [ROOT / file[1:] for file in NAMES_OF_FILES if pattern.search(file)]


@cache
def names_in(path):
    """Return what a file defines, at any depth; of CUDA and C++, every word."""
    if path.suffix == ".py":
        return python_in(path)[1]
    return set(re.findall(r"\w+", path.read_text(encoding="utf-8")))


def names_among(nodes):
    """Return the functions, classes, variables, parameters and imports that nodes define."""
    names = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).rpartition(".")[2])
    return names


@cache
def owners():
    """Return what each module, package and class of the project has, by its last name."""
    found = {"ta": names_in(PACKAGE / "__init__.py"), "F": names_in(PACKAGE / "functional.py")}
    for path in (p for p in FILES if p.suffix == ".py"):
        is_package = path.name == "__init__.py"
        name, inside = (path.parent.name, path.parent.iterdir()) if is_package else (path.stem, ())
        found.setdefault(name, set()).update(names_in(path), (p.stem for p in inside))
        for name, names in python_in(path)[2]:
            found.setdefault(name, set()).update(names)
    return found


@cache
def names_anywhere():
    """Return the names of all files, and of all that they define."""
    return {path.stem for path in FILES}.union(*(names_in(p) for p in FILES if p.suffix in CODE))


def heading_anchors(path):
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def expanded(name):
    """Yield the names that one with alternatives in braces, like a_{b,c}, stands for."""
    match = re.search(r"\{([^}]*)\}", name)
    if not match:
        yield name
        return
    for one in match[1].split(","):
        yield from expanded(name[: match.start()] + one + name[match.end() :])


def broken_pointers(path, text):
    """Yield a sentence for each file, link or name in the text that does not exist."""
    for name in FILE.findall(text):
        if not files_called(name.replace("../", "")) and name not in FOREIGN_FILES:
            yield f"no file is called {name}"
    for shown, target, anchor in LINK.findall(text):
        file = path.parent / target if target else path
        if path.suffix != ".md":
            continue
        if not file.exists():
            yield f"the link to {target} leads nowhere"
        elif anchor and anchor not in heading_anchors(file):
            yield f"{target or path.name} has no heading #{anchor}"
        elif FILE.fullmatch(shown.strip("`")) and not f"/{target}".endswith(shown.strip("`./")):
            yield f"the link called {shown} leads to {target}"
    for links, sentence in AFTER.findall(text):
        files = [path.parent / target for _, target, _ in LINK.findall(links)]
        if all(file.suffix in CODE and file.exists() for file in files):
            written = re.findall(r"`([\w.{},]+)`", sentence)
            names = {n for w in written for one in expanded(w) for n in one.split(".")}
            for name in sorted(names.difference(*map(names_in, files))):
                yield f"{links} has no {name}"
    for name, file in BEFORE.findall(text):
        if not any(name in names_in(found) for found in files_called(file)):
            yield f"{file} has no {name}"
    for name in set(ALONE.findall(text)) - FOREIGN_NAMES - set(VARIANTS):
        if name not in names_anywhere():
            yield f"nothing is called {name}"
    for owner, name in DOTTED.findall(text):
        first, last, whole = owner.split(".")[0], owner.split(".")[-1], f"{owner}.{name}"
        if first in FOREIGN_OWNERS or FILE.fullmatch(whole) or whole.endswith(DATA):
            continue
        if name not in owners().get(last, ()):
            yield f"{owner} has no {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_text_points_to_exists(path):
    broken = list(broken_pointers(path, text_of(path)))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_are_as_many_as_a_text_says(path):
    text = text_of(path)
    for links, sentence in AFTER.findall(text):
        for name, lines in LINES_OF_FUNCTION.findall(sentence):
            (_, target, _) = LINK.findall(links)[-1]
            assert int(lines) == lines_of_function(path.parent / target, name), name
    for target, lines in LINES_OF_FILE.findall(text):
        file = path.parent / target
        files = file.rglob("*.py") if file.is_dir() else [file]
        now = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
        # Said roundly, so that a line more or less changes nothing.
        assert number(lines) == pytest.approx(now, rel=0.1), target
    for paragraph in text.split("\n\n"):
        for lines in LINES_IN_ALL.findall(paragraph):
            parts = [number(part) for _, part in LINES_OF_FILE.findall(paragraph)]
            assert number(lines) == pytest.approx(sum(parts), rel=0.02)


def number(text):
    """Return a number with commas."""
    return int(text.replace(",", ""))


def lines_of_function(path, name):
    """Return how many lines the statements of a function take."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    function = next(named)
    first = function.body[1 if ast.get_docstring(function) else 0]
    return function.end_lineno - first.lineno + 1
