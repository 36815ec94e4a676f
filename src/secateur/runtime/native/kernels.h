// Products with packed sparse matrices (docs/format.md), one set of kernels per instruction set.
//
// Each set is a translation unit of its own, compiled for its instruction set and entered only when the
// processor has it. Nothing but this header is shared between them: an inline function that two of them
// instantiate would be linked once, and might be the one that the processor cannot run.
#pragma once

#include <cstdint>

namespace secateur {

constexpr std::int64_t kWord = 32;  // columns that one word of the mask stands for

// A packed matrix (O, I), in memory of the caller.
struct Matrix {
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t words;          // per row: I / 32, rounded up
    const std::uint8_t* mask;    // rows * words * 4 bytes, bit 0 first
    const void* values;          // bfloat16 or int8, row after row; 64 bytes past their end may be read
    const std::int64_t* starts;  // per row, the number of values before it
    // Of int8 values only: bfloat16, per row and group of columns.
    const std::uint16_t* scales;
    std::int64_t groups;
    std::int64_t group_words;  // words per group; the last group of a row may be shorter
};

// What is multiplied with it: T tokens, each padded with zeros to whole words.
struct Inputs {
    std::int64_t tokens;
    const void* values;   // (T, words * 32): with int8 weights int16, else bfloat16 or float32
    const float* scales;  // (T, groups): what the int16 are to be multiplied by
};

// Rows [begin, end) of one of these computations. Integer sums are exact, so every instruction set gives
// the same int8 products up to the order in which the groups of a row are added.
using Multiply = void (*)(const Matrix&, const Inputs&, float* out, std::int64_t begin, std::int64_t end);
using Expand = void (*)(const Matrix&, void* out, std::int64_t begin, std::int64_t end);

struct Kernels {
    const char* name;
    // out (T, O); of values by inputs
    Multiply bfloat16_by_bfloat16;
    Multiply bfloat16_by_float32;
    Multiply int8_by_int16;
    // out (end - begin, I), dense
    Expand bfloat16_to_bfloat16;
    Expand bfloat16_to_float32;
    Expand int8_to_bfloat16;
    Expand int8_to_float32;
};

extern const Kernels portable_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

}  // namespace secateur
