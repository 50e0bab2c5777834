"""Output of the commands: lost readers, odd names, terminals, signals."""

import argparse
import ast
import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time

import images
import numpy as np
import pytest
from commands import INSTALLED, ROOT, TRAIN, load, run
from preparing import content

import tinyalex as ta
from tinyalex.calls import SCRIPTS, command_line
from tinyalex.cli.common import command
from tinyalex.cli.parser import name_in, path_in
from tinyalex.cli.train_parser import make_parser
from tinyalex.data import ImageError
from tinyalex.progress import (
    Progress,
    cells,
    folded,
    one_sentence,
    padded,
    say,
)
from tinyalex.text import printable
from tinyalex.training import Answers, Checkpoints, load_checkpoint

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

ODD = [
    "a\nb",
    "\x1b]0;owned\x07",
    "\u202egnp",
    "caf\udcff",
    "  ",
    "Ä 漢 😀 к",
    "\u2028",
    "\x85",
    "-",
]
"""Names that break lines, steer terminals, turn text round, are no text, or cannot be seen."""


# --- one way of printing


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("tinyalex/cli/*.py"), *ROOT.glob("tinyalex/training/*.py")],
    ids=lambda path: path.name,
)
def test_all_that_is_shown_goes_through_say(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "parser.print_help", "logging.warning", "warnings.warn")
            assert not re.fullmatch(r"sys\.std(out|err)\.write(lines)?", called)


@pytest.fixture
def commands(photos, trained, tmp_path):
    """Return each command's command line, and files it leaves."""
    out = tmp_path / "out"
    return {
        TRAIN: (["--variant", "tiny", "--data", photos, "--out", out / "run", "--epochs", 1],
                ["run/best.safetensors", "run/curves.png"]),
        "evaluate": ([trained, "--out", out], ["confusion.png", "mistakes.png"]),
        "predict": ([trained, photos / "elm", "--out", out / "p.png", "--sort", out], ["p.png"]),
        "look": ([trained, "answers", photos / "elm", "--out", out / "a.png"], ["a.png"]),
        "prepare": ([photos, out / "clean", "--processes", 1], ["clean/manifest.jsonl"]),
        "convert": ([trained, out / "moved"], ["moved/best.safetensors"]),
    }  # fmt: skip


@contextlib.contextmanager
def lost(kind):
    """Offer a stream that takes nothing: of a reader that is gone, of a full disk, closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, open("/dev/full", "w") as full:
        stream = {"reader": pipe, "disk": full, "closed": None}[kind]
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield


@pytest.mark.parametrize("kind", ["reader", "disk", "closed"])
@pytest.mark.parametrize("name", [TRAIN, "evaluate", "predict", "look", "prepare", "convert"])
def test_nothing_is_lost_but_what_nobody_reads(commands, tmp_path, name, kind):
    (tmp_path / "out").mkdir()
    arguments, files = commands[name]
    with lost(kind):
        assert load(name).main([str(argument) for argument in arguments]) == 0
    for file in files:
        assert (tmp_path / "out" / file).stat().st_size > 0
    if name == "predict":
        assert len([path for path in content(tmp_path / "out") if "/" in str(path)]) >= 24


@pytest.mark.parametrize("to", ["| true", "2>&-", ">&- 2>&- <&-", "> /dev/full 2>&1"])
def test_the_interpreter_ends_in_peace(to):
    command = command_line([sys.executable, ROOT / "examples/predict.py", "--help"])
    shell = ["bash", "-c", f"sleep 0.1 | {command} {to}; exit ${{PIPESTATUS[1]}}"]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_is_never_taken_for_a_stream_that_is_closed(trained, tmp_path):
    last = Checkpoints(trained).last
    script = [sys.executable, ROOT / "tests/support/commands.py", "look", last, "filters"]
    command = command_line([*script, "--out", tmp_path / "k.png"])
    subprocess.run(["bash", "-c", f"{command} >&- 2>&-"], env=environment(), check=True)
    assert (tmp_path / "k.png").read_bytes() == (trained / "filters.png").read_bytes()


def test_streams_that_are_closed_are_opened_first():
    code = "import os, sys; from tinyalex.cli.common import command; "
    code += "sys.exit(command(lambda argv: len([*map(os.fstat, range(3))]) - 3)())"
    script = command_line([sys.executable, "-c", code])
    subprocess.run(["bash", "-c", f"{script} <&- >&- 2>&-"], env=environment(), check=True)


def environment(**changes):
    """Return a process's environment; None removes a variable."""
    values = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in values.items() if value is not None}


