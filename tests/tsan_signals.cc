// Linked into every program that ThreadSanitizer watches, and into nothing else.
//
// Its runtime (gcc 12, LLVM 14: SigCtx in tsan_interceptors_posix.cpp) makes a thread's place for
// signals at the thread's first blocking call, and forgets a signal that comes just then: a server
// that is told to end as soon as it listens would wait for ever. So that call is made before there
// is anybody who knows the program's number.
#include <poll.h>

namespace {

[[gnu::constructor]] void MakePlaceForSignals() { poll(nullptr, 0, 0); }

}  // namespace
