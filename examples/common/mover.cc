#include "common/mover.h"

#include <penstock/move.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/program.h"

namespace examples {
namespace {

using penstock::EngineKind;
using penstock::Loop;
using penstock::MoveCount;

EngineKind OtherEngine(const Loop& loop) {
  return loop.engine() == EngineKind::kEpoll ? EngineKind::kUring : EngineKind::kEpoll;
}

// What is left of `interval` since `began`.
absl::Duration Rest(const Loop& loop, absl::Time began, absl::Duration interval) {
  return std::max(interval - (loop.now() - began), absl::ZeroDuration());
}

}  // namespace

Mover::Mover(Loop& loop, MoveIntervals intervals)
    : loop_(loop),
      handle_(loop.handle()),
      intervals_(intervals),
      switch_timer_(loop),
      migrate_timer_(loop) {}

absl::Status Mover::Prepare() {
  if (intervals_.adaptive) {
    absl::StatusOr<std::unique_ptr<penstock::EngineAdapter>> adapter =
        penstock::EngineAdapter::Create(loop_);
    if (!adapter.ok()) return adapter.status();
    adapter_ = *std::move(adapter);
  }
  if (intervals_.switch_every == absl::ZeroDuration()) return absl::OkStatus();
  return loop_.EnableEngine(OtherEngine(loop_));
}

void Mover::Start(penstock::LoopHandle next) {
  handle_.Post([this, next = std::move(next)]() mutable {
    next_ = std::move(next);
    if (intervals_.switch_every > absl::ZeroDuration()) ArmSwitch(intervals_.switch_every);
    if (intervals_.move_every > absl::ZeroDuration()) ArmMigrate(intervals_.move_every);
  });
}

void Mover::Stop(absl::AnyInvocable<void() &&> stopped) {
  handle_.Post([this, stopped = std::move(stopped)]() mutable {
    stopping_ = true;
    stopped_ = std::move(stopped);
    switch_timer_.Cancel();
    migrate_timer_.Cancel();
    if (adapter_ != nullptr) {
      for (const std::string& line : adapter_->trace()) Complain("adaptive: " + line);
      Complain(absl::StrCat("adaptive: switches: ", adapter_->switches()));
      last_decisions_ = decisions();
      adapter_ = nullptr;
    }
    TellIfStill();
  });
}

Decisions Mover::decisions() const {
  if (adapter_ == nullptr) return last_decisions_;
  const std::vector<std::string> trace = adapter_->trace();
  return {adapter_->counts(), trace.empty() ? "" : trace.back()};
}

void Mover::TellIfStill() {
  if (!stopping_ || switching_ || migrating_ || !stopped_) return;
  std::exchange(stopped_, nullptr)();
}

void Mover::ArmSwitch(absl::Duration after) {
  switch_timer_.Arm(after, [this] { SwitchRound(); });
}

void Mover::ArmMigrate(absl::Duration after) {
  migrate_timer_.Arm(after, [this] { MigrateRound(); });
}

void Mover::SwitchRound() {
  const absl::Time began = loop_.now();
  switching_ = true;
  const absl::Status status =
      penstock::SwitchAll(loop_, OtherEngine(loop_), [this, began](MoveCount) {
        switching_ = false;
        if (!stopping_) ArmSwitch(Rest(loop_, began, intervals_.switch_every));
        TellIfStill();
      });
  if (!std::exchange(switch_fails_, !status.ok()) && switch_fails_) {
    Complain(std::string(status.message()));
  }
  if (status.ok()) return;
  switching_ = false;
  ArmSwitch(intervals_.switch_every);  // what is missing may be there by then
}

void Mover::MigrateRound() {
  const absl::Time began = loop_.now();
  migrating_ = true;
  penstock::MigrateAll(loop_, next_, [this, began](MoveCount) {
    migrating_ = false;
    if (!stopping_) ArmMigrate(Rest(loop_, began, intervals_.move_every));
    TellIfStill();
  });
}

void StopMovers(const std::vector<Mover*>& movers, absl::AnyInvocable<void()> stopped) {
  struct Round {
    std::atomic<size_t> left;
    absl::AnyInvocable<void()> stopped;
  };
  auto round = std::make_shared<Round>();
  round->left = movers.size();
  round->stopped = std::move(stopped);
  for (Mover* mover : movers) {
    mover->Stop([round] {
      if (--round->left == 0) round->stopped();
    });
  }
}

}  // namespace examples
