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

// Inputs of int8 weights. Sixteen bits per token and group lose nothing beside the eight of the weights.
struct Quantized {
    std::vector<std::int16_t> values;
    std::vector<float> scales;

    template <class Input, class Widen>
    void assign(const Matrix& a, const Input* inputs, std::int64_t tokens, Widen widen) {
        const std::int64_t width = a.words * kWord;
        values.resize(tokens * width);
        scales.resize(tokens * a.groups);
        for (std::int64_t t = 0; t < tokens; ++t) {
            for (std::int64_t group = 0; group < a.groups; ++group) {
                const std::int64_t first = t * width + group * a.group_words * kWord;
                const std::int64_t last = std::min(first + a.group_words * kWord, (t + 1) * width);
                float largest = 0, poison = 0;  // which infinities and NaNs make NaN
                for (std::int64_t i = first; i < last; ++i) {
                    largest = std::max(largest, std::fabs(widen(inputs[i])));
                    poison += 0 * widen(inputs[i]);
                }
                const float inverse = largest > 0 ? kLargest / largest : 0;
                scales[t * a.groups + group] = largest / kLargest + poison;
                for (std::int64_t i = first; i < last; ++i) {
                    values[i] = static_cast<std::int16_t>(std::lrint(widen(inputs[i]) * inverse));
                }
            }
        }
    }
};

struct Packed {
    Matrix matrix;
    bool int8;
};

Packed packed(std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, Address scales,
              std::int64_t group) {
    const std::int64_t words = (columns + kWord - 1) / kWord, group_words = std::max<std::int64_t>(1, group / kWord);
    const std::int64_t groups = group ? (words + group_words - 1) / group_words : 0;
    return {{rows, columns, words, at<const std::uint8_t>(mask), at<const void>(values), at<const std::int64_t>(starts),
             at<const std::uint16_t>(scales), groups, group_words},
            group != 0};
}

int threads_for(const Matrix& a, bool int8, std::int64_t tokens, int threads) {
    const std::int64_t bytes = a.starts[a.rows] * (int8 ? 1 : 2) * tokens;
    return bytes < kWorthSharing ? 1 : threads;
}

void multiply(const Kernels& kernels, const Packed& weight, const void* inputs, void* out, bool bfloat16,
              std::int64_t tokens, int threads) {
    thread_local Quantized quantized;
    thread_local std::vector<float> sums;
    const Matrix& a = weight.matrix;
    Multiply kernel = bfloat16 ? kernels.bfloat16_by_bfloat16 : kernels.bfloat16_by_float32;
    Inputs x{tokens, inputs, nullptr};
    if (weight.int8) {
        if (bfloat16) {
            quantized.assign(a, static_cast<const std::uint16_t*>(inputs), tokens, from_bfloat16);
        } else {
            quantized.assign(a, static_cast<const float*>(inputs), tokens, [](float value) { return value; });
        }
        kernel = kernels.int8_by_int16;
        x = {tokens, quantized.values.data(), quantized.scales.data()};
    }
    if (bfloat16) sums.resize(tokens * a.rows);
    struct Work {
        Multiply kernel;
        const Matrix& a;
        const Inputs& x;
        float* out;
    } work{kernel, a, x, bfloat16 ? sums.data() : static_cast<float*>(out)};
    share_rows(
        a.rows, threads_for(a, weight.int8, tokens, threads),
        [](void* pointer, std::int64_t begin, std::int64_t end) {
            const Work& work = *static_cast<Work*>(pointer);
            work.kernel(work.a, work.x, work.out, begin, end);
        },
        &work);
    if (bfloat16) std::transform(sums.begin(), sums.end(), static_cast<std::uint16_t*>(out), to_bfloat16);
}

void expand(const Kernels& kernels, const Packed& weight, void* out, bool bfloat16, std::int64_t first,
            std::int64_t last, int threads) {
    struct Work {
        Expand kernel;
        const Matrix& a;
        char* out;
        std::int64_t row_bytes, first;
    } work{weight.int8 ? (bfloat16 ? kernels.int8_to_bfloat16 : kernels.int8_to_float32)
                       : (bfloat16 ? kernels.bfloat16_to_bfloat16 : kernels.bfloat16_to_float32),
           weight.matrix, static_cast<char*>(out), weight.matrix.columns * (bfloat16 ? 2 : 4), first};
    share_rows(
        last - first, threads_for(weight.matrix, weight.int8, 1, threads),
        [](void* pointer, std::int64_t begin, std::int64_t end) {
            const Work& work = *static_cast<Work*>(pointer);
            work.kernel(work.a, work.out + begin * work.row_bytes, work.first + begin, work.first + end);
        },
        &work);
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
        kernels.int8_to_bfloat16 = portable_kernels.int8_to_bfloat16;
        kernels.int8_to_float32 = portable_kernels.int8_to_float32;
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
                std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, Address scales,
                std::int64_t group, int threads) {
                 nb::gil_scoped_release released;
                 multiply(kernels, packed(rows, columns, mask, values, starts, scales, group), at<const void>(input),
                          at<void>(out), bfloat16, tokens, threads);
             })
        .def("expand",
             [](const Kernels& kernels, Address out, bool bfloat16, std::int64_t first, std::int64_t last,
                std::int64_t rows, std::int64_t columns, Address mask, Address values, Address starts, Address scales,
                std::int64_t group, int threads) {
                 nb::gil_scoped_release released;
                 expand(kernels, packed(rows, columns, mask, values, starts, scales, group), at<void>(out), bfloat16,
                        first, last, threads);
             });
    nb::list kernels;
    for (const Kernels* set : available()) kernels.append(nb::cast(set, nb::rv_policy::reference));
    module.attr("KERNELS") = kernels;
}
