// How the library's own code logs: through the loop's hook, with the place it logs from.
//
// Stateless; the hook's thread is the caller's.
#ifndef PENSTOCK_BASE_LOG_H_
#define PENSTOCK_BASE_LOG_H_

#include <penstock/log.h>

#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Calls `hook`, or LogToStderr when it is empty. The built-ins stand for std::source_location,
// which clang 14 lacks.
void Log(LogHook& hook, LogSeverity severity, std::string_view message,
         const char* file = __builtin_FILE(), int line = __builtin_LINE());

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_LOG_H_
