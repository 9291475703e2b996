// Products of a weight with the vectors of R texts, which read each weight from memory once for all texts.
//
// A tile of sums (outputs x texts) stays in registers while its weights and vectors stream from the cache. The sum of
// an output and a text has the same order in every tile: a text gets the same bits alone as in a batch.

#pragma once

#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

enum Kind : int64_t { FP32, BF16, INT8 };

// Weight (rows, cols) of a linear layer; the bias may be null. int8 weights are packed in blocks of BLOCK outputs:
// data (rows / BLOCK, cols / 2, BLOCK, 2), scale (rows / BLOCK, cols / group, BLOCK), rows padded to whole blocks.
struct Matrix {
    const void* data;
    const float* scale;
    const float* bias;
    int64_t rows, cols, group, kind;
};

constexpr int64_t BLOCK = 16;

// Texts of a tile: as many as the registers can hold.
#ifdef __AVX512F__
constexpr int TEXTS = 6;
#else
constexpr int TEXTS = 2;
#endif
// Rows of a tile with fp32 or bf16 weights, and vectors of outputs of a tile with int8 weights.
constexpr int ROWS = 4, OUTPUTS = 2;

// Cache lines to fetch while a tile is computed: `lines` at once, `gap` bytes apart, which move `pace` times as fast as
// the loads of weights. Memory is read faster in several streams than in one.
struct Ahead {
    const char* from;
    int64_t gap, pace = 1, lines = ROWS;
};
// Bytes that a stream is ahead of the weights if those are used once.
constexpr int64_t NEAR = 2048;

// fp32 numbers aligned to vectors: a load that crosses a cache line costs two.
struct Buffer {
    std::vector<Floats> vectors;
    float* data;
    explicit Buffer(int64_t size) : vectors(size / LANES + 1), data(reinterpret_cast<float*>(vectors.data())) {}
    float& operator[](int64_t i) { return data[i]; }
};

// Call run with `count` in 1..TEXTS as a compile-time constant.
template <int B = TEXTS, class Run> void with_count(int64_t count, Run run) {
    if constexpr (B > 1)
        if (count < B) return with_count<B - 1>(count, run);
    run(std::integral_constant<int, B>{});
}

// Texts in passes of equal size; calls run(first text, number of texts, pass).
int64_t passes_of(int64_t texts) { return (texts + TEXTS - 1) / TEXTS; }
template <class Run> void in_passes(int64_t texts, Run run) {
    int64_t passes = passes_of(texts);
    for (int64_t pass = 0; pass < passes; pass++) {
        int64_t first = texts * pass / passes;
        run(first, texts * (pass + 1) / passes - first, pass);
    }
}

// The sums of the lanes of four vectors.
void sum_four(const Floats& a, const Floats& b, const Floats& c, const Floats& d, float* y) {
#ifdef __AVX2__
#ifdef __AVX512F__
    auto halved = [](Floats v) {
        return _mm256_add_ps(_mm512_castps512_ps256(__m512(v)),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(__m512(v)), 1)));
    };
#else
    auto halved = [](Floats v) { return __m256(v); };
#endif
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(halved(a), halved(b)), _mm256_hadd_ps(halved(c), halved(d)));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    y[0] = sum(a), y[1] = sum(b), y[2] = sum(c), y[3] = sum(d);
#endif
}

// Vector number `part` of the weights from `from` on. One instruction widens the even bf16 weights, one the odd ones.
template <int part> Floats load_part(const float* from) { return load(from); }
template <int part> Floats load_part(const BFloat16* from) {
    Words both = load_as<Words>(from);
    return Floats(part ? both & 0xffff0000 : both << 16);
}
template <class T> constexpr int PARTS = sizeof(float) / sizeof(T);

