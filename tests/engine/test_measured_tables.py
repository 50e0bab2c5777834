"""Tables of documents against the measurements that they are made from."""

import importlib
import math
from argparse import Namespace
from pathlib import Path
from statistics import mean

import pytest

from tinyalex.distributed.plan import layers_of
from tinyalex.models import VARIANTS

pytestmark = pytest.mark.documents

DOCS = Path(__file__).parents[2] / "docs"


def evidence(script, found):
    return {"evidence": script.table(found)}


def ingredients(script, found):
    return {f"ingredients-{split}": script.table(runs) for split, runs in found.items()}


def weights_example(script, found):
    return script.blocks(found)


def cluster(script, found):
    return {"cluster-measured": script.table(found["paper"]["results"], "paper", 256)}


def bench_shards(script, found):
    return {"shards": script.table(found)}


@pytest.mark.parametrize(
    ("page", "tables"),
    [
        ("why.md", evidence),
        ("recipe.md", ingredients),
        ("weights.md", weights_example),
        ("cluster.md", cluster),
        ("cluster.md", bench_shards),
    ],
)
def test_a_table_is_that_of_the_last_measurement(page, tables):
    name = tables.__name__
    script = importlib.import_module(name)
    found = importlib.import_module("shared.report").load(
        name.removeprefix("bench_").replace("_", "-")
    )
    text = (DOCS / page).read_text(encoding="utf-8")
    made = tables(script, found)
    assert made
    for mark, table in made.items():
        assert f"<!-- {mark} -->\n{table}\n" in text, f"run benchmarks/{name}.py --table"


def mean_points(runs):
    """Return each row's mean over seeds, in per cent."""
    rows = {}
    for name, run in runs.items():
        rows.setdefault(name.rpartition("-")[0], []).append(100 * run["crops10"])
    return {row: mean(shares) for row, shares in rows.items()}


def sentences():
    """Yield pages with what they say in words of the results, or of the network."""
    load = importlib.import_module("shared.report").load
    cells = load("transfer")["cells"].values()
    gains = [mean(c["fine-tuned"]["top1"]) - mean(c["from scratch"]["top1"]) for c in cells]
    five, twenty, eighty = (f"{100 * gain:.0f} points at" for gain in gains)
    assert twenty == eighty
    yield "weights.md", f"is worth {five} 5 photographs of each class, and {twenty} 20 and 80;"

    networks = {name: row["crops1"] for name, row in load("recipes")["rows"].items()}
    pixels = networks.pop("linear")
    points = 100 * (min(networks.values()) - pixels)
    yield "recipe.md", f"worth {points:.0f} points over a linear classifier"
    small, small_final, final = (
        load("ingredients")[split]["runs"] for split in ("small", "small-final", "final")
    )
    share, count = small["recipe-0"]["crops10"], small["recipe-0"]["images"]
    deviation = 100 * math.sqrt(share * (1 - share) / count)
    means, means_of_all = map(mean_points, (small, small_final))
    gain, gain_of_all = (rows["recipe"] - rows["former"] for rows in (means, means_of_all))
    yield "recipe.md", f"better than the former one by {gain:.1f} points"
    yield (
        "recipe.md",
        f"on all {small_final['recipe-0']['images']:,} others by {gain_of_all:.1f} points",
    )
    yield "recipe.md", f"by less than its standard deviation, {deviation:.1f} points"
    off = {row: abs(points - means["recipe"]) for row, points in means.items()}
    assert {row for row in off if off[row] >= deviation} == {"former", "rate-double", "decay-2e-3"}
    gap = mean(run["top1"] - run["crops1"] for run in final.values())
    numbers = dict(enumerate(("seven", "eight", "nine", "ten", "eleven"), start=7))
    yield "no-learning.md", f"has one of {numbers[round(100 * gap)]} points"

    layers = layers_of(VARIANTS["paper"], 1000, VARIANTS["paper"].input_size)
    work, weights = (
        sum(of(layer) for layer in layers if not layer.linear) / sum(map(of, layers))
        for of in (lambda layer: layer.multiply_adds, lambda layer: sum(layer.parameters))
    )
    yield (
        "cluster.md",
        f"{100 * work:.0f} % of the arithmetic and {100 * weights:.0f} % of the weights",
    )


def test_sentences_have_the_figures_of_the_results():
    for page, sentence in sentences():
        text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
        assert sentence in text, page


def test_rows_measured_elsewhere_name_their_own_machine(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    report = importlib.import_module("shared.report")
    here = report.machine()
    there = {**here, "processor": "another processor"}
    found = {"machine": here}
    assert report.measured_on(found, [{}, {}]) == report.one_line(here)
    line = report.measured_on(found, [{}, {"machine": there}, {}])
    assert line == f"{report.one_line(here)}; {report.one_line(there)}"


def test_a_rate_measured_elsewhere_keeps_the_others_machine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("cluster")
    monkeypatch.setattr(script.report, "RESULTS", tmp_path)
    before = {"machine": {"processor": "another"}, "results": [{"gbit": 2}]}
    script.report.save("cluster", {"paper": before})
    script.record({"gbit": 1}, Namespace(variant="paper"))
    new, old = script.report.load("cluster")["paper"]["results"]
    assert new["gbit"] == 1
    assert new["machine"]["processor"] != "another"
    assert old == {"gbit": 2}
    assert script.report.load("cluster")["paper"]["machine"] == before["machine"]
