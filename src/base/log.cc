#include "base/log.h"

#include <cstdio>
#include <string>

#include "absl/strings/ascii.h"

PENSTOCK_BEGIN_NAMESPACE

void LogToStderr(LogSeverity severity, const char* file, int line, std::string_view message) {
  if (severity == LogSeverity::kInfo) return;
  // One line each, whatever a Unix socket's name may contain.
  std::string text(message);
  for (char& c : text) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '?';
  }
  std::fprintf(stderr, "penstock %s: %s [%s:%d]\n",
               severity == LogSeverity::kError ? "error" : "warning", text.c_str(), file, line);
}

namespace internal {

void Log(LogHook& hook, LogSeverity severity, std::string_view message, const char* file,
         int line) {
  // From the source folder on: where the library was built is nobody's business.
  const std::string_view path(file);
  const size_t folder = path.rfind("src/");
  if (folder != std::string_view::npos) file += folder;
  if (hook) {
    hook(severity, file, line, message);
  } else {
    LogToStderr(severity, file, line, message);
  }
}

}  // namespace internal

PENSTOCK_END_NAMESPACE
