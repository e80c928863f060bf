// The half of Actor that judges: the oracle.
#include <utility>

#include "absl/strings/str_cat.h"
#include "sim/actor.h"
#include "sim/pattern.h"
#include "sim/scenario.h"

namespace penstock::testing {
namespace {

using Phase = Scenario::Phase;

constexpr const char* kOpNames[] = {"read",     "extra read", "write",  "shutdown",
                                    "writable", "connect",    "switch", "migrate"};

}  // namespace

// --- Tickets ---

Ticket::~Ticket() {
  if (actor_ != nullptr) actor_->OnUnrun(op_);
}

void Ticket::Use() { std::exchange(actor_, nullptr)->OnUsed(op_); }

void Actor::OnUsed(Ticket::Op op) {
  const std::string name = kOpNames[static_cast<size_t>(op)];
  if (ended_ && op != Ticket::Op::kConnect)
    Wrong(name + " callback after its stream was destroyed");
  if (calls_ > 0) Wrong(name + " callback inside a call to its stream (I3)");
  if (loop_->gone) {
    Wrong(name + " callback after its loop was destroyed");
  } else if (!scenario_.world().Busy(*loop_->loop)) {
    Wrong(name + " callback outside a turn of its loop");
  }
}

void Actor::OnUnrun(Ticket::Op op) {
  if (ended_ || ending_ || lost()) return;
  Wrong(absl::StrCat(kOpNames[static_cast<size_t>(op)],
                     " callback destroyed unrun while its stream lives"));
}

void Actor::Wrong(const std::string& what) {
  scenario_.Violation(absl::StrCat(Describe(), ": ", what));
}

std::string Actor::Describe() const {
  return absl::StrCat(
      side_ == 0 ? "client" : "server", " of link ", link_ == nullptr ? 0 : link_->id, " on loop ",
      loop_->index, connecting_ ? " connecting" : "", read_pending_ ? " reading" : "",
      read_end_ ? " read-ended" : "", write_shut_ ? " write-shut" : "",
      write_shut_done_ ? "-done" : "", aborted_ ? " aborted" : "", ended_ ? " ended" : "", ", ",
      received_, " received, ", written_, " written, ", writes_.size(), " writes pending");
}

// --- Judging ---

void Actor::OnRead(absl::StatusOr<Buffer> result) {
  read_pending_ = false;
  const bool cancelled = std::exchange(read_cancelled_, false);
  scenario_.world().Note("read", link_->id * 2 + static_cast<uint64_t>(side_),
                         static_cast<uint64_t>(result.status().code()),
                         result.ok() ? result->size() : 0);
  if (result.ok()) {
    OnBytes(*std::move(result));
  } else if (absl::IsCancelled(result.status()) && cancelled) {
    // As asked.
  } else {
    OnReadEnd(result.status());
  }
  Step();
}

void Actor::OnBytes(Buffer bytes) {
  if (bytes.empty()) Wrong("a read ended with no byte");
  if (read_shut_ || aborted_) Wrong("bytes after reading was given up");
  if (read_end_) Wrong("bytes after the end");
  if (!MatchesPattern(StreamKey(*link_, 1 - side_), received_, bytes.view())) {
    Wrong(absl::StrCat("wrong bytes at ", received_));
  }
  received_ += bytes.size();
  scenario_.result().bytes += bytes.size();
  if (received_ > link_->sides[static_cast<size_t>(1 - side_)].sent) {
    Wrong("more bytes than were sent");
  }
  if (scenario_.random().Chance(plan_.hold)) held_.push_back(std::move(bytes));
}

void Actor::OnReadEnd(const absl::Status& status) {
  const absl::StatusCode code = status.code();
  if (read_end_ && *read_end_ != code && !aborted_)
    Wrong("another end than before: " + status.ToString());
  const SimSide& mine = link_->sides[static_cast<size_t>(side_)];
  if (IsDeadlineExceeded(status)) {
    ++scenario_.result().deadlines;
    paused_ = true;
    if (scenario_.phase() == Phase::kFinish) read_end_ = code;
  } else {
    read_end_ = code;
  }
  if (IsEof(status)) {
    if (!read_shut_) CheckEnd(status);
    return;
  }
  if (IsReset(status)) {
    ++scenario_.result().resets;
    // What a reset cuts off in the middle of a record is lost with it.
    const bool delivered = scenario_.sealing() != nullptr || received_ == mine.received;
    if (!delivered || mine.waiting() > 0) {
      Wrong(absl::StrCat("reset before the bytes that came first: ", received_, " delivered, ",
                         mine.received, " taken, ", mine.waiting(), " waiting"));
    }
  }
  if (!HasCause(status)) Wrong("a read ended without a cause: " + status.ToString());
}

// An end of stream, after everything.
void Actor::CheckEnd(const absl::Status& status) {
  ++scenario_.result().clean_ends;
  const SimSide& mine = link_->sides[static_cast<size_t>(side_)];
  const SimSide& other = link_->sides[static_cast<size_t>(1 - side_)];
  const bool sealed = scenario_.sealing() != nullptr;
  const bool native = sealed && scenario_.sealing()->native;
  // A record that says so comes before the end of the wire.
  if (!mine.fin_arrived && !native) {
    Wrong("end of stream, and none was sent: " + status.ToString());
  }
  if (IsUnauthenticatedEof(status) != (sealed && !native)) {
    Wrong("end of stream, wrongly vouched for: " + status.ToString());
  }
  if (!sealed && received_ != other.sent) {
    Wrong(absl::StrCat("end of stream after ", received_, " of ", other.sent, " bytes"));
  }
  const Actor* const peer = scenario_.Peer(*link_, side_);
  if (peer != nullptr && peer->written_ != received_) {
    Wrong(
        absl::StrCat("end of stream after ", received_, " bytes; the peer wrote ", peer->written_));
  }
}

void Actor::OnWritten(uint64_t number, const absl::Status& status) {
  scenario_.world().Note("written", number, static_cast<uint64_t>(status.code()));
  if (writes_.empty() || writes_.front().number != number) {
    Wrong(absl::StrCat("write ", number, " ended out of its turn"));
    return;
  }
  const PendingWrite write = writes_.front();
  writes_.pop_front();
  const bool taken = link_->sides[static_cast<size_t>(side_)].sent >= write.end;
  if (write.refusal) {
    if (status.code() != *write.refusal && (status.ok() || !HasCause(status))) {
      Wrong(absl::StrCat("a write to be refused ended with ", status.ToString()));
    }
  } else if (status.ok()) {
    if (!taken) Wrong("a write ended well before its bytes were taken");
    if (write_failed_) Wrong("a write ended well after one that failed");
  } else {
    write_failed_ = true;
    if (taken && write.size > 0 && scenario_.sealing() == nullptr)
      Wrong("a write failed after all its bytes were taken");
    if (!HasCause(status)) Wrong("a write failed without a cause: " + status.ToString());
  }
  Step();
}

void Actor::OnMigrated(const LoopState& target, const absl::Status& status) {
  ScenarioResult& result = scenario_.result();
  if (status.ok()) {
    ++result.migrations;
  } else if (!absl::IsCancelled(status)) {  // replaced by a later one, or ended
    ++result.migrations_failed;
    const bool refused = absl::IsUnavailable(status) && (target.gone || target.drained);
    if (!refused && !scenario_.scarce() && !HasCause(status)) {
      Wrong("a migration failed without a cause: " + status.ToString());
    }
  }
  scenario_.phase() == Phase::kFinish ? Finish() : Step();
}

bool Actor::HasCause(const absl::Status& status) const {
  const SimSide& mine = link_->sides[static_cast<size_t>(side_)];
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return mine.failed;
    case absl::StatusCode::kResourceExhausted:
      // SimFaults::send_error; or no engine took it, SimFaults::attach_failure.
      return mine.failed || scenario_.scarce();
    case absl::StatusCode::kInternal:
      return mine.failed;  // SimFaults::send_error
    case absl::StatusCode::kDeadlineExceeded:
      return scenario_.world().now_ns() >= earliest_deadline_ns_;
    case absl::StatusCode::kCancelled:
      return aborted_ || loop_->drained;
    case absl::StatusCode::kDataLoss: {
      // A loop that goes, a deadline that ends a stream, and who gives up connecting after the
      // connection was made, tell no peer that this was all.
      const Actor* const peer = scenario_.Peer(*link_, side_);
      return scenario_.sealing() != nullptr && scenario_.sealing()->native &&
             (peer == nullptr || !peer->begun_ || peer->lost() || peer->loop_->drained ||
              scenario_.world().now_ns() >= peer->earliest_deadline_ns_);
    }
    default:
      return false;
  }
}

}  // namespace penstock::testing
