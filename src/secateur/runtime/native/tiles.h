// How kernels go through rows and tokens. Each instruction set includes this for itself, in a namespace of its own.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace secateur {
namespace {

// Where a wide row's inputs fill most of the first level of the cache, the processor's own prefetching falls behind
// (4096 x 11008, one core of a Zen 4: 1.4 times the time for int8, 1.2 for bfloat16).
void fetch_values(const void* value) { _mm_prefetch(static_cast<const char*>(value) + 2048, _MM_HINT_T0); }
void fetch_mask(const void* mask) { _mm_prefetch(static_cast<const char*>(mask) + 512, _MM_HINT_T0); }

// One row times some tokens, from `token` on: they share the expansion of the weights.
using Tile = void (*)(const Matrix&, const Inputs&, std::int64_t row, std::int64_t token, float* out);

// tiles[n - 1] takes n tokens. Row by row, because the values then come from memory in one long stream.
template <int Most>
void by_tiles(const Tile (&tiles)[Most], const Matrix& a, const Inputs& x, float* out, std::int64_t begin,
              std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t token = 0; token < x.tokens; token += Most) {
            const std::int64_t left = x.tokens - token;
            tiles[(left < Most ? left : Most) - 1](a, x, row, token, out);
        }
    }
}

}  // namespace
}  // namespace secateur
