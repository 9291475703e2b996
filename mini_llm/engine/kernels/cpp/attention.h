// Self-attention of one layer for training on a CPU: norm and rotation of queries and keys, softmax(Q K^T) V, and the
// backward pass.
//
// It replaces about thirty operators, each of which reads and writes the whole activation. Scores exist for one block
// of queries at a time and are recomputed in the backward pass (Dao et al. 2022, "FlashAttention"). Blocks that the
// causal mask hides are skipped. Activations are fp32 or bf16; bf16 products are summed in fp32, and everything between
// is fp32. The numbers of a head do not depend on the other rows of the batch or on the number of threads.
//
// Shapes: B rows, L positions, H heads, K key-value heads, D head_dim.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 32;           // queries whose scores exist at once
constexpr int64_t MOST_CHANNELS = 512;  // largest head_dim
constexpr int64_t TOGETHER = 8;         // rows normalized side by side, to hide the latency of the square root
constexpr int64_t AHEAD = 12;           // rows prefetched: they lie too far apart for the hardware to predict

// Two bf16 numbers that are adjacent along the dimension that a product sums over.
struct Pair {
    uint32_t bits;
};
// The operand type of products for each activation type, and how many numbers an operand holds.
template <class Number> struct OperandOf { using Type = float; };
template <> struct OperandOf<BFloat16> { using Type = Pair; };
template <class Number> using Operand = typename OperandOf<Number>::Type;
template <class Number> constexpr int64_t HELD = sizeof(Operand<Number>) / sizeof(Number);

Floats multiply_add(Floats sum, float a, const float* b) { return sum + a * load(b); }
Floats multiply_add(Floats sum, Pair a, const Pair* b) {
#ifdef __AVX512BF16__
    return Floats(_mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_set1_epi32(a.bits)), load_as<__m512bh>(b)));
#else
    Words pairs = load_as<Words>(b);
    uint32_t low = a.bits << 16, high = a.bits & 0xffff0000;
    return sum + load_as<float>(&low) * Floats(pairs << 16) + load_as<float>(&high) * Floats(pairs & 0xffff0000);
#endif
}

// The left matrix of a product: element (i, k) is data[i * across + k * along], which also expresses a transposed one.
template <class Element> struct Left {
    const Element* data;
    int64_t across, along;
};

// C (ROWS, COLUMNS vectors) = A B, or C += A B if `more`. B (depth, columns) and C are row-major.
template <int ROWS, int COLUMNS, class Element>
void tile(Left<Element> a, const Element* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool more) {
    Floats total[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) total[i][j] = more ? load(c + i * c_row + j * LANES) : Floats{};
    for (int64_t k = 0; k < depth; k++)
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLUMNS; j++)
                total[i][j] =
                    multiply_add(total[i][j], a.data[i * a.across + k * a.along], b + k * b_row + j * LANES);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) store(total[i][j], c + i * c_row + j * LANES);
}

template <int COLUMNS, class Element>
void strip(int64_t rows, Left<Element> a, const Element* b, int64_t b_row, int64_t depth, float* c, int64_t c_row,
           bool more) {
    int64_t i = 0;
    auto from = [&] { return Left<Element>{a.data + i * a.across, a.across, a.along}; };
    for (; i + 4 <= rows; i += 4) tile<4, COLUMNS>(from(), b, b_row, depth, c + i * c_row, c_row, more);
    for (; i < rows; i++) tile<1, COLUMNS>(from(), b, b_row, depth, c + i * c_row, c_row, more);
}

// `columns` is a multiple of LANES.
template <class Element>
void product(int64_t rows, int64_t columns, int64_t depth, Left<Element> a, const Element* b, int64_t b_row, float* c,
             int64_t c_row, bool more = false) {
    int64_t j = 0;
    for (; j + WIDE * LANES <= columns; j += WIDE * LANES)
        strip<WIDE>(rows, a, b + j, b_row, depth, c + j, c_row, more);
    for (; j < columns; j += LANES) strip<1>(rows, a, b + j, b_row, depth, c + j, c_row, more);
}

// (rows, columns) -> (columns, rows); rows are a multiple of 16.
template <class Element> void transpose(const Element* from, int64_t rows, int64_t columns, Element* to) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t r = 0; r < 16; r++) to[j * rows + i + r] = from[(i + r) * columns + j];
}

