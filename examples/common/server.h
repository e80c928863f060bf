// The shell around the example servers: flags, threads, signals and figures. A server adds what it
// does with each stream.
//
// RunServer starts one thread for each loop; the main thread waits for signals, which are blocked
// everywhere else: the library itself starts no thread and handles no signal.
//
// On stdout: `listening on ADDRESS` first, one JSON line for each SIGUSR1, and a last one after
// SIGTERM or SIGINT, when the streams have ended or --grace has passed; then status 0.
#ifndef PENSTOCK_EXAMPLES_COMMON_SERVER_H_
#define PENSTOCK_EXAMPLES_COMMON_SERVER_H_

#include <penstock/stream.h>

namespace examples {

// Serves one accepted stream, on its loop's thread.
using Serve = void (*)(penstock::StreamPtr stream);

// Call ParseFlagsOnly first. Returns main's status.
int RunServer(Serve serve, const penstock::StreamOptions& options = {});

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_SERVER_H_
