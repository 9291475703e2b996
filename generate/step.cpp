// One decoding step of a causal Transformer on a CPU: the next token of each of R texts, in one parallel region.
//
// A step at batch 1 reads every weight once and multiplies it by one vector, so its floor is weight bytes / memory
// bandwidth. Operator by operator that floor is out of reach: each call costs microseconds, a layer makes dozens.
// Weights are fp32, bf16 or int8 with a scale for each group of a row; sums, activations and the residual are fp32.
// A sum does not depend on R or on the number of threads: a text is the same bits alone and among others.
//
// Shapes: C hidden_size, H heads, K key-value heads, D head_dim, I intermediate_size, V vocabulary, S positions held.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
using Floats = float __attribute__((vector_size(64)));
using Shorts = int16_t __attribute__((vector_size(32)));
using Eight = float __attribute__((vector_size(32)));
using Four = float __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
using Bytes = int8_t __attribute__((vector_size(16)));

template <class Vector> Vector load(const void* from) {
    Vector value;
    std::memcpy(&value, from, sizeof(Vector));
    return value;
}

// bf16 is the upper half of an fp32.
struct BFloat16 {
    uint16_t bits;
};

float widen(float value) { return value; }
float widen(BFloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

void narrow(float value, float& to) { to = value; }
void narrow(float value, BFloat16& to) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest, ties to even; a NaN keeps a bit that makes it one.
    to.bits = std::isnan(value) ? (bits >> 16) | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

Floats widen16(const float* from) { return load<Floats>(from); }
#ifdef __AVX512F__
// GCC makes many instructions of the general form below.
Floats widen16(const int8_t* from) { return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(from)))); }
Floats widen16(const BFloat16* from) {
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16));
}
#else
Floats widen16(const int8_t* from) {
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Shorts), Floats);
}
Floats widen16(const BFloat16* from) {
    Words bits = __builtin_convertvector(load<Halves>(from), Words) << 16;
    return load<Floats>(&bits);
}
#endif

float sum(const Floats& value) {
    Eight eight = load<Eight>(&value) + load<Eight>(reinterpret_cast<const float*>(&value) + 8);
    Four four = load<Four>(&eight) + load<Four>(reinterpret_cast<const float*>(&eight) + 4);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// Sum of w[i] x[i]; four accumulators hide the latency of the multiply-add.
template <class T> float dot(const T* w, const float* x, int64_t size) {
    Floats part[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES)
        for (int j = 0; j < 4; j++) part[j] += widen16(w + i + j * LANES) * load<Floats>(x + i + j * LANES);
    for (; i + LANES <= size; i += LANES) part[0] += widen16(w + i) * load<Floats>(x + i);
    float total = sum((part[0] + part[1]) + (part[2] + part[3]));
    for (; i < size; i++) total += widen(w[i]) * x[i];
    return total;
}

// The same with one scale for each GROUP weights.
template <int64_t GROUP, class T> float dot(const T* w, const float* scale, const float* x, int64_t size) {
    Floats total[2] = {};
    for (int64_t begin = 0, g = 0; begin < size; begin += GROUP, g++) {
        Floats part[2] = {};
        for (int64_t i = 0; i < GROUP; i += LANES)
            part[i / LANES % 2] += widen16(w + begin + i) * load<Floats>(x + begin + i);
        total[g % 2] += (part[0] + part[1]) * scale[g];
    }
    return sum(total[0] + total[1]);
}

}  // namespace

extern "C" {

enum Kind : int64_t { FP32, BF16, INT8 };
enum Activation : int64_t { RELU, GELU, GELU_TANH, SILU };

// Weight (rows, cols) of a linear layer; int8 with scales (rows, cols / group). A bias may be null.
struct Matrix {
    const void* data;
    const float* scale;
    const float* bias;
    int64_t rows, cols, group, kind;
};

// A null weight: no such norm; a null bias: none.
struct Norm {
    const float* weight;
    const float* bias;
};

// qkv (H D + 2 K D, C); up (2 I, C), gate above up, or (I, C). cosine and sine (positions, D), null without rotation.
// window: keys seen, 0 for all.
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

// One text: `length` positions are held, the token of this step comes after them. For each layer keys and values
// (K, capacity, D).
struct Row {
    void* const* keys;
    void* const* values;
    int64_t length, capacity;
};

}  // extern "C"

namespace {

template <class T> float scaled_dot(const Matrix& m, const T* w, const float* scale, const float* x) {
    return m.group == 64   ? dot<64>(w, scale, x, m.cols)
           : m.group == 32 ? dot<32>(w, scale, x, m.cols)
                           : dot<16>(w, scale, x, m.cols);
}

// One row of a weight. With a buffer (cols) its weights are widened there once, for many products: the same sums.
struct Line {
    const Matrix& m;
    int64_t row;
    const float* wide = nullptr;

