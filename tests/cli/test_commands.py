"""Command `tinyalex`: its ways to be called, its commands, help and hints."""

import ast
import os
import shlex
import subprocess
import sys

import pytest
from commands import INSTALLED, ROOT, assert_refused, load, run

import tinyalex as ta
from tinyalex.calls import SCRIPTS, call_of, pip_install
from tinyalex.cli.main import COMMANDS, main
from tinyalex.version import __version__


@pytest.fixture(params=["script", "module", "installed", "on the path"])
def beginning(request, tmp_path, monkeypatch):
    """Let this process seem to have been started in one way; return how its hints begin."""
    installed = tmp_path / "bin/tinyalex"
    installed.parent.mkdir()
    installed.write_text(f"#!{sys.executable}\n{INSTALLED}")
    installed.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "101")
    monkeypatch.chdir(tmp_path)
    if request.param == "on the path":
        monkeypatch.setenv("PATH", str(installed.parent), prepend=os.pathsep)
    started, beginning = {
        "script": (ROOT / "examples/evaluate.py", ""),
        "module": (ROOT / "tinyalex/__main__.py", ""),
        "installed": ("bin/tinyalex", "bin/tinyalex look"),
        "on the path": (installed, "tinyalex look"),
    }[request.param]
    monkeypatch.setattr(sys, "argv", [str(started)])
    return beginning


def test_commands_that_are_printed_run(beginning, capsys):
    call = call_of("look")
    assert call.startswith(beginning)
    shown = subprocess.run(["bash", "-c", f"{call} --help"], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    with pytest.raises(SystemExit):
        load("look").main(["--help"])
    assert shown.stdout == capsys.readouterr().out
    assert f"\n{call} RUN filters" in shown.stdout


def test_a_script_that_is_alone_prints_commands_of_the_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "predict.py")])
    assert shlex.split(call_of("train"))[1:] == ["-m", "tinyalex", "train"]


def test_every_command_is_a_script():
    assert SCRIPTS.keys() == COMMANDS.keys()
    for name, script in SCRIPTS.items():
        assert f"from tinyalex.cli.{name} import main" in (ROOT / "examples" / script).read_text()


def test_hints_install_for_the_python_that_runs(tmp_path, monkeypatch):
    python = tmp_path / "my env/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(pip_install("tinyalex[mpi]"))
    assert words == ["my env/bin/python", "-m", "pip", "install", "tinyalex[mpi]"]
    monkeypatch.setenv("PATH", str(python.parent))
    assert pip_install("torch") == "python -m pip install torch"


@pytest.mark.parametrize("path", [*ROOT.glob("tinyalex/**/*.py")], ids=lambda path: path.name)
def test_no_hint_is_for_another_python(path):
    texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    assert not [text for text in texts if "pip install" in str(text)]


def said_by(capsys, call, *words):
    """Return the help or version that a command prints."""
    with pytest.raises(SystemExit) as stop:
        call(list(words))
    said, complaints = capsys.readouterr()
    assert (stop.value.code, complaints) == (0, "")
    return said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    said = said_by(capsys, load(name).main, "--help")
    assert said_by(capsys, main, name, "--help") == said_by(capsys, main, "help", name) == said
    assert said.startswith("usage: ")
    assert f"-m tinyalex {name} " in said
    words = " ".join(said.split())
    for code in ("exit codes: 0 ", "; 1 ", "; 2 ", "; 129, 130 and 143 stopped"):
        assert code in words


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_list_of_commands(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # each on one line
    said = said_by(capsys, main, *words)
    assert all(f"  {name} " in said and summary in said for name, summary in COMMANDS.items())


def test_version(capsys):
    assert said_by(capsys, main, "--version") == f"tinyalex {__version__}\n"


@pytest.mark.parametrize("words", [["train"], ["evaluate", "run"], ["probe", "run"]])
def test_images_given_without_their_option(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    with pytest.raises(SystemExit):
        main([*words, "my photos"])
    assert "my photos; if these are images, say --data 'my photos'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["trian"], ["--trian"], ["help", "trian"], ["--"], ["a\nb"]])
def test_no_such_command(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    complaint = capsys.readouterr().err
    assert (stop.value.code, complaint.count("\n")) == (2, 1)
    assert "gradcheck" in complaint or words[0].startswith("-")


def test_a_command_gets_its_arguments_and_returns_its_exit_code(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "x.png"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train", "--unknown"])
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


TOLD_FIRST = {
    "train --weights {net} --out {file}/run": "{file}/run cannot be written to",
    "train --weights {net} --out {full}": "{full} holds a run already",
    "train --resume {file}": "{file} is a file: give --resume the folder",
    "train --resume /proc/nothere/x": "there is no checkpoint in /proc/nothere/x",
    "train --weights {net} --lr 0": "--lr must be a finite number > 0",
    "train --weights {net} --data nowhere": "nowhere: expected a folder of class folders",
    "evaluate {net} --out {file}/pictures": "{file}/pictures cannot be written to",
    "evaluate {net} --data nowhere": "nowhere: expected a folder of class folders",
    "probe {net} --out gone/probe.png": "--out must name a file in a folder that is there",
    "probe {net} --data nowhere": "nowhere: expected a folder of class folders",
    "look {net} filters --out {file}": "--out must name a .png file",
    "look {net} neighbours --among nowhere photo.png": "nowhere: expected a folder",
    "predict {net} photo.png --sort {file}/sorted": "{file}/sorted cannot be written to",
    "predict {net} {empty}": "no images",
    "report {run} --out {file}": "--out must name a .html file",
    "report {run} --data nowhere": "nowhere: expected a folder of class folders",
    "convert {net} /proc/net.onnx": "/proc cannot be written to",
    "convert {net} out.onnx --mean nowhere": "nowhere: No such file",
}
"""Commands with something else that is wrong besides their file of weights, and what they say."""


@pytest.mark.parametrize("words", TOLD_FIRST)
def test_what_is_wrong_elsewhere_is_told_before_weights_are_read(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("net", "file", "full", "empty", "run")}
    for name in ("full", "empty", "run"):
        places[name].mkdir()
    for path in (places["net"], places["file"], places["full"] / "last.safetensors"):
        path.write_bytes(b"\x93NUMPY, but cut")
    places["run"] = places["run"] / "best.safetensors"
    places["run"].write_bytes(
        ta.files.FORMAT.encode().join([b'\x40\0\0\0\0\0\0\0{"format":"', b'"'])
    )
    code, _, complaints = run(*shlex.split(words.format(**places)))
    assert_refused(code, complaints, TOLD_FIRST[words].format(**places))
