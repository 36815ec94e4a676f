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

// Codes that lie in the lower and the upper half of the lower byte of each pair, one in each byte.
__m256i codes_of(__m256i pairs) {
    const __m256i apart = _mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4));
    return _mm256_and_si256(apart, _mm256_set1_epi8(15));
}

// The next values where the mask has ones, zeros elsewhere; moves `value` on.
template <bool, bool>
__m512i next_word(std::uint32_t mask, const std::uint16_t*& value, std::int8_t) {
    const __m512i lanes = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(value));
    value += _mm_popcnt_u32(mask);
    return lanes;
}

// Codes of words without a mask are two in a byte. `shift` is added to any.
template <bool Masked, bool Shifted>
__m256i next_word(std::uint32_t mask, const std::int8_t*& value, std::int8_t shift) {
    __m256i lanes;
    if (Shifted && !Masked) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
        lanes = codes_of(_mm256_cvtepu8_epi16(packed));
        value += kWord / 2;
    } else {
        lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(value));
        value += Masked ? _mm_popcnt_u32(mask) : kWord;
    }
    if (Shifted) lanes = _mm256_add_epi8(lanes, _mm256_set1_epi8(shift));
    return Masked ? _mm256_maskz_expand_epi8(mask, lanes) : lanes;
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
void bfloat16_tile(const Matrix& a, const Inputs& x, const std::uint16_t* value, std::int64_t row, std::int64_t token,
                   float* out) {
    const auto* input = static_cast<const Input*>(x.values) + token * x.width;
    const std::uint8_t* mask = a.mask + row * a.words * 4;
    __m512 sum[Tokens];
    for (int t = 0; t < Tokens; ++t) sum[t] = _mm512_setzero_ps();
    for (std::int64_t word = 0; word < a.words; ++word) {
        fetch_values(value);
        const __m512i weights = next_word<true, false>(mask_word(mask + 4 * word), value, 0);
        for (int t = 0; t < Tokens; ++t) add_product(sum[t], weights, input + t * x.width + word * kWord);
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = _mm512_reduce_add_ps(sum[t]);
}

void unpack_codes(const std::int8_t* packed, std::int64_t bytes, std::int8_t* codes) {
    for (std::int64_t byte = 0; byte < bytes; byte += 32) {
        fetch_values(packed + byte);
        const __m512i pairs =
            _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + byte)));
        const __m512i apart = _mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 4));
        _mm512_storeu_si512(codes + 2 * byte, _mm512_and_si512(apart, _mm512_set1_epi8(15)));
    }
}

// The mask of a block, whose second word is there if more than one is left.
std::uint64_t mask_block(const std::uint8_t* mask, std::int64_t words) {
    if (words == 1) return mask_word(mask);
    std::uint64_t block;
    std::memcpy(&block, mask, sizeof block);
    return block;
}

// A block of weights as int16. Its even and odd columns are apart, because so bytes and their halves become int16 by
// shifts; conversions in order would wait for the unit that expands.
struct Block {
    __m512i even, odd;
};

template <bool Masked, bool Shifted>
Block next_block(std::uint64_t mask, const std::int8_t*& value, std::int8_t shift) {
    if (Shifted && !Masked) {
        const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(value)));
        value += kBlock / 2;
        const __m512i by = _mm512_set1_epi16(shift);
        return {_mm512_add_epi16(_mm512_and_si512(pairs, _mm512_set1_epi16(15)), by),
                _mm512_add_epi16(_mm512_srli_epi16(pairs, 4), by)};
    }
    __m512i lanes = _mm512_loadu_si512(value);
    if (Shifted) lanes = _mm512_add_epi8(lanes, _mm512_set1_epi8(shift));
    if (Masked) lanes = _mm512_maskz_expand_epi8(mask, lanes);
    value += Masked ? _mm_popcnt_u64(mask) : kBlock;
    return {_mm512_srai_epi16(_mm512_slli_epi16(lanes, 8), 8), _mm512_srai_epi16(lanes, 8)};
}

// A block at a time; what lies beyond a group meets inputs that are zero.
template <bool Masked, bool Shifted, int Tokens>
void integer_tile(const Matrix& a, const Inputs& x, const std::int8_t* value, std::int64_t row, std::int64_t token,
                  float* out) {
    const auto* input = static_cast<const std::int16_t*>(x.values) + token * x.width;
    const float* scales = x.scales + token * a.groups;
    const std::uint8_t* mask = Masked ? a.mask + row * a.words * 4 : nullptr;
    __m512 sum[Tokens];
    for (int t = 0; t < Tokens; ++t) sum[t] = _mm512_setzero_ps();
    for (std::int64_t group = 0, word = 0; group < a.groups; ++group) {
        if (!(Masked && Shifted)) fetch_values(value);
        if (Masked) fetch_mask(mask + 4 * word);
        const std::int64_t last = word + a.group_words < a.words ? word + a.group_words : a.words;
        const std::int8_t shift = Shifted ? shift_of(a, row * a.groups + group) : 0;
        __m512i part[Tokens];
        for (int t = 0; t < Tokens; ++t) part[t] = _mm512_setzero_si512();
        for (; word < last; word += 2, input += kBlock) {
            const std::uint64_t kept = Masked ? mask_block(mask + 4 * word, last - word) : 0;
            const Block weights = next_block<Masked, Shifted>(kept, value, shift);
            for (int t = 0; t < Tokens; ++t) {
                const std::int16_t* place = input + t * x.width;
                part[t] = _mm512_dpwssd_epi32(part[t], weights.even, _mm512_loadu_si512(place));
                part[t] = _mm512_dpwssd_epi32(part[t], weights.odd, _mm512_loadu_si512(place + kBlock / 2));
            }
        }
        if (!Masked) value -= (word - last) * kWord / (Shifted ? 2 : 1);
        word = last;
        const float scale = from_bfloat16(a.scales[row * a.groups + group]);
        for (int t = 0; t < Tokens; ++t) {
            const __m512 both = _mm512_set1_ps(scale * scales[t * a.groups + group]);
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[t]), both, sum[t]);
        }
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = _mm512_reduce_add_ps(sum[t]);
}

