# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, call-arg, var-annotated"
"""exp(-s) and log(1 + q) in float32 and float64, in instructions that a compiler can vectorise (Numba).

With c = 1/ln 2 split in two, c = c_hi + c_lo, and a fused multiply-add that rounds once,

    k = round(s c_hi),   f = (s c_hi - k) + s c_lo,   exp(s) = 2^k 2^f,   |f| <= 1/2,

f is right to its last bit for every s, and 2^f is a minimax polynomial. What s lost by rounding (as the root of a
squared distance does) comes in as `low`, and enters f alone.
"""

from typing import Any

import numpy as np

from gpmoe.linalg.compiler import intrinsic, ir, njit, overload, types

# contract allows fused multiply-add; "reassoc" is left out where rounding tricks need the order as written.
EXACT: Any = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "nnan", "ninf", "arcp"},
}

# (hi, lo) of -1/(2 ln 2) and of -1/ln 2, as the entries of one array
SCALES = {
    np.dtype(np.float32): np.array(
        [-0.7213475108146667, -9.629814955633e-09, -1.4426950216293335, -1.9259629911266175e-08], np.float32
    ),
    np.dtype(np.float64): np.array(
        [-0.7213475204444817, -1.01776368704655e-17, -1.4426950408889634, -2.0355273740931033e-17], np.float64
    ),
}


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def _times_power(typingctx: Any, p: Any, t: Any) -> Any:
    """p 2^k, where the low bits of t hold k: k is added to the exponent of p."""
    integer, shift = (ir.IntType(32), 23) if p == types.float32 else (ir.IntType(64), 52)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = [builder.bitcast(x, integer) for x in args]
        moved = builder.shl(bits[1], ir.Constant(integer, shift))
        return builder.bitcast(builder.add(bits[0], moved), args[0].type)

    return p(p, p), codegen


@intrinsic
def _split(typingctx: Any, y: Any) -> Any:
    """m, e and 2^-e of a float64 y = 2^e m >= 1, with m in [√½, √2)."""
    root, one, exponent_two_52 = 0x3FE6A09E667F3BCD, 0x3FF0000000000000, 0x4330000000000000

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, double = ir.IntType(64), ir.DoubleType()

        def integer(value: int) -> Any:
            return ir.Constant(i64, value)

        above = builder.sub(builder.bitcast(args[0], i64), integer(root))
        e = builder.lshr(above, integer(52))
        m = builder.add(builder.and_(above, integer((1 << 52) - 1)), integer(root))
        e_double = builder.fsub(
            builder.bitcast(builder.or_(e, integer(exponent_two_52)), double), ir.Constant(double, 2.0**52)
        )
        power = builder.sub(integer(one), builder.shl(e, integer(52)))
        parts = [builder.bitcast(m, double), e_double, builder.bitcast(power, double)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.float64, 3)(types.float64), codegen


def exp_scaled(s, low, hi, lo):
    """2^((s + low) (hi + lo)) for s >= 0 and hi < 0, within 2 ulp; zero where it is below about 2e-38 (1e-307)."""
    return np.exp2((s + low) * (hi + lo))


_SMALLEST32, _MAGIC32, _ZERO32 = np.float32(-125.4), np.float32(12582912.0), np.float32(0.0)
# minimax for 2^f on |f| <= 1/2, relative error 1.9e-9
_A0, _A1, _A2, _A3, _A4, _A5, _A6 = (
    np.float32(a)
    for a in (
        1.0000000005541647,
        0.6931472057371958,
        0.24022646890645522,
        0.05550328777105325,
        0.009618488956331182,
        0.0013399931177239738,
        0.00015345812161311629,
    )
)


def _exp_scaled32(s, low, hi, lo):
    t = fma(s, hi, _MAGIC32)  # its low bits now hold round(s hi)
    k = t - _MAGIC32
    f = fma(low, hi, fma(s, lo, fma(s, hi, -k)))
    p = fma(_A6, f, _A5)
    p = fma(p, f, _A4)
    p = fma(p, f, _A3)
    p = fma(p, f, _A2)
    p = fma(p, f, _A1)
    p = fma(p, f, _A0)
    return _times_power(p, t) if s < _SMALLEST32 / hi else _ZERO32


def _exp_scaled64(s, low, hi, lo):
    t = fma(s, hi, 6755399441055744.0)
    k = t - 6755399441055744.0
    f = fma(low, hi, fma(s, lo, fma(s, hi, -k)))
    p = fma(4.435282706957277e-10, f, 7.074105613508143e-09)  # minimax for 2^f on |f| <= 1/2, relative error 3e-18
    p = fma(p, f, 1.0178198021671931e-07)
    p = fma(p, f, 1.32154330896764e-06)
    p = fma(p, f, 1.5252733489988525e-05)
    p = fma(p, f, 0.00015403530462514432)
    p = fma(p, f, 0.0013333558146789923)
    p = fma(p, f, 0.009618129107588335)
    p = fma(p, f, 0.055504108664819925)
    p = fma(p, f, 0.24022650695910155)
    p = fma(p, f, 0.6931471805599453)
    p = fma(p, f, 1.0)
    return _times_power(p, t) if s < -1021.4 / hi else 0.0


@overload(exp_scaled, jit_options={"fastmath": EXACT["fastmath"]})
def _choose_width(s, low, hi, lo):
    return _exp_scaled32 if s == types.float32 else _exp_scaled64


@njit(**EXACT)
def log1p_pair(q, low):
    """log(1 + q + low) for float64 q >= 0 and |low| << q, as an unevaluated sum of two numbers.

    Source: the polynomial is that of fdlibm's log (Sun Microsystems, 1993), error below 2^-58.
    """
    y = 1.0 + q
    rest = (1.0 - (y - (y - 1.0))) + (q - (y - 1.0)) + low
    m, e, power = _split(y)
    f = m - 1.0
    below = 2.0 + f
    s = f / below
    s_low = (fma(-s, below, f) - s * (f - (below - 2.0)) + rest * power * (1.0 - s)) / below
    z = s * s
    r = fma(0.14798198605116586, z, 0.15313837699209373)
    r = fma(r, z, 0.1818357216161805)
    r = fma(r, z, 0.22222198432149784)
    r = fma(r, z, 0.2857142874366239)
    r = fma(r, z, 0.3999999999940942)
    r = fma(r, z, 0.6666666666666735) * z
    whole = e * 0.6931471803691238  # ln 2 with 20 bits to spare
    sum_ = whole + 2.0 * s
    rest = ((whole - sum_) + 2.0 * s if whole > 0.0 else 0.0) + e * 1.9082149292705877e-10 + s * r + 2.0 * s_low
    high = sum_ + rest
    return high, rest - (high - sum_)
