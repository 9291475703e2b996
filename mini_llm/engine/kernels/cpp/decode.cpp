// One decoding step of a causal Transformer on a CPU: the next token of each of R texts, in one parallel region.
//
// At batch size 1 a step reads every weight once and multiplies it by one vector, so it takes at least weight bytes /
// memory bandwidth. Separate operators cannot come near that: each call costs microseconds, and a layer needs dozens.
// Weights are fp32, bf16, or int8 with one scale per group of a row. Sums, activations and the residual stream are
// fp32. No sum depends on R or on the number of threads: a text gets the same bits alone as in a batch.
//
// Shapes: R texts, C hidden_size, H heads, K key-value heads, D head_dim, I intermediate_size, V vocabulary, S cached
// positions.

#include <vector>

#include <omp.h>

#include "vectors.h"

namespace {

void narrow(float value, float& to) { to = value; }
void narrow(float value, BFloat16& to) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest, ties to even. A NaN gets a mantissa bit, so that truncation cannot turn it into infinity.
    to.bits = std::isnan(value) ? (bits >> 16) | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

Floats load(const int8_t* from) {
#ifdef __AVX512F__
    return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from))));
#elif defined(__AVX2__)
    // GCC compiles the general form below to many instructions.
    return Floats(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(from)))));
#else
    using Bytes = int8_t __attribute__((vector_size(LANES)));
    return __builtin_convertvector(__builtin_convertvector(load_as<Bytes>(from), Ints), Floats);
#endif
}

// How many sums, with four accumulators each, fit the registers.
#ifdef __AVX512F__
constexpr int MOST_SUMS = 4;
#else
constexpr int MOST_SUMS = 2;
#endif

// y[a * B + b] = sum over i of w[a][i] x[b][i]. Four accumulators per sum hide the latency of the multiply-add. Two
// rows are read from memory a fifth faster side by side than one after the other, and two vectors share the conversion
// to fp32.
template <int A, int B, class T>
void dots(const T* const* w, const float* const* x, int64_t size, float* y) {
    if constexpr (A * B > MOST_SUMS) {
        for (int b = 0; b < B; b++) {
            float one[A];
            dots<A, 1>(w, x + b, size, one);
            for (int a = 0; a < A; a++) y[a * B + b] = one[a];
        }
        return;
    }
    Floats part[A][B][4] = {};
    int64_t i = 0;
    auto add = [&](int64_t at, int j) {
        for (int a = 0; a < A; a++) {
            Floats wide = load(w[a] + at);
            for (int b = 0; b < B; b++) part[a][b][j] += wide * load(x[b] + at);
        }
    };
    for (; i + 4 * LANES <= size; i += 4 * LANES)
        for (int j = 0; j < 4; j++) add(i + j * LANES, j);
    for (; i + LANES <= size; i += LANES) add(i, 0);
    for (int a = 0; a < A; a++)
        for (int b = 0; b < B; b++) {
            const Floats* four = part[a][b];
            float total = sum((four[0] + four[1]) + (four[2] + four[3]));
            for (int64_t rest = i; rest < size; rest++) total += widen(w[a][rest]) * x[b][rest];
            y[a * B + b] = total;
        }
}

// The same for int8 weights with one scale per GROUP weights of a row.
template <int64_t GROUP, int A, int B>
void scaled_dots(const int8_t* const* w, const float* const* scale, const float* const* x, int64_t size, float* y) {
    if constexpr (A * B > MOST_SUMS) {
        for (int b = 0; b < B; b++) {
            float one[A];
            scaled_dots<GROUP, A, 1>(w, scale, x + b, size, one);
            for (int a = 0; a < A; a++) y[a * B + b] = one[a];
        }
        return;
    }
    Floats total[A][B][2] = {};
    for (int64_t begin = 0, g = 0; begin < size; begin += GROUP, g++) {
        Floats part[A][B][2] = {};
        for (int64_t i = 0; i < GROUP; i += LANES)
            for (int a = 0; a < A; a++) {
                Floats wide = load(w[a] + begin + i);
                for (int b = 0; b < B; b++) part[a][b][i / LANES % 2] += wide * load(x[b] + begin + i);
            }
        for (int a = 0; a < A; a++)
            for (int b = 0; b < B; b++) total[a][b][g % 2] += (part[a][b][0] + part[a][b][1]) * scale[a][g];
    }
    for (int a = 0; a < A; a++)
        for (int b = 0; b < B; b++) y[a * B + b] = sum(total[a][b][0] + total[a][b][1]);
}

