"""Imports go downward only."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tinyalex"

# From the ground up. What is not listed here stands on top of everything it imports.
FLOORS = [
    {"ctrl_c", "locks", "text", "interrupts"},
    {"calls"},
    {
        "choices",
        "version",
        "random",
        "threads",
        "grad_mode",
        "storage",
        "optional",
        "folders",
        "hooks",
    },
    {"progress"},
    {"backends"},
    {"autograd"},
    {"ops"},
    {"tensor"},
    {"functional", "gradcheck", "files", "schema"},
    {"nn"},
    {"optim"},
    {"schedule"},
    {"models", "data", "summary", "graph"},
    {"distributed"},
    {"interop"},
    {"training"},
    {"pictures"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    """Return the first folder or file below the package that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imported_modules(path, package=PACKAGE):
    """Return the full names that the file imports anywhere, except for type hints only."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for_hints = {
        node
        for test in nodes
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for node in ast.walk(test)
    }
    parts = path.relative_to(package.parent).parts[:-1]
    names = []
    for node in nodes:
        if node in for_hints:
            continue
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) + 1 - node.level] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names += (f"{module}.{alias.name}" for alias in node.names)
    return names


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in FLOOR, f"give the room {room!r} a floor in {Path(__file__).name}"
    for module in imported_modules(path):
        assert room == "cli" or module != "tinyalex", "import the modules, not the whole package"
        if not module.startswith("tinyalex."):
            continue
        other = module.split(".")[1]
        assert other in FLOOR, f"imports {other!r} from the top: import the module that has it"
        allowed = other == room or FLOOR[other] < FLOOR[room]
        assert allowed, f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_stands_alone(path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & {"examples", "tests", "benchmarks", "torch", "torchvision"}


def rooms_below():
    """Return for each room those that its files import."""
    below = {room: set() for room in FLOOR}
    for path in FILES:
        imported = [m.split(".")[1] for m in imported_modules(path) if m.startswith("tinyalex.")]
        below[room_of(path)].update(set(imported) - {room_of(path)})
    return below


@pytest.mark.documents
def test_the_drawing_in_the_readme_is_right():
    """Each row stands on what it imports; what these stand on in turn is left out."""
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    drawing = text.split("<!-- rooms -->\n```\n")[1].split("```")[0]
    cells = [re.split(r"  +", line) for line in drawing.splitlines()]
    drawn = [(rooms.split(", "), arrow.removeprefix("-> ")) for rooms, arrow, _ in cells]
    assert sorted(room for rooms, _ in drawn for room in rooms) == sorted(FLOOR)
    below = rooms_below()

    def all_below(room):
        return below[room].union(*map(all_below, below[room]))

    for rooms, arrow in drawn:
        direct = set().union(*(below[room] for room in rooms)) - set(rooms)
        further = set().union(*map(all_below, direct))
        expected = ", ".join(sorted(direct - further)) or "nothing"
        assert arrow == expected, f"draw {', '.join(rooms)} -> {expected}"


def test_no_files_import_each_other_in_a_circle():
    assert next(circles(PACKAGE), None) is None


def circles(package):
    """Yield each circle of imports, those inside functions included, as a list of modules."""
    files = {name_of(path, package): path for path in package.rglob("*.py")}
    done = set()

    def visit(name, above):
        if name in above:
            yield [*above[above.index(name) :], name]
        elif name not in done:
            for module in sorted(imports_of(files[name], files, package)):
                yield from visit(module, [*above, name])
            done.add(name)

    for name in sorted(files):
        yield from visit(name, [])


def name_of(path, package):
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_of(path, files, package):
    """Return the modules among ``files`` that the file at ``path`` imports names from."""
    modules = set()
    for module in imported_modules(path, package):
        # "tinyalex.ops.conv.Conv2d" is a name in the module "tinyalex.ops.conv".
        found = module if module in files else module.rpartition(".")[0]
        modules.add(found)
    return modules & files.keys() - {name_of(path, package)}


COMPILED = ("kernel", "quick_kernel", "parallel_kernel", "intrinsic", "callback")
MOST_PARAMETERS = 7


def parameters_of(function):
    """Return the names that a function, a method or a lambda takes, without self and cls."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [a.arg for a in named if a and a.arg not in ("self", "cls")]


def is_compiled(function):
    """Return whether Numba compiles it: there a record of options is no use."""
    names = [ast.unparse(d).partition("(")[0] for d in getattr(function, "decorator_list", ())]
    return any(name.rpartition(".")[2] in COMPILED for name in names)


@pytest.mark.parametrize("room", ["ops", "backends"])
def test_options_are_passed_as_records(room):
    """A function with many parameters repeats a list that should be a record of its own."""
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not is_compiled(node):
                names = parameters_of(node)
                where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                assert len(names) <= MOST_PARAMETERS, f"{where} takes {', '.join(names)}"


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "inside a function"])
def test_a_circle_is_found(tmp_path, inside):
    package = tmp_path / "house"
    package.mkdir()
    late = "def f():\n    from house.a import g\n" if inside else "from house import a\n"
    for name, text in {"__init__": "", "a": "from house import b\n", "b": late}.items():
        (package / f"{name}.py").write_text(text)
    assert list(circles(package)) == [["house.a", "house.b", "house.a"]]
