"""Cost model of several ranks: bytes, schedule, and its command."""

import re
import runpy
from dataclasses import replace

import numpy as np
import pytest
from commands import ROOT, TINY
from ranks import said

import tinyalex as ta
from tinyalex.cli.main import main
from tinyalex.cli.plan import fitted
from tinyalex.distributed import plan
from tinyalex.distributed.plan import Layer, Machine, cost, layers_of
from tinyalex.models import VARIANTS
from tinyalex.models.alexnet import smallest_input

PAPER, SOURCE2012 = (layers_of(VARIANTS[name], 1000, 224) for name in ("paper", "source2012"))
SLOW = Machine(rate=80, link=1, latency=20e-6)
MACHINES = [SLOW, replace(SLOW, link=10), Machine(40000, 400, 2e-6), replace(SLOW, fixed=0.3)]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_layers_are_those_of_the_network(variant):
    size = smallest_input(variant) + 32 if variant.any_size else variant.input_size
    model = ta.models.alexnet(thin := variant.thinner(16, variant.input_size), 7)
    with ta.use_backend("reference"):
        rows = [row for row in ta.summary(model, (variant.in_channels, size, size)).rows
                if row.parameters]  # fmt: skip
    layers = layers_of(thin, 7, size)
    assert [layer.name for layer in layers] == [*model.weight_layers]
    assert [layer.multiply_adds for layer in layers] == [row.multiply_adds for row in rows]
    assert [sum(layer.parameters) for layer in layers] == [row.parameters for row in rows]
    assert [layer.outputs for layer in layers] == [row.output_shape[0] for row in rows]


@pytest.mark.parametrize(
    ("layers", "strategy", "megabytes"),
    [(PAPER, "data", 243.9), (SOURCE2012, "towers", 30.0), (PAPER, "hybrid", 18.8)],
)
def test_megabytes_of_two_ranks_and_128_images(layers, strategy, megabytes):
    assert cost(layers, strategy, 2, 128, SLOW).sent / 1e6 == pytest.approx(megabytes, abs=0.05)


