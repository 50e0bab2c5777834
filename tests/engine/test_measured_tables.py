"""Tables of documents against the measurements that they are made from."""

import importlib
from pathlib import Path

import pytest

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
