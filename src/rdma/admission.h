// Admission: how many lanes may be brought up on the passive side at once. Making queue pairs takes
// the device milliseconds, so that of many peers that come together, too many at once would all be
// too late; the rest wait in line, in order, and beyond the line they are refused at once, with the
// time after which to come again (I9).
//
// One for all endpoints of a device on one loop; single thread. It owns nothing: a place belongs to
// the endpoint that asks for it, and is given back when it is destroyed. Sans-I/O: times are only
// numbers that it hands out.
#ifndef PENSTOCK_RDMA_ADMISSION_H_
#define PENSTOCK_RDMA_ADMISSION_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct AdmissionOptions {
  size_t concurrent = 64;  // lanes, at least 1
  size_t waiting = 1024;
  // What the first of a row of refused peers is told; each after it is told a little more, up to
  // eight times as much, so that they do not come back together.
  absl::Duration retry_after = absl::Milliseconds(250);
};

struct AdmissionStats {
  size_t running = 0;  // lanes
  size_t waiting = 0;
  uint64_t admitted = 0;
  uint64_t refused = 0;
};

class Admission {
 public:
  enum class Answer : uint8_t { kAdmitted, kWaiting, kBusy };

  // In line, admitted, or neither. Destroying it is leaving.
  class Place {
   public:
    Place() = default;
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place() { Leave(); }

    bool admitted() const { return state_ == State::kAdmitted; }
    // When the bring-up has ended, one way or the other, or is waited for no longer. May run the
    // `admitted` of others.
    void Leave();

   private:
    friend class Admission;
    enum class State : uint8_t { kNone, kWaiting, kAdmitted };

    State state_ = State::kNone;
    size_t lanes_ = 1;
    Admission* admission_ = nullptr;
    Place* previous_ = nullptr;
    Place* next_ = nullptr;
    absl::AnyInvocable<void() &&> admitted_;
  };

  explicit Admission(const AdmissionOptions& options = {}) : options_(options) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;
  // No place is held any more.
  ~Admission();

  // For `place`, which holds nothing, to bring so many lanes up; of more than there may be, when
  // nobody else does. kAdmitted: at once. kWaiting: `admitted` will run, once, in
  // some other place's Leave, unless `place` leaves before; it may destroy places, and ask for
  // them. kBusy: the place holds nothing, and the peer is to be told retry_after().
  Answer Ask(Place& place, size_t lanes, absl::AnyInvocable<void() &&> admitted);

  // For the peer that has just been refused.
  absl::Duration retry_after() const;
  AdmissionStats stats() const {
    return {.running = running_, .waiting = waiting_, .admitted = admitted_, .refused = refused_};
  }

 private:
  bool HasRoomFor(size_t lanes) const {
    return running_ == 0 || running_ + lanes <= options_.concurrent;
  }
  void Admit(Place& place);
  void Append(Place& place);
  void Remove(Place& place);
  void AdmitNext();

  const AdmissionOptions options_;
  Place* first_ = nullptr;
  Place* last_ = nullptr;
  size_t running_ = 0;
  size_t waiting_ = 0;
  uint64_t admitted_ = 0;
  uint64_t refused_ = 0;
  uint64_t refused_in_row_ = 0;
  bool admitting_ = false;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_ADMISSION_H_
