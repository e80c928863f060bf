// Fate: how a callback ended: run how often, with what, or destroyed unrun. Copies share it: the
// test keeps one and the callback holds another, so it may be asked whatever became of the stream.
#ifndef PENSTOCK_TESTS_TESTING_FATE_H_
#define PENSTOCK_TESTS_TESTING_FATE_H_

#include <penstock/export.h>
#include <penstock/stream.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Fate {
 public:
  Fate() : state_(std::make_shared<State>()) {}

  int runs() const { return state_->runs; }
  // Callbacks destroyed without having run.
  int dropped() const { return state_->dropped; }
  bool ended() const { return runs() + dropped() > 0; }
  // Of the last run; Unknown before it.
  const absl::Status& status() const { return state_->status; }
  const std::string& data() const { return state_->data; }

  Stream::ReadCallback OnRead() {
    return [guard = Guard(state_)](absl::StatusOr<Buffer> data) mutable {
      State& state = guard.Run();
      state.status = data.status();
      if (data.ok()) state.data = std::string(data->view());
    };
  }
  Stream::DoneCallback OnDone() {
    return [guard = Guard(state_)](absl::Status status) mutable {
      guard.Run().status = std::move(status);
    };
  }
  absl::AnyInvocable<void() &&> OnEvent() {
    return [guard = Guard(state_)]() mutable { guard.Run().status = absl::OkStatus(); };
  }

 private:
  struct State {
    int runs = 0;
    int dropped = 0;
    absl::Status status = absl::UnknownError("the callback has not run");
    std::string data;
  };
  class Guard {
   public:
    explicit Guard(std::shared_ptr<State> state) : state_(std::move(state)) {}
    Guard(Guard&& other) noexcept = default;
    ~Guard() {
      if (state_ != nullptr && !ran_) ++state_->dropped;
    }
    State& Run() {
      ran_ = true;
      ++state_->runs;
      return *state_;
    }

   private:
    std::shared_ptr<State> state_;
    bool ran_ = false;
  };

  std::shared_ptr<State> state_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_FATE_H_
