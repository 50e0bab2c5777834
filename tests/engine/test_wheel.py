"""A wheel, installed elsewhere, has the package, its types and kernels."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from commands import ROOT, copy_sources

PARTS = ("tinyalex", "kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Return a copy called tinyalex: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source") / "tinyalex"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            copy_sources(part, source)
        else:
            shutil.copy(ROOT / part, source)
    return source


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    """Return a wheel of the copy."""
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", target, clone], check=True, timeout=120)
    (path,) = target.glob("*.whl")
    return path


def test_holds_every_source_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "tinyalex").rglob("*.py")}
    kernels = {f"tinyalex/kernels/{p.name}" for p in (ROOT / "kernels").iterdir() if p.is_file()}
    assert kernels
    assert (
        modules
        | kernels
        | {"tinyalex/py.typed", "tinyalex/data/imagenet.txt", "tinyalex/pictures/report.html"}
        <= packed
    )
    assert not [name for name in packed if name.startswith(("tests", "benchmarks", "examples"))]


def test_works_where_it_is_installed(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = """
import importlib.metadata, importlib.resources, tinyalex as ta
assert "site" in ta.__file__, ta.__file__
assert importlib.resources.files("tinyalex.kernels").joinpath("README.md").is_file()
x = ta.randn(1, 3, 63, 63)
assert ta.models.alexnet("torchvision", num_classes=5)(x).shape == (1, 5)
(script,) = importlib.metadata.entry_points(group="console_scripts", name="tinyalex")
script.load()(["--version"])
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),
        "TINYALEX_BACKEND": "reference",
    }
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment, timeout=120
    )


@pytest.mark.parametrize("here", [".", "..", "../.."])
def test_an_editable_installation_is_found_in_and_above_its_folder(clone, tmp_path, here):
    site, run = tmp_path / "site", [sys.executable, "-c"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    build = "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])"
    options = {"check": True, "timeout": 120, "env": environment}
    subprocess.run([*run, build, tmp_path], cwd=clone, stdout=subprocess.DEVNULL, **options)
    (built,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(built).extractall(site)
    program = f"import site; site.addsitedir({str(site)!r}); import tinyalex; tinyalex.Tensor"
    subprocess.run([*run, program], cwd=clone / here, **options)


def test_copies_are_made_while_others_write_bytecode(tmp_path, monkeypatch):
    monkeypatch.setattr("commands.ROOT", tmp_path)
    written = tmp_path / "tinyalex" / "__pycache__"
    written.mkdir(parents=True)
    (written / "gone.nbc.tmp").symlink_to("renamed-meanwhile")  # listed, but no longer there
    (tmp_path / "tinyalex" / "module.py").touch()
    copy_sources("tinyalex", tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").rglob("*.*")] == ["module.py"]
