"""no_grad: blocks that overlap, decorated functions, generators and coroutines, threads."""

import asyncio
import contextlib
import inspect
import threading

import pytest

import tinyalex as ta


def recording():
    return ta.is_grad_enabled()


@ta.no_grad()
def steps(log):
    """Yield the mode; log what is sent, thrown and closed, and the mode in which it arrives."""
    try:
        while True:
            try:
                log.append(((yield recording()), recording()))
            except KeyError as error:
                log.append((error.args[0], recording()))
    finally:
        log.append(("closed", recording()))


def test_a_generator_has_the_mode_for_itself():
    log = []
    running = steps(log)
    assert next(running) is False
    assert recording()
    assert running.send("sent") is False
    assert running.throw(KeyError("thrown")) is False
    with ta.no_grad():
        next(running)
        assert not recording()
    assert recording()
    running.close()
    assert recording()
    assert log == [("sent", False), ("thrown", False), (None, False), ("closed", False)]


def test_generators_that_take_turns():
    first, second = steps([]), steps([])
    for _ in range(2):
        assert [next(first), next(second)] == [False, False]
        assert recording()
    first.close()
    assert next(second) is False
    assert recording()


def test_a_generator_that_opens_blocks_of_its_own():
    @ta.no_grad()
    def body():
        with ta.no_grad():
            yield recording()
        yield recording()
        return "result"

    def outer():
        return (yield from body())

    running = outer()
    assert (next(running), recording(), next(running), recording()) == (False, True, False, True)
    with pytest.raises(StopIteration) as end:
        next(running)
    assert end.value.value == "result"


def test_a_generator_that_fails():
    @ta.no_grad()
    def body():
        yield 1
        raise ZeroDivisionError

    running = body()
    next(running)
    with pytest.raises(ZeroDivisionError):
        next(running)
    assert recording()


def test_coroutines_that_take_turns():
    @ta.no_grad()
    async def body(seen):
        for _ in range(3):
            seen.append(recording())
            await asyncio.sleep(0)
        return recording()

    async def beside(seen):
        for _ in range(3):
            seen.append(recording())
            await asyncio.sleep(0)

    async def both():
        inside, outside = [], []
        result, _ = await asyncio.gather(body(inside), beside(outside))
        return inside, result, outside

    assert asyncio.run(both()) == ([False] * 3, False, [True] * 3)


def test_decorated_functions_stay_what_they_are():
    @ta.no_grad
    def plain(x=1):
        """Return the mode."""
        return recording()

    assert plain() is False
    assert (plain.__name__, plain.__doc__) == ("plain", "Return the mode.")
    assert list(inspect.signature(plain).parameters) == ["x"]
    assert inspect.isgeneratorfunction(steps)


async def _asynchronous_generator():
    yield 1


@pytest.mark.parametrize(
    "what",
    [dict, 3, property(recording), _asynchronous_generator],
    ids=["class", "number", "property", "asynchronous generator"],
)
@pytest.mark.parametrize("decorate", [ta.no_grad, lambda what: ta.no_grad()(what)], ids="01")
def test_what_cannot_be_decorated_is_refused(decorate, what):
    with pytest.raises(TypeError, match="no_grad"):
        decorate(what)


@pytest.mark.parametrize("same", [True, False], ids=["one object", "two objects"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in, first out", "nested"])
def test_blocks_that_overlap(same, order):
    first = ta.no_grad()
    blocks = first, first if same else ta.no_grad()
    for block in blocks:
        block.__enter__()
    blocks[order[0]].__exit__(None, None, None)
    assert not recording()
    blocks[order[1]].__exit__(None, None, None)
    assert recording()


def test_one_block_in_several_threads():
    block, entered, left = ta.no_grad(), threading.Barrier(2), threading.Barrier(2)
    seen = {}

    def work(name, outer):
        with outer:
            with block:
                entered.wait(5)
                seen[name, "inside"] = recording()
            seen[name, "outside"] = recording()
            left.wait(5)
        seen[name, "after"] = recording()

    threads = [
        threading.Thread(target=work, args=a)
        for a in enumerate((ta.no_grad(), contextlib.nullcontext()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {
        (0, "inside"): False, (0, "outside"): False, (0, "after"): True,
        (1, "inside"): False, (1, "outside"): True, (1, "after"): True,
    }  # fmt: skip
    assert recording()


def test_a_block_that_another_thread_ends():
    def body():
        with ta.no_grad():
            yield

    running, seen = body(), []
    next(running)
    assert not recording()
    thread = threading.Thread(target=lambda: seen.extend((running.close(), recording())))
    thread.start()
    thread.join()
    assert seen == [None, True]
    assert recording()
