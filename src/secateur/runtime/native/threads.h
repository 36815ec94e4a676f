// Rows shared among threads: those that torch already has.
#pragma once

#include <cstdint>

namespace secateur {

// Calls work(context, begin, end) on parts of [0, rows), from up to `threads` threads at a time.
void share_rows(std::int64_t rows, int threads, void (*work)(void*, std::int64_t, std::int64_t), void* context);

}  // namespace secateur
