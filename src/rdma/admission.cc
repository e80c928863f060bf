#include "rdma/admission.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

Admission::~Admission() {
  PENSTOCK_CHECK(running_ == 0 && waiting_ == 0, "bring-ups outlive what admits them");
}

Admission::Answer Admission::Ask(Place& place, size_t lanes,
                                 absl::AnyInvocable<void() &&> admitted) {
  PENSTOCK_CHECK(place.state_ == Place::State::kNone, "a place is held already");
  place.lanes_ = lanes;
  if (HasRoomFor(lanes) && waiting_ == 0) {
    place.admission_ = this;
    Admit(place);
    return Answer::kAdmitted;
  }
  if (waiting_ == options_.waiting) {
    ++refused_;
    ++refused_in_row_;
    return Answer::kBusy;
  }
  place.admission_ = this;
  place.admitted_ = std::move(admitted);
  // If there is room although some wait, AdmitNext is running, and comes to this one.
  Append(place);
  return Answer::kWaiting;
}

absl::Duration Admission::retry_after() const {
  const auto ahead = static_cast<int64_t>(refused_in_row_ == 0 ? 0 : refused_in_row_ - 1);
  const auto step = options_.retry_after / static_cast<int64_t>(options_.concurrent);
  return std::min(options_.retry_after + step * ahead, options_.retry_after * 8);
}

void Admission::Place::Leave() {
  Admission* const admission = std::exchange(admission_, nullptr);
  const State state = std::exchange(state_, State::kNone);
  if (state == State::kNone) return;
  if (state == State::kWaiting) admission->Remove(*this);
  if (state == State::kAdmitted) admission->running_ -= lanes_;
  admitted_ = nullptr;
  // Who waited for many may have kept those behind it from the few that there were.
  admission->AdmitNext();
}

// In a loop and not in itself: who is admitted may fail, and leave, at once.
void Admission::AdmitNext() {
  if (std::exchange(admitting_, true)) return;
  while (first_ != nullptr && HasRoomFor(first_->lanes_)) {
    Place& place = *first_;
    Remove(place);
    Admit(place);
    std::exchange(place.admitted_, nullptr)();
  }
  admitting_ = false;
}

void Admission::Admit(Place& place) {
  place.state_ = Place::State::kAdmitted;
  running_ += place.lanes_;
  ++admitted_;
  refused_in_row_ = 0;
}

void Admission::Append(Place& place) {
  place.state_ = Place::State::kWaiting;
  place.previous_ = last_;
  place.next_ = nullptr;
  (last_ == nullptr ? first_ : last_->next_) = &place;
  last_ = &place;
  ++waiting_;
}

void Admission::Remove(Place& place) {
  (place.previous_ == nullptr ? first_ : place.previous_->next_) = place.next_;
  (place.next_ == nullptr ? last_ : place.next_->previous_) = place.previous_;
  --waiting_;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
