// One decoding step of a causal Transformer on a CPU: the next token of each of R texts, in one parallel region.
//
// At batch size 1 a step reads every weight once and multiplies it by one vector, so it takes at least weight bytes /
// memory bandwidth. Separate operators cannot come near that: each call costs microseconds, and a layer needs dozens.
// Weights are fp32, bf16, or int8 with one scale per group of a row. Sums, activations and the residual stream are
// fp32. No sum depends on R or on the number of threads: a text gets the same bits alone as in a batch.
//
// Shapes: R texts, C hidden_size, H heads, K key-value heads, D head_dim, I intermediate_size, V vocabulary, S cached
// positions.

#include <omp.h>

#include "products.h"

namespace {

void narrow(float value, float& to) { to = value; }
void narrow(float value, BFloat16& to) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest, ties to even. A NaN gets a mantissa bit, so that truncation cannot turn it into infinity.
    to.bits = std::isnan(value) ? (bits >> 16) | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace

extern "C" {

enum Activation : int64_t { RELU, GELU, GELU_TANH, SILU };

// A norm that does not exist has a null weight.
struct Norm {
    const float* weight;
    const float* bias;
};

// qkv (H D + 2 K D, C), gate and up (I, C). cosine and sine (positions, D) are null without rotary positions. window:
// how many keys are visible, 0 for all.
struct Layer {
    Norm attention_norm, mlp_norm, query_norm, key_norm;
    Matrix qkv, out, gate, up, down;
    const float* cosine;
    const float* sine;
    int64_t window;
};

struct Decoder {
    const Layer* layer;
    Norm norm;
    Matrix head;
    int64_t layers, hidden, heads, kv_heads, head_dim, inner, gated, activation, layer_norm, cache_bf16, threads;
    int64_t same_text;  // whether the rows are tokens that follow one another in one text
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

// The outputs begin <= o < end of a product of `rows` outputs that this thread computes.
struct Share {
    int64_t begin, end;
    explicit Share(int64_t rows) {
        int64_t blocks = (rows + BLOCK - 1) / BLOCK, threads = omp_get_num_threads(), mine = omp_get_thread_num();
        begin = std::min(rows, blocks * mine / threads * BLOCK);
        end = std::min(rows, blocks * (mine + 1) / threads * BLOCK);
    }
};

// RMSNorm or LayerNorm of x (size); y may be x.
void normalize(const Decoder& d, const Norm& norm, const float* x, float* y, int64_t size) {
    float mean = 0, square = 0;
    if (d.layer_norm) {
        for (int64_t i = 0; i < size; i++) mean += x[i];
        mean /= size;
        for (int64_t i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
    } else {
        Floats squares = {};
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
        square = sum(squares);
        for (; i < size; i++) square += x[i] * x[i];
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

Floats activate(int64_t kind, Floats x) {
    switch (kind) {
        case RELU: return x > 0 ? x : 0 * x;
        case GELU:
            for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f));
            return x;
        // (1 + tanh(z)) / 2 = logistic(2 z)
        case GELU_TANH: return x * logistic(1.59576912f * (x + 0.044715f * x * x * x));
        default: return x * logistic(x);
    }
}

// y = activation of `gate`, times `up` if it is not null; count numbers each. y may be an input.
void activate(int64_t kind, const float* gate, const float* up, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        Floats value = activate(kind, load_some(gate + i, count - i));
        store_some(up ? value * load_some(up + i, count - i) : value, y + i, count - i);
    }
}

// In place: e to the power of `scale` * score, divided by that of the largest. Returns the sum. The last vector's
// remaining numbers become 0.
float exponentials(float* score, int64_t count, float scale) {
    for (int64_t s = count; s % LANES; s++) score[s] = -INFINITY;
    Floats best = Floats{} - INFINITY, total = {};
    for (int64_t s = 0; s < count; s += LANES) best = larger(load(score + s), best);
    float most = largest(best);
    for (int64_t s = 0; s < count; s += LANES) {
        Floats power = exponential((load(score + s) - most) * scale);
        store(power, score + s);
        total += power;
    }
    return sum(total);
}

// y (B, size): row b is the sum over s of weight[b * stride + s] times row s of value (count, size), over total[b].
// Takes N vectors of the rows from number i on at once.
template <int N, int B, class T>
void average(const T* value, const float* weight, int64_t stride, const float* total, int64_t count, int64_t size,
             int64_t i, float* y) {
    for (; i + N * LANES <= size; i += N * LANES) {
        Floats sums[B][N] = {};
        for (int64_t s = 0; s < count; s++)
            for (int n = 0; n < N; n++) {
                Floats wide = load(value + s * size + i + n * LANES);
                for (int b = 0; b < B; b++) sums[b][n] += wide * weight[b * stride + s];
            }
        for (int b = 0; b < B; b++)
            for (int n = 0; n < N; n++) store(sums[b][n] / total[b], y + b * size + i + n * LANES);
    }
    if constexpr (N > 1) return average<1, B>(value, weight, stride, total, count, size, i, y);
    for (; i < size; i++)
        for (int b = 0; b < B; b++) {
            float one = 0;
            for (int64_t s = 0; s < count; s++) one += weight[b * stride + s] * widen(value[s * size + i]);
            y[b * size + i] = one / total[b];
        }
}

// Append this position's key and value, then compute attention for the query heads that share key-value head `group`.
// score (heads that share, positions rounded up to vectors) and room (heads that share, D) are scratch.
template <class T>
void attend(const Decoder& d, const Layer& layer, const Row& row, int64_t index, int64_t group, float* qkv, float* y,
            float* score, float* room) {
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
    int64_t begin = layer.window && end > layer.window ? end - layer.window : 0, count = end - begin;
    int64_t stride = (count + LANES - 1) / LANES * LANES;
    float *queries = qkv + group * shared * size, *results = y + group * shared * size;
    for (int64_t head = 0; head < shared; head++) place(d, layer, layer.query_norm, queries + head * size, row.length);
    const float* vectors = ordered<T>(queries, shared, size, room);
    multiply_rows(keys + begin * size, vectors, size, shared, 0, count, score, stride);
    in_passes(shared, [&](int64_t head, int64_t heads, int64_t) {
        float total[TEXTS];
        for (int64_t i = 0; i < heads; i++)
            total[i] = exponentials(score + (head + i) * stride, count, d.attention_scale);
        with_count(heads, [&](auto b) {
            average<ROWS, b>(values + begin * size, score + head * stride, stride, total, count, size, 0,
                             results + head * size);
        });
    });
}

}  // namespace

// x (R, C) holds the embeddings and is overwritten. logits (R, V).
extern "C" void decode_step(const Decoder* decoder, const Row* row, int64_t rows, float* x, float* logits) {
    const Decoder& d = *decoder;
    const int64_t width = d.heads * d.head_dim, fused = width + 2 * d.kv_heads * d.head_dim;
    const int64_t shared = d.heads / d.kv_heads, widest = std::max({width, d.inner, d.hidden});
    int64_t longest = 0;
    for (int64_t r = 0; r < rows; r++) longest = std::max(longest, row[r].length + 1);
    Buffer qkv(rows * fused), y(rows * width), inner(rows * d.inner), gate(d.gated ? rows * d.inner : 0);
    Buffer change(rows * d.hidden);
    // A row reads the keys of the rows before it in the same text, so one thread computes them in this order.
    const int64_t chunk = d.same_text ? rows : (rows * d.kv_heads + d.threads - 1) / d.threads;

#pragma omp parallel num_threads(d.threads)
    {
        // Every thread normalizes all rows itself: cheaper than waiting at another barrier.
        Buffer normed(rows * d.hidden), score(shared * (longest + LANES)), queries(shared * d.head_dim);
        Operand room(rows * widest);
        auto norm_rows = [&](const Norm& norm) {
            for (int64_t r = 0; r < rows; r++)
                normalize(d, norm, x + r * d.hidden, &normed[r * d.hidden], d.hidden);
        };
        auto add_product_to_x = [&](const Matrix& m, const float* of) {
            Share mine(m.rows);
            multiply(m, of, rows, mine.begin, mine.end, change.data, room);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t o = mine.begin; o < mine.end; o++) x[r * d.hidden + o] += change[r * d.hidden + o];
#pragma omp barrier
        };
        for (int64_t index = 0; index < d.layers; index++) {
            const Layer& layer = d.layer[index];
            norm_rows(layer.attention_norm);
            Share mine(fused);
            multiply(layer.qkv, normed.data, rows, mine.begin, mine.end, qkv.data, room);
#pragma omp barrier
#pragma omp for schedule(static, chunk)
            for (int64_t unit = 0; unit < rows * d.kv_heads; unit++) {
                int64_t group = unit / rows, r = unit % rows;
                auto run = d.cache_bf16 ? attend<BFloat16> : attend<float>;
                run(d, layer, row[r], index, group, &qkv[r * fused], &y[r * width], score.data, queries.data);
            }
            add_product_to_x(layer.out, y.data);
            norm_rows(layer.mlp_norm);
            mine = Share(d.inner);
            multiply(layer.up, normed.data, rows, mine.begin, mine.end, inner.data, room);
            if (d.gated) multiply(layer.gate, normed.data, rows, mine.begin, mine.end, gate.data, room);
            for (int64_t r = 0; r < rows; r++) {
                float* up = &inner[r * d.inner + mine.begin];
                const float* open = d.gated ? &gate[r * d.inner + mine.begin] : up;
                activate(d.activation, open, d.gated ? up : nullptr, up, mine.end - mine.begin);
            }
#pragma omp barrier
            add_product_to_x(layer.down, inner.data);
        }
        norm_rows(d.norm);
        for (int64_t i = 0; i < rows * d.hidden; i++) normed[i] *= d.logit_scale;
        Share mine(d.head.rows);
        multiply(d.head, normed.data, rows, mine.begin, mine.end, logits, room);
    }
}
