#include "threads.h"

#include <atomic>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace secateur {
namespace {

constexpr int kPartsPerThread = 8;  // so that a thread that was held up has fewer of them

struct Job {
    std::int64_t rows, part;
    void (*work)(void*, std::int64_t, std::int64_t);
    void* context;
    std::atomic<std::int64_t> next{0};
};

void take_parts(void* pointer) {
    Job& job = *static_cast<Job*>(pointer);
    for (std::int64_t begin; (begin = job.next.fetch_add(job.part)) < job.rows;) {
        const std::int64_t end = begin + job.part;
        job.work(job.context, begin, end < job.rows ? end : job.rows);
    }
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The entry of the OpenMP runtime that torch has loaded. Its threads wait for work by spinning: a pool of
// our own beside them would share their cores with them.
GompParallel torch_pool() {
#if defined(__unix__) || defined(__APPLE__)
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
    return nullptr;
#endif
}

}  // namespace

void share_rows(std::int64_t rows, int threads, void (*work)(void*, std::int64_t, std::int64_t), void* context) {
    if (threads <= 1) return work(context, 0, rows);
    static const GompParallel pool = torch_pool();
    const std::int64_t parts = static_cast<std::int64_t>(threads) * kPartsPerThread;
    Job job{rows, (rows + parts - 1) / parts, work, context};
    if (pool) return pool(take_parts, &job, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(take_parts, &job);
    take_parts(&job);
    for (std::thread& other : others) other.join();
}

}  // namespace secateur
