#include "rdma/dial_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

bool MayBeMended(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

absl::Status CheckDialOptions(const RdmaDialOptions& options) {
  const bool sound = options.attempts_max >= 1 && options.pause_min > absl::ZeroDuration() &&
                     options.pause_max >= options.pause_min;
  if (sound) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "open RDMA endpoint: attempts_max is ", options.attempts_max, ", pause_min ",
      absl::FormatDuration(options.pause_min), ", pause_max ",
      absl::FormatDuration(options.pause_max), ": 1 at least, positive, and not less than that"));
}

}  // namespace

DialCore::DialCore(Loop& loop, RdmaDial::Connector connect, RdmaDialOptions options,
                   RdmaDial::Callback done)
    : loop_(loop),
      connect_(std::move(connect)),
      options_(std::move(options)),
      done_(std::move(done)),
      deadline_(loop.now() + options_.deadline),
      backoff_(options_.pause_min, options_.pause_max),
      limit_(std::make_unique<Timer>(loop)),
      pause_(std::make_unique<Timer>(loop)) {}

void DialCore::Start() {
  if (absl::Status problem = CheckDialOptions(options_); !problem.ok()) {
    return pause_->Arm(absl::ZeroDuration(),
                       [this, problem = std::move(problem)] { End(problem); });
  }
  pause_->Arm(absl::ZeroDuration(), [this] { Try(); });
  if (options_.deadline == absl::InfiniteDuration()) return;
  limit_->Arm(options_.deadline, [this] {
    End(GaveUp(absl::StatusCode::kDeadlineExceeded, "the deadline has passed"));
  });
}

void DialCore::Release() {
  const RdmaDial::Callback unrun = std::exchange(done_, nullptr);
  limit_.reset();
  pause_.reset();
  endpoint_.reset();
}

void DialCore::Try() {
  const auto self = shared_from_this();
  const uint32_t attempt = ++attempts_;
  connect_([self = weak_from_this(), attempt](absl::StatusOr<StreamPtr> stream) {
    if (const auto core = self.lock()) core->OnStream(attempt, std::move(stream));
  });
}

void DialCore::OnStream(uint32_t attempt, absl::StatusOr<StreamPtr> stream) {
  if (done_ == nullptr || attempt != attempts_ || endpoint_ != nullptr) return;
  if (!stream.ok()) return TryAgain(stream.status(), absl::ZeroDuration());
  endpoint_ = RdmaEndpoint::Connect(*std::move(stream), options_.endpoint);
  endpoint_->NotifyOpen([self = weak_from_this(), attempt](const absl::Status& status) {
    if (const auto core = self.lock()) core->OnOpen(attempt, status);
  });
}

void DialCore::OnOpen(uint32_t attempt, const absl::Status& status) {
  if (done_ == nullptr || attempt != attempts_) return;
  if (status.ok()) return End(std::move(endpoint_));
  const absl::Duration retry_after = endpoint_->retry_after();
  endpoint_.reset();
  TryAgain(status, retry_after);
}

void DialCore::TryAgain(const absl::Status& status, absl::Duration retry_after) {
  last_ = status;
  if (!MayBeMended(status)) return End(status);
  if (attempts_ >= options_.attempts_max) {
    return End(GaveUp(status.code(), absl::StrCat("after ", attempts_, " attempts")));
  }
  const absl::Duration pause =
      std::max(backoff_.Next(RandomBytes()[0]), Obeyed(retry_after, options_.pause_max));
  if (loop_.now() + pause > deadline_) {
    return End(GaveUp(absl::StatusCode::kDeadlineExceeded,
                      absl::StrCat("the next attempt, in ", absl::FormatDuration(pause),
                                   ", would be after the deadline")));
  }
  pause_->Arm(pause, [this] { Try(); });
}

void DialCore::End(absl::StatusOr<std::unique_ptr<RdmaEndpoint>> result) {
  const auto self = shared_from_this();
  RdmaDial::Callback done = std::exchange(done_, nullptr);
  limit_.reset();
  pause_.reset();
  endpoint_.reset();
  std::move(done)(std::move(result));
}

absl::Status DialCore::GaveUp(absl::StatusCode code, std::string_view why) const {
  std::string text = absl::StrCat("open RDMA endpoint: gave up, ", std::string(why));
  if (!last_.ok()) absl::StrAppend(&text, "; the last attempt: ", last_.message());
  return absl::Status(code, text);
}

}  // namespace internal

RdmaDial::RdmaDial(Loop& loop, Connector connect, RdmaDialOptions options, Callback done)
    : core_(std::make_shared<internal::DialCore>(loop, std::move(connect), std::move(options),
                                                 std::move(done))) {
  core_->Start();
}

RdmaDial::~RdmaDial() { core_->Release(); }

uint32_t RdmaDial::attempts() const { return core_->attempts(); }

PENSTOCK_END_NAMESPACE
