// AVX-512 with VBMI2 (which expands 8 and 16 bit lanes by a mask), VNNI and BF16: Sapphire Rapids, Zen 4 and later.

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "tiles.h"

namespace secateur {
namespace {

std::uint32_t mask_word(const std::uint8_t* mask) {
    std::uint32_t word;
    std::memcpy(&word, mask, sizeof word);
    return word;
}

float from_bfloat16(std::uint16_t bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits) << 16)));
}

// The next values where the mask has ones, zeros elsewhere; moves `value` on.
__m512i next_word(std::uint32_t mask, const std::uint16_t*& value) {
    const __m512i lanes = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(value));
    value += _mm_popcnt_u32(mask);
    return lanes;
}

__m256i next_word(std::uint32_t mask, const std::int8_t*& value) {
    const __m256i lanes =
        _mm256_maskz_expand_epi8(mask, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(value)));
    value += _mm_popcnt_u32(mask);
    return lanes;
}

// A bfloat16 is the upper half of a float.
__m512 widen(__m256i bfloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

// sum += weights * the 32 inputs at `place`.
void add_product(__m512& sum, __m512i weights, const std::uint16_t* place) {
    const __m512i inputs = _mm512_loadu_si512(place);
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(inputs));
}

void add_product(__m512& sum, __m512i weights, const float* place) {
    sum = _mm512_fmadd_ps(widen(_mm512_castsi512_si256(weights)), _mm512_loadu_ps(place), sum);
    sum = _mm512_fmadd_ps(widen(_mm512_extracti64x4_epi64(weights, 1)), _mm512_loadu_ps(place + 16), sum);
}

template <class Input, int Tokens>
void bfloat16_tile(const Matrix& a, const Inputs& x, std::int64_t row, std::int64_t token, float* out) {
    const auto* input = static_cast<const Input*>(x.values) + token * a.words * kWord;
    const std::uint8_t* mask = a.mask + row * a.words * 4;
    const auto* value = static_cast<const std::uint16_t*>(a.values) + a.starts[row];
    __m512 sum[Tokens];
    for (int t = 0; t < Tokens; ++t) sum[t] = _mm512_setzero_ps();
    for (std::int64_t word = 0; word < a.words; ++word) {
        fetch_values(value);
        const __m512i weights = next_word(mask_word(mask + 4 * word), value);
        for (int t = 0; t < Tokens; ++t) add_product(sum[t], weights, input + (t * a.words + word) * kWord);
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = _mm512_reduce_add_ps(sum[t]);
}

template <int Tokens>
void int8_tile(const Matrix& a, const Inputs& x, std::int64_t row, std::int64_t token, float* out) {
    const auto* input = static_cast<const std::int16_t*>(x.values) + token * a.words * kWord;
    const float* scales = x.scales + token * a.groups;
    const std::uint8_t* mask = a.mask + row * a.words * 4;
    const auto* value = static_cast<const std::int8_t*>(a.values) + a.starts[row];
    __m512 sum[Tokens];
    for (int t = 0; t < Tokens; ++t) sum[t] = _mm512_setzero_ps();
    for (std::int64_t group = 0, word = 0; group < a.groups; ++group) {
        fetch_values(value);
        fetch_mask(mask + 4 * word);
        const std::int64_t last = word + a.group_words < a.words ? word + a.group_words : a.words;
        __m512i part[Tokens];
        for (int t = 0; t < Tokens; ++t) part[t] = _mm512_setzero_si512();
        for (; word < last; ++word) {
            const __m512i weights = _mm512_cvtepi8_epi16(next_word(mask_word(mask + 4 * word), value));
            for (int t = 0; t < Tokens; ++t) {
                const __m512i inputs = _mm512_loadu_si512(input + (t * a.words + word) * kWord);
                part[t] = _mm512_dpwssd_epi32(part[t], weights, inputs);
            }
        }
        const float scale = from_bfloat16(a.scales[row * a.groups + group]);
        for (int t = 0; t < Tokens; ++t) {
            const __m512 both = _mm512_set1_ps(scale * scales[t * a.groups + group]);
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t]), both, sum[t]);
        }
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = _mm512_reduce_add_ps(sum[t]);
}

