// DialCore: what RdmaDial does: one stream and one endpoint after the other, until one is open.
//
// Owned by its RdmaDial, on the loop's thread, and the owner of the endpoint that is being tried.
// Each attempt has a number, by which what comes of an earlier one is known and dropped. Callbacks
// begin in turns of the loop's timers, of the stream's making or of the endpoint, never in the call
// that made this (I3); bounded by attempts and by time (I9).
#ifndef PENSTOCK_RDMA_DIAL_CORE_H_
#define PENSTOCK_RDMA_DIAL_CORE_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rdma/backoff.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class DialCore final : public std::enable_shared_from_this<DialCore> {
 public:
  DialCore(Loop& loop, RdmaDial::Connector connect, RdmaDialOptions options,
           RdmaDial::Callback done);
  // Once shared.
  void Start();
  // The RdmaDial goes.
  void Release();

  uint32_t attempts() const { return attempts_; }

 private:
  void Try();
  void OnStream(uint32_t attempt, absl::StatusOr<StreamPtr> stream);
  void OnOpen(uint32_t attempt, const absl::Status& status);
  void TryAgain(const absl::Status& status, absl::Duration retry_after);
  void End(absl::StatusOr<std::unique_ptr<RdmaEndpoint>> result);
  absl::Status GaveUp(absl::StatusCode code, std::string_view why) const;

  Loop& loop_;
  RdmaDial::Connector connect_;
  const RdmaDialOptions options_;
  RdmaDial::Callback done_;  // null: nothing is to be done any more
  const absl::Time deadline_;
  Backoff backoff_;
  std::unique_ptr<Timer> limit_;
  std::unique_ptr<Timer> pause_;
  std::unique_ptr<RdmaEndpoint> endpoint_;
  uint32_t attempts_ = 0;
  absl::Status last_;  // how the last attempt ended
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_DIAL_CORE_H_