class Ranks:
    """Ranks that count what each sends to another."""

    def __init__(self, number):
        self.sent = np.zeros((number, number))

    def sum(self, values, ranks):
        for chunk, adder in zip(np.array_split(np.empty(values), len(ranks)), ranks, strict=True):
            for other in ranks:
                self.sent[other, adder] += chunk.nbytes / 2
                self.sent[adder, other] += chunk.nbytes / 2

    def gather(self, values, ranks, to=None):
        for rank in ranks:
            self.sent[rank, to or ranks] += 4 * values / len(ranks)

    def busiest(self):
        return (self.sent.sum(1) - self.sent.diagonal()).max()


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_bytes_are_what_ranks_send_to_each_other(number):
    images, everyone = 64, list(range(number))
    shapes = [(layer.inputs, sum(layer.parameters)) for layer in SOURCE2012]
    data, hybrid, towers = Ranks(number), Ranks(number), Ranks(number)
    for place, (inputs, parameters) in enumerate(shapes):
        data.sum(parameters, everyone)
        if place < 5:
            hybrid.sum(parameters, everyone)
        else:
            hybrid.gather(2 * images * inputs, everyone)
    hybrid.gather(2 * images * 1000, everyone)
    for first in everyone[::2] if number > 1 else []:
        for place in (2, 5, 6):
            towers.gather(2 * 2 * images / number * shapes[place][0], [first, first + 1])
        towers.gather(2 * images / number * shapes[7][0], [first, first + 1], [first])
        towers.gather(2 * images / number * shapes[7][0], [first, first + 1], [first + 1])
    for place, (_, parameters) in enumerate(shapes if number > 1 else []):
        for tower in (0,) if place == 7 else (0, 1):
            towers.sum(parameters if place == 7 else parameters // 2, everyone[tower::2])
    for strategy, ranks in zip(plan.STRATEGIES, (data, towers, hybrid), strict=True):
        if strategy != "towers" or number > 1:
            sent = cost(SOURCE2012, strategy, number, images, SLOW).sent
            assert sent == pytest.approx(ranks.busiest(), rel=1e-4), strategy


TWO = [
    Layer("conv1", 3, 2, 100, (125_000_000, 0), both_towers=False),
    Layer("fc2", 4_000_000, 5, 300, (250_000_000, 0), linear=True),
]


def test_exchange_follows_exchange_while_backward_continues():
    """By hand: 2 ranks, 10 images each; 3 * 400 - 100 multiply-adds are an image.

    Forward takes 4/11 of the second that 10 images take, fc2's backward 6/11, conv1's 1/11. Losses
    take 1 message before backward, the sum of fc2's gradient 8 s on a link of 1 Gbit/s and 3
    messages, that of conv1's 4 s and as many, that of the biases, which are empty, as many.
    """
    machine = Machine(rate=10, link=1, latency=0.25, payload=1)
    found = cost(TWO, "data", 2, 20, machine)
    assert (found.sent, found.compute) == pytest.approx((1.5e9, 1))
    assert (found.link, found.latency) == pytest.approx((12, 2.5), rel=1e-5)
    assert found.step == pytest.approx(10 / 11 + 14.5, rel=1e-5)
    assert found.hidden == pytest.approx(1 / 11 / 14.5, rel=1e-4)
    fast = cost(TWO, "data", 2, 20, replace(machine, link=1e6, latency=1e-9))
    assert fast.step == pytest.approx(1, rel=1e-4)
    # 1.5e9 bytes that take as many nanoseconds of the cores, all while the rank would compute
    costly = cost(TWO, "data", 2, 20, replace(machine, link=1e6, latency=1e-9, per_byte=1e-9))
    assert (costly.step, costly.compute) == pytest.approx((2.5, 2.5), rel=1e-4)
    # where the link is what takes long, the cores have the time
    slow = cost(TWO, "data", 2, 20, replace(machine, per_byte=1e-9))
    assert slow.step == pytest.approx(10 / 11 + 14.5, rel=0.1)


@pytest.mark.parametrize(
    ("ranks", "step", "sent"),
    # conv1 0.1, fc2's inputs 1, forward 0.6, backward 1.2, gradients of the inputs 1, conv1 0.1
    [(2, 0.1 + 1 + 0.6 + 1.2 + 1 + 0.1, 176e6),
     # and with half the images of a pair 2 s of fc2's gradients come before those of its inputs
     (4, 0.05 + 0.5 + 0.3 + 0.6 + (2 + 0.5) + 0.05 + 1, (88 + 352 + 176) * 1e6)],
)  # fmt: skip
def test_a_layer_waits_for_its_inputs_behind_what_was_begun_before(ranks, step, sent):
    """By hand, for the rank with fc2 of two towers, on a link of 176 MB per second."""
    layers = [layer._replace(parameters=(88_000_000, 0)) for layer in TWO]
    machine = Machine(rate=10, link=176 * 8e-3, latency=1e-12, payload=1)
    found = cost(layers, "towers", ranks, 22, machine)
    assert (found.step, found.sent) == pytest.approx((step, sent), rel=1e-4)


STEP = """
import tinyalex as ta
from tinyalex.data import Batch, EvalTransform, Loader, Patterns
from tinyalex.models import VARIANTS, alexnet
from tinyalex.optim import SGD
from tinyalex.training.ranks import Ranks
from tinyalex.training.sharded_step import ShardedSteps
ta.use_backend("reference")  # which compiles nothing
model = alexnet(VARIANTS["torchvision"].thinner(4, 63), 100)
every = Ranks(ranks, shards=8)
data = Loader(Patterns("train", 64), 32, EvalTransform(63, 125.0, 60.0))
rows = every.rows(32)
count = rows.stop - rows.start
labels = np.zeros(count, np.int64)
steps = ShardedSteps(model, SGD(model.parameters(), lr=0.01), every, data)
before, labels_of_sums, one_sum = ranks.sent, [], ranks.sum
ranks.sum = lambda label, *rest: labels_of_sums.append(label) or one_sum(label, *rest)
steps.take(Batch(np.ones((count, 3, 63, 63), np.float32), labels, labels))
say(ranks.sent - before, len(labels_of_sums))
"""


def test_a_step_on_four_ranks_sends_the_bytes_of_its_plan():
    """In one sum for each weight, and one for all biases."""
    layers = layers_of(VARIANTS["torchvision"].thinner(4, 63), 100, 63)
    planned = cost(layers, "data", 4, 32, SLOW).sent
    for line in said(4, STEP):
        sent, sums = map(int, line.split())
        assert sent == pytest.approx(planned, rel=2e-3)  # what announces each exchange
        assert sums == len(layers) + 1


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 6, 64, 1024])
@pytest.mark.parametrize("strategy", plan.STRATEGIES)
def test_a_step_lies_between_its_longest_part_and_the_sum_of_all(machine, ranks, strategy):
    if strategy == "towers" and ranks == 1:
        return
    for batch in (1, 256, 128 * ranks):
        found = cost(SOURCE2012, strategy, ranks, batch, machine)
        longest = max(found.compute, found.exchange)
        assert longest * (1 - 1e-9) <= found.step <= (found.compute + found.exchange) * (1 + 1e-9)
        assert -1e-9 <= found.hidden <= 1
        assert found.speed_up(machine.alone(batch)) <= ranks * (1 + 1e-9)


