// Gated activation, and RMSNorm that casts to the type of the matrix products after it. Forward and backward take one
// pass over memory each.
//
// Shapes: N rows, C channels.

#pragma once

#include "vectors.h"

namespace {

template <class Number>
void gate_forward(int64_t count, const Number* gate, const Number* up, Number* result, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        Floats g = load_some(gate + i, count - i), u = load_some(up + i, count - i);
        store_some(g * logistic(g) * u, result + i, count - i);
    }
}

template <class Number>
void gate_backward(int64_t count, const Number* gate, const Number* up, Number* gradient, Number* for_gate,
                   Number* for_up, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        Floats g = load_some(gate + i, count - i), u = load_some(up + i, count - i);
        Floats d = load_some(gradient + i, count - i), open = logistic(g);
        store_some(d * u * open * (1 + g * (1 - open)), for_gate + i, count - i);
        store_some(d * g * open, for_up + i, count - i);
        store_some(g * open * u, gradient + i, count - i);
    }
}

// size = C is a multiple of LANES. root (N) receives the reciprocal root mean square of each row.
template <class Number>
void norm_forward(int64_t rows, int64_t size, const float* x, const float* weight, float eps, Number* result,
                  float* root, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const float* from = x + n * size;
        Floats squares = {};
        for (int64_t i = 0; i < size; i += LANES) squares += load(from + i) * load(from + i);
        root[n] = 1 / std::sqrt(sum(squares) / size + eps);
        for (int64_t i = 0; i < size; i += LANES)
            store(load(from + i) * root[n] * load(weight + i), result + n * size + i);
    }
}

// Zhang and Sennrich 2019, section 4. for_weight (parts, C) starts as zeros and receives one sum per `share` rows, so
// that the result does not depend on the number of threads.
template <class Number>
void norm_backward(int64_t rows, int64_t share, int64_t size, const float* x, const float* weight, const float* root,
                   const Number* gradient, float* for_x, float* for_weight, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < (rows + share - 1) / share; part++)
        for (int64_t n = part * share; n < std::min(rows, (part + 1) * share); n++) {
            const float* from = x + n * size;
            const Number* g = gradient + n * size;
            float* sums = for_weight + part * size;
            Floats together = {};
            for (int64_t i = 0; i < size; i += LANES) {
                Floats normed = load(from + i) * root[n], one = load(g + i);
                store(load(sums + i) + one * normed, sums + i);
                together += one * load(weight + i) * normed;
            }
            float mean = sum(together) / size;
            for (int64_t i = 0; i < size; i += LANES) {
                Floats normed = load(from + i) * root[n];
                store((load(g + i) * load(weight + i) - normed * mean) * root[n], for_x + n * size + i);
            }
        }
}

}  // namespace

// result = silu(gate) * up, elementwise.
extern "C" void gate(int64_t count, const void* gate, const void* up, void* result, int64_t bf16, int64_t threads) {
    in_type(bf16, [&](auto number) {
        using Number = decltype(number);
        gate_forward(count, static_cast<const Number*>(gate), static_cast<const Number*>(up),
                     static_cast<Number*>(result), threads);
    });
}

// `gradient` is that of silu(gate) * up, which overwrites it: the weight's gradient needs the product again.
extern "C" void gate_gradients(int64_t count, const void* gate, const void* up, void* gradient, void* for_gate,
                               void* for_up, int64_t bf16, int64_t threads) {
    in_type(bf16, [&](auto number) {
        using Number = decltype(number);
        gate_backward(count, static_cast<const Number*>(gate), static_cast<const Number*>(up),
                      static_cast<Number*>(gradient), static_cast<Number*>(for_gate), static_cast<Number*>(for_up),
                      threads);
    });
}

// RMSNorm of fp32 x (N, C). `bf16` says the type of the result and of its gradient.
extern "C" void norm(int64_t rows, int64_t size, const float* x, const float* weight, float eps, void* result,
                     float* root, int64_t bf16, int64_t threads) {
    in_type(bf16, [&](auto number) {
        using Number = decltype(number);
        norm_forward(rows, size, x, weight, eps, static_cast<Number*>(result), root, threads);
    });
}

extern "C" void norm_gradients(int64_t rows, int64_t share, int64_t size, const float* x, const float* weight,
                               const float* root, const void* gradient, float* for_x, float* for_weight, int64_t bf16,
                               int64_t threads) {
    in_type(bf16, [&](auto number) {
        using Number = decltype(number);
        norm_backward(rows, share, size, x, weight, root, static_cast<const Number*>(gradient), for_x, for_weight,
                      threads);
    });
}
