// AVX2 with FMA: any x86-64 of the last ten years. Eight columns at a time are put in their places by a
// byte shuffle that a table gives for each byte of the mask.

#include <immintrin.h>

#include "kernels.h"
#include "tiles.h"

namespace secateur {
namespace {

// For every byte of a mask, the shuffle that moves its first values, of `Size` bytes each, to where it has ones.
template <int Size>
struct Shuffles {
    alignas(16) std::uint8_t bytes[256][8 * Size];

    constexpr Shuffles() : bytes() {
        for (int mask = 0; mask < 256; ++mask) {
            int taken = 0;
            for (int lane = 0; lane < 8; ++lane) {
                const bool kept = mask >> lane & 1;
                for (int byte = 0; byte < Size; ++byte) {
                    bytes[mask][lane * Size + byte] = kept ? taken * Size + byte : 0x80;
                }
                taken += kept;
            }
        }
    }
};

constexpr Shuffles<2> kShuffle16;
constexpr Shuffles<1> kShuffle8;

float from_bfloat16(std::uint16_t bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits) << 16)));
}

// A bfloat16 is the upper half of a float.
__m256 widen(__m128i bfloat16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat16), 16)); }

__m256 load_eight(const float* place) { return _mm256_loadu_ps(place); }
__m256 load_eight(const std::uint16_t* place) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)));
}

// The next values where a byte of the mask has ones, zeros elsewhere; moves `value` on.
__m256 next_eight(std::uint8_t mask, const std::uint16_t*& value) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
    const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffle16.bytes[mask]));
    value += _mm_popcnt_u32(mask);
    return widen(_mm_shuffle_epi8(packed, shuffle));
}

__m128i next_eight(std::uint8_t mask, const std::int8_t*& value, __m128i shift) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(value));
    const __m128i shuffle = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kShuffle8.bytes[mask]));
    value += _mm_popcnt_u32(mask);
    return _mm_shuffle_epi8(_mm_add_epi8(packed, shift), shuffle);
}

// Codes that lie in the lower and the upper half of the lower byte of each pair, one in each byte.
__m256i codes_of(__m256i pairs) {
    const __m256i apart = _mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4));
    return _mm256_and_si256(apart, _mm256_set1_epi8(15));
}

// Sixteen columns of integers, `shift` added to those that are kept. Codes without a mask are two in a byte.
template <bool Masked, bool Shifted>
__m256i next_sixteen(const std::uint8_t* mask, const std::int8_t*& value, __m128i shift) {
    __m128i lanes;
    if (Masked) {
        const __m128i first = next_eight(mask[0], value, shift);
        lanes = _mm_unpacklo_epi64(first, next_eight(mask[1], value, shift));
    } else if (Shifted) {
        const __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(value)));
        lanes = _mm_add_epi8(_mm256_castsi256_si128(codes_of(_mm256_castsi128_si256(pairs))), shift);
        value += 8;
    } else {
        lanes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
        value += 16;
    }
    return _mm256_cvtepi8_epi16(lanes);
}

void unpack_codes(const std::int8_t* packed, std::int64_t bytes, std::int8_t* codes) {
    for (std::int64_t byte = 0; byte < bytes; byte += 16) {
        fetch_values(packed + byte);
        const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + byte)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 2 * byte), codes_of(pairs));
    }
}

float sum_of(__m256 lanes) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

