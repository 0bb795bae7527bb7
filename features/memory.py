"""Loads, stores, copies and prefetches at raw addresses, for the kernels.

Tables of the store and of the score cache are numpy arrays that Python owns and kernels reach by
address, since an array argument costs a kernel call 50 ns and an address costs none.
Rule: whoever calls a kernel keeps the arrays alive and has checked all input; nothing here checks.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Where the bytes of a bytes object begin, from its id(): its size without the closing zero byte.
BYTES_AT: Final = bytes.__basicsize__ - 1


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element of `array`, which the caller keeps alive."""
    address: int = array.__array_interface__["data"][0]
    return address


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _load(builder: Any, address: Any, bits: int) -> Any:
    loaded = builder.load(_pointer(builder, address, bits))
    loaded.align = 1
    return loaded


def _store(builder: Any, address: Any, value: Any, bits: int) -> None:
    builder.store(value, _pointer(builder, address, bits)).align = 1


@intrinsic
def i64(typing: Any, address: Any) -> Any:
    """The int64 at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args[0], 64)

    return types.int64(types.int64), generate


@intrinsic
def u64(typing: Any, address: Any) -> Any:
    """The uint64 at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args[0], 64)

    return types.uint64(types.int64), generate


@intrinsic
def f64(typing: Any, address: Any) -> Any:
    """The float64 at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(_load(builder, args[0], 64), ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
def i32(typing: Any, address: Any) -> Any:
    """The int32 at `address`, widened."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(_load(builder, args[0], 32), ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def u16(typing: Any, address: Any) -> Any:
    """The uint16 at `address`, widened."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_load(builder, args[0], 16), ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def u8(typing: Any, address: Any) -> Any:
    """The uint8 at `address`, widened."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_load(builder, args[0], 8), ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def put_i64(typing: Any, address: Any, value: Any) -> Any:
    """Store an int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], args[1], 64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def put_u64(typing: Any, address: Any, value: Any) -> Any:
    """Store a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], args[1], 64)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@intrinsic
def put_f64(typing: Any, address: Any, value: Any) -> Any:
    """Store a float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], builder.bitcast(args[1], ir.IntType(64)), 64)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), generate


@intrinsic
def put_i32(typing: Any, address: Any, value: Any) -> Any:
    """Store the low 32 bits of an int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], builder.trunc(args[1], ir.IntType(32)), 32)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def put_u16(typing: Any, address: Any, value: Any) -> Any:
    """Store the low 16 bits of an int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], builder.trunc(args[1], ir.IntType(16)), 16)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def put_u8(typing: Any, address: Any, value: Any) -> Any:
    """Store the low 8 bits of an int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[0], builder.trunc(args[1], ir.IntType(8)), 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def move(typing: Any, target: Any, source: Any, n_bytes: Any) -> Any:
    """Copy `n_bytes` from `source` to `target`, which may overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        target = builder.inttoptr(args[0], byte_pointer)
        source = builder.inttoptr(args[1], byte_pointer)
        size = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, byte_pointer, size, ir.IntType(1)])
        name = "llvm.memmove.p0i8.p0i8.i64"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [target, source, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line at `address`, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, flag, flag, flag])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        pointer = builder.inttoptr(args[0], byte_pointer)
        # For reading, into every level of the cache, data rather than instructions.
        builder.call(function, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """The int64 with the bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def signed(typing: Any, value: Any) -> Any:
    """The int64 with the bits of a uint64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0]

    return types.int64(types.uint64), generate


@intrinsic
def spread_double(typing: Any, count: Any, total: Any, high: Any, middle: Any, low: Any) -> Any:
    """The double nearest to count * Q - total^2, exact until then.

    Q = high * 2^40 + middle * 2^21 + low is a sum of squares in the three limbs that
    features/finishing.py and features/evaluation.py add up. count < 2^23 and amounts <= 2^40, so
    that all of it stays below 2^127; the result is never negative.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        n, total, high, middle, low = (builder.sext(arg, wide) for arg in args)
        squares = builder.add(
            builder.shl(high, wide(40)), builder.add(builder.shl(middle, wide(21)), low)
        )
        spread = builder.sub(builder.mul(n, squares), builder.mul(total, total))
        # 128 bits to a double, rounded once: keep the 64 leading bits, and any below them as a
        # sticky lowest bit; 64 bits are enough above the 53 + 2 that rounding looks at.
        flag = ir.IntType(1)
        kind = ir.FunctionType(wide, [wide, flag])
        name = "llvm.ctlz.i128"
        zeros = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        empty = builder.call(zeros, [spread, flag(0)])
        shift = builder.sub(wide(64), empty)
        down = builder.select(builder.icmp_signed(">", shift, wide(0)), shift, wide(0))
        leading = builder.lshr(spread, down)
        lost = builder.icmp_unsigned("!=", builder.shl(leading, down), spread)
        leading = builder.or_(leading, builder.zext(lost, wide))
        top = builder.uitofp(builder.trunc(leading, ir.IntType(64)), ir.DoubleType())
        exponent = builder.add(builder.trunc(down, ir.IntType(64)), ir.IntType(64)(1023))
        scale = builder.bitcast(builder.shl(exponent, ir.IntType(64)(52)), ir.DoubleType())
        return builder.fmul(top, scale)

    int64 = types.int64
    return types.float64(int64, int64, int64, int64, int64), generate