    Line(const Matrix& matrix, int64_t index, float* buffer) : m(matrix), row(index) {
        if (!buffer || m.kind == FP32) return;
        for (int64_t i = 0; i < m.cols; i++) buffer[i] = m.kind == BF16 ? widen(halves()[i]) : float(bytes()[i]);
        wide = buffer;
    }
    const BFloat16* halves() const { return static_cast<const BFloat16*>(m.data) + row * m.cols; }
    const int8_t* bytes() const { return static_cast<const int8_t*>(m.data) + row * m.cols; }

    float product(const float* x) const {
        float result;
        if (m.kind == INT8) {
            const float* scale = m.scale + row * (m.cols / m.group);
            result = wide ? scaled_dot(m, wide, scale, x) : scaled_dot(m, bytes(), scale, x);
        } else if (m.kind == BF16) {
            result = wide ? dot(wide, x, m.cols) : dot(halves(), x, m.cols);
        } else {
            result = dot(static_cast<const float*>(m.data) + row * m.cols, x, m.cols);
        }
        return m.bias ? result + m.bias[row] : result;
    }
};

// RMSNorm, or LayerNorm; y may be x.
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

// A head's query or key: norm, then rotation by its position, pairs D / 2 channels apart.
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

// Attention of the query heads that share key-value head `group`; this position's key and value are appended first.
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

// x (R, C): embeddings, overwritten. logits (R, V).
extern "C" void decode_step(const Decoder* decoder, const Row* row, int64_t rows, float* x, float* logits) {
    const Decoder& d = *decoder;
    const int64_t width = d.heads * d.head_dim, fused = width + 2 * d.kv_heads * d.head_dim;
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; r++) longest = row[r].length + 1 > longest ? row[r].length + 1 : longest;
    std::vector<float> qkv(rows * fused), y(rows * width), inner(rows * d.inner);

#pragma omp parallel num_threads(d.threads)
    {
        // Each thread norms every row for itself: cheaper than waiting for another to have done it.
        std::vector<float> normed(rows * d.hidden), score(longest), wide(2 * (d.hidden + width + d.inner));
        float* first = rows > 1 ? wide.data() : nullptr;
        float* second = rows > 1 ? wide.data() + d.hidden : nullptr;
        auto norm_rows = [&](const Norm& norm) {
            for (int64_t r = 0; r < rows; r++)
                normalize(d, norm, x + r * d.hidden, &normed[r * d.hidden], d.hidden);
        };
        for (int64_t index = 0; index < d.layers; index++) {
            const Layer& layer = d.layer[index];
            norm_rows(layer.attention_norm);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < fused; o++) {
                Line line(layer.qkv, o, first);
                for (int64_t r = 0; r < rows; r++) qkv[r * fused + o] = line.product(&normed[r * d.hidden]);
            }
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < rows * d.kv_heads; unit++) {
                int64_t r = unit / d.kv_heads, group = unit % d.kv_heads;
                auto run = d.cache_bf16 ? attend<BFloat16> : attend<float>;
                run(d, layer, row[r], index, group, &qkv[r * fused], &y[r * width], score.data());
            }
#pragma omp for schedule(static)
            for (int64_t o = 0; o < d.hidden; o++) {
                Line line(layer.out, o, first);
                for (int64_t r = 0; r < rows; r++) x[r * d.hidden + o] += line.product(&y[r * width]);
            }
            norm_rows(layer.mlp_norm);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < d.inner; o++) {
                Line gate(layer.up, o, first), up(layer.up, d.gated ? d.inner + o : o, d.gated ? second : nullptr);
                for (int64_t r = 0; r < rows; r++) {
                    const float* from = &normed[r * d.hidden];
                    float value = activate(d.activation, gate.product(from));
                    inner[r * d.inner + o] = d.gated ? value * up.product(from) : value;
                }
            }
#pragma omp for schedule(static)
            for (int64_t o = 0; o < d.hidden; o++) {
                Line line(layer.down, o, first);
                for (int64_t r = 0; r < rows; r++) x[r * d.hidden + o] += line.product(&inner[r * d.inner]);
            }
        }
        norm_rows(d.norm);
        for (float& value : normed) value *= d.logit_scale;
#pragma omp for schedule(static)
        for (int64_t o = 0; o < d.head.rows; o++) {
            Line line(d.head, o, first);
            for (int64_t r = 0; r < rows; r++) logits[r * d.head.rows + o] = line.product(&normed[r * d.hidden]);
        }
    }
}
