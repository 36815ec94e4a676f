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
    const std::uint8_t* mask;    // rows * words * 4 bytes, bit 0 first; null where every weight is kept
    const void* values;          // row after row; 64 bytes past their end may be read
    const std::int64_t* starts;  // per row and one more, the number of values before it
    // Of a value: 16 (bfloat16), 8 (int8), or 4 (codes, the first in the lower half of a byte; rows without a mask
    // begin with a byte).
    int bits;
    // Of integers only, per row and group of columns: bfloat16; and of codes those of zero, or null where all are 8.
    const std::uint16_t* scales;
    const std::uint8_t* zeros;
    std::int64_t groups;
    std::int64_t group_words;  // words per group; the last group of a row may be shorter
};

// What is multiplied with it: T tokens, each padded with zeros to whole words.
struct Inputs {
    std::int64_t tokens;
    std::int64_t width;   // from one token to the next
    const void* values;   // (T, width): bfloat16 or float32; with integer weights int16
    const float* scales;  // (T, groups): what the int16 are to be multiplied by
};

// Where even and odd columns lie apart, groups of inputs consist of blocks of so many columns, the last one padded with
// zeros: first the even ones of a block, then the odd ones.
constexpr std::int64_t kBlock = 64;

// Rows [begin, end) of one of these computations. `room` is for the codes of one row, a byte each, and kRoomPadding
// more. Integer sums are exact, so every instruction set gives the same products of integers up to the order in which
// the groups of a row are added.
constexpr std::int64_t kRoomPadding = 256;
using Multiply = void (*)(const Matrix&, const Inputs&, float* out, std::int64_t begin, std::int64_t end,
                          std::int8_t* room);
using Expand = void (*)(const Matrix&, void* out, std::int64_t begin, std::int64_t end, std::int8_t* room);

struct Kernels {
    const char* name;
    // out (T, O); of values by inputs
    Multiply bfloat16_by_bfloat16;
    Multiply bfloat16_by_float32;
    Multiply integers_by_int16;
    // out (end - begin, I), dense
    Expand bfloat16_to_bfloat16;
    Expand bfloat16_to_float32;
    Expand integers_to_bfloat16;
    Expand integers_to_float32;
    bool apart;  // whether even and odd columns of int16 are to lie apart
};

extern const Kernels portable_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

}  // namespace secateur