@pytest.mark.parametrize("strategy", ["data", "hybrid"])
@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_one_rank_exchanges_nothing(strategy, machine):
    found = cost(PAPER, strategy, 1, 256, machine)
    assert (found.sent, found.wait, found.hidden) == (0, 0, 1)
    assert found.batch / found.step == pytest.approx(machine.alone(256))


def test_hybrid_sends_less_than_data_up_to_a_batch():
    assert plan.hybrid_below(PAPER) == pytest.approx(3185, abs=1)
    for ranks in (2, 64):
        for batch, less in ((3185, True), (3186, False)):
            sent = {way: cost(PAPER, way, ranks, batch, SLOW).sent for way in ("data", "hybrid")}
            assert (sent["hybrid"] < sent["data"]) == less


def test_a_rank_without_images_and_uneven_parts_count_by_the_busiest():
    even, uneven = (cost(PAPER, "data", ranks, 12, SLOW).compute for ranks in (4, 5))
    assert even == pytest.approx(uneven)
    few = layers_of(VARIANTS["paper"], 10, 224)
    with_all = [part.arithmetic(1).multiply_adds for part in plan.parts_of(few, "hybrid", 4, 8)]
    assert with_all[7] == 8 * 4096 * 3  # of ten classes a rank has three at most


def test_only_the_network_of_2012_has_towers():
    assert [name for name, variant in VARIANTS.items() if plan.has_towers(variant)] == [
        "source2012"
    ]


@pytest.mark.documents
def test_the_table_of_the_page_is_that_of_the_model():
    table = runpy.run_path(str(ROOT / "docs/cluster_page.py"))["table"]()
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    assert f"<!-- cluster-plan -->\n{table}\n<!-- /cluster-plan -->" in page, "run cluster_page.py"


# --- the command


def planned(capsys, *words):
    """Return the rows of the table, and all lines."""
    assert main(["plan", *words]) == 0
    said, complaints = capsys.readouterr()
    assert not complaints
    lines = said.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("ranks ")) + 1
    return [line.split() for line in lines[first : lines.index("", first)]], lines