// x (R, size) in the order of load_part: itself, or a copy in `room`.
template <class T> const float* ordered(const float* x, int64_t texts, int64_t size, float* room) {
    constexpr int CHUNK = PARTS<T> * LANES;
    if (PARTS<T> == 1) return x;
    Ints even = {};
    for (int lane = 0; lane < LANES; lane++) even[lane] = 2 * lane;
    for (int64_t r = 0; r < texts; r++) {
        const float* from = x + r * size;
        float* to = room + r * size;
        int64_t i = 0;
        for (; i + CHUNK <= size; i += CHUNK) {
            Floats low = load(from + i), high = load(from + i + LANES);
            store(__builtin_shuffle(low, high, even), to + i);
            store(__builtin_shuffle(low, high, even + 1), to + i + LANES);
        }
        std::copy(from + i, from + size, to + i);
    }
    return room;
}

// y[b * stride + a] = row a of w times vector b of x (B, size).
template <int B, class T>
void dots(const T* const* w, const float* x, int64_t size, Ahead ahead, float* y, int64_t stride) {
    constexpr int CHUNK = PARTS<T> * LANES;
    Floats part[ROWS][B] = {};
    auto add = [&](auto number, int64_t i) {
        Floats wide[ROWS];
        for (int a = 0; a < ROWS; a++) wide[a] = load_part<number>(w[a] + i);
        for (int b = 0; b < B; b++) {
            Floats value = load(x + b * size + i + number * LANES);
            for (int a = 0; a < ROWS; a++) part[a][b] += wide[a] * value;
        }
    };
    int64_t i = 0;
    for (; i + CHUNK <= size; i += CHUNK) {
        for (int a = 0; a < ROWS; a++)
            if (a < ahead.lines) __builtin_prefetch(ahead.from + a * ahead.gap + i * sizeof(T) * ahead.pace);
        add(std::integral_constant<int, 0>{}, i);
        if constexpr (PARTS<T> == 2) add(std::integral_constant<int, 1>{}, i);
    }
    for (int b = 0; b < B; b++) {
        float* sums = y + b * stride;
        sum_four(part[0][b], part[1][b], part[2][b], part[3][b], sums);
        for (int64_t rest = i; rest < size; rest++)
            for (int a = 0; a < ROWS; a++) sums[a] += widen(w[a][rest]) * x[b * size + rest];
    }
}

// y[r * stride + o] = row o of w (., size) times vector r of x (R, size), for begin <= o < end. x comes from `ordered`.
template <class T>
void multiply_rows(const T* w, const float* x, int64_t size, int64_t texts, int64_t begin, int64_t end, float* y,
                   int64_t stride) {
    // Rows first, first + distance, ...; those past the end count as the last one.
    auto tile = [&](int64_t first, int64_t distance, int64_t text, int64_t count, Ahead ahead) {
        int64_t o[ROWS];
        const T* rows[ROWS];
        for (int a = 0; a < ROWS; a++) {
            o[a] = std::min(first + a * distance, end - 1);
            rows[a] = w + o[a] * size;
        }
        const float* vectors = x + text * size;
        float* to = y + text * stride;
        with_count(count, [&](auto b) {
            if (o[ROWS - 1] == first + ROWS - 1) return dots<b>(rows, vectors, size, ahead, to + first, stride);
            float result[b * ROWS];
            dots<b>(rows, vectors, size, ahead, result, ROWS);
            for (int r = 0; r < b; r++)
                for (int a = 0; a < ROWS; a++) to[r * stride + o[a]] = result[r * ROWS + a];
        });
    };
    const char* bytes = reinterpret_cast<const char*>(w);
    const int64_t row = size * sizeof(T);
    if (passes_of(texts) == 1) {
        int64_t quarter = (end - begin) / ROWS;
        for (int64_t o = begin; o < begin + quarter; o++)
            tile(o, quarter, 0, texts, {bytes + o * row + NEAR, quarter * row});
        begin += ROWS * quarter;
    }
    // The weights of a block stay in the cache for all passes, which meanwhile fetch those of the next block.
    for (int64_t block = begin; block < end; block += BLOCK)
        in_passes(texts, [&](int64_t text, int64_t count, int64_t pass) {
            for (int64_t o = block; o < std::min(block + BLOCK, end); o += ROWS) {
                // Each of the first tiles fetches two rows, one after the other: this spreads the reading.
                int64_t next = block + BLOCK + 2 * (pass * (BLOCK / ROWS) + (o - block) / ROWS);
                bool fetch = next < std::min(block + 2 * BLOCK, end);
                tile(o, 1, text, count, {bytes + next * row, 64, 2, fetch ? 2 : 0});
            }
        });
}