template <class T> float dot(const T* w, const float* x, int64_t size) {
    float result;
    dots<1, 1>(&w, &x, size, &result);
    return result;
}

// fp32 numbers aligned to vectors: a load that crosses a cache line costs two.
struct Buffer {
    std::vector<Floats> vectors;
    float* data;
    explicit Buffer(int64_t size) : vectors(size / LANES + 1), data(reinterpret_cast<float*>(vectors.data())) {}
    float& operator[](int64_t i) { return data[i]; }
};

}  // namespace

extern "C" {

enum Kind : int64_t { FP32, BF16, INT8 };
enum Activation : int64_t { RELU, GELU, GELU_TANH, SILU };

// Weight (rows, cols) of a linear layer; int8 weights have scales (rows, cols / group). The bias may be null.
struct Matrix {
    const void* data;
    const float* scale;
    const float* bias;
    int64_t rows, cols, group, kind;
};

// A norm that does not exist has a null weight.
struct Norm {
    const float* weight;
    const float* bias;
};

// qkv (H D + 2 K D, C); up (2 I, C) with the gate's rows first, or (I, C) without gate. cosine and sine (positions, D)
// are null without rotary positions. window: how many keys are visible, 0 for all.
struct Layer {
    Norm attention_norm, mlp_norm, query_norm, key_norm;
    Matrix qkv, out, up, down;
    const float* cosine;
    const float* sine;
    int64_t window;
};

struct Decoder {
    const Layer* layer;
    Norm norm;
    Matrix head;
    int64_t layers, hidden, heads, kv_heads, head_dim, inner, gated, activation, layer_norm, cache_bf16, threads;
    float eps, attention_scale, logit_scale;
};

// One text: the token of this step follows `length` cached positions. keys and values hold one pointer per layer, each
// to (K, capacity, D).
struct Row {
    void* const* keys;
    void* const* values;
    int64_t length, capacity;
};

}  // extern "C"