def test_a_table_of_all_strategies(capsys):
    rows, lines = planned(capsys, "--variant", "source2012", "--rate", "80", "--ranks", "4,2,3")
    assert [row[0] + row[2][0] for row in rows] == ["2d", "2t", "2h", "3d", "3h", "4d", "4t", "4h"]
    assert [row[3] for row in rows[:3]] == ["243.9", "30.0", "18.8"]
    assert max(map(len, lines[lines.index("") + 1 :][:10])) <= 80
    text = "\n".join(lines)
    for words in ("data on 4 ranks is bound by the bytes on its link", "fastest is hybrid",
                  "fewer than 3,185 images", "needs no LARS"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "1024"], "a learning rate in proportion to it is 0.08"),
        (["--batch-size", "1025"], "1,025 images needs LARS, which tinyalex lacks"),
        (["--batch-per-rank", "128", "--ranks", "1024"], "131,072 images needs LARS"),
        (["--ranks", "1024"], "896 of 1,024 ranks get no image"),
        ([], "towers take an even number of ranks, and a network of two towers: source2012"),
        (["--batch-size", "4096", "--ranks", "2"], "fastest is data"),
        (["--link", "100", "--ranks", "1024"], "by the number of its messages"),
        (["--ranks", "1", "--num-classes", "10"], "bound by its arithmetic"),
    ],
)
def test_findings(words, said, capsys):
    _, lines = planned(capsys, "--variant", "paper", "--rate", "80", *words)
    assert said in "\n".join(lines)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "one of the arguments --rate --measure is required"),
        (["--rate", "80", "--measure"], "not allowed with argument"),
        (["--rate", "0"], "argument --rate: expected a number above 0"),
        (["--rate", "nan"], "got 'nan'"),
        (["--rate", "inf"], "got 'inf'"),
        (["--rate", "80", "--link", "-1"], "--link: expected a number above 0"),
        (["--rate", "80", "--latency", "x"], "--latency: expected a number above 0"),
        (["--rate", "80", "--ranks", "2,2000"], "expected a whole number from 1 to 1024"),
        (["--rate", "80", "--ranks", "2,,4"], "got ''"),
        (["--rate", "80", "--batch-size", "0"], "--batch-size: expected a whole number"),
        (["--rate", "80", "--batch-size", "8", "--batch-per-rank", "8"], "not allowed with"),
        (["--rate", "80", "--cores", "8"], "--cores is for --measure"),
        (["--rate", "80", "--variant", "paper", "--input-size", "200"], "takes images of 224"),
        (["--rate", "80", "--input-size", "20"], "torchvision takes images of at least 63"),
        (["--rate", "80", "--num-classes", "9" * 400], "--num-classes: expected a whole number"),
        (["--measure", "--threads", "0"], "thread"),
    ],
)
def test_bad_arguments_are_one_sentence(words, complaint, capsys):
    try:
        code = main(["plan", *words])
    except SystemExit as stop:
        code = stop.code
    said, complained = capsys.readouterr()
    assert (code, said, complained.count("\n")) == (2, "", 1)
    assert complaint in complained


def test_measuring_trains_here(monkeypatch, capsys):
    monkeypatch.setitem(VARIANTS, TINY.name, TINY)
    assert (
        main(["plan", "--variant", "tiny", "--measure", "--cores", "4", "--num-classes", "3"]) == 0
    )
    said = capsys.readouterr().out
    assert re.match(r"measured here: \S+ s for 32 images, \S+ s for 128 images\n", said)
    assert "\n    2      4  hybrid" in said


@pytest.mark.parametrize(
    ("few", "many", "rate", "fixed"),
    [(0.42, 1.38, 100, 0.1), (0.32, 1.28, 100, 0), (1.2, 1.28, 200, 0.64), (0.1, 1.28, 100, 0)],
)
def test_two_measured_steps_tell_what_does_not_grow_with_the_images(few, many, rate, fixed):
    found = fitted(SLOW, {32: few, 128: many}, 1)
    assert (found.rate, found.fixed) == pytest.approx((rate, fixed))
    assert found.alone(128) == pytest.approx(128 / many)
    assert fitted(SLOW, {32: few, 128: many}, 4).alone(128) == pytest.approx(4 * 128 / many)