template <class Input, int Tokens>
void bfloat16_tile(const Matrix& a, const Inputs& x, const std::uint16_t* value, std::int64_t row, std::int64_t token,
                   float* out) {
    const auto* input = static_cast<const Input*>(x.values) + token * x.width;
    const std::uint8_t* mask = a.mask + row * a.words * 4;
    const std::int64_t bytes = a.words * 4;
    __m256 even[Tokens], odd[Tokens];
    for (int t = 0; t < Tokens; ++t) even[t] = odd[t] = _mm256_setzero_ps();
    for (std::int64_t byte = 0; byte < bytes; byte += 2) {
        fetch_values(value);
        const __m256 first = next_eight(mask[byte], value), second = next_eight(mask[byte + 1], value);
        for (int t = 0; t < Tokens; ++t) {
            const Input* place = input + t * x.width + byte * 8;
            even[t] = _mm256_fmadd_ps(first, load_eight(place), even[t]);
            odd[t] = _mm256_fmadd_ps(second, load_eight(place + 8), odd[t]);
        }
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = sum_of(_mm256_add_ps(even[t], odd[t]));
}

template <bool Masked, bool Shifted, int Tokens>
void integer_tile(const Matrix& a, const Inputs& x, const std::int8_t* value, std::int64_t row, std::int64_t token,
                  float* out) {
    const auto* input = static_cast<const std::int16_t*>(x.values) + token * x.width;
    const float* scales = x.scales + token * a.groups;
    const std::uint8_t* mask = Masked ? a.mask + row * a.words * 4 : nullptr;
    const std::int64_t bytes = a.words * 4;
    __m256 sum[Tokens];
    for (int t = 0; t < Tokens; ++t) sum[t] = _mm256_setzero_ps();
    for (std::int64_t group = 0, byte = 0; group < a.groups; ++group) {
        if (!(Masked && Shifted)) fetch_values(value);
        if (Masked) fetch_mask(mask + byte);
        const std::int64_t last = byte + a.group_words * 4 < bytes ? byte + a.group_words * 4 : bytes;
        const __m128i shift = _mm_set1_epi8(Shifted ? shift_of(a, row * a.groups + group) : 0);
        __m256i part[Tokens];
        for (int t = 0; t < Tokens; ++t) part[t] = _mm256_setzero_si256();
        for (; byte < last; byte += 2) {
            const __m256i weights = next_sixteen<Masked, Shifted>(Masked ? mask + byte : nullptr, value, shift);
            for (int t = 0; t < Tokens; ++t) {
                const auto* place = reinterpret_cast<const __m256i*>(input + t * x.width + byte * 8);
                part[t] = _mm256_add_epi32(part[t], _mm256_madd_epi16(weights, _mm256_loadu_si256(place)));
            }
        }
        const float scale = from_bfloat16(a.scales[row * a.groups + group]);
        for (int t = 0; t < Tokens; ++t) {
            const __m256 both = _mm256_set1_ps(scale * scales[t * a.groups + group]);
            sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[t]), both, sum[t]);
        }
    }
    for (int t = 0; t < Tokens; ++t) out[(token + t) * a.rows + row] = sum_of(sum[t]);
}

template <class Input>
void bfloat16_multiply(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t*) {
    constexpr Tile<std::uint16_t> tiles[] = {bfloat16_tile<Input, 1>, bfloat16_tile<Input, 2>, bfloat16_tile<Input, 3>,
                                             bfloat16_tile<Input, 4>};
    by_tiles<std::uint16_t>(tiles, a, x, out, begin, end, nullptr);
}

template <bool Masked, bool Shifted>
void multiply_integers(const Matrix& a, const Inputs& x, float* out, std::int64_t begin, std::int64_t end,
                       std::int8_t* room) {
    constexpr Tile<std::int8_t> tiles[] = {integer_tile<Masked, Shifted, 1>, integer_tile<Masked, Shifted, 2>,
                                           integer_tile<Masked, Shifted, 3>, integer_tile<Masked, Shifted, 4>};
    by_tiles(tiles, a, x, out, begin, end, room);
}

}  // namespace

// Dense rows are bound by memory, not by how they are made: they are portable_kernels' own (see module.cpp).
const Kernels avx2_kernels = {
    "AVX2", bfloat16_multiply<std::uint16_t>, bfloat16_multiply<float>, integers_multiply, nullptr, nullptr, nullptr,
    nullptr, false,
};

}  // namespace secateur
