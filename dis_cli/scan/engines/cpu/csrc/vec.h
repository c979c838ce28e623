// Vectors of WIDTH floats and the functions that the scan needs on them. Included once per instruction set, inside its
// namespace, with WIDTH defined; so there is no include guard.
//
// The vector types are the compiler's own extension, which it turns into whatever the instruction set has. Memory is
// read through a type that is aligned like a float, registers hold one that is aligned naturally: with one type for
// both, or with memcpy, gcc falls back to element-wise moves.

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntVec __attribute__((vector_size(4 * WIDTH)));
typedef float MemVec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

INLINE Vec load(const float* from) { return *(const MemVec*)from; }
INLINE void store(float* to, Vec value) { *(MemVec*)to = value; }
INLINE Vec splat(float value) { return value - (Vec){}; }

// The first `count` lanes; the others are zero and are not read.
INLINE Vec load_part(const float* from, int64_t count) {
    if (count >= WIDTH) return load(from);
    float lanes[WIDTH] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
    return load(lanes);
}

INLINE void store_part(float* to, Vec value, int64_t count) {
    if (count >= WIDTH) return store(to, value);
    float lanes[WIDTH];
    store(lanes, value);
    for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

INLINE float sum_lanes(Vec value) {
    float lanes[WIDTH];
    store(lanes, value);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

INLINE Vec magnitude(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

INLINE bool any(IntVec mask) {
    int32_t found = 0;
    for (int i = 0; i < WIDTH; ++i) found |= mask[i];
    return found != 0;
}

// Polynomials of least largest relative error, with the constant term fixed at 1: 2^f on [-1/2, 1/2] (error 9e-8), and
// artanh(s) / s in s^2 on [0, 1/9] (error 4e-9).
constexpr float EXP2_C[] = {1.0f, 0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151264f, 0.00132647271f};
constexpr float ATANH_C[] = {1.0f, 0.333332081f, 0.200107636f, 0.140009026f, 0.140059934f};

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.693147180559945309417f;

// 2^x for |x| <= EXP2_LIMIT, to 1.5 units in the last place: x = r + f with r whole and |f| <= 1/2, 2^f by a polynomial
// whose error vanishes with f (so that decays close to 1 stay exact), and r added to the exponent. Adding 1.5 * 2^23
// rounds x to a whole number in the sum's low bits; -ffast-math would remove it.
constexpr float EXP2_LIMIT = 125.0f;

INLINE Vec exp2_in_range(Vec x) {
    constexpr float ROUND = 12582912.0f;
    const Vec shifted = x + ROUND;
    const Vec f = x - (shifted - ROUND);
    Vec p = EXP2_C[5] * f + EXP2_C[4];
    for (int i = 3; i >= 0; --i) p = p * f + EXP2_C[i];
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

// 2^x for every x: 0 below the limit, infinity above, NaN for NaN.
INLINE Vec exp2_any(Vec x) {
    const Vec limit = splat(EXP2_LIMIT);
    Vec inside = x < -limit ? -limit : x;
    inside = inside > limit ? limit : inside;
    Vec result = exp2_in_range(inside);
    result = x < -limit ? splat(0.0f) : result;
    result = x > limit ? splat(__builtin_inff()) : result;
    return x == x ? result : x;
}

// e^-|x|; of NaN too, which the callers bring back. The bits of floats that are not negative are in the order of the
// floats, and comparing whole numbers is a single instruction. What the limit leaves is taken off: the gate of a very
// negative number is zero.
INLINE Vec exp_minus_magnitude(Vec x) {
    const IntVec exponent = (IntVec)(LOG2_E * magnitude(x)), limit = (IntVec)splat(EXP2_LIMIT);
    return exp2_in_range(-(Vec)(exponent < limit ? exponent : limit)) - 0x1p-125f;
}

// 1 / (1 + e^-x), from e = exp_minus_magnitude(x).
INLINE Vec sigmoid(Vec x, Vec e) { return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e); }
INLINE Vec sigmoid(Vec x) { return sigmoid(x, exp_minus_magnitude(x)); }

// log(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)), from e = exp_minus_magnitude(x): relative precision for small
// results too, and x itself from where the rest is below its last place, which is before torch's threshold of 20. Its
// derivative is the sigmoid.
INLINE Vec softplus(Vec x, Vec e) {
    const Vec s = e / (2.0f + e), s2 = s * s;
    Vec p = ATANH_C[4] * s2 + ATANH_C[3];
    for (int i = 2; i >= 0; --i) p = p * s2 + ATANH_C[i];
    return (x < 0.0f ? splat(0.0f) : x) + (s + s) * p;
}
