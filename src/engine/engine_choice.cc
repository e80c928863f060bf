#include "engine/engine_choice.h"

#include <cstdlib>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/epoll_engine.h"
#include "engine/loop_core.h"
#ifdef PENSTOCK_HAVE_URING
#include "engine/uring_engine.h"
#endif

PENSTOCK_BEGIN_NAMESPACE

std::string_view EngineKindName(EngineKind kind) {
  switch (kind) {
    case EngineKind::kAuto:
      return "auto";
    case EngineKind::kEpoll:
      return "epoll";
    case EngineKind::kUring:
      return "uring";
    case EngineKind::kSimulated:
      return "simulated";
  }
  return "unknown";
}

absl::StatusOr<EngineKind> ParseEngineKind(std::string_view text) {
  for (EngineKind kind : {EngineKind::kAuto, EngineKind::kEpoll, EngineKind::kUring}) {
    if (text == EngineKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("engine '", std::string(text), "' is none of auto, epoll, uring"));
}

namespace internal {

absl::StatusOr<EngineKind> RequestedEngine(EngineKind kind) {
  if (kind != EngineKind::kAuto) return kind;
  const char* const text = std::getenv("PENSTOCK_ENGINE");
  if (text == nullptr || *text == '\0') return kind;
  absl::StatusOr<EngineKind> parsed = ParseEngineKind(text);
  if (parsed.ok()) return parsed;
  return absl::InvalidArgumentError(
      absl::StrCat("environment PENSTOCK_ENGINE: ", parsed.status().message()));
}

#ifdef PENSTOCK_HAVE_URING

absl::Status UringFitsAuto(Sys& sys) { return UringEngine::FitsAuto(sys); }

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(LoopCore& core, EngineKind kind) {
  if (kind == EngineKind::kEpoll) return EpollEngine::Create(core);
  if (kind == EngineKind::kUring) return UringEngine::Create(core);
  return absl::UnimplementedError(
      absl::StrCat("engine ", std::string(EngineKindName(kind)), ": tests only"));
}

#else

absl::Status UringFitsAuto(Sys&) {
  return absl::UnimplementedError("io_uring engine: not compiled in (PENSTOCK_URING=OFF)");
}

absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(LoopCore& core, EngineKind kind) {
  if (kind == EngineKind::kEpoll) return EpollEngine::Create(core);
  if (kind == EngineKind::kUring) return UringFitsAuto(core.sys());
  return absl::UnimplementedError(
      absl::StrCat("engine ", std::string(EngineKindName(kind)), ": tests only"));
}

#endif

}  // namespace internal
PENSTOCK_END_NAMESPACE