# --- names


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_on_one_line(name):
    shown = printable(name)
    assert shown.strip() == shown != ""
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", shown)
    assert printable(shown) == shown
    stream = io.StringIO()
    say(f"left out: {name}", stream)
    assert stream.getvalue().count("\n") == 1 + ("\n" in name)
    assert "\x1b" not in stream.getvalue()
    for error in (OSError(2, "No such file", name), ImageError(name, f"no\x1bimage\n{name}")):
        assert one_sentence(error).startswith(f"{shown}: ")
        assert one_sentence(error).isprintable()


def test_names_that_can_be_read_stay_as_they_are():
    for name in ("a b.jpg", "Käse", "漢字", "\u0646\u200c\u0645", "a\u00a0b", "x\\y"):
        assert printable(name) == name


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_cannot_encode_is_escaped(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    say("ä漢\udcff", stream)
    expected = {"ascii": r"\xe4\u6f22\xff", "latin-1": r"ä\u6f22\xff", "utf-8": r"ä漢\xff"}
    assert stream.buffer.getvalue().decode(encoding) == expected[encoding] + "\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_commands_that_are_printed_can_be_pasted(encoding, monkeypatch):
    words = [*ODD, "it's", '$HOME `x` \\ "', "", "a\\nb\n'\\", "runs/flowers"]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding)) as stream:
        line = command_line(words)
        say(line)
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == line + "\n"
    assert split_by_a_shell(line) == words
    assert command_line(["runs/my photos"]) == shlex.join(["runs/my photos"])


