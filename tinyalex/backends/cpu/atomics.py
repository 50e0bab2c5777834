"""Atomic operations on words of memory, for compiled code.

`thread_pool` is made of them. A word has 64 bits; addresses are words that count bytes. Every
operation happens as a whole, and all threads see all operations in one order.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)
word: Any = types.intp
# The instruction for a waiting thread, and its operands.
PAUSES: dict[str, tuple[str, tuple[int, ...]]] = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.hint", (1,)),
}
ORDER = "seq_cst"
operation: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic


def _code(signature: Any, build: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
    """Return Numba's form of a function whose instructions ``build`` writes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = build(builder, *arguments)
        return context.get_dummy_value() if signature.return_type == types.void else value

    return signature, generate


def _at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, WORD.as_pointer())


@operation
def load(typing: Any, address: Any) -> Any:
    """Return the word at ``address``."""
    return _code(word(word), lambda b, address: b.load_atomic(_at(b, address), ORDER, 8))


@operation
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write the word at ``address``."""

    def build(b: Any, address: Any, value: Any) -> None:
        b.store_atomic(value, _at(b, address), ORDER, 8)

    return _code(types.void(word, word), build)


@operation
def subtract(typing: Any, address: Any, value: Any) -> Any:
    """Subtract from the word at ``address``, and return what is left."""

    def build(b: Any, address: Any, value: Any) -> Any:
        return b.sub(b.atomic_rmw("sub", _at(b, address), value, ORDER), value)

    return _code(word(word, word), build)


@operation
def replace(typing: Any, address: Any, before: Any, after: Any) -> Any:
    """Write ``after`` at ``address`` if it holds ``before``; return whether it did."""

    def build(b: Any, address: Any, before: Any, after: Any) -> Any:
        return b.extract_value(b.cmpxchg(_at(b, address), before, after, ORDER, ORDER), 1)

    return _code(types.boolean(word, word, word), build)


@operation
def pause(typing: Any) -> Any:
    """Tell the processor that this thread waits."""

    def build(b: Any) -> None:
        name, operands = PAUSES[platform.machine()]
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [number] * len(operands))
        function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        b.call(function, [number(operand) for operand in operands])

    return _code(types.void(), build)


@operation
def call(typing: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call the function at an address with four words."""

    def build(b: Any, function: Any, *arguments: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [WORD] * len(arguments))
        b.call(b.inttoptr(function, kind.as_pointer()), arguments)

    return _code(types.void(*[word] * 5), build)


def symbol(name: str) -> Callable[[], int]:
    """Return the compiled function for the address of a symbol."""

    @operation
    def address_of(typing: Any) -> Any:
        def build(b: Any) -> Any:
            place = b.module.globals.get(name) or ir.GlobalVariable(b.module, WORD, name)
            return b.ptrtoint(place, WORD)

        return _code(word(), build)

    return address_of
