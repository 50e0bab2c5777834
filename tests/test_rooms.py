"""The walls of the house: a lower room never imports an upper one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tinyalex"

# From the ground up. What is not listed here stands on top of everything it imports.
FLOORS = [
    {"locks"},
    {"version", "random", "threads", "grad_mode", "storage"},
    {"backends"},
    {"autograd"},
    {"ops"},
    {"tensor"},
    {"functional", "gradcheck", "files", "schema"},
    {"nn"},
    {"optim"},
    {"schedule"},
    {"models", "data", "summary"},
    {"training"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# The one knot: Function.apply makes Tensors, and the operators of Tensors are Functions.
KNOT = ("autograd", "tensor")


def room_of(path):
    """Return the first folder or file below the package that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path):
    """Yield the full names that the file imports anywhere, except for type hints only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_hints = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for node in ast.walk(test)
    }
    package = ("tinyalex", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if node in for_hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in FLOOR, f"give the room {room!r} a floor in {Path(__file__).name}"
    for module in imported_modules(path):
        if not module.startswith("tinyalex."):
            continue
        other = module.split(".")[1]
        assert other in FLOOR, f"imports {other!r} from the top: import the module that has it"
        allowed = other == room or FLOOR[other] < FLOOR[room] or (room, other) == KNOT
        assert allowed, f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_stands_alone(path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & {"examples", "tests", "benchmarks", "torch", "torchvision"}
