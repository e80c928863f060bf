// Which engine a loop gets: what the caller asked for, what the environment overrides, and what the
// kernel has. Stateless.
#ifndef PENSTOCK_ENGINE_ENGINE_CHOICE_H_
#define PENSTOCK_ENGINE_ENGINE_CHOICE_H_

#include <penstock/loop.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sys.h"
#include "engine/engine.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `kind`, or for kAuto what PENSTOCK_ENGINE names (kAuto when unset or empty).
absl::StatusOr<EngineKind> RequestedEngine(EngineKind kind);

// OK when io_uring is here, allowed, and has what makes it the better choice (DEFER_TASKRUN and
// multishot receive, kernel 6.1). Unimplemented says what is missing; ResourceExhausted is not a
// reason to fall back.
absl::Status UringFitsAuto(Sys& sys);

// A real engine of `kind`, which is not kAuto.
absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(LoopCore& core, EngineKind kind);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_ENGINE_CHOICE_H_
