// What a fuzz target may tell the run over its corpus (replay.cc).
#ifndef PENSTOCK_TESTS_FUZZ_REPLAY_H_
#define PENSTOCK_TESTS_FUZZ_REPLAY_H_

// What is missing once the whole corpus has run, so that inputs that have come to mean nothing are
// noticed; empty when nothing is. Weak, for most targets have none; declared so before any
// definition, as clang asks where both are in one unit.
extern "C" __attribute__((weak)) const char* MissedByCorpus();

#endif  // PENSTOCK_TESTS_FUZZ_REPLAY_H_