namespace {

// y[a * B + b] = row o[a] of a weight times vector x[b].
template <int A, int B> void products(const Matrix& m, const int64_t* o, const float* const* x, float* y) {
    if (m.kind == INT8) {
        const int8_t* w[A];
        const float* scale[A];
        for (int a = 0; a < A; a++) {
            w[a] = static_cast<const int8_t*>(m.data) + o[a] * m.cols;
            scale[a] = m.scale + o[a] * (m.cols / m.group);
        }
        auto run = m.group == 64   ? scaled_dots<64, A, B>
                   : m.group == 32 ? scaled_dots<32, A, B>
                                   : scaled_dots<16, A, B>;
        run(w, scale, x, m.cols, y);
    } else if (m.kind == BF16) {
        const BFloat16* w[A];
        for (int a = 0; a < A; a++) w[a] = static_cast<const BFloat16*>(m.data) + o[a] * m.cols;
        dots<A, B>(w, x, m.cols, y);
    } else {
        const float* w[A];
        for (int a = 0; a < A; a++) w[a] = static_cast<const float*>(m.data) + o[a] * m.cols;
        dots<A, B>(w, x, m.cols, y);
    }
    if (m.bias)
        for (int a = 0; a < A; a++)
            for (int b = 0; b < B; b++) y[a * B + b] += m.bias[o[a]];
}

// Multiply `count` rows from `first` on, each together with the row `distance` further, by R vectors x (R, cols); calls
// store(row, r, y, y of the second row).
template <class Store>
void multiply_pairs(const Matrix& m, int64_t first, int64_t count, int64_t distance, const float* x, int64_t texts,
                    const Store& store) {
    // The weights of a tile stay in the cache while all texts use them.
    constexpr int64_t TILE = 4;
    for (int64_t begin = first; begin < first + count; begin += TILE) {
        int64_t end = begin + TILE < first + count ? begin + TILE : first + count, r = 0;
        float y[4];
        for (; r + 2 <= texts; r += 2)
            for (int64_t o = begin; o < end; o++) {
                const int64_t rows[] = {o, o + distance};
                const float* vectors[] = {x + r * m.cols, x + (r + 1) * m.cols};
                products<2, 2>(m, rows, vectors, y);
                store(o, r, y[0], y[2]);
                store(o, r + 1, y[1], y[3]);
            }
        if (r < texts)
            for (int64_t o = begin; o < end; o++) {
                const int64_t rows[] = {o, o + distance};
                const float* vector = x + r * m.cols;
                products<2, 1>(m, rows, &vector, y);
                store(o, r, y[0], y[1]);
            }
    }
}

// Multiply all rows of a weight by R vectors x (R, cols); calls store(row, r, y). Runs inside a parallel region and
// ends with a barrier.
template <class Store> void multiply(const Matrix& m, const float* x, int64_t texts, const Store& store) {
    int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    int64_t begin = m.rows * mine / threads, end = m.rows * (mine + 1) / threads, half = (end - begin) / 2;
    multiply_pairs(m, begin, half, half, x, texts, [&](int64_t o, int64_t r, float one, float other) {
        store(o, r, one);
        store(o + half, r, other);
    });
    for (int64_t o = begin + 2 * half; o < end; o++)
        for (int64_t r = 0; r < texts; r++) {
            const float* vector = x + r * m.cols;
            float y;
            products<1, 1>(m, &o, &vector, &y);
            store(o, r, y);
        }
#pragma omp barrier
}

// The same for a weight of two stacked matrices: calls store(row, r, y of the first, y of the second).
template <class Store> void multiply_halves(const Matrix& m, const float* x, int64_t texts, const Store& store) {
    int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num(), half = m.rows / 2;
    int64_t begin = half * mine / threads, end = half * (mine + 1) / threads;
    multiply_pairs(m, begin, end - begin, half, x, texts, store);
#pragma omp barrier
}

// RMSNorm or LayerNorm of x (size); y may be x.
void normalize(const Decoder& d, const Norm& norm, const float* x, float* y, int64_t size) {
    float mean = 0, square = 0;
    if (d.layer_norm) {
        for (int64_t i = 0; i < size; i++) mean += x[i];
        mean /= size;
        for (int64_t i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
    } else {
        square = dot(x, x, size);
    }
    float scale = 1 / std::sqrt(square / size + d.eps);
    for (int64_t i = 0; i < size; i++)
        y[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
}

// Normalize a head's query or key, then rotate it by its position. Channels i and i + D / 2 form a pair.
void place(const Decoder& d, const Layer& layer, const Norm& norm, float* head, int64_t position) {
    if (norm.weight) normalize(d, norm, head, head, d.head_dim);
    if (!layer.cosine) return;
    const float* cosine = layer.cosine + position * d.head_dim;
    const float* sine = layer.sine + position * d.head_dim;
    for (int64_t i = 0, half = d.head_dim / 2; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cosine[i] - second * sine[i];
        head[i + half] = second * cosine[i + half] + first * sine[i + half];
    }
}

float activate(int64_t kind, float x) {
    switch (kind) {
        case RELU: return x > 0 ? x : 0 * x;
        case GELU: return 0.5f * x * (1 + std::erf(x * 0.70710678f));
        case GELU_TANH: return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        default: return x / (1 + std::exp(-x));
    }
}

// Append this position's key and value, then compute attention for the query heads that share key-value head `group`.
template <class T>
void attend(const Decoder& d, const Layer& layer, const Row& row, int64_t index, int64_t group, float* qkv,
            float* y, float* score) {
    int64_t size = d.head_dim, shared = d.heads / d.kv_heads, end = row.length + 1;
    T* keys = static_cast<T*>(row.keys[index]) + group * row.capacity * size;
    T* values = static_cast<T*>(row.values[index]) + group * row.capacity * size;
    float* key = qkv + (d.heads + group) * size;
    const float* value = qkv + (d.heads + d.kv_heads + group) * size;
    place(d, layer, layer.key_norm, key, row.length);
    for (int64_t i = 0; i < size; i++) {
        narrow(key[i], keys[row.length * size + i]);
        narrow(value[i], values[row.length * size + i]);
    }
    int64_t begin = layer.window && end > layer.window ? end - layer.window : 0;
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        float* query = qkv + head * size;
        place(d, layer, layer.query_norm, query, row.length);
        float best = -INFINITY, total = 0;
        for (int64_t s = begin; s < end; s++) {
            score[s] = dot(keys + s * size, query, size) * d.attention_scale;
            best = score[s] > best ? score[s] : best;
        }
        for (int64_t s = begin; s < end; s++) total += score[s] = std::exp(score[s] - best);
        float* result = y + head * size;
        std::memset(result, 0, size * sizeof(float));
        for (int64_t s = begin; s < end; s++) {
            float weight = score[s] / total;
            for (int64_t i = 0; i < size; i++) result[i] += weight * widen(values[s * size + i]);
        }
    }
}

}  // namespace

// x (R, C) holds the embeddings and is overwritten. logits (R, V).
extern "C" void decode_step(const Decoder* decoder, const Row* row, int64_t rows, float* x, float* logits) {
    const Decoder& d = *decoder;
    const int64_t width = d.heads * d.head_dim, fused = width + 2 * d.kv_heads * d.head_dim;
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; r++) longest = row[r].length + 1 > longest ? row[r].length + 1 : longest;
    Buffer qkv(rows * fused), y(rows * width), inner(rows * d.inner);

#pragma omp parallel num_threads(d.threads)
    {
        // Every thread normalizes all rows itself: cheaper than waiting at another barrier.
        Buffer normed(rows * d.hidden), score(longest);
        auto norm_rows = [&](const Norm& norm) {
            for (int64_t r = 0; r < rows; r++)
                normalize(d, norm, x + r * d.hidden, &normed[r * d.hidden], d.hidden);
        };
        auto add_to_x = [&](int64_t o, int64_t r, float value) { x[r * d.hidden + o] += value; };
        for (int64_t index = 0; index < d.layers; index++) {
            const Layer& layer = d.layer[index];
            norm_rows(layer.attention_norm);
            multiply(layer.qkv, normed.data, rows,
                     [&](int64_t o, int64_t r, float value) { qkv[r * fused + o] = value; });
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < rows * d.kv_heads; unit++) {
                int64_t r = unit / d.kv_heads, group = unit % d.kv_heads;
                auto run = d.cache_bf16 ? attend<BFloat16> : attend<float>;
                run(d, layer, row[r], index, group, &qkv[r * fused], &y[r * width], score.data);
            }
            multiply(layer.out, y.data, rows, add_to_x);
            norm_rows(layer.mlp_norm);
            if (d.gated)
                multiply_halves(layer.up, normed.data, rows, [&](int64_t o, int64_t r, float gate, float up) {
                    inner[r * d.inner + o] = activate(d.activation, gate) * up;
                });
            else
                multiply(layer.up, normed.data, rows, [&](int64_t o, int64_t r, float value) {
                    inner[r * d.inner + o] = activate(d.activation, value);
                });
            multiply(layer.down, inner.data, rows, add_to_x);
        }
        norm_rows(d.norm);
        for (int64_t i = 0; i < rows * d.hidden; i++) normed[i] *= d.logit_scale;
        multiply(d.head, normed.data, rows,
                 [&](int64_t o, int64_t r, float value) { logits[r * d.head.rows + o] = value; });
    }
}
