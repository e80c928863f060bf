#include "testing/fake_fabric_qp.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"

namespace penstock::testing {

using internal::FabricCompletion;
using internal::FabricEventKind;
using internal::FabricOp;
using internal::FabricOutcome;
using internal::FabricPart;
using internal::kFabricNumberMask;

namespace {

constexpr uint32_t kHalfNumbers = 1u << 23;

// Of a sequence number that is `before` or at `after`.
uint32_t Distance(uint32_t before, uint32_t after) { return (after - before) & kFabricNumberMask; }

// What the codes of min_rnr_timer mean, up to the default and some beyond; in microseconds.
int64_t NotReadyNs(uint8_t code) {
  static constexpr int64_t kMicroseconds[32] = {
      655'360, 10,     20,     30,     40,     60,      80,      120,     160,     240,    320,
      480,     640,    960,    1280,   1920,   2560,    3840,    5120,    7680,    10'240, 15'360,
      20'480,  30'720, 40'960, 61'440, 81'920, 122'880, 163'840, 245'760, 327'680, 491'520};
  return kMicroseconds[code & 31] * 1000;
}

}  // namespace

FakeQp::FakeQp(FakeDevice& device, const internal::FabricQpOptions& options)
    : device_(device),
      options_(options),
      inlined_max_(std::min(options.inlined, device.fabric().options().inlined_max)) {
  serial_ = fabric().AddQp(device_.nic(), *this, &number_);
  static_cast<FakeCq*>(options_.send_cq)->AddUser(serial_);
  static_cast<FakeCq*>(options_.receive_cq)->AddUser(serial_);
  if (options_.srq != nullptr) static_cast<FakeSrq*>(options_.srq)->AddUser();
  device_.CountObjects(1);
}

FakeQp::~FakeQp() {
  for (const FakeReceive& receive : receives_) {
    fabric().CountReceiveBytes(-static_cast<int64_t>(receive.bytes()));
  }
  static_cast<FakeCq*>(options_.send_cq)->RemoveUser(serial_);
  static_cast<FakeCq*>(options_.receive_cq)->RemoveUser(serial_);
  if (options_.srq != nullptr) static_cast<FakeSrq*>(options_.srq)->RemoveUser();
  fabric().RemoveQp(device_.nic(), serial_, number_);
  device_.CountObjects(-1);
}

internal::FabricQpLimits FakeQp::limits() const {
  return {options_.send_depth, options_.srq != nullptr ? 0 : options_.receive_depth, inlined_max_};
}

// --- States ---

absl::Status FakeQp::Modify(FakeCall call, bool allowed, State next, std::string_view name) {
  int error = fabric().Fault(call);
  if (error == 0 && !allowed) error = EINVAL;
  if (error != 0)
    return device_.Failure(absl::StrCat("move queue pair to ", internal::AbslView(name)), error);
  state_ = next;
  return absl::OkStatus();
}

absl::Status FakeQp::ToInit(const internal::FabricInit& init) {
  const bool allowed = state_ == State::kReset && init.port == 1;
  absl::Status status = Modify(FakeCall::kToInit, allowed, State::kInit, "INIT");
  if (status.ok()) init_ = init;
  return status;
}

absl::Status FakeQp::ToReadyToReceive(const internal::FabricPath& path) {
  const bool mtu = path.mtu >= 256 && path.mtu <= 4096 && (path.mtu & (path.mtu - 1)) == 0;
  const bool allowed = state_ == State::kInit && path.port == 1 && mtu &&
                       path.peer_qp_number <= kFabricNumberMask &&
                       path.peer_psn <= kFabricNumberMask && path.min_rnr_timer < 32 &&
                       path.read_depth <= device_.limits().read_depth;
  absl::Status status = Modify(FakeCall::kToReadyToReceive, allowed, State::kReadyToReceive, "RTR");
  if (!status.ok()) return status;
  path_ = path;
  expected_psn_ = path.peer_psn;
  return status;
}

absl::Status FakeQp::ToReadyToSend(const internal::FabricTiming& timing) {
  const bool allowed = state_ == State::kReadyToReceive && timing.psn <= kFabricNumberMask &&
                       timing.timeout < 32 && timing.retry_count < 8 && timing.rnr_retry < 8 &&
                       timing.read_depth <= device_.limits().read_depth;
  absl::Status status = Modify(FakeCall::kToReadyToSend, allowed, State::kReadyToSend, "RTS");
  if (!status.ok()) return status;
  timing_ = timing;
  next_psn_ = timing.psn;
  return status;
}

absl::Status FakeQp::ToError() {
  const bool failed = state_ == State::kError;
  absl::Status status =
      Modify(FakeCall::kToError, state_ != State::kReset, State::kError, "the error state");
  if (status.ok() && !failed) Fail();
  return status;
}

void FakeQp::Lose() {
  if (state_ == State::kError) return;
  device_.PushEvent({.kind = FabricEventKind::kQpFatal, .owner = options_.owner, .port = 0});
  Fail();
}

void FakeQp::Fail() {
  state_ = State::kError;
  if (options_.srq != nullptr && fabric().options().reports_last_receive) {
    device_.PushEvent(
        {.kind = FabricEventKind::kQpLastReceive, .owner = options_.owner, .port = 0});
  }
  Flush();
}

// The device gets to it in its own time, and to either queue first.
void FakeQp::Flush() {
  if (std::exchange(flushing_, true)) return;
  fabric().Later(serial_, fabric().Delay(), [](FakeQp& qp) {
    qp.flushing_ = false;
    while (!qp.sends_.empty() || !qp.receives_.empty()) {
      const bool send =
          qp.receives_.empty() || (!qp.sends_.empty() && qp.fabric().random().Chance(500));
      if (send) {
        qp.CompleteFront(FabricOutcome::kFlushed);
        continue;
      }
      const FakeReceive receive = std::move(qp.receives_.front());
      qp.receives_.pop_front();
      qp.fabric().CountReceiveBytes(-static_cast<int64_t>(receive.bytes()));
      FabricCompletion completion;
      completion.id = receive.id;
      completion.outcome = FabricOutcome::kFlushed;
      completion.qp_number = qp.number_;
      static_cast<FakeCq*>(qp.options_.receive_cq)->Push(completion, qp.serial_, 0, 1);
    }
  });
}

// --- Posting ---

int FakeQp::Check(const internal::FabricSend& send) const {
  if (state_ != State::kReadyToSend && state_ != State::kError) return EINVAL;
  if (send.op == FabricOp::kReceive || send.parts.size() > options_.send_parts) return EINVAL;
  uint64_t size = 0;
  for (const FabricPart& part : send.parts) size += part.size;
  if (send.inlined && (size > inlined_max_ || send.op == FabricOp::kRead)) return EINVAL;
  if (send.op == FabricOp::kRead && timing_.read_depth == 0) return EINVAL;
  if (send_room_used_ >= options_.send_depth) return ENOMEM;
  return 0;
}

FakeQp::Request FakeQp::Taken(const internal::FabricSend& send) const {
  Request request;
  request.id = send.id;
  request.op = send.op;
  request.remote_address = send.remote_address;
  request.remote_key = send.remote_key;
  request.immediate = send.immediate;
  request.signalled = send.signalled;
  request.solicited = send.solicited;
  request.fenced = send.fenced;
  for (const FabricPart& part : send.parts) {
    request.size += part.size;
    if (send.inlined) {
      request.inlined.append(static_cast<const char*>(part.data), part.size);
    } else {
      request.parts.push_back(part);
    }
  }
  request.count = std::max<uint32_t>(1, (request.size + path_.mtu - 1) / path_.mtu);
  return request;
}

int FakeQp::PostSends(std::span<const internal::FabricSend> sends, size_t* posted) {
  *posted = 0;
  for (const internal::FabricSend& send : sends) {
    int error = fabric().Fault(FakeCall::kPostSend);
    if (error == 0) error = Check(send);
    if (error == EINVAL && state_ < State::kReadyToSend) {
      fabric().Violate("a send was posted to a queue pair that is not ready to send");
    }
    if (error != 0) {
      Begin();
      return -error;
    }
    sends_.push_back(Taken(send));
    ++send_room_used_;
    ++*posted;
    ++fabric().counts().sends_posted;
  }
  Begin();
  return 0;
}

void FakeQp::Begin() {
  if (state_ == State::kError) {
    Flush();
  } else {
    Pump();
  }
}

int FakeQp::PostReceive(const internal::FabricReceive& receive) {
  if (const int error = fabric().Fault(FakeCall::kPostReceive)) return -error;
  if (state_ == State::kReset || options_.srq != nullptr) return -EINVAL;
  if (receive.parts.size() > options_.receive_parts) return -EINVAL;
  if (receive_room_used_ >= options_.receive_depth) return -ENOMEM;
  ++receive_room_used_;
  receives_.push_back({receive.id, {receive.parts.begin(), receive.parts.end()}});
  fabric().CountReceiveBytes(static_cast<int64_t>(receives_.back().bytes()));
  ++fabric().counts().receives_posted;
  if (state_ == State::kError) Flush();
  return 0;
}

void FakeQp::GiveRoom(uint32_t sends, uint32_t receives) {
  send_room_used_ -= sends;
  receive_room_used_ -= receives;
}

bool FakeQp::Uses(uint32_t key) const {
  return std::any_of(sends_.begin(), sends_.end(),
                     [key](const Request& send) { return FakeUses(send.parts, key); }) ||
         std::any_of(receives_.begin(), receives_.end(),
                     [key](const FakeReceive& receive) { return FakeUses(receive.parts, key); });
}

// --- Requester ---

void FakeQp::Send(FakePacket packet) {
  packet.to = path_.peer_gid;
  packet.to_number = path_.peer_qp_number;
  fabric().Transmit(device_.nic(), std::move(packet), &last_due_ns_);
}

uint32_t FakeQp::ReadsOut() const {
  return static_cast<uint32_t>(
      std::count_if(sends_.begin(), sends_.begin() + static_cast<std::ptrdiff_t>(sent_),
                    [](const Request& request) { return request.op == FabricOp::kRead; }));
}

void FakeQp::Pump() {
  while (state_ == State::kReadyToSend && !waiting_ && sent_ < sends_.size()) {
    Request& request = sends_[sent_];
    if (request.fenced && ReadsOut() > 0) break;
    if (request.op == FabricOp::kRead && ReadsOut() >= timing_.read_depth) break;
    if (sent_ > 0 && Distance(sends_.front().psn, next_psn_) + request.count >= kHalfNumbers) break;
    if (!SendRequest(request)) break;
  }
}

bool FakeQp::SendRequest(Request& request) {
  const uint8_t access = request.op == FabricOp::kRead ? internal::kFabricLocalWrite : 0;
  FakePacket packet;
  packet.bytes = request.inlined;
  for (const FabricPart& part : request.parts) {
    const uint64_t address = reinterpret_cast<uint64_t>(part.data);
    if (part.size > 0 && !device_.Allows(part.local_key, address, part.size, access)) {
      // Completions keep their order: what was sent before must end first.
      if (sent_ > 0) return false;
      CompleteFront(FabricOutcome::kLocalProtection);
      Fail();
      return false;
    }
    if (request.op != FabricOp::kRead) {
      packet.bytes.append(static_cast<const char*>(part.data), part.size);
    }
  }
  if (!std::exchange(request.numbered, true)) {
    request.psn = next_psn_;
    next_psn_ = (next_psn_ + request.count) & kFabricNumberMask;
  }
  request.answered = false;
  if (sent_++ == 0) progress_ns_ = fabric().host().now_ns();
  packet.psn = request.psn;
  packet.count = request.count;
  packet.op = request.op;
  packet.read_size = request.op == FabricOp::kRead ? request.size : 0;
  packet.remote_address = request.remote_address;
  packet.remote_key = request.remote_key;
  packet.immediate = request.immediate;
  packet.solicited = request.solicited;
  packet.reads_out = ReadsOut();
  Send(std::move(packet));
  ArmTimer();
  return true;
}

void FakeQp::ArmTimer() {
  if (timing_.timeout == 0 || std::exchange(timer_, true)) return;
  const int64_t due_ns = progress_ns_ + (int64_t{4096} << timing_.timeout);
  fabric().Later(serial_, std::max<int64_t>(0, due_ns - fabric().host().now_ns()), [](FakeQp& qp) {
    qp.timer_ = false;
    qp.OnTimer();
  });
}

void FakeQp::OnTimer() {
  if (state_ != State::kReadyToSend || sent_ == 0) return;
  if (fabric().host().now_ns() - progress_ns_ < (int64_t{4096} << timing_.timeout)) {
    return ArmTimer();
  }
  if (retries_ == timing_.retry_count) {
    ++fabric().counts().retries_exceeded;
    CompleteFront(FabricOutcome::kRetriesExceeded);
    return Fail();
  }
  ++retries_;
  ++fabric().counts().timeouts;
  SendAgain();
}

void FakeQp::SendAgain() {
  sent_ = 0;
  Pump();
}

void FakeQp::CompleteFront(FabricOutcome outcome) {
  const Request request = std::move(sends_.front());
  sends_.pop_front();
  if (sent_ > 0) --sent_;
  ++unreported_;
  if (outcome == FabricOutcome::kOk && !request.signalled) return;
  FabricCompletion completion;
  completion.id = request.id;
  completion.outcome = outcome;
  completion.op = request.op;
  completion.bytes = request.op == FabricOp::kRead ? request.size : 0;
  completion.qp_number = number_;
  static_cast<FakeCq*>(options_.send_cq)
      ->Push(completion, serial_, std::exchange(unreported_, 0), 0);
}

bool FakeQp::InFlight(uint32_t psn) const {
  if (sent_ == 0) return false;
  const Request& last = sends_[sent_ - 1];
  return Distance(sends_.front().psn, psn) < Distance(sends_.front().psn, last.psn) + last.count;
}

// Everything up to `psn` has been taken by the peer.
void FakeQp::OnAck(uint32_t psn) {
  while (sent_ > 0 && state_ == State::kReadyToSend) {
    const Request& front = sends_.front();
    if (Distance((front.psn + front.count - 1) & kFabricNumberMask, psn) >= kHalfNumbers) break;
    // The answer of a read got lost: it is asked for again after the timeout.
    if (front.op == FabricOp::kRead && !front.answered) break;
    CompleteFront(FabricOutcome::kOk);
    retries_ = 0;
    rnr_retries_ = 0;
    progress_ns_ = fabric().host().now_ns();
  }
  Pump();
}

void FakeQp::OnReadResponse(const FakePacket& packet) {
  const auto end = sends_.begin() + static_cast<std::ptrdiff_t>(sent_);
  const auto read = std::find_if(sends_.begin(), end, [&](const Request& request) {
    return request.op == FabricOp::kRead && request.psn == packet.psn;
  });
  if (read == end) {
    ++fabric().counts().dropped_stale;
    return;
  }
  // Memory may have been deregistered meanwhile. The read has to be the oldest to end so.
  if (!Scatter(read->parts, packet.bytes)) {
    if (read != sends_.begin()) return;
    CompleteFront(FabricOutcome::kLocalProtection);
    return Fail();
  }
  read->answered = true;
  OnAck((read->psn + read->count - 1) & kFabricNumberMask);
}

void FakeQp::OnNak(const FakePacket& packet) {
  if (!InFlight(packet.psn)) {
    ++fabric().counts().dropped_stale;
    return;
  }
  OnAck((packet.psn - 1) & kFabricNumberMask);
  if (state_ != State::kReadyToSend || sent_ == 0) return;
  switch (packet.kind) {
    case FakePacketKind::kNakSequence:
      if (retries_ == timing_.retry_count) {
        ++fabric().counts().retries_exceeded;
        CompleteFront(FabricOutcome::kRetriesExceeded);
        return Fail();
      }
      ++retries_;
      return SendAgain();
    case FakePacketKind::kNakNotReady:
      if (timing_.rnr_retry != 7 && rnr_retries_ == timing_.rnr_retry) {
        CompleteFront(FabricOutcome::kReceiverNotReady);
        return Fail();
      }
      ++rnr_retries_;
      waiting_ = true;
      sent_ = 0;
      fabric().Later(serial_, NotReadyNs(packet.rnr_timer), [](FakeQp& qp) {
        qp.waiting_ = false;
        qp.Pump();
      });
      return;
    default:
      if (sends_.front().psn != packet.psn) return;  // an older read waits for its answer
      CompleteFront(packet.outcome);
      return Fail();
  }
}

// --- Responder ---

void FakeQp::OnPacket(const FakePacket& packet) {
  FakeStats& counts = fabric().counts();
  if (state_ == State::kReset || state_ == State::kInit) {
    ++counts.dropped_early;
    return;
  }
  if (state_ == State::kError) {
    ++counts.dropped_error;
    return;
  }
  // The sender's number is not in the packet, so a stranger at the same address is let through.
  if (packet.from != path_.peer_gid) {
    ++counts.dropped_stale;
    return;
  }
  if (packet.kind == FakePacketKind::kRequest) return OnRequest(packet);
  if (state_ != State::kReadyToSend) {
    ++counts.dropped_stale;
    return;
  }
  switch (packet.kind) {
    case FakePacketKind::kAck:
      if (InFlight(packet.psn)) return OnAck(packet.psn);
      ++counts.dropped_stale;
      return;
    case FakePacketKind::kReadResponse:
      return OnReadResponse(packet);
    default:
      return OnNak(packet);
  }
}

void FakeQp::OnRequest(const FakePacket& packet) {
  const uint32_t ahead = Distance(expected_psn_, packet.psn);
  if (ahead >= kHalfNumbers) {
    ++fabric().counts().duplicates;
    if (packet.op == FabricOp::kRead) return AnswerRead(packet);
    return Answer(FakePacketKind::kAck, (expected_psn_ - 1) & kFabricNumberMask);
  }
  if (ahead != 0) {
    if (std::exchange(nak_sent_, true)) return;
    ++fabric().counts().sequence_naks;
    return Answer(FakePacketKind::kNakSequence, expected_psn_);
  }
  nak_sent_ = false;
  if (!std::exchange(heard_, true) && state_ == State::kReadyToReceive &&
      fabric().options().reports_established) {
    device_.PushEvent(
        {.kind = FabricEventKind::kQpEstablished, .owner = options_.owner, .port = 0});
  }
  Execute(packet);
}

bool FakeQp::TakeReceive(FakeReceive* receive) {
  if (options_.srq != nullptr) return static_cast<FakeSrq*>(options_.srq)->Take(receive);
  if (receives_.empty()) return false;
  *receive = std::move(receives_.front());
  receives_.pop_front();
  fabric().CountReceiveBytes(-static_cast<int64_t>(receive->bytes()));
  return true;
}

// Takes a message into a receive. False: answered otherwise than by an acknowledgement.
bool FakeQp::Land(const FakePacket& packet) {
  FakeReceive receive;
  if (!TakeReceive(&receive)) {
    ++fabric().counts().not_ready_naks;
    nak_sent_ = true;
    Answer(FakePacketKind::kNakNotReady, packet.psn);
    return false;
  }
  FabricCompletion completion;
  completion.id = receive.id;
  completion.op = FabricOp::kReceive;
  completion.qp_number = number_;
  FabricOutcome answer = FabricOutcome::kOk;
  if (packet.bytes.size() > receive.bytes()) {
    completion.outcome = FabricOutcome::kLocalLength;
    answer = FabricOutcome::kRemoteInvalid;
  } else if (!Scatter(receive.parts, packet.bytes)) {
    completion.outcome = FabricOutcome::kLocalProtection;
    answer = FabricOutcome::kRemoteOperation;
  } else {
    completion.outcome = FabricOutcome::kOk;
    completion.bytes = static_cast<uint32_t>(packet.bytes.size());
    completion.has_immediate = packet.op == FabricOp::kSendImmediate;
    completion.immediate = packet.immediate;
  }
  static_cast<FakeCq*>(options_.receive_cq)
      ->Push(completion, serial_, 0, options_.srq != nullptr ? 0 : 1);
  if (answer == FabricOutcome::kOk) return true;
  Answer(FakePacketKind::kNak, packet.psn, answer);
  Fail();
  return false;
}

void FakeQp::Execute(const FakePacket& packet) {
  switch (packet.op) {
    case FabricOp::kSend:
    case FabricOp::kSendImmediate:
      if (!Land(packet)) return;
      break;
    case FabricOp::kWrite:
      if (!packet.bytes.empty()) {
        const uint8_t access = internal::kFabricRemoteWrite;
        if (!(init_.access & access) || !device_.Allows(packet.remote_key, packet.remote_address,
                                                        packet.bytes.size(), access)) {
          return Refuse(packet, FabricOutcome::kRemoteAccess);
        }
        std::memcpy(reinterpret_cast<void*>(packet.remote_address), packet.bytes.data(),
                    packet.bytes.size());
      }
      break;
    case FabricOp::kRead:
      expected_psn_ = (expected_psn_ + packet.count) & kFabricNumberMask;
      return AnswerRead(packet);
    case FabricOp::kReceive:
      return;
  }
  expected_psn_ = (expected_psn_ + packet.count) & kFabricNumberMask;
  if (state_ != State::kError) {
    Answer(FakePacketKind::kAck, (packet.psn + packet.count - 1) & kFabricNumberMask);
  }
}

void FakeQp::AnswerRead(const FakePacket& packet) {
  if (packet.reads_out > path_.read_depth) return Refuse(packet, FabricOutcome::kRemoteInvalid);
  const uint8_t access = internal::kFabricRemoteRead;
  if (packet.read_size > 0 &&
      (!(init_.access & access) ||
       !device_.Allows(packet.remote_key, packet.remote_address, packet.read_size, access))) {
    return Refuse(packet, FabricOutcome::kRemoteAccess);
  }
  FakePacket answer;
  answer.kind = FakePacketKind::kReadResponse;
  answer.psn = packet.psn;
  if (packet.read_size > 0) {
    answer.bytes.assign(reinterpret_cast<const char*>(packet.remote_address), packet.read_size);
  }
  Send(std::move(answer));
}

void FakeQp::Refuse(const FakePacket& packet, FabricOutcome outcome) {
  Answer(FakePacketKind::kNak, packet.psn, outcome);
  Lose();
}

void FakeQp::Answer(FakePacketKind kind, uint32_t psn, FabricOutcome outcome) {
  FakePacket packet;
  packet.kind = kind;
  packet.psn = psn;
  packet.outcome = outcome;
  packet.rnr_timer = path_.min_rnr_timer;
  Send(std::move(packet));
}

bool FakeQp::Scatter(const std::vector<FabricPart>& parts, std::string_view bytes) const {
  for (const FabricPart& part : parts) {
    const size_t size = std::min<size_t>(part.size, bytes.size());
    if (size == 0) continue;
    if (!device_.Allows(part.local_key, reinterpret_cast<uint64_t>(part.data), size,
                        internal::kFabricLocalWrite)) {
      return false;
    }
    std::memcpy(part.data, bytes.data(), size);
    bytes.remove_prefix(size);
  }
  return true;
}

}  // namespace penstock::testing