template <class Input>
void bfloat16_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end) {
    constexpr Tile tiles[] = {bfloat16_tile<Input, 1>, bfloat16_tile<Input, 2>, bfloat16_tile<Input, 3>,
                              bfloat16_tile<Input, 4>, bfloat16_tile<Input, 5>, bfloat16_tile<Input, 6>,
                              bfloat16_tile<Input, 7>, bfloat16_tile<Input, 8>};
    by_tiles(tiles, a, x, out, begin, end);
}

void int8_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end) {
    constexpr Tile tiles[] = {int8_tile<1>, int8_tile<2>, int8_tile<3>, int8_tile<4>,
                              int8_tile<5>, int8_tile<6>, int8_tile<7>, int8_tile<8>};
    by_tiles(tiles, a, x, out, begin, end);
}

// ---------------------------------------------------------------- dense rows

// The lanes of a word that are columns of the matrix: fewer than 32 in the last word of some widths.
std::uint32_t inside(const Matrix& a, std::int64_t word) {
    const std::int64_t left = a.columns - word * kWord;
    return left >= kWord ? 0xffffffff : (1u << left) - 1;
}

void store_floats(float* out, std::uint32_t lanes, __m512 first, __m512 second) {
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>(lanes), first);
    _mm512_mask_storeu_ps(out + 16, static_cast<__mmask16>(lanes >> 16), second);
}

// To nearest, ties to even. What is rounded here is never NaN: scales are checked to be finite.
__m256i round_to_bfloat16(__m512 floats) {
    const __m512i bits = _mm512_castps_si512(floats);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

// `store` takes where a word goes, its lanes that are inside, its values, and their scale if they have one.
template <class Value, class Out, class Store>
void expand(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, Store store) {
    for (std::int64_t row = begin; row < end; ++row) {
        const auto* value = static_cast<const Value*>(a.values) + a.starts[row];
        auto* dense = static_cast<Out*>(out) + (row - begin) * a.columns;
        for (std::int64_t word = 0; word < a.words; ++word) {
            const auto lanes = next_word(mask_word(a.mask + (row * a.words + word) * 4), value);
            const float scale = a.groups ? from_bfloat16(a.scales[row * a.groups + word / a.group_words]) : 1;
            store(dense + word * kWord, inside(a, word), lanes, scale);
        }
    }
}

void bfloat16_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::uint16_t, std::uint16_t>(a, out, begin, end,
                                         [](std::uint16_t* place, std::uint32_t lanes, __m512i values, float) {
                                             _mm512_mask_storeu_epi16(place, lanes, values);
                                         });
}

void bfloat16_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::uint16_t, float>(a, out, begin, end, [](float* place, std::uint32_t lanes, __m512i values, float) {
        store_floats(place, lanes, widen(_mm512_castsi512_si256(values)), widen(_mm512_extracti64x4_epi64(values, 1)));
    });
}

struct Floats {
    __m512 first, second;
};

Floats scaled(__m256i values, float scale) {
    const __m512i first = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(values));
    const __m512i second = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(values, 1));
    const __m512 by = _mm512_set1_ps(scale);
    return {_mm512_mul_ps(_mm512_cvtepi32_ps(first), by), _mm512_mul_ps(_mm512_cvtepi32_ps(second), by)};
}

void int8_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::int8_t, std::uint16_t>(
        a, out, begin, end, [](std::uint16_t* place, std::uint32_t lanes, __m256i values, float scale) {
            const Floats floats = scaled(values, scale);
            const __m512i first = _mm512_castsi256_si512(round_to_bfloat16(floats.first));
            const __m512i both = _mm512_inserti64x4(first, round_to_bfloat16(floats.second), 1);
            _mm512_mask_storeu_epi16(place, lanes, both);
        });
}

void int8_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end) {
    expand<std::int8_t, float>(a, out, begin, end,
                               [](float* place, std::uint32_t lanes, __m256i values, float scale) {
                                   const Floats floats = scaled(values, scale);
                                   store_floats(place, lanes, floats.first, floats.second);
                               });
}

}  // namespace

const Kernels avx512_kernels = {
    "AVX-512",
    bfloat16_multiply<std::uint16_t>,
    bfloat16_multiply<float>,
    int8_multiply,
    bfloat16_to_bfloat16,
    bfloat16_to_float32,
    int8_to_bfloat16,
    int8_to_float32,
};

}  // namespace secateur