// Copy (rows, columns) to operands of a sum over rows: each operand holds adjacent elements of one column.
void stack(const float* from, int64_t row, int64_t rows, int64_t columns, float* to) {
    for (int64_t i = 0; i < rows; i++) std::memcpy(to + i * columns, from + i * row, columns * sizeof(float));
}
void stack(const BFloat16* from, int64_t row, int64_t rows, int64_t columns, Pair* to) {
    for (int64_t i = 0; i < rows; i += 2)
        for (int64_t j = 0; j < columns; j += LANES) {
            Words low = __builtin_convertvector(load_as<Halves>(from + i * row + j), Words);
            Words high = __builtin_convertvector(load_as<Halves>(from + (i + 1) * row + j), Words);
            low |= high << 16;
            std::memcpy(to + i / 2 * columns + j, &low, sizeof low);
        }
}

}  // namespace

extern "C" {

// query (B, L, H D), key and value (B, L, K D). Norm weights (D), cosine and sine (L, D) and mask (B or 1, L or 1, L),
// true where a key may be seen, are null if absent. mask_row, mask_query: elements from the mask of one batch row, or of
// one query, to the next, 0 if all share one.
struct Layer {
    int64_t rows, length, heads, kv_heads, head_dim, causal, threads, bf16, mask_row, mask_query;
    float scale, eps;
    const float *query_norm, *key_norm, *cosine, *sine;
    const bool* mask;
    const void *query, *key, *value;
};

}  // extern "C"

namespace {

// Prefetch row t + AHEAD of a head's `length` rows, which lie `stride` elements apart.
template <class Number> void fetch(const Layer& a, const Number* rows, int64_t stride, int64_t t) {
    if (t + AHEAD >= a.length) return;
    const Number* row = rows + (t + AHEAD) * stride;
    for (int64_t i = 0; i < a.head_dim; i += 64 / sizeof(Number)) __builtin_prefetch(row + i);
}

// The reciprocal root mean square of x (D); copies x to `wide` in fp32.
template <class Number> float reciprocal_root_mean_square(const Layer& a, const Number* x, float* wide) {
    Floats squares = {};
    for (int64_t i = 0; i < a.head_dim; i += LANES) {
        Floats value = load(x + i);
        squares += value * value;
        store(value, wide + i);
    }
    return 1 / std::sqrt(sum(squares) / a.head_dim + a.eps);
}

// Normalize and rotate a head's queries or keys: reads L rows that lie `stride` elements apart, writes `to` (padded,
// D), zeros after row L. Channels i and i + D / 2 form a rotated pair.
template <class Number>
void prepare(const Layer& a, const Number* from, int64_t stride, const float* norm, Number* to, int64_t padded) {
    const int64_t size = a.head_dim, half = size / 2;
    float plain[TOGETHER * MOST_CHANNELS], rotated[MOST_CHANNELS], root[TOGETHER];
    for (int64_t begin = 0; begin < a.length; begin += TOGETHER) {
        const int64_t count = std::min(TOGETHER, a.length - begin);
        for (int64_t t = 0; t < count; t++) {
            fetch(a, from, stride, begin + t);
            root[t] = reciprocal_root_mean_square(a, from + (begin + t) * stride, plain + t * size);
        }
        for (int64_t t = 0; t < count; t++) {
            float* row = plain + t * size;
            for (int64_t i = 0; norm && i < size; i += LANES) store(load(row + i) * root[t] * load(norm + i), row + i);
            if (a.cosine) {
                const float *cosine = a.cosine + (begin + t) * size, *sine = a.sine + (begin + t) * size;
                for (int64_t i = 0; i < half; i++) {
                    rotated[i] = row[i] * cosine[i] - row[i + half] * sine[i];
                    rotated[i + half] = row[i + half] * cosine[i + half] + row[i] * sine[i + half];
                }
            }
            const float* done = a.cosine ? rotated : row;
            for (int64_t i = 0; i < size; i += LANES) store(load(done + i), to + (begin + t) * size + i);
        }
    }
    std::memset(to + a.length * size, 0, (padded - a.length) * size * sizeof(Number));
}

// Backward pass of prepare(): turns `gradient` (L, D) of its result, which it overwrites, into the gradient `to` of
// `from`, and adds the gradient of the norm's weight to `for_norm` (D).
template <class Number>
void prepare_gradient(const Layer& a, const Number* from, int64_t stride, const float* norm, float* gradient,
                      Number* to, float* for_norm) {
    const int64_t size = a.head_dim, half = size / 2;
    float plain[TOGETHER * MOST_CHANNELS], root[TOGETHER], mean[TOGETHER];
    for (int64_t begin = 0; begin < a.length; begin += TOGETHER) {
        const int64_t count = std::min(TOGETHER, a.length - begin);
        float* g = gradient + begin * size;
        for (int64_t t = 0; a.cosine && t < count; t++) {
            const float *cosine = a.cosine + (begin + t) * size, *sine = a.sine + (begin + t) * size;
            float *lower = g + t * size, *upper = lower + half;
            for (int64_t i = 0; i < half; i++) {
                float first = lower[i], second = upper[i];
                lower[i] = first * cosine[i] + second * sine[i + half];
                upper[i] = second * cosine[i + half] - first * sine[i];
            }
        }
        if (!norm) {
            for (int64_t t = 0; t < count; t++)
                for (int64_t i = 0; i < size; i += LANES) store(load(g + t * size + i), to + (begin + t) * stride + i);
            continue;
        }
        // Zhang and Sennrich 2019, section 4.
        for (int64_t t = 0; t < count; t++) {
            fetch(a, from, stride, begin + t);
            root[t] = reciprocal_root_mean_square(a, from + (begin + t) * stride, plain + t * size);
        }
        for (int64_t t = 0; t < count; t++) {
            Floats together = {};
            for (int64_t i = t * size; i < (t + 1) * size; i += LANES)
                together += load(g + i) * load(norm + i - t * size) * load(plain + i);
            mean[t] = sum(together) * root[t] / size;
        }
        for (int64_t i = 0; i < size; i += LANES) {
            Floats found = load(for_norm + i);
            for (int64_t t = 0; t < count; t++) {
                Floats normed = load(plain + t * size + i) * root[t], of_normed = load(g + t * size + i);
                found += of_normed * normed;
                store((of_normed * load(norm + i) - normed * mean[t]) * root[t], to + (begin + t) * stride + i);
            }
            store(found, for_norm + i);
        }
    }
}

// Copy L rows that lie `stride` elements apart to `to` (padded, D), zeros after row L.
template <class Number> void copy(const Layer& a, const Number* from, int64_t stride, Number* to, int64_t padded) {
    const int64_t size = a.head_dim;
    for (int64_t t = 0; t < a.length; t++) {
        fetch(a, from, stride, t);
        std::memcpy(to + t * size, from + t * stride, size * sizeof(Number));
    }
    std::memset(to + a.length * size, 0, (padded - a.length) * size * sizeof(Number));
}

// Set the scores of hidden keys to -inf for the query at position t; the row holds `keys` scores.
void hide(const Layer& a, int64_t row, int64_t t, int64_t keys, float* score) {
    int64_t seen = a.causal ? t + 1 : a.length;
    if (a.mask) {
        const bool* mask = a.mask + row * a.mask_row + t * a.mask_query;
        for (int64_t s = 0; s < seen; s++) score[s] = mask[s] ? score[s] : -INFINITY;
    }
    std::fill(score + seen, score + keys, -INFINITY);
}

// One unit of work, and where its data lies: one key-value head of one batch row, with the query heads that share it.
struct Unit {
    const Layer& a;
    int64_t row, group, shared, width, kv_width;