template <class Input>
void bfloat16_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t*) {
    constexpr Tile<std::uint16_t> tiles[] = {bfloat16_tile<Input, 1>, bfloat16_tile<Input, 2>, bfloat16_tile<Input, 3>,
                                             bfloat16_tile<Input, 4>, bfloat16_tile<Input, 5>, bfloat16_tile<Input, 6>,
                                             bfloat16_tile<Input, 7>, bfloat16_tile<Input, 8>};
    by_tiles<std::uint16_t>(tiles, a, x, out, begin, end, nullptr);
}

template <bool Masked, bool Shifted>
void multiply_integers(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t* room) {
    constexpr Tile<std::int8_t> tiles[] = {
        integer_tile<Masked, Shifted, 1>, integer_tile<Masked, Shifted, 2>, integer_tile<Masked, Shifted, 3>,
        integer_tile<Masked, Shifted, 4>, integer_tile<Masked, Shifted, 5>, integer_tile<Masked, Shifted, 6>,
        integer_tile<Masked, Shifted, 7>, integer_tile<Masked, Shifted, 8>};
    by_tiles(tiles, a, x, out, begin, end, room);
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
template <bool Masked, bool Shifted, class Value, class Out, class Store>
void expand(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, Value* room, Store store) {
    for (std::int64_t row = begin; row < end; ++row) {
        const Value* value = values_of(a, row, room);
        auto* dense = static_cast<Out*>(out) + (row - begin) * a.columns;
        for (std::int64_t word = 0; word < a.words; ++word) {
            const std::int64_t group = a.groups ? row * a.groups + word / a.group_words : 0;
            const std::uint32_t kept = Masked ? mask_word(a.mask + (row * a.words + word) * 4) : 0xffffffff;
            const auto lanes = next_word<Masked, Shifted>(kept, value, Shifted ? shift_of(a, group) : 0);
            store(dense + word * kWord, inside(a, word), lanes, a.groups ? from_bfloat16(a.scales[group]) : 1);
        }
    }
}

void bfloat16_to_bfloat16(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t*) {
    expand<true, false, std::uint16_t, std::uint16_t>(
        a, out, begin, end, nullptr, [](std::uint16_t* place, std::uint32_t lanes, __m512i values, float) {
            _mm512_mask_storeu_epi16(place, lanes, values);
        });
}

void bfloat16_to_float32(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t*) {
    expand<true, false, std::uint16_t, float>(
        a, out, begin, end, nullptr, [](float* place, std::uint32_t lanes, __m512i values, float) {
            const __m512 first = widen(_mm512_castsi512_si256(values));
            store_floats(place, lanes, first, widen(_mm512_extracti64x4_epi64(values, 1)));
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

void store_scaled(std::uint16_t* place, std::uint32_t lanes, __m256i values, float scale) {
    const Floats floats = scaled(values, scale);
    const __m512i first = _mm512_castsi256_si512(round_to_bfloat16(floats.first));
    _mm512_mask_storeu_epi16(place, lanes, _mm512_inserti64x4(first, round_to_bfloat16(floats.second), 1));
}

void store_scaled(float* place, std::uint32_t lanes, __m256i values, float scale) {
    const Floats floats = scaled(values, scale);
    store_floats(place, lanes, floats.first, floats.second);
}

template <bool Masked, bool Shifted, class Out>
void expand_integers(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t* room) {
    expand<Masked, Shifted, std::int8_t, Out>(
        a, out, begin, end, room, [](Out* place, std::uint32_t lanes, __m256i values, float scale) {
            store_scaled(place, lanes, values, scale);
        });
}

template <class Out>
void integers_expand(const Matrix& a, void* out, std::int64_t begin, std::int64_t end, std::int8_t* room) {
    constexpr Expand kinds[2][2] = {{expand_integers<false, false, Out>, expand_integers<false, true, Out>},
                                    {expand_integers<true, false, Out>, expand_integers<true, true, Out>}};
    kinds[a.mask != nullptr][a.bits == 4](a, out, begin, end, room);
}

}  // namespace

const Kernels avx512_kernels = {
    "AVX-512",
    bfloat16_multiply<std::uint16_t>,
    bfloat16_multiply<float>,
    integers_multiply,
    bfloat16_to_bfloat16,
    bfloat16_to_float32,
    integers_expand<std::uint16_t>,
    integers_expand<float>,
    true,
};

}  // namespace secateur
