// Plain C++, for any processor.

#include <cstring>

#include "kernels.h"

namespace secateur {
namespace {

float widen(float value) { return value; }
float widen(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// To nearest, ties to even. What is rounded here is never NaN: scales are checked to be finite.
std::uint16_t to_bfloat16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::uint32_t mask_word(const std::uint8_t* mask) {
    return mask[0] | mask[1] << 8 | mask[2] << 16 | static_cast<std::uint32_t>(mask[3]) << 24;
}

int lowest_bit(std::uint32_t word) {
#if defined(__GNUC__)
    return __builtin_ctz(word);
#else
    int bit = 0;
    while (!(word >> bit & 1)) ++bit;
    return bit;
#endif
}

std::int32_t widen(std::int8_t value) { return value; }
std::int32_t widen(std::int16_t value) { return value; }

// The sum over the kept columns of words [first, last) of value * input; moves `value` on.
template <class Sum, class Value, class Input>
Sum dot(const std::uint8_t* mask, const Value*& value, const Input* input, std::int64_t first, std::int64_t last) {
    Sum sum = 0;
    for (std::int64_t word = first; word < last; ++word) {
        for (std::uint32_t left = mask_word(mask + 4 * word); left; left &= left - 1) {
            sum += widen(*value++) * widen(input[word * kWord + lowest_bit(left)]);
        }
    }
    return sum;
}

template <class Input>
void bfloat16_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t t = 0; t < x.tokens; ++t) {
            const auto* value = static_cast<const std::uint16_t*>(a.values) + a.starts[row];
            const auto* input = static_cast<const Input*>(x.values) + t * a.words * kWord;
            out[t * a.rows + row] = dot<float>(a.mask + row * a.words * 4, value, input, 0, a.words);
        }
    }
}

void int8_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t t = 0; t < x.tokens; ++t) {
            const auto* value = static_cast<const std::int8_t*>(a.values) + a.starts[row];
            const auto* input = static_cast<const std::int16_t*>(x.values) + t * a.words * kWord;
            float sum = 0;
            for (std::int64_t group = 0; group < a.groups; ++group) {
                const std::int64_t first = group * a.group_words;
                const std::int64_t last = first + a.group_words < a.words ? first + a.group_words : a.words;
                const auto part = dot<std::int32_t>(a.mask + row * a.words * 4, value, input, first, last);
                const float scale = widen(a.scales[row * a.groups + group]) * x.scales[t * a.groups + group];
                sum += static_cast<float>(part) * scale;
            }
            out[t * a.rows + row] = sum;
        }
    }
}

// `convert` takes a value and the index of its group of columns in the whole matrix.
template <class Value, class Out, class Convert>
void expand(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, Convert convert) {
    for (std::int64_t row = begin; row < end; ++row) {
        const auto* value = static_cast<const Value*>(a.values) + a.starts[row];
        auto* dense = static_cast<Out*>(out) + (row - begin) * a.columns;
        std::memset(dense, 0, a.columns * sizeof(Out));
        for (std::int64_t word = 0; word < a.words; ++word) {
            const std::int64_t group = a.groups ? row * a.groups + word / a.group_words : 0;
            for (std::uint32_t left = mask_word(a.mask + (row * a.words + word) * 4); left; left &= left - 1) {
                dense[word * kWord + lowest_bit(left)] = convert(*value++, group);
            }
        }
    }
}

void bfloat16_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::uint16_t, std::uint16_t>(a, out, begin, end, [](std::uint16_t v, std::int64_t) { return v; });
}

void bfloat16_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::uint16_t, float>(a, out, begin, end, [](std::uint16_t v, std::int64_t) { return widen(v); });
}

void int8_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::int8_t, std::uint16_t>(a, out, begin, end, [&a](std::int8_t v, std::int64_t group) {
        return to_bfloat16(v * widen(a.scales[group]));
    });
}

void int8_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::int8_t, float>(a, out, begin, end, [&a](std::int8_t v, std::int64_t group) {
        return v * widen(a.scales[group]);
    });
}

}  // namespace

const Kernels portable_kernels = {
    "portable",
    bfloat16_multiply<std::uint16_t>,
    bfloat16_multiply<float>,
    int8_multiply,
    bfloat16_to_bfloat16,
    bfloat16_to_float32,
    int8_to_bfloat16,
    int8_to_float32,
};

}  // namespace secateur
