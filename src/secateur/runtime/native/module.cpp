// What Python sees: the sets of kernels that this processor can run. src/secateur/runtime/_native.pyi says how.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace nb = nanobind;

namespace secateur {
namespace {

constexpr std::int64_t kWorthSharing = 1 << 15;  // bytes of values: less is done before a second thread wakes up
constexpr float kLargest = 32767;                // of an int16

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

float from_bfloat16(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

std::uint16_t to_bfloat16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::int32_t bits_of(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even, of numbers in the range of int16: 1.5 * 2^23 leaves no room for what is behind the point.
std::int16_t rounded(float value) { return static_cast<std::int16_t>(bits_of(value + 12582912.0f)); }

// Inputs of integer weights. Sixteen bits per token and group lose nothing beside the eight of the weights.
class Quantized {
  public:
    // Each group of columns one after another, or in blocks whose even and odd columns lie apart.
    template <class Input, class Widen>
    Inputs of(const Matrix& a, const Input* inputs, std::int64_t tokens, bool apart, Widen widen) {
        const std::int64_t columns = a.words * kWord, group_columns = a.group_words * kWord;
        const std::int64_t stride = apart ? (group_columns + kBlock - 1) / kBlock * kBlock : group_columns;
        const std::int64_t width = apart ? a.groups * stride : columns;
        values_.assign(tokens * width + kLine / 2, 0);
        scales_.resize(tokens * a.groups);
        // From the beginning of a line of the cache, so that no register's load touches two.
        std::int16_t* aligned = values_.data() + (-reinterpret_cast<Address>(values_.data()) & (kLine - 1)) / 2;
        for (std::int64_t t = 0; t < tokens; ++t) {
            for (std::int64_t group = 0; group < a.groups; ++group) {
                const Input* input = inputs + t * columns + group * group_columns;
                std::int16_t* values = aligned + t * width + group * stride;
                const std::int64_t number = std::min(group_columns, columns - group * group_columns);
                // As integers, which compilers make vectors of, and which NaN and infinity are the largest of.
                std::int32_t largest_bits = 0;
                for (std::int64_t i = 0; i < number; ++i) {
                    largest_bits = std::max(largest_bits, bits_of(widen(input[i])) & 0x7fffffff);
                }
                const bool finite = largest_bits < 0x7f800000;
                const float largest = float_of(largest_bits), inverse = largest_bits ? kLargest / largest : 0;
                scales_[t * a.groups + group] = finite ? largest / kLargest : NAN;
                if (apart) {
                    const std::int64_t half = kBlock / 2;
                    for (std::int64_t first = 0; first < number; first += kBlock, input += kBlock, values += kBlock) {
                        for (std::int64_t i = 0; i < std::min(kBlock, number - first) / 2; ++i) {
                            values[i] = rounded(widen(input[2 * i]) * inverse);
                            values[half + i] = rounded(widen(input[2 * i + 1]) * inverse);
                        }
                    }
                } else {
                    for (std::int64_t i = 0; i < number; ++i) values[i] = rounded(widen(input[i]) * inverse);
                }
            }
        }
        return {tokens, width, aligned, scales_.data()};
    }

  private:
    static constexpr std::int64_t kLine = 64;  // bytes
    std::vector<std::int16_t> values_;
    std::vector<float> scales_;
};

Matrix packed(std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, int bits,
              Address scales, Address zeros, std::int64_t group) {
    const std::int64_t words = (columns + kWord - 1) / kWord, group_words = std::max<std::int64_t>(1, group / kWord);
    const std::int64_t groups = group ? (words + group_words - 1) / group_words : 0;
    return {rows, columns, words, at<const std::uint8_t>(mask), at<const void>(values), at<const std::int64_t>(starts),
            bits, at<const std::uint16_t>(scales), at<const std::uint8_t>(zeros), groups, group_words};
}

int threads_for(const Matrix& a, std::int64_t tokens, int threads) {
    return a.starts[a.rows] * a.bits / 8 * tokens < kWorthSharing ? 1 : threads;
}

// Calls work(begin, end, room) on parts of [0, rows); `room` is the thread's own.
template <class Work>
void share(const Matrix& a, std::int64_t rows, int threads, Work work) {
    struct Shared {
        const Matrix& a;
        Work& work;
    } shared{a, work};
    share_rows(
        rows, threads,
        [](void* pointer, std::int64_t begin, std::int64_t end) {
            thread_local std::vector<std::int8_t> room;
            const Shared& shared = *static_cast<Shared*>(pointer);
            room.resize(shared.a.columns + kRoomPadding);
            shared.work(begin, end, room.data());
        },
        &shared);
}

void multiply(const Kernels& kernels, const Matrix& a, const void* inputs, void* out, bool bfloat16,
              std::int64_t tokens, int threads) {
    thread_local Quantized quantized;
    thread_local std::vector<float> sums;
    Multiply kernel = bfloat16 ? kernels.bfloat16_by_bfloat16 : kernels.bfloat16_by_float32;
    Inputs x{tokens, a.words * kWord, inputs, nullptr};
    if (a.bits < 16) {
        kernel = kernels.integers_by_int16;
        x = bfloat16 ? quantized.of(a, static_cast<const std::uint16_t*>(inputs), tokens, kernels.apart, from_bfloat16)
                     : quantized.of(a, static_cast<const float*>(inputs), tokens, kernels.apart,
                                    [](float value) { return value; });
    }
    if (bfloat16) sums.resize(tokens * a.rows);
    float* products = bfloat16 ? sums.data() : static_cast<float*>(out);
    share(a, a.rows, threads_for(a, tokens, threads),
          [=, &a, &x](std::int64_t begin, std::int64_t end, std::int8_t* room) {
              kernel(a, x, products, begin, end, room);
          });
    if (bfloat16) std::transform(sums.begin(), sums.end(), static_cast<std::uint16_t*>(out), to_bfloat16);
}

void expand(const Kernels& kernels, const Matrix& a, void* out, bool bfloat16, std::int64_t first, std::int64_t last,
            int threads) {
    const Expand kernel = a.bits < 16 ? (bfloat16 ? kernels.integers_to_bfloat16 : kernels.integers_to_float32)
                                   : (bfloat16 ? kernels.bfloat16_to_bfloat16 : kernels.bfloat16_to_float32);
    const std::int64_t row_bytes = a.columns * (bfloat16 ? 2 : 4);
    share(a, last - first, threads_for(a, 1, threads),
          [=, &a](std::int64_t begin, std::int64_t end, std::int8_t* room) {
              kernel(a, static_cast<char*>(out) + begin * row_bytes, first + begin, first + end, room);
          });
}

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(SECATEUR_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
        found.push_back(&avx512_kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt")) {
        static Kernels kernels = avx2_kernels;  // which leaves dense rows to the portable ones
        kernels.bfloat16_to_bfloat16 = portable_kernels.bfloat16_to_bfloat16;
        kernels.bfloat16_to_float32 = portable_kernels.bfloat16_to_float32;
        kernels.integers_to_bfloat16 = portable_kernels.integers_to_bfloat16;
        kernels.integers_to_float32 = portable_kernels.integers_to_float32;
        found.push_back(&kernels);
    }
#endif
    found.push_back(&portable_kernels);
    return found;
}

}  // namespace
}  // namespace secateur

NB_MODULE(_native, module) {
    // The kernels live as long as the process: what an interpreter has not let go of when it ends is no leak.
    nb::set_leak_warnings(false);
    using namespace secateur;
    nb::class_<Kernels>(module, "Kernels")
        .def_ro("name", &Kernels::name)
        .def("multiply",
             [](const Kernels& kernels, Address input, Address out, bool bfloat16, std::int64_t tokens,
                std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, int bits,
                Address scales, Address zeros, std::int64_t group, int threads) {
                 nb::gil_scoped_release released;
                 const Matrix a = packed(rows, columns, mask, values, starts, bits, scales, zeros, group);
                 multiply(kernels, a, at<const void>(input), at<void>(out), bfloat16, tokens, threads);
             })
        .def("expand",
             [](const Kernels& kernels, Address out, bool bfloat16, std::int64_t first, std::int64_t last,
                std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, int bits,
                Address scales, Address zeros, std::int64_t group, int threads) {
                 nb::gil_scoped_release released;
                 const Matrix a = packed(rows, columns, mask, values, starts, bits, scales, zeros, group);
                 expand(kernels, a, at<void>(out), bfloat16, first, last, threads);
             });
    nb::list kernels;
    for (const Kernels* set : available()) kernels.append(nb::cast(set, nb::rv_policy::reference));
    module.attr("KERNELS") = kernels;
}