def split_by_a_shell(line):
    """Return the words that a shell finds in a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def test_commands_for_an_odd_folder_can_be_pasted(photos, tmp_path):
    out = tmp_path / "it's\nodd \udcff"
    arguments = ("--variant", "tiny", "--data", photos, "--out", out, "--steps", 2)
    code, said, complaints = run(TRAIN, *arguments)
    assert (code, complaints) == (0, "")
    assert said.replace("\n", "").isprintable()
    going_on = re.search(r"; resume: (.*)\n", said)[1]
    assert split_by_a_shell(going_on)[-2:] == ["--resume", str(out)]
    again = json.loads((out / "run.json").read_text())["again"]
    assert split_by_a_shell(again)[-2:] == ["--out", f"{out}-again"]
    code, _, complaints = run(TRAIN, *arguments)
    assert (code, complaints.count("\n")) == (2, 1)
    going_on = re.search(r"resume it by (--resume .*), or give", complaints)[1]
    assert split_by_a_shell(going_on) == ["--resume", str(out)]
    assert run(TRAIN, "--resume", out, "--steps", 3)[0] == 0


@pytest.fixture
def odd(trained, photos, tmp_path):
    """Return a checkpoint and images, all with odd names."""
    crafted = load_checkpoint(Checkpoints(trained).best)
    crafted["classifier"]["classes"] = ["a\nb", "Ä 漢 \x1b[2J", "  "]
    ta.save(crafted, tmp_path / "odd\n.safetensors")
    folder = tmp_path / "odd\nfolder"
    folder.mkdir()
    image = (photos / "elm/00.png").read_bytes()
    for name in ODD:
        (folder / f"{name}.png").write_bytes(image)
    (folder / "broken\n\x1b.png").write_text("")
    return tmp_path / "odd\n.safetensors", folder


def test_odd_names_break_no_line_and_no_picture(odd, photos, tmp_path, recwarn):
    checkpoint, folder = odd
    code, said, complaints = run("predict", checkpoint, folder, "--out", tmp_path / "p.png")
    assert code == 0
    assert said.count("\n") == len(ODD) + 1
    assert re.fullmatch(r"skipped: .*/odd\\nfolder/broken\\n\\x1b.png: .*\n", complaints)
    for what in ("answers", "neighbours", "features"):
        among = ("--among", photos) if what == "neighbours" else ()
        arguments = (what, folder, *among, "--out", tmp_path / f"{what}.png")
        code, more, complaints = run("look", checkpoint, *arguments)
        assert code == 0, complaints
        said += more + complaints
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", said)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("predict", ("{odd}/gone", "x.png")),
        ("predict", ("{trained}", "x.png", "--out", "{odd}/gone/x.png")),
        ("predict", ("{trained}", "{odd}/empty")),
        ("evaluate", ("{trained}", "--data", "{odd}")),
        ("look", ("{trained}", "answers", "{odd}/gone")),
        ("look", ("{trained}", "{odd}")),
        ("prepare", ("{odd}/gone", "{odd}/new")),
        ("convert", ("{odd}/gone", "new")),
        ("convert", ("{trained}", "{odd}")),
        ("convert", ("{trained}", "{odd}/gone/x.onnx")),
        ("convert", ("{trained}", "new", "--classes", "{odd}/gone")),
        ("prepare", ("--verify", "{odd}/empty")),
        ("gradcheck", ("--backend", "{odd}")),
        (TRAIN, ("--data", "{odd}")),
        (TRAIN, ("--resume", "{odd}")),
        (TRAIN, ("--unknown={odd}",)),
        (TRAIN, ("--variant", "{odd}")),
    ],
)
def test_errors_name_odd_names_in_one_sentence(name, arguments, trained, tmp_path):
    odd = tmp_path / "a\nb\x1b[2J\udcff"
    (odd / "empty").mkdir(parents=True)
    filled = [argument.format(odd=odd, trained=trained) for argument in arguments]
    code, _, complaints = run(name, *filled)
    assert code == 2
    assert re.search(r"a\\+nb\\+x1b\[2J\\+(x|udc)ff", complaints), complaints
    assert complaints.replace("\n", "").isprintable()
    assert complaints.count("\n") == 1 + complaints.startswith("skipped: ")


@pytest.mark.parametrize("name", ["a ", "\u3000a"])
@pytest.mark.parametrize(
    "words",
    [
        ("predict", "{odd}", "x.png"),
        ("predict", "{trained}", "{odd}/b "),
        ("predict", "{trained}", "x.png", "--out", "{odd}/b /x.png"),
        ("evaluate", "{odd}/b "),
        ("evaluate", "{trained}", "--data", "{odd}"),
        ("probe", "{trained}", "--data", "{odd}"),
        ("look", "{trained}", "answers", "--data", "{odd}"),
        ("prepare", "{odd}", "new"),
        ("prepare", "{photos}", "{odd}"),
        ("prepare", "--verify", "{odd}"),
        ("convert", "{odd}", "new"),
        ("convert", "{trained}", "new", "--mean", "{odd}/b "),
        (TRAIN, "--data", "{odd}"),
        (TRAIN, "--data", "{odd}/b "),
        (TRAIN, "--data", "{photos}", "--weights", "{odd}"),
        (TRAIN, "--variant", "tiny", "--data", "{photos}", "--out", "{odd}/file"),
        (TRAIN, "--resume", "{odd}"),
    ],
)
def test_spaces_at_the_ends_of_names_are_seen(words, name, trained, photos, tmp_path):
    odd = tmp_path / name
    odd.mkdir()
    (odd / "file").write_text("no image")
    filled = [word.format(odd=odd, trained=trained, photos=photos) for word in words]
    code, _, complaints = run(*filled)
    assert code == 2
    assert re.search(rf"'[^']*{name}[^']*'", complaints) or f"{name}/file" in complaints


# --- numbers


def numeric_options():
    """Yield each command with each of its numeric options."""
    parsers = {name: load(name).make_parser() for name in (*NEEDED, "look", "gradcheck")}
    for name, parser in {TRAIN: make_parser(), **parsers}.items():
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                actions = action.choices["answers"]._actions
            else:
                actions = [action]
            for one in actions:
                if (
                    one.option_strings
                    and one.type not in (None, name_in, path_in)
                    and not one.choices
                ):
                    yield name, one.option_strings[0]


NEEDED = {
    "evaluate": ["{trained}"],
    "predict": ["{trained}", "{photos}/elm/00.png"],
    "prepare": ["{photos}", "{out}"],
}
ALLOWED = {
    "0": {"--image-cache", "--seed", "--dropout", "--weight-decay", "--mixup", "--average",
          "--label-smoothing", "--check-sync"},
    "1" + 400 * "0": {"--image-cache", "--seed", "--steps", "--check-sync"},
    "nan": set(), "inf": set(), "-inf": set(), "-1": set(), "1e400": set(), "x": set(), "": set(),
}  # fmt: skip
"""Numbers that are none or extreme, and the options that may have them."""


@pytest.mark.parametrize(("name", "option"), [*numeric_options()])
def test_numbers_that_cannot_be(name, option, trained, photos, tmp_path):
    places = {"trained": trained, "photos": photos, "out": tmp_path / "out"}
    needed = [argument.format(**places) for argument in NEEDED.get(name, [])]
    if name == TRAIN:
        needed = ["--variant", "tiny", "--data", photos, "--out", tmp_path / "out"]
    if name == "look":
        needed = [trained, "answers"]
    for value, allowed in ALLOWED.items():
        if option not in allowed and (name, option, value[:2]) != (
            "evaluate",
            "--batch-size",
            "10",
        ):
            code, _, complaints = run(name, *needed, f"{option}={value}")
            assert (code, complaints.count("\n")) == (2, 1), (value, complaints)
            assert "Traceback" not in complaints
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", ["9" * 400 + "h", "9" * 5000 + "s"])
def test_a_time_limit_may_be_as_long_as_it_likes(limit):
    assert make_parser().parse_args(["--time-limit", limit]).time_limit == float("inf")


@pytest.mark.parametrize("out", ["sheet.jpg", "sheet", "sheet.png.gif", ".png"])
def test_pictures_are_png(trained, photos, tmp_path, out):
    for name, arguments in (("predict", (trained, photos)), ("look", (trained, "filters"))):
        code, _, complaints = run(name, *arguments, "--out", tmp_path / out)
        assert (code, complaints.count("\n")) == (2, 1)
        assert "--out must name a .png file, which pictures are, got " in complaints
    assert not list(tmp_path.iterdir())


# --- terminals


def on_a_terminal(columns, *arguments, **changes):
    """Run a command on a terminal; return its exit code and what a user sees, line by line."""
    master, slave = pty.openpty()
    values = environment(COLUMNS=str(columns), LINES="40", **changes)
    command = [sys.executable, ROOT / "tests/support/commands.py", *map(str, arguments)]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=values) as process:
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the process has ended
            while some := os.read(master, 10_000):
                seen += some
    os.close(master)
    return process.returncode, [re.split("\r", line) for line in seen.decode().split("\r\n")]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_fits_the_terminal(photos, tmp_path, columns):
    arguments = ("--variant", "tiny", "--data", photos, "--out", tmp_path / "run", "--epochs", 2)
    code, lines = on_a_terminal(columns, TRAIN, *arguments)
    assert code == 0
    shown = [drawn for line in lines for drawn in line]
    said = [line[-1] for line in lines]
    where = str(tmp_path.parent)
    for text in (text for text in shown if where not in text):
        assert cells(text) <= columns or len(text.split()) == 1, text
    words = {word for text in said for word in text.split()}
    assert {"validation", "augmentation", "plateau,", "decay"} <= words  # whole, not cut in two
    bars = [text for text in shown if re.match(r"epoch 1/2 \d+/7 \|", text)]
    assert bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("columns", "shown"), [(80, "loss 1.1  eta 5 s"), (40, "loss 1.1"), (30, ""), (1, "")]
)
def test_a_bar_leaves_out_what_there_is_no_room_for(monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(Terminal())
    progress.start("epoch 1/2", 7)
    progress.update(1, f"loss 1.1  eta 5 s  {'x' * 40}")
    progress.say("a remark")  # draws the bar once more
    bar = progress.stream.getvalue().rpartition("\r")[2]
    assert bar.endswith(f"| {shown}") or columns < 30
    assert len(bar) <= columns
    progress.stop()


@pytest.mark.parametrize("error", [ImportError, AttributeError, ValueError, OSError])
@pytest.mark.parametrize("method", ["__init__", "update", "clear", "refresh"])
def test_a_bar_that_cannot_be_drawn_ends_nothing(monkeypatch, method, error):
    def fail(self, *args, **options):
        raise error("broken")

    monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, method, fail)
    progress = Progress(Terminal(), seconds=0)
    for title in ("epoch 1/2", "epoch 2/2"):
        progress.start(title, 3)
        for done in (1, 2, 3):
            progress.update(done, "loss 1.1")
            progress.say(f"remark {done}")
        progress.stop()
    assert progress.stream.getvalue().count("remark 3\n") == 2


def test_what_is_folded_keeps_its_words(monkeypatch):
    text = "recipe   one two-three four " + "x" * 50
    assert folded(text, 9) == text  # in a pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "27")
    assert folded(text, 9).split("\n" + " " * 9) == ["recipe   one two-three four", "x" * 50]
    monkeypatch.setenv("COLUMNS", "21")
    assert folded(text, 9).split("\n" + " " * 7) == ["recipe   one", "two-three four", "x" * 50]


def test_tables_count_the_columns_of_letters():
    assert (cells("ab"), cells("漢字"), cells("e\u0301")) == (2, 4, 1)
    assert padded("漢字", 6) == "漢字  "
    assert padded("漢字漢字", 5) == "漢字…"
    assert padded("abcdef", 4) == "abc…"


@pytest.mark.parametrize("columns", [80, 60, None])
def test_the_table_of_classes_fits_the_terminal(rng, monkeypatch, capsys, columns):
    names = ["漢字" * 30, "a" * 90, "b\nc", "  ", "é", "e\u0301", "k"]
    labels = np.arange(21) % 7
    answers = Answers(np.arange(21), labels, np.log(rng.dirichlet(np.ones(7), 21)))
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    load("evaluate").print_table({1: answers, 10: answers}, names)
    table = [line for line in capsys.readouterr().out.splitlines() if "%" in line][:8]
    assert len({cells(line) for line in table}) == 1  # all columns in line
    if columns is None:
        assert any(line.startswith(f"{'a' * 90} ") for line in table)
    else:
        assert cells(table[0]) <= columns


# --- numbers


def test_a_single_thing_is_not_said_in_the_plural(tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    for split in ("train", "val"):
        images.folder(data / split, ash=1, elm=1)
    new = ("--variant", "tiny", "--data", data, "--out", out, "--threads", 1)
    whole = ("--epochs", 1, "--batch-size", 2)
    calls = [
        (TRAIN, *new, *whole, "--dry-run"),
        (TRAIN, *new, *whole, "--overfit", 1),
        (TRAIN, *new, "--epochs", 2, "--batch-size", 2, "--steps", 1),
        (TRAIN, "--resume", out, "--steps", 1),
        (TRAIN, "--resume", out),
        ("evaluate", out, "--crops", 1),
        ("predict", out, data / "val/ash", "--out", tmp_path / "a.png", "--sort", tmp_path / "b"),
        ("look", out, "answers"),
        ("probe", out, "--shots", 1, "--draws", 1, "--no-cache"),
        ("prepare", data / "train", tmp_path / "clean"),
    ]
    said = "".join("".join(run(*call)[1:]) for call in calls)
    assert "1 epoch of 1 step of 2 images" in said
    assert not re.findall(r"\b1 (?:\w+ )?(?!is|has|was)(?:[a-z]+s|are|were|have)\b", said)


# --- signals


@pytest.mark.parametrize(
    ("words", "library"),  # that is imported first, by the command if not by the script
    [*(([ROOT / "examples" / script], "numpy") for script in SCRIPTS.values()),
     *((words, library) for words in (["-m", "tinyalex", "predict"], ["tinyalex", "predict"])
       for library in ("numpy", "PIL"))],
)  # fmt: skip
def test_ctrl_c_while_libraries_are_imported(words, library, tmp_path):
    (tmp_path / "tinyalex").write_text(INSTALLED)
    words = [tmp_path / word if word == words[0] == "tinyalex" else word for word in words]
    slow = tmp_path / f"{library}.py"
    slow.write_text("import os, time\nos.write(1, b'importing')\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, *words, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.read(9) == b"importing"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"\nstopped by SIGINT, with nothing to save\n")
    assert process.returncode == 130


class Dropping:
    def __init__(self, signum):
        self.signum = signum

    def __del__(self):
        signal.raise_signal(self.signum)


def convert(signum):
    try:
        signal.raise_signal(signum)
    except BaseException as error:
        raise ImportError("numpy failed to import") from error


def drop(signum):
    Dropping(signum)
    time.sleep(30)


@pytest.mark.parametrize("act", [signal.raise_signal, convert, drop])
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_command_wherever_it_comes(act, signum, code, capfd):
    before = signal.signal(signum, signal.SIG_DFL)  # as it is in a terminal
    try:
        assert ended(command(lambda argv: act(signum))) == code
        assert signal.getsignal(signum) == signal.SIG_DFL
    finally:
        signal.signal(signum, before)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("stopped by") == 1


def test_a_second_signal_ends_a_command_at_once():
    program = """if True:
        import os, signal
        from tinyalex.cli.common import command

        @command
        def main(argv):
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)

        main([])
    """
    assert subprocess.run([sys.executable, "-c", program], env=environment()).returncode == 130


def test_what_is_ignored_in_the_background_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert command(lambda argv: signal.raise_signal(signal.SIGINT) or 5)([]) == 5
    finally:
        signal.signal(signal.SIGINT, before)


def ended(main):
    try:
        return main([])
    except SystemExit as stop:
        return stop.code
