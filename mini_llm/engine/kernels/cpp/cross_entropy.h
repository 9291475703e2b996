// Cross-entropy of logits, whether the label has the largest logit, and the gradient softmax - onehot. Each row is
// finished while it is in the cache.
//
// Shapes: N rows, V vocabulary.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

template <class Number>
void cross_entropy_rows(int64_t rows, int64_t size, const Number* logits, const int64_t* labels, float* losses,
                        bool* hits, Number* gradient, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> weights(size + LANES);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            const Number* x = logits + n * size;
            Number* y = gradient + n * size;
            if (labels[n] < 0) {
                losses[n] = 0;
                hits[n] = false;
                if (gradient) std::memset(y, 0, size * sizeof(Number));
                continue;
            }
            const int64_t first = labels[n] / LANES * LANES;
            const float right = load_some(x + first, size - first)[labels[n] - first];
            Floats most = load_some(x, size), sums = {};
            for (int64_t i = LANES; i < size; i += LANES) most = larger(most, load_some(x + i, size - i));
            float shift = largest(most);
            // The first of several equal logits is the prediction, as in torch.argmax.
            hits[n] = right == shift;
            for (int64_t i = 0; hits[n] && i < labels[n]; i++) hits[n] = widen(x[i]) != shift;
            for (int64_t i = 0; i < size; i += LANES) {
                Floats weight = exponential(load_some(x + i, size - i) - shift);
                sums += weight;
                if (gradient) store(weight, &weights[i]);
            }
            float total = sum(sums), scale = 1 / total;
            losses[n] = shift + std::log(total) - right;
            if (!gradient) continue;
            for (int64_t i = 0; i < size; i += LANES) store_some(load(&weights[i]) * scale, y + i, size - i);
            // Subtract before rounding to bf16: a probability near 1 would lose the digits of its difference from 1.
            weights[labels[n]] -= total;
            store_some(load(&weights[first]) * scale, y + first, size - first);
        }
    }
}

}  // namespace

// logits (N, V); labels (N), negative for rows that do not count; losses (N) in nats; hits (N), true where the label
// has the largest logit. gradient (N, V) is null if not wanted, and may be the logits themselves.
extern "C" void cross_entropy(int64_t rows, int64_t size, const void* logits, const int64_t* labels, float* losses,
                              bool* hits, void* gradient, int64_t bf16, int64_t threads) {
    in_type(bf16, [&](auto number) {
        using Number = decltype(number);
        cross_entropy_rows(rows, size, static_cast<const Number*>(logits), labels, losses, hits,
                           static_cast<Number*>(gradient), threads);
    });
}
