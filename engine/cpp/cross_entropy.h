// Cross-entropy of logits and its gradient, softmax - onehot, row by row: both of a row while it is in the cache.
//
// Shapes: N rows, V vocabulary.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

// The numbers from `from` on; those beyond `count` are -inf.
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

template <class Number>
void cross_entropy_rows(int64_t rows, int64_t size, const Number* logits, const int64_t* labels, float* losses,
                        Number* gradient, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> weights(size + LANES);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            const Number* x = logits + n * size;
            Number* y = gradient + n * size;
            if (labels[n] < 0) {
                losses[n] = 0;
                std::memset(y, 0, size * sizeof(Number));
                continue;
            }
            Floats most = load_some(x, size), sums = {};
            for (int64_t i = LANES; i < size; i += LANES) most = larger(most, load_some(x + i, size - i));
            float shift = largest(most);
            for (int64_t i = 0; i < size; i += LANES) {
                Floats weight = exponential(load_some(x + i, size - i) - shift);
                sums += weight;
                store(weight, &weights[i]);
            }
            float total = sum(sums), scale = 1 / total;
            for (int64_t i = 0; i < size; i += LANES) store_some(load(&weights[i]) * scale, y + i, size - i);
            // Rounded to bf16 first, the difference from 1 of a probability near 1 would lose its digits.
            int64_t first = labels[n] / LANES * LANES;
            weights[labels[n]] -= total;
            store_some(load(&weights[first]) * scale, y + first, size - first);
            Floats right = load_some(x + first, size - first);
            losses[n] = shift + std::log(total) - right[labels[n] - first];
        }
    }
}

}  // namespace

// logits, gradient (N, V), labels (N), negative where a row counts nothing; losses (N) in nats.
extern "C" void cross_entropy(int64_t rows, int64_t size, const void* logits, const int64_t* labels, float* losses,
                              void* gradient, int64_t bf16, int64_t threads) {
    auto run = [&](auto number) {
        using Number = decltype(number);
        cross_entropy_rows(rows, size, static_cast<const Number*>(logits), labels, losses,
                           static_cast<Number*>(gradient), threads);
    };
    bf16 ? run(BFloat16{}) : run(float{});
}
