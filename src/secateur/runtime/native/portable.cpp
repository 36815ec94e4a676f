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

// The columns of a word that are kept, bit 0 first.
std::uint32_t kept_in(const Matrix& a, std::int64_t row, std::int64_t word) {
    if (!a.mask) {
        const std::int64_t left = a.columns - word * kWord;
        return left >= kWord ? 0xffffffff : (1u << left) - 1;
    }
    const std::uint8_t* mask = a.mask + (row * a.words + word) * 4;
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

// The values of a row, and of integers what they are without their scales: `room` has those of codes.
const std::uint16_t* values_of(const Matrix& a, std::int64_t row, const std::uint16_t*) {
    return static_cast<const std::uint16_t*>(a.values) + a.starts[row];
}

const std::int8_t* values_of(const Matrix& a, std::int64_t row, std::int8_t* room) {
    const std::int64_t first = a.starts[row];
    if (a.bits == 8) return static_cast<const std::int8_t*>(a.values) + first;
    const auto* packed = static_cast<const std::uint8_t*>(a.values);
    std::int8_t* value = room;
    std::int64_t place = first;
    for (std::int64_t word = 0; word < a.words; ++word) {
        const std::int64_t group = row * a.groups + word / a.group_words;
        const int zero = a.zeros ? a.zeros[group] : 8;
        for (std::uint32_t left = kept_in(a, row, word); left; left &= left - 1, ++place) {
            *value++ = static_cast<std::int8_t>((packed[place / 2] >> 4 * (place & 1) & 15) - zero);
        }
    }
    return room;
}

// The sum over the kept columns of words [first, last) of value * input; moves `value` on.
template <class Sum, class Value, class Input>
Sum dot(const Matrix& a, std::int64_t row, const Value*& value, const Input* input, std::int64_t first,
        std::int64_t last) {
    Sum sum = 0;
    for (std::int64_t word = first; word < last; ++word) {
        for (std::uint32_t left = kept_in(a, row, word); left; left &= left - 1) {
            sum += widen(*value++) * widen(input[word * kWord + lowest_bit(left)]);
        }
    }
    return sum;
}

template <class Input>
void bfloat16_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t*) {
    for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t t = 0; t < x.tokens; ++t) {
            const std::uint16_t* value = values_of(a, row, static_cast<std::uint16_t*>(nullptr));
            const auto* input = static_cast<const Input*>(x.values) + t * x.width;
            out[t * a.rows + row] = dot<float>(a, row, value, input, 0, a.words);
        }
    }
}

void integers_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t* room) {
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int8_t* values = values_of(a, row, room);
        for (std::int64_t t = 0; t < x.tokens; ++t) {
            const std::int8_t* value = values;
            const auto* input = static_cast<const std::int16_t*>(x.values) + t * x.width;
            float sum = 0;
            for (std::int64_t group = 0; group < a.groups; ++group) {
                const std::int64_t first = group * a.group_words;
                const std::int64_t last = first + a.group_words < a.words ? first + a.group_words : a.words;
                const auto part = dot<std::int32_t>(a, row, value, input, first, last);
                const float scale = widen(a.scales[row * a.groups + group]) * x.scales[t * a.groups + group];
                sum += static_cast<float>(part) * scale;
            }
            out[t * a.rows + row] = sum;
        }
    }
}

// `convert` takes a value and the index of its group of columns in the whole matrix.
template <class Value, class Out, class Convert>
void expand(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, Value* room, Convert convert) {
    for (std::int64_t row = begin; row < end; ++row) {
        const Value* value = values_of(a, row, room);
        auto* dense = static_cast<Out*>(out) + (row - begin) * a.columns;
        std::memset(dense, 0, a.columns * sizeof(Out));
        for (std::int64_t word = 0; word < a.words; ++word) {
            const std::int64_t group = a.groups ? row * a.groups + word / a.group_words : 0;
            for (std::uint32_t left = kept_in(a, row, word); left; left &= left - 1) {
                dense[word * kWord + lowest_bit(left)] = convert(*value++, group);
            }
        }
    }
}

void bfloat16_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t*) {
    expand<std::uint16_t, std::uint16_t>(a, out, begin, end, nullptr, [](std::uint16_t v, std::int64_t) { return v; });
}

void bfloat16_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t*) {
    expand<std::uint16_t, float>(a, out, begin, end, nullptr, [](std::uint16_t v, std::int64_t) { return widen(v); });
}

void integers_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t* room) {
    expand<std::int8_t, std::uint16_t>(a, out, begin, end, room, [&a](std::int8_t v, std::int64_t group) {
        return to_bfloat16(v * widen(a.scales[group]));
    });
}

void integers_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t* room) {
    expand<std::int8_t, float>(a, out, begin, end, room, [&a](std::int8_t v, std::int64_t group) {
        return v * widen(a.scales[group]);
    });
}

}  // namespace

const Kernels portable_kernels = {
    "portable",
    bfloat16_multiply<std::uint16_t>,
    bfloat16_multiply<float>,
    integers_multiply,
    bfloat16_to_bfloat16,
    bfloat16_to_float32,
    integers_to_bfloat16,
    integers_to_float32,
    false,
};

}  // namespace secateur
