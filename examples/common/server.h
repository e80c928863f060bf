// The shell around the example servers: flags, threads, signals and figures. A server adds what it
// does with each stream.
//
// RunServer runs the first loop on the main thread, and each further one on a thread of its own. A
// server with one loop is thus a process with one thread, whose system calls are cheaper: the
// kernel need not count references to descriptors that nobody else could close meanwhile. Signals
// reach the main thread only; the library itself starts no thread and handles no signal.
//
// On stdout: `listening on ADDRESS` first, one JSON line for each SIGUSR1, and a last one after
// SIGTERM or SIGINT, when the streams have ended or --grace has passed; then status 0.
//
// A peer that takes nothing of its answers is cut off after --write-timeout, a minute by default:
// what waits for it would keep its buffers for ever. --idle-timeout ends connections on which
// nothing moves at all.
//
// With --adaptive each loop chooses its engine itself (EngineAdapter), with --balance the loops
// even out their load (LoopBalancer), and the JSON line has what they have decided; with
// --switch-every and --move-every each stream changes engine and loop while it is served.
#ifndef PENSTOCK_EXAMPLES_COMMON_SERVER_H_
#define PENSTOCK_EXAMPLES_COMMON_SERVER_H_

#include <penstock/loop.h>
#include <penstock/stream.h>

namespace examples {

// Serves one accepted stream, on its loop's thread. What it keeps for the stream belongs to the
// stream's callbacks: they may run on another loop's thread later (StreamOptions::migratable).
using Serve = void (*)(penstock::StreamPtr stream);

// Whether what is kept for a stream may go to another loop with it: if not, --move-every and
// --balance are refused.
enum class MayChangeLoop { kYes, kNo };

// What a server needs on a loop before that listens; on the loop's thread. May end the program.
using Prepare = void (*)(penstock::Loop& loop);

// Call ParseFlagsOnly first. Returns main's status.
int RunServer(Serve serve, const penstock::StreamOptions& options = {},
              MayChangeLoop may_change_loop = MayChangeLoop::kYes, Prepare prepare = nullptr);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_SERVER_H_
