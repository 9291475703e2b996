// Vectors of fp32 numbers, loaded from and stored to fp32 or bf16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

// Lanes per vector, and vectors per row of a product's tile: enough sums to hide the latency of a multiply-add, few
// enough for the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, WIDE = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, WIDE = 2;
#else
constexpr int LANES = 4, WIDE = 4;
#endif

using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

// bf16 is the upper half of an fp32.
struct BFloat16 {
    uint16_t bits;
};

template <class Vector> Vector load_as(const void* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

float widen(float value) { return value; }
float widen(BFloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    return load_as<float>(&bits);
}

Floats load(const float* from) { return load_as<Floats>(from); }
Floats load(const BFloat16* from) {
#ifdef __AVX512F__
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(from)), 16));
#else
    return Floats(__builtin_convertvector(load_as<Halves>(from), Words) << 16);
#endif
}

void store(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }
void store(Floats value, BFloat16* to) {
#ifdef __AVX512BF16__
    auto half = _mm512_cvtneps_pbh(__m512(value));
#else
    Words bits = Words(value);
    Halves half = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
#endif
    std::memcpy(to, &half, sizeof half);
}

// Load `count` numbers at most; lanes beyond are -inf.
template <class Number> Floats load_some(const Number* from, int64_t count) {
    if (count >= LANES) return load(from);
    Number some[LANES] = {};
    std::copy(from, from + count, some);
    Floats value = load(some);
    for (int i = count; i < LANES; i++) value[i] = -INFINITY;
    return value;
}

template <class Number> void store_some(Floats value, Number* to, int64_t count) {
    if (count >= LANES) return store(value, to);
    Number some[LANES];
    store(value, some);
    std::copy(some, some + count, to);
}

float sum(Floats value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps(__m512(value));
#endif
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) value[i] += value[i + step];
    return value[0];
}

Floats larger(Floats a, Floats b) { return a > b ? a : b; }

float largest(Floats value) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps(__m512(value));
#endif
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) value[i] = std::max(value[i], value[i + step]);
    return value[0];
}

// e^x for x <= 0 with a relative error of 2e-7: 2^whole * 2^f, |f| <= 1/2, the latter by its Taylor series. Results
// below 2^-126 become 0; NaN stays NaN.
Floats exponential(Floats x) {
    Floats y = x * 1.44269504f, bounded = larger(Floats{} - 126, y);
    Floats whole = (bounded + 12582912) - 12582912;  // rounds: at 1.5 * 2^23, fp32 has no fraction bits
    Floats f = bounded - whole, power = Floats{} + 1.5403530e-4f;
    for (float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        power = power * f + factor;
    Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
    return y < -126 ? Floats{} : power * Floats(exponent);
}

// 1 / (1 + e^-x), computed from e^-|x|, which cannot overflow.
Floats logistic(Floats x) {
    Floats small = exponential(x > 0 ? -x : x);
    return (x > 0 ? Floats{} + 1 : small) / (1 + small);
}

// Call run with a number of the type that the void pointers of a kernel point to.
template <class Run> void in_type(int64_t bf16, Run run) {
    if (bf16)
        run(BFloat16{});
    else
        run(float{});
}

}  // namespace
