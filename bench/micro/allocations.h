// Counts calls of operator new in the program that links allocations.cc, which replaces it.
#ifndef PENSTOCK_BENCH_MICRO_ALLOCATIONS_H_
#define PENSTOCK_BENCH_MICRO_ALLOCATIONS_H_

#include <cstdint>

namespace penstock_bench {

// Calls so far, on all threads.
int64_t Allocations();

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_MICRO_ALLOCATIONS_H_