    Unit(const Layer& layer, int64_t index)
        : a(layer), row(index / layer.kv_heads), group(index % layer.kv_heads), shared(layer.heads / layer.kv_heads),
          width(layer.heads * layer.head_dim), kv_width(layer.kv_heads * layer.head_dim) {}

    static int64_t round_up(int64_t length) { return (length + 31) / 32 * 32; }
    int64_t query_at(int64_t head) const { return row * a.length * width + head * a.head_dim; }
    int64_t key_at() const { return row * a.length * kv_width + group * a.head_dim; }
    int64_t first() const { return group * shared; }
    int64_t last() const { return first() + shared; }
    int64_t normalizer_at(int64_t head) const { return (row * a.heads + head) * a.length; }
    // How many keys the `count` queries from `begin` on need, rounded up to whole vectors.
    int64_t keys(int64_t begin, int64_t count) const {
        return ((a.causal ? begin + count : a.length) + 15) / 16 * 16;
    }
};

template <class Number> Left<Operand<Number>> left(const std::vector<Number>& rows, int64_t first, int64_t row) {
    return {reinterpret_cast<const Operand<Number>*>(rows.data() + first * row), row / HELD<Number>, 1};
}

template <class Number> const Operand<Number>* operands(const std::vector<Number>& rows) {
    return reinterpret_cast<const Operand<Number>*>(rows.data());
}

template <class Number> void forward(const Layer& a, Number* result, float* normalizer) {
    constexpr int64_t held = HELD<Number>;
    const int64_t size = a.head_dim, padded = Unit::round_up(a.length);
    const auto *queries = static_cast<const Number*>(a.query), *keys = static_cast<const Number*>(a.key),
               *values = static_cast<const Number*>(a.value);
#pragma omp parallel num_threads(a.threads)
    {
        std::vector<Number> query(padded * size), key(padded * size), value(padded * size), weights(BLOCK * padded);
        std::vector<Operand<Number>> key_columns(padded * size / held), value_rows(padded * size / held);
        std::vector<float> scores(BLOCK * padded), sums(BLOCK * size);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < a.rows * a.kv_heads; index++) {
            Unit unit(a, index);
            prepare(a, keys + unit.key_at(), unit.kv_width, a.key_norm, key.data(), padded);
            transpose(operands(key), padded, size / held, key_columns.data());
            copy(a, values + unit.key_at(), unit.kv_width, value.data(), padded);
            stack(value.data(), size, padded, size, value_rows.data());
            for (int64_t head = unit.first(); head < unit.last(); head++) {
                prepare(a, queries + unit.query_at(head), unit.width, a.query_norm, query.data(), padded);
                for (int64_t begin = 0; begin < a.length; begin += BLOCK) {
                    int64_t count = std::min(BLOCK, a.length - begin), seen = unit.keys(begin, count);
                    product(count, seen, size / held, left(query, begin, size), key_columns.data(), padded,
                            scores.data(), padded);
                    float total[BLOCK];
                    for (int64_t i = 0; i < count; i++) {
                        float* score = scores.data() + i * padded;
                        hide(a, unit.row, begin + i, seen, score);
                        Floats most = load(score), sums_of_weights = {};
                        for (int64_t s = LANES; s < seen; s += LANES) most = larger(most, load(score + s));
                        float shift = largest(most) * a.scale;
                        for (int64_t s = 0; s < seen; s += LANES) {
                            Floats weight = exponential(load(score + s) * a.scale - shift);
                            sums_of_weights += weight;
                            store(weight, weights.data() + i * padded + s);
                        }
                        total[i] = sum(sums_of_weights);
                        normalizer[unit.normalizer_at(head) + begin + i] = shift + std::log(total[i]);
                    }
                    product(count, size, seen / held, left(weights, 0, padded), value_rows.data(), size, sums.data(),
                            size);
                    for (int64_t i = 0; i < count; i++) {
                        Number* y = result + unit.query_at(head) + (begin + i) * unit.width;
                        for (int64_t d = 0; d < size; d += LANES) store(load(&sums[i * size + d]) / total[i], y + d);
                    }
                }
            }
        }
    }
}

