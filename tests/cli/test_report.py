"""The page of a run, also in Chromium."""

import json
import re
import shutil
import sys
from collections import namedtuple
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from commands import TRAIN, draw_photos, run, train_on
from PIL import Image

from tinyalex.cli import finish, report
from tinyalex.pictures.report import load_template
from tinyalex.training import load_checkpoint, read_metrics

pytest_plugins = ("trained",)
pytestmark = pytest.mark.usefixtures("tiny")

VOID = {"meta", "link", "img"}
HEADINGS = [
    *("Learning curves", "Answers to images that it did not learn from", "Worst mistakes"),
    *("Why did it say so?", "Filters of the first layer", "Nearest neighbours", "Classes"),
    "Recipe and machine",
    *("Run it again", "Use it on photographs of your own"),
]


class Page(HTMLParser):
    """A page taken apart: its elements, text and headings. Elements must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.words.append(text)
            if self.open and self.open[-1] == "h2":
                self.headings.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(trained):
    """Return the page that training wrote."""
    return (trained / "report.html").read_text(encoding="utf-8")


def reported(folder, *arguments, name="report.html"):
    """Write the report of a run; return what was said and the page."""
    code, said, complaints = run("report", folder, *arguments)
    assert (code, complaints) == (0, "")
    return said, Page((folder / name).read_text(encoding="utf-8"))


def test_training_writes_a_page_with_every_part(trained, page):
    pytest.importorskip("matplotlib")
    assert " MB  the run on one page, for a browser\n" in (trained / "said.txt").read_text()
    assert "without" not in (trained / "said.txt").read_text()
    found = Page(page)
    assert found.headings == HEADINGS
    assert "Not here" not in found.text
    again = json.loads((trained / "run.json").read_text())["again"]
    for expected in (again, "ash", "birch", "elm", "Trained for 3 epochs.", "seed 0", "numpy"):
        assert expected in found.text
    best = max(row["val_top1"] for row in read_metrics(trained / "metrics.jsonl")
               if row["kind"] == "epoch")  # fmt: skip
    assert f"{best:.1%} of validation images right" in found.text
    images = [attributes for tag, attributes in found.elements if tag == "img"]
    assert len(images) > 5 * 7
    assert all(image["alt"] for image in images)


def test_a_page_asks_for_nothing_and_runs_nothing(page):
    ids = []
    for tag, attributes in Page(page).elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "poster"):
            assert re.match("data:|#", attributes.get(name, "#"))
        ids += [attributes["id"]] if "id" in attributes else []
    assert len(ids) == len({*ids})
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_the_command_writes_the_same_page_as_training(copy, page):
    said, found = reported(copy)
    assert said.endswith(f"written to {copy / 'report.html'}\n")
    here = (copy / "report.html").read_text(encoding="utf-8")
    assert found.headings == HEADINGS
    differing = set(here.splitlines()) ^ set(page.splitlines())
    assert all("copy" in line or "trained" in line for line in differing)


NAMES = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "&lt;b&gt; {{ 7 * 7 }}", "漢字 ñ",
         "\u202egnp", "' style=x onclick='"]  # fmt: skip


def test_names_are_text_whatever_they_are(tmp_path):
    photos = draw_photos(tmp_path / "photos", 8)
    for name, other in zip(NAMES, sorted(photos.iterdir()) * 2, strict=True):
        shutil.copytree(other, photos / name)
    for other in ("ash", "birch", "elm"):
        shutil.rmtree(photos / other)
    out = tmp_path / "<b>run & more"
    assert train_on(photos, out, "--epochs", 1, "--report")[0] == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    test_a_page_asks_for_nothing_and_runs_nothing(text)
    found = Page(text)
    assert [name for name in NAMES if name.replace("\u202e", "\\u202e") not in found.text] == []


def no_metrics(folder):
    (folder / "metrics.jsonl").unlink()


def no_record(folder):
    (folder / "run.json").write_text("{")


def odd_record(folder):
    record = {
        "environment": {"a": "<b>", "c": ["\udcff"], "d": "\udcff\u202e"},
        "again": 3,
        "sessions": [{}, {"date": 1}],
    }
    (folder / "run.json").write_text(json.dumps(record))


def not_finite(folder):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "epoch": 3, "step": 9, "loss": NaN, "top1": 0.5}\n')
        file.write('{"kind": "epoch", "epoch": 4, "step": 9, "val_loss": Infinity}\n')
        file.write('{"kind": "epoch", "epo')


def diverged(folder):
    (folder / "diverged.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "lacks", "shown"),
    [
        (no_metrics, ["curves"], "metrics.jsonl: No such file"),
        (no_record, ["machine and versions"], "there is no run.json that can be read"),
        (odd_record, [], "\\xff\\u202e"),
        (not_finite, [], "2 rows of metrics.jsonl that are spoilt, or not finite, are left out"),
        (diverged, [], "not finite at some time: see diverged.json"),
    ],
)
def test_a_page_says_what_it_lacks(copy, spoil, lacks, shown):
    spoil(copy)
    said, found = reported(copy)
    without = [line.split(":")[0] for line in said.splitlines() if line.startswith("without")]
    assert without == [f"without {name}" for name in lacks]
    assert shown in found.text
    for name in lacks:
        assert f"Not here: {name}: " in found.text


PARTS = {
    "curves": "curves_as_svg",
    "filters": "first_filters",
    "recipe": "recipe_of",
    "initial weights": "beginning",
    "confusion matrix, mistakes and classes": "answers_to",
    "confusion matrix": "confusion",
    "mistakes": "mistakes",
    "classes": "per_class",
    "why-maps": "whys",
    "neighbours": "neighbours",
}


@pytest.mark.parametrize("part", PARTS)
def test_an_unexpected_error_costs_one_part(copy, monkeypatch, part):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(f"tinyalex.cli.report.{PARTS[part]}", lambda *_: 1 / 0)
    code, said, complaints = run("report", copy)
    assert (code, complaints) == (1, "")
    fault = r"a fault of tinyalex: division by zero \(test_report.py, line \d+\)"
    assert re.findall(f"^without (.*): {fault}$", said, re.MULTILINE) == [part]
    found = Page((copy / "report.html").read_text(encoding="utf-8"))
    assert len(re.findall(f"Not here: {part}: {fault}", found.text)) == 1
    assert len(found.headings) >= len(HEADINGS) - (2 if "and" in part else 0)


SECTIONS = {
    "Learning curves": {"curves": {"loss": ""}},
    "Answers to images that it did not learn from": {"confusion": {"counts": 1}},
    "Worst mistakes": {"mistakes": [{}]},
    "Why did it say so?": {"whys": [{}]},
    "Nearest neighbours": {"neighbours": {"rows": []}},
    "Classes": {"classes": [{}]},
    "Recipe and machine": {"recipe": None},
    "Run it again": {"calls": 0},
}


@pytest.mark.parametrize(("heading", "spoilt"), SECTIONS.items(), ids=SECTIONS)
def test_a_section_that_cannot_be_filled_in_costs_itself(copy, monkeypatch, heading, spoilt):
    pytest.importorskip("matplotlib")
    pictures = report.pictures
    monkeypatch.setattr(report, "pictures", lambda *given: {**pictures(*given), **spoilt})
    code, said, complaints = run("report", copy)
    assert (code, complaints) == (1, "")
    found = Page((copy / "report.html").read_text(encoding="utf-8"))
    assert {*HEADINGS} <= {*found.headings}
    lacks = re.findall(r"^without (.*): a fault of tinyalex: ", said, re.MULTILINE)
    assert heading in lacks
    for part in lacks:
        assert found.text.count(f"Not here: {part}: a fault of tinyalex: ") == 1


def test_a_page_that_cannot_be_filled_in_leaves_the_one_before(copy, monkeypatch):
    run("report", copy)
    before = (copy / "report.html").read_bytes()
    pictures = report.pictures
    monkeypatch.setattr(report, "pictures", lambda *given: {**pictures(*given), "state": None})
    code, said, complaints = run("report", copy)
    assert (code, "written to" in said) == (1, False)
    assert complaints.startswith("error: no page: a fault of tinyalex: ")
    assert complaints.count("\n") == 1
    assert (copy / "report.html").read_bytes() == before


def test_a_page_says_where_nothing_was_learned(copy, monkeypatch):
    note = "Nothing learned that shows: "
    text = reported(copy)[1].text
    assert f"{note}of the 15 images held out 40.0% are right on average over the classes" in text
    assert "docs/no-learning.md" in text
    assert note.lower() in run("evaluate", copy)[1]
    answers_to = report.answers_to

    def all_right(*given):
        answers = answers_to(*given)
        answers.log_probabilities[np.arange(len(answers.labels)), answers.labels] = 0
        return answers

    monkeypatch.setattr(report, "answers_to", all_right)
    assert note not in reported(copy)[1].text


def test_the_accuracy_on_test_images_is_that_of_the_best_network(copy):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"kind": "test", "step": 9, "loss": 1.0, "top1": 0.5, "top5": 1.0}\n')
    assert "50.0% of test images right" in reported(copy)[1].text
    assert run("report", copy / "last.safetensors")[0] == 0
    page = (copy / "last.safetensors-report.html").read_text(encoding="utf-8")
    assert "of test images" not in page


def test_where_the_weights_came_from_and_which_hosts_trained(tmp_path, trained, photos):
    out = tmp_path / "run"
    arguments = ("--weights", trained, "--freeze", "conv1", "--epochs", 1)
    assert train_on(photos, out, *arguments)[0] == 0
    record = json.loads((out / "run.json").read_text())
    record["sessions"][-1]["hosts"] = ["<north>", "south", "south"]
    (out / "run.json").write_text(json.dumps(record))
    text = reported(out)[1].text
    digest = load_checkpoint(out / "best.safetensors")["origin"]["digest"]
    assert re.search(rf"Began with {trained}, SHA-256 {digest}; fc3 is kept", text)
    assert "conv1 frozen, SHA-256" in text
    assert "processes 3 on <north>, south" in text


def test_images_that_are_gone_or_have_moved(tmp_path, trained, copy, photos):
    moved = shutil.copytree(photos, tmp_path / "moved")
    shutil.rmtree(copy)
    assert train_on(moved, copy, "--epochs", 1)[0] == 0
    away = moved.rename(tmp_path / "away")
    said, found = reported(copy)
    assert (
        "\nwithout confusion matrix, mistakes, why-maps, classes and neighbours: the "
        in f"\n{said}"
    )
    assert f"images of this run were in {moved}, which is no folder any more" in said
    assert found.headings == [h for h in HEADINGS if h not in (*HEADINGS[2:4], *HEADINGS[5:7])]
    assert "Not here: confusion matrix, mistakes, why-maps, classes and neighbours: " in found.text
    assert reported(copy, "--data", away)[1].headings == HEADINGS


def test_runs_that_are_not_finished(tmp_path, photos):
    out = tmp_path / "run"
    assert train_on(photos, out, "--steps", 3, "--report")[0] == 0
    assert not (out / "report.html").exists()  # it is written at the end
    said, found = reported(out, name="last.safetensors-report.html")
    assert "\nwithout curves: there are no curves before the end of the first epoch" in said
    assert "No epoch is finished yet." in found.text
    assert run(TRAIN, "--resume", out, "--steps", 9)[0] == 0
    assert "1 of 3 epochs are done: interrupted, or still in training." in reported(out)[1].text


def test_images_to_judge_by_are_of_each_class_in_its_proportion():
    labels = np.repeat([0, 1], [900, 100])
    chosen = report.some_of(namedtuple("Data", "labels")(labels), 50)
    assert np.bincount(labels[chosen]).tolist() == [45, 5]


def test_a_thousand_classes_stay_small(tmp_path):
    for split in ("train", "val"):
        for label in range(1000):
            folder = tmp_path / f"photos/{split}/class {label:03}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (label % 256, 90, 7)).save(folder / f"{split}.png")
    out = tmp_path / "run"
    assert (
        train_on(tmp_path / "photos", out, "--epochs", 1, "--batch-size", 500, "--report")[0] == 0
    )
    assert 5e4 < (out / "report.html").stat().st_size < 1e6
    found = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "980 more of 1000" in found.text
    assert sum(tag == "table" for tag, _ in found.elements) == 2


def test_only_some_images_of_many_are_looked_at(copy):
    found = reported(copy, "--images", 6)[1]
    assert re.search(r"of 6 images right \(1[45] were held out\);", found.text)
    assert "among 6 images of 5" in found.text


def test_errors_of_the_command(trained, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"PK\3\4")
    for arguments, expected in (
        ((weights,), "is a file of weights, and a report is of a run"),
        ((trained, "--out", tmp_path / "a.png"), "--out must name a .html file, which pages are"),
        ((trained, "--out", tmp_path / "no/a.html"), "in a folder that is there"),
        ((tmp_path,), "is not the folder of a run"),
    ):
        code, _, complaints = run("report", *arguments)
        assert (code, complaints.count("\n")) == (2, 1)
        assert expected in complaints


def test_a_report_that_fails_costs_no_training(copy, monkeypatch):
    (copy / "report.html").unlink()
    monkeypatch.setattr(report, "about", lambda *_: 1 / 0)
    code, said, complaints = run(TRAIN, "--resume", copy, "--report")
    assert (code, complaints) == (0, "")
    assert "no report.html: division by zero\n" in said
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize("fails", [True, False])
def test_what_was_not_drawn_anew_is_not_listed_as_new(copy, monkeypatch, fails):
    names = {"report.html", "curves.png", "filters.png"}
    if fails:
        for part in ("draw_report", "learning_curves", "draw_filters"):
            monkeypatch.setattr(finish, part, lambda *_: 1 / 0)
    said = run(TRAIN, "--resume", copy, *["--report"] * fails)[1]
    old = re.findall(r"^  (\S+) .*\(from before, not drawn anew\)$", said, re.MULTILINE)
    assert {*old} == (names if fails else {"report.html"})
    assert len(re.findall(r"^no new (\S+): division by zero$", said, re.MULTILINE)) == 3 * fails


def test_a_page_without_jinja_or_matplotlib(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "without curves: matplotlib " in reported(copy)[0]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    load_template.cache_clear()
    code, _, complaints = run("report", copy)
    assert code == 2
    assert "jinja2" in complaints
    code, said, complaints = run(TRAIN, "--resume", copy, "--report")
    assert (code, complaints) == (0, "")
    assert "no new report.html: jinja2 " in said


# --- in Chromium


@pytest.fixture
def _chromium():
    if browser.browser() is None:
        pytest.skip("pages are measured only where there is Chromium")


@pytest.mark.usefixtures("_chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_on_a_telephone(trained, tmp_path, dark):
    found = browser.measured(trained / "report.html", tmp_path, dark=dark)
    nothing = {"pale": [], "small": [], "tall": [], "broken": [], "scripts": 0, "requests": set()}
    assert found == {"width": 360, **nothing}


@pytest.mark.usefixtures("_chromium")
@pytest.mark.parametrize("width", [360, 1000])
def test_long_names_leave_a_page_as_wide_as_its_window(tmp_path, width):
    photos = draw_photos(tmp_path / "photos", 8)
    for folder, letters in zip(
        sorted(photos.iterdir()), ("W", "Schmetterling-", "漢"), strict=True
    ):
        folder.rename(photos / (letters * 60)[:60])
    assert train_on(photos, tmp_path / ("run" * 30), "--epochs", 1, "--report")[0] == 0
    page = tmp_path / ("run" * 30) / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"))
    found = browser.measured(page, tmp_path, width)
    assert (found["width"], found["tall"]) == (width, [])


@pytest.mark.usefixtures("_chromium")
def test_what_is_wrong_with_a_page_is_noticed(tmp_path):
    wrong = (
        '<!DOCTYPE html><body style="margin: 0"><div style="width: 500px">wide</div>'
        '<p style="color: #888">grey</p><p style="font-size: 6px">tiny</p><script>1</script>'
        '<ol class="answers" style="width: 2em"><li>more than four lines in a list</li></ol>'
        '<img alt="gone" src="http://127.0.0.1:9/x.png"></body>'
    )
    (tmp_path / "wrong.html").write_text(wrong)
    assert browser.measured(tmp_path / "wrong.html", tmp_path) == {
        "width": 500, "pale": ["grey"], "small": ["tiny"],
        "tall": ["more than four lines in a list"], "broken": ["gone"], "scripts": 1,
        "requests": {"http://127.0.0.1:9/x.png"},
    }  # fmt: skip


@pytest.mark.usefixtures("_chromium")
def test_a_page_is_printed(trained, tmp_path):
    paper = tmp_path / "report.pdf"
    url = (trained / "report.html").as_uri()
    browser.chromium(tmp_path, url, f"--print-to-pdf={paper}", dark=True)
    pages = re.findall(rb"/Type\s*/Page\b", paper.read_bytes())
    assert 1 <= len(pages) <= 8