// Pairs of 16-bit numbers, one pair per lane.
using Shorts = int16_t __attribute__((vector_size(4 * LANES)));

Shorts load_pairs(const int8_t* from) {
#ifdef __AVX512BW__
    return Shorts(_mm512_cvtepi8_epi16(load_as<__m256i>(from)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return Shorts(_mm256_cvtepi8_epi16(load_as<__m128i>(from)));
#else
    using Bytes = int8_t __attribute__((vector_size(2 * LANES)));
    return __builtin_convertvector(load_as<Bytes>(from), Shorts);
#endif
}

// total + a[0] b[0] + a[1] b[1] in each lane.
Ints add_pairs(Ints total, Shorts a, Shorts b) {
#ifdef __AVX512VNNI__
    return Ints(_mm512_dpwssd_epi32(__m512i(total), __m512i(a), __m512i(b)));
#elif defined(__AVX512BW__)
    return total + Ints(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return total + Ints(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#else
    for (int i = 0; i < LANES; i++) total[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return total;
#endif
}

// x (count), in 16 bits: `value` times one `scale` per group, which gives the largest magnitude of the group 32767.
void round_to_16_bits(const float* x, int64_t count, int64_t group, int16_t* value, float* scale) {
    using Narrow = int16_t __attribute__((vector_size(2 * LANES)));
    constexpr float MOST = 32767, ROUND = 12582912;  // at 1.5 * 2^23, fp32 has no fraction bits
    for (int64_t begin = 0; begin < count; begin += group) {
        Floats most = {}, faults = {};
        for (int64_t i = begin; i < begin + group; i += LANES) {
            Floats one = load(x + i);
            most = larger(one > 0 ? one : -one, most);
            faults += 0 * one;
        }
        float peak = largest(most), factor = peak > 0 ? MOST / peak : 0;
        // NaN and infinity become NaN.
        *scale++ = peak / MOST + sum(faults);
        for (int64_t i = begin; i < begin + group; i += LANES) {
            Ints whole = __builtin_convertvector((load(x + i) * factor + ROUND) - ROUND, Ints);
            Narrow narrow = __builtin_convertvector(whole, Narrow);
            std::memcpy(value + i, &narrow, sizeof narrow);
        }
    }
}

// y[b][a] = OUTPUTS vectors of outputs for each of B texts. Sums of integers are exact in any order: a group stays
// below 2^28.
template <int B>
void packed_dots(const Matrix& m, const int8_t* const* w, const float* const* scale, const int16_t* x,
                 const float* x_scale, Ahead ahead, Floats (*y)[OUTPUTS]) {
    // Enough independent sums to hide the latency.
    constexpr int CHAINS = B > 2 ? 1 : 2;
    int64_t groups = m.cols / m.group;
    Floats total[B][OUTPUTS] = {};
    for (int64_t g = 0; g < groups; g++) {
        Ints part[B][OUTPUTS][CHAINS] = {};
        for (int64_t i = g * m.group; i < (g + 1) * m.group; i += 2 * CHAINS)
            for (int chain = 0; chain < CHAINS; chain++) {
                int64_t at = i + 2 * chain;
                Shorts wide[OUTPUTS];
                for (int a = 0; a < OUTPUTS; a++) {
                    __builtin_prefetch(ahead.from + a * ahead.gap + at * BLOCK);
                    wide[a] = load_pairs(w[a] + at * BLOCK);
                }
                for (int b = 0; b < B; b++) {
                    Shorts pair = Shorts(Ints{} + load_as<int32_t>(x + b * m.cols + at));
                    for (int a = 0; a < OUTPUTS; a++) part[b][a][chain] = add_pairs(part[b][a][chain], wide[a], pair);
                }
            }
        for (int a = 0; a < OUTPUTS; a++) {
            Floats factor = load(scale[a] + g * BLOCK);
            for (int b = 0; b < B; b++) {
                Ints exact = part[b][a][0];
                for (int chain = 1; chain < CHAINS; chain++) exact += part[b][a][chain];
                total[b][a] += __builtin_convertvector(exact, Floats) * x_scale[b * groups + g] * factor;
            }
        }
    }
    for (int b = 0; b < B; b++)
        for (int a = 0; a < OUTPUTS; a++) y[b][a] = total[b][a];
}

// The same as multiply_rows for packed int8 weights. begin is a multiple of BLOCK.
void multiply_packed(const Matrix& m, const int16_t* x, const float* x_scale, int64_t texts, int64_t begin, int64_t end,
                     float* y, int64_t stride) {
    int64_t groups = m.cols / m.group, last = (end - begin - 1) / LANES;
    const int8_t* data = static_cast<const int8_t*>(m.data);
    // Vectors of outputs first, first + distance; those past the end count as the last one.
    auto tile = [&](int64_t first, int64_t distance, int64_t text, int64_t count, const int8_t* next) {
        int64_t o[OUTPUTS];
        const int8_t* w[OUTPUTS];
        const float* scale[OUTPUTS];
        for (int a = 0; a < OUTPUTS; a++) {
            o[a] = begin + std::min(first + a * distance, last) * LANES;
            int64_t block = o[a] / BLOCK, lane = o[a] % BLOCK;
            w[a] = data + (block * m.cols * BLOCK + 2 * lane);
            scale[a] = m.scale + (block * groups * BLOCK + lane);
        }
        // `next`, or the weights of this tile.
        Ahead ahead = {reinterpret_cast<const char*>(next ? next : w[0] + NEAR), next ? 0 : w[1] - w[0]};
        with_count(count, [&](auto b) {
            Floats result[b][OUTPUTS];
            packed_dots<b>(m, w, scale, x + text * m.cols, x_scale + text * groups, ahead, result);
            for (int r = 0; r < b; r++)
                for (int a = 0; a < OUTPUTS; a++)
                    store_some(result[r][a], y + (text + r) * stride + o[a], end - o[a]);
        });
    };
    int64_t first = 0;
    if (passes_of(texts) == 1) {
        int64_t half = (last + 1) / OUTPUTS;
        for (; first < half; first++) tile(first, half, 0, texts, nullptr);
        first = OUTPUTS * half;
    }
    // The first passes fetch a block each for the next tile.
    for (; first <= last; first += OUTPUTS)
        in_passes(texts, [&](int64_t text, int64_t count, int64_t pass) {
            int64_t block = (begin + (first + OUTPUTS) * LANES) / BLOCK + pass;
            bool fetch = pass < OUTPUTS * LANES / BLOCK && block * BLOCK < end;
            tile(first, 1, text, count, fetch ? data + block * m.cols * BLOCK : nullptr);
        });
}

// Input vectors of a product in the form that its weight needs.
struct Operand {
    Buffer data, scale;
    explicit Operand(int64_t size) : data(size), scale(size / BLOCK) {}
};

// y[r * m.rows + o] = weight row o times vector r of x (R, cols), plus bias, for begin <= o < end.
void multiply(const Matrix& m, const float* x, int64_t texts, int64_t begin, int64_t end, float* y, Operand& room) {
    if (begin == end) return;
    if (m.kind == INT8) {
        int16_t* value = reinterpret_cast<int16_t*>(room.data.data);
        round_to_16_bits(x, texts * m.cols, m.group, value, room.scale.data);
        multiply_packed(m, value, room.scale.data, texts, begin, end, y, m.rows);
    } else {
        in_type(m.kind == BF16, [&](auto number) {
            using T = decltype(number);
            const float* vectors = ordered<T>(x, texts, m.cols, room.data.data);
            multiply_rows(static_cast<const T*>(m.data), vectors, m.cols, texts, begin, end, y, m.rows);
        });
    }
    if (m.bias)
        for (int64_t r = 0; r < texts; r++)
            for (int64_t o = begin; o < end; o++) y[r * m.rows + o] += m.bias[o];
}

}  // namespace
