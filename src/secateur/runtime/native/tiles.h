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

// The values of a row: floats and int8 where they lie, and codes of 4 bits too where no mask has to move them; else
// codes one after another in `room`, so that masks move bytes alone.
const std::uint16_t* values_of(const Matrix& a, std::int64_t row, const std::uint16_t*) {
    return static_cast<const std::uint16_t*>(a.values) + a.starts[row];
}

void unpack_codes(const std::int8_t* packed, std::int64_t bytes, std::int8_t* codes);  // up to 64 more are written

const std::int8_t* values_of(const Matrix& a, std::int64_t row, std::int8_t* room) {
    const auto* values = static_cast<const std::int8_t*>(a.values);
    const std::int64_t first = a.starts[row];
    if (a.bits == 8) return values + first;
    if (!a.mask) return values + first / 2;
    const std::int64_t odd = first & 1;
    unpack_codes(values + first / 2, (a.starts[row + 1] - first + odd + 1) / 2, room);
    return room + odd;
}

// What is added to the codes of a group: less the code of zero.
std::int8_t shift_of(const Matrix& a, std::int64_t group) {
    return static_cast<std::int8_t>(a.zeros ? -a.zeros[group] : -8);
}

// One row, whose values these are, times some tokens, from `token` on: they share the expansion of the weights.
template <class Value>
using Tile = void (*)(const Matrix&, const Inputs&, const Value* value, std::int64_t row, std::int64_t token,
                      float* out);

// tiles[n - 1] takes n tokens. Row by row, because the values then come from memory in one long stream.
template <class Value, int Most>
void by_tiles(const Tile<Value> (&tiles)[Most], const Matrix& a, const Inputs& x, float* out, std::int64_t begin,
              std::int64_t end, Value* room) {
    for (std::int64_t row = begin; row < end; ++row) {
        const Value* value = values_of(a, row, room);
        for (std::int64_t token = 0; token < x.tokens; token += Most) {
            const std::int64_t left = x.tokens - token;
            tiles[(left < Most ? left : Most) - 1](a, x, value, row, token, out);
        }
    }
}

// The kinds of integer weights: whether some are left out, and whether their values are codes that have to be shifted.
template <bool Masked, bool Shifted>
void multiply_integers(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t* room);

void integers_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t* room) {
    constexpr Multiply kinds[2][2] = {{multiply_integers<false, false>, multiply_integers<false, true>},
                                      {multiply_integers<true, false>, multiply_integers<true, true>}};
    kinds[a.mask != nullptr][a.bits == 4](a, x, out, begin, end, room);
}

}  // namespace
}  // namespace secateur
