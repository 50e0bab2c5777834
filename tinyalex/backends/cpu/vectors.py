"""LLVM vector instructions for Numba kernels.

Numba compiles loops over single numbers and leaves it to LLVM to find vectors in them. That works
for simple loops. Where it does not, or not well, a kernel's vector instructions are written by
hand, in LLVM's language, from which every processor's are made. This file has the few words that
`microkernel`, `prepared`, `winograd_transforms` and `winograd_tiles` share for that. Addresses are
integers, in bytes; distances count elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from tinyalex.backends.cpu.runtime import kernel

# AVX-512 has 32 registers of 16 numbers. AVX2 has 16 of 8; NEON's 32 of 4 hold as many.
HAS_AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 16 if HAS_AVX512 else 8

FLOAT, INTEGER = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
WORDS = ir.VectorType(INTEGER, LANES // 2)  # the same bytes as integers of 64 bits
FAR = 1 << 19  # numbers, 2 MB: of more, little is left in a core's caches when it is read again
FUSED = ("contract",)  # a product and an addition may become one instruction


@kernel
def address(array, offset):
    """Return where element ``offset`` of a contiguous float32 array is."""
    return array.ctypes.data + 4 * offset


def constant(value: float, kind: Any = VECTOR) -> Any:
    """Return a vector of equal numbers."""
    return ir.Constant(kind, [value] * kind.count)


def pointer(builder: Any, address: Any) -> Any:
    """Return the address as something to read from."""
    return builder.inttoptr(address, FLOAT.as_pointer())


def element(builder: Any, base: Any, *steps: tuple[Any, Any]) -> Any:
    """Return ``base`` moved by the sum of ``count * distance`` over all steps."""
    for step in steps:
        count, distance = (INTEGER(v) if isinstance(v, int) else v for v in step)
        base = builder.gep(base, [builder.mul(count, distance)])
    return base


def load(builder: Any, place: Any, kind: Any = VECTOR) -> Any:
    """Return the vector that begins at ``place``."""
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)


def store(builder: Any, vector: Any, place: Any) -> None:
    """Write a vector to ``place``."""
    builder.store(vector, builder.bitcast(place, vector.type.as_pointer()), align=4)


def stream(builder: Any, vector: Any, place: Any) -> None:
    """Write a vector past the caches to ``place``, aligned to its size.

    An ordinary store first reads the cache line that it will overwrite, and drives others out of
    the cache. This pays for arrays larger than `FAR`. A task that has streamed ends with a `fence`.
    """
    place = builder.bitcast(place, vector.type.as_pointer())
    instruction = builder.store(vector, place, align=4 * LANES)
    yes = builder.module.add_metadata([ir.IntType(32)(1)])
    instruction.set_metadata("nontemporal", yes)


def _code_of_fence(typing: Any) -> Any:
    """Return code that makes streamed writes visible to all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


fence: Callable[..., None] = intrinsic(_code_of_fence)


def spread(builder: Any, number: Any) -> Any:
    """Return a vector filled with ``number``, known at run time."""
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, INTEGER(0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, lanes)


def prefetch(builder: Any, place: Any) -> None:
    """Ask for the cache line at ``place``, which will be read soon."""
    number, memory = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [memory, number, number, number])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    read, soon, data = number(0), number(3), number(1)
    builder.call(function, [builder.bitcast(place, memory), read, soon, data])


def repeat(
    builder: Any,
    times: Any,
    values: Sequence[Any],
    step: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> Sequence[Any]:
    """Build a loop: ``values = step(i, values)`` for i from 0 to ``times`` >= 1.

    ``step`` is called once, to write the body. Returns the values after the last round.
    """
    before, loop = builder.block, builder.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    count, *carried = (builder.phi(value.type) for value in (times, *values))
    following = builder.add(count, INTEGER(1))
    results = step(count, carried)
    end_of_body = builder.block
    later = following, *results
    for phi, first, again in zip((count, *carried), (INTEGER(0), *values), later, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, end_of_body)
    end = builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", following, times), loop, end)
    builder.position_at_end(end)
    return results