template <class Number>
void backward(const Layer& a, const Number* result, const float* normalizer, const Number* for_result,
              Number* for_query, Number* for_key, Number* for_value, float* for_norms) {
    constexpr int64_t held = HELD<Number>;
    const int64_t size = a.head_dim, padded = Unit::round_up(a.length);
    const auto *queries = static_cast<const Number*>(a.query), *keys = static_cast<const Number*>(a.key),
               *values = static_cast<const Number*>(a.value);
    using Elements = std::vector<Operand<Number>>;
#pragma omp parallel num_threads(a.threads)
    {
        std::vector<Number> query(padded * size), key(padded * size), value(padded * size), gradient(padded * size),
            weights(BLOCK * padded), of_scores(BLOCK * padded);
        Elements key_columns(padded * size / held), value_columns(padded * size / held), key_rows(padded * size / held),
            query_rows(padded * size / held), gradient_rows(padded * size / held), weight_rows(BLOCK * padded / held),
            of_score_rows(BLOCK * padded / held);
        std::vector<float> scores(BLOCK * padded), of_weights(BLOCK * padded), of_query(padded * size),
            of_key(padded * size), of_value(padded * size), mean(padded);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < a.rows * a.kv_heads; index++) {
            Unit unit(a, index);
            float* for_query_norm = for_norms + index * 2 * size;
            prepare(a, keys + unit.key_at(), unit.kv_width, a.key_norm, key.data(), padded);
            transpose(operands(key), padded, size / held, key_columns.data());
            stack(key.data(), size, padded, size, key_rows.data());
            copy(a, values + unit.key_at(), unit.kv_width, value.data(), padded);
            transpose(operands(value), padded, size / held, value_columns.data());
            std::fill(of_key.begin(), of_key.end(), 0.0f);
            std::fill(of_value.begin(), of_value.end(), 0.0f);
            for (int64_t head = unit.first(); head < unit.last(); head++) {
                prepare(a, queries + unit.query_at(head), unit.width, a.query_norm, query.data(), padded);
                stack(query.data(), size, padded, size, query_rows.data());
                copy(a, for_result + unit.query_at(head), unit.width, gradient.data(), padded);
                stack(gradient.data(), size, padded, size, gradient_rows.data());
                const Number* results = result + unit.query_at(head);
                for (int64_t t = 0; t < a.length; t++) {
                    fetch(a, results, unit.width, t);
                    Floats along = {};
                    for (int64_t d = 0; d < size; d += LANES)
                        along += load(results + t * unit.width + d) * load(&gradient[t * size + d]);
                    mean[t] = sum(along);
                }
                for (int64_t begin = 0; begin < a.length; begin += BLOCK) {
                    int64_t count = std::min(BLOCK, a.length - begin), seen = unit.keys(begin, count);
                    product(count, seen, size / held, left(query, begin, size), key_columns.data(), padded,
                            scores.data(), padded);
                    product(count, seen, size / held, left(gradient, begin, size), value_columns.data(), padded,
                            of_weights.data(), padded);
                    for (int64_t i = 0; i < count; i++) {
                        float *score = scores.data() + i * padded, *of_weight = of_weights.data() + i * padded;
                        hide(a, unit.row, begin + i, seen, score);
                        float shift = normalizer[unit.normalizer_at(head) + begin + i];
                        for (int64_t s = 0; s < seen; s += LANES) {
                            Floats weight = exponential(load(score + s) * a.scale - shift);
                            store(weight, weights.data() + i * padded + s);
                            Floats of_score = weight * (load(of_weight + s) - mean[begin + i]) * a.scale;
                            store(of_score, of_scores.data() + i * padded + s);
                        }
                    }
                    // An operand of bf16 holds two queries: pad an odd number with zeros.
                    for (int64_t i = count; i % held; i++)
                        for (auto* rows : {&weights, &of_scores})
                            std::memset(rows->data() + i * padded, 0, seen * sizeof(Number));
                    int64_t deep = (count + held - 1) / held;
                    stack(weights.data(), padded, deep * held, seen, weight_rows.data());
                    stack(of_scores.data(), padded, deep * held, seen, of_score_rows.data());
                    product(seen, size, deep, {weight_rows.data(), 1, seen}, gradient_rows.data() + begin / held * size,
                            size, of_value.data(), size, true);
                    product(seen, size, deep, {of_score_rows.data(), 1, seen}, query_rows.data() + begin / held * size,
                            size, of_key.data(), size, true);
                    product(count, size, seen / held, left(of_scores, 0, padded), key_rows.data(), size,
                            of_query.data() + begin * size, size);
                }
                prepare_gradient(a, queries + unit.query_at(head), unit.width, a.query_norm, of_query.data(),
                                 for_query + unit.query_at(head), for_query_norm);
            }
            prepare_gradient(a, keys + unit.key_at(), unit.kv_width, a.key_norm, of_key.data(),
                             for_key + unit.key_at(), for_query_norm + size);
            for (int64_t t = 0; t < a.length; t++)
                for (int64_t d = 0; d < size; d += LANES)
                    store(load(&of_value[t * size + d]), for_value + unit.key_at() + t * unit.kv_width + d);
        }
    }
}

}  // namespace

// result (B, L, H D); normalizer (B, H, L) receives the logarithm of each softmax's denominator.
extern "C" void attention(const Layer* layer, void* result, float* normalizer) {
    in_type(layer->bf16, [&](auto number) { forward(*layer, static_cast<decltype(number)*>(result), normalizer); });
}

// for_norms (B K, 2, D) starts as zeros and receives the gradients of both norm weights from each unit of work.
extern "C" void attention_gradients(const Layer* layer, const void* result, const float* normalizer,
                                    const void* for_result, void* for_query, void* for_key, void* for_value,
                                    float* for_norms) {
    in_type(layer->bf16, [&](auto number) {
        using Number = decltype(number);
        backward(*layer, static_cast<const Number*>(result), normalizer, static_cast<const Number*>(for_result),
                 static_cast<Number*>(for_query), static_cast<Number*>(for_key), static_cast<Number*>(for_value),
                 for_norms);
    });
}
