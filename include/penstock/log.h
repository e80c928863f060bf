// Where the library's few log lines go.
//
// Penstock logs rarely: an engine that fell back (kInfo), a listener out of descriptors or memory,
// and each fault that LoopSnapshot::faults counts (kWarning). The hook is per loop
// (LoopOptions::log); there is no global logger. The default writes warnings and errors to stderr,
// one line each, so it does not show the fallback: Loop::engine_reason() does.
#ifndef PENSTOCK_LOG_H_
#define PENSTOCK_LOG_H_

#include <penstock/export.h>

#include <string_view>

#include "absl/functional/any_invocable.h"

PENSTOCK_BEGIN_NAMESPACE

enum class LogSeverity { kInfo, kWarning, kError };

// Called on the thread that logs (the loop's), never with a lock held; must not call back into the
// loop. `file` and `line` are the library's own.
using LogHook = absl::AnyInvocable<void(LogSeverity severity, const char* file, int line,
                                        std::string_view message)>;

// Warnings and errors to stderr.
PENSTOCK_EXPORT void LogToStderr(LogSeverity severity, const char* file, int line,
                                 std::string_view message);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_LOG_H_
