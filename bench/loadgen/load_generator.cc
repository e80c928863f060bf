#include "load_generator.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace penstock_bench {
namespace {

constexpr int kEventsMax = 256;
constexpr size_t kReadSize = 64 * 1024;
constexpr int kIdleWaitMilliseconds = 10;  // how late a phase may end when no reply comes
// Waits in a row in which nothing came, until replies are given up: a minute. Waits and not a time,
// which passes as well while this program does not run.
constexpr int kIdleWaitsMax = 6000;
constexpr int64_t kNanosecondsPerMillisecond = 1'000'000;

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

ProcessUsage operator-(const ProcessUsage& a, const ProcessUsage& b) {
  return {a.cpu_ns - b.cpu_ns, a.delay_ns - b.delay_ns};
}

}  // namespace

LoadGenerator::LoadGenerator(const LoadOptions& options)
    : options_(options),
      dialogue_(EchoDialogue(options.size_bytes)),
      start_times_(static_cast<size_t>(options.connections) * options.depth),
      buffer_(kReadSize) {
  if (options.rate_per_second > 0) interval_ns_ = 1e9 / options.rate_per_second;
}

LoadGenerator::~LoadGenerator() {
  for (Connection& connection : connections_) {
    if (connection.fd >= 0) close(connection.fd);
  }
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

absl::Status LoadGenerator::Connect() {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd_ < 0) return absl::ErrnoToStatus(errno, "epoll_create1");
  if (options_.http) {
    absl::StatusOr<Dialogue> dialogue = HttpDialogue(options_.address);
    if (!dialogue.ok()) return dialogue.status();
    dialogue_ = *std::move(dialogue);
  }
  connections_.resize(options_.connections);
  for (int i = 0; i < options_.connections; ++i) {
    absl::StatusOr<int> fd = ConnectTo(options_.address);
    if (!fd.ok()) {
      return absl::Status(fd.status().code(),
                          absl::StrCat("connection ", i + 1, " of ", options_.connections, ": ",
                                       fd.status().message()));
    }
    Connection& connection = connections_[i];
    connection.fd = *fd;
    connection.send_offset = dialogue_.requests.StartOf(i);
    connection.receive_offset = dialogue_.replies.StartOf(i);
    ++alive_;
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLOUT | EPOLLET;
    event.data.ptr = &connection;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, *fd, &event) < 0) {
      return absl::ErrnoToStatus(errno, "epoll_ctl");
    }
  }
  return absl::OkStatus();
}

LoadResult LoadGenerator::Run() {
  result_.reply_bytes = dialogue_.reply_size;
  int64_t now = Now();
  phase_end_ = now + absl::ToInt64Nanoseconds(options_.warmup);
  next_due_ = now;
  if (interval_ns_ == 0) {
    for (Connection& connection : connections_) Issue(connection, options_.depth, now);
  }
  epoll_event events[kEventsMax];
  while (phase_ != Phase::kDone) {
    if (interval_ns_ > 0 && phase_ != Phase::kDrain) IssueDue(now);
    int count = epoll_wait(epoll_fd_, events, kEventsMax, WaitMilliseconds(now));
    for (int i = 0; i < count; ++i) {
      auto& connection = *static_cast<Connection*>(events[i].data.ptr);
      if (connection.blocked && (events[i].events & EPOLLOUT) != 0) Flush(connection);
      if (connection.fd >= 0 && (events[i].events & ~EPOLLOUT) != 0) OnReadable(connection);
    }
    idle_waits_ = count == 0 ? idle_waits_ + 1 : 0;
    now = Now();
    if (now >= phase_end_ || alive_ == 0 || (phase_ == Phase::kDrain && outstanding_ == 0)) {
      NextPhase();
    }
  }
  return std::move(result_);
}

LoadGenerator::Mark LoadGenerator::TakeMark() const {
  Mark mark = {};
  mark.own = ReadProcessUsage(getpid()).value_or(ProcessUsage());
  if (options_.watch_pid.has_value()) mark.watched = ReadProcessUsage(*options_.watch_pid);
  mark.time_ns = Now();
  return mark;
}

void LoadGenerator::NextPhase() {
  switch (phase_) {
    case Phase::kWarmUp:
      phase_ = Phase::kMeasure;
      begin_ = TakeMark();
      phase_end_ = begin_.time_ns + absl::ToInt64Nanoseconds(options_.duration);
      return;
    case Phase::kMeasure: {
      // A window without a reply measures nothing.
      if (result_.requests == 0 && alive_ > 0 && idle_waits_ < kIdleWaitsMax) return;
      Mark end = TakeMark();
      phase_ = Phase::kDrain;
      idle_waits_ = 0;
      result_.window = absl::Nanoseconds(end.time_ns - begin_.time_ns);
      result_.own = end.own - begin_.own;
      if (begin_.watched.has_value() && end.watched.has_value()) {
        result_.watched = *end.watched - *begin_.watched;
      }
      return;
    }
    case Phase::kDrain:
      if (outstanding_ > 0 && alive_ > 0 && idle_waits_ < kIdleWaitsMax) return;
      for (Connection& connection : connections_) {
        if (connection.outstanding > 0) Fail(connection, "a reply never came");
      }
      phase_ = Phase::kDone;
      return;
    case Phase::kDone:
      return;
  }
}

int LoadGenerator::WaitMilliseconds(int64_t now) const {
  const bool full = outstanding_ == int64_t{alive_} * options_.depth;
  if (interval_ns_ == 0 || full || phase_ == Phase::kDrain) return kIdleWaitMilliseconds;
  // Rounds down, and so spins through the last millisecond before a request falls due.
  int64_t wait = std::max<int64_t>(next_due_ - now, 0) / kNanosecondsPerMillisecond;
  return static_cast<int>(std::min<int64_t>(wait, kIdleWaitMilliseconds));
}

void LoadGenerator::IssueDue(int64_t now) {
  while (next_due_ <= now && outstanding_ < int64_t{alive_} * options_.depth) {
    Connection& connection = connections_[next_connection_];
    next_connection_ = (next_connection_ + 1) % connections_.size();
    if (connection.fd < 0 || connection.outstanding == options_.depth) continue;
    Issue(connection, 1, next_due_);
    next_due_ += static_cast<int64_t>(interval_ns_);
  }
}

int64_t& LoadGenerator::StartTime(const Connection& connection, int index) {
  size_t first = static_cast<size_t>(&connection - connections_.data()) * options_.depth;
  int slot = connection.oldest + index;
  return start_times_[first + (slot < options_.depth ? slot : slot - options_.depth)];
}

void LoadGenerator::Issue(Connection& connection, int count, int64_t start) {
  for (int i = 0; i < count; ++i) StartTime(connection, connection.outstanding + i) = start;
  connection.outstanding += count;
  outstanding_ += count;
  connection.unsent += static_cast<uint64_t>(count) * dialogue_.request_size;
  if (!connection.blocked) Flush(connection);
}

void LoadGenerator::Flush(Connection& connection) {
  connection.blocked = false;
  while (connection.unsent > 0 && !connection.blocked) {
    size_t size = std::min<uint64_t>(connection.unsent, Pattern::kRunMax);
    ssize_t sent = send(connection.fd, dialogue_.requests.At(connection.send_offset), size,
                        MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
      Fail(connection, absl::StrCat("send: ", strerror(errno)));
      return;
    }
    connection.blocked = sent < static_cast<ssize_t>(size);
    if (sent > 0) {
      connection.unsent -= sent;
      connection.send_offset = dialogue_.requests.Advance(connection.send_offset, sent);
    }
  }
}

void LoadGenerator::OnReadable(Connection& connection) {
  ssize_t got;
  do {
    got = recv(connection.fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got <= 0) {
      if (got < 0 && errno == EAGAIN) return;
      Fail(connection, got == 0 ? "the server closed" : absl::StrCat("recv: ", strerror(errno)));
      return;
    }
    OnBytes(connection, static_cast<size_t>(got));
  } while (connection.fd >= 0 && got == static_cast<ssize_t>(buffer_.size()));
}

void LoadGenerator::OnBytes(Connection& connection, size_t got) {
  if (!dialogue_.replies.Matches(connection.receive_offset, buffer_.data(), got)) {
    Fail(connection, "wrong bytes came back");
    return;
  }
  connection.receive_offset = dialogue_.replies.Advance(connection.receive_offset, got);
  connection.received += got;
  if (connection.received < dialogue_.reply_size) return;
  int replies = static_cast<int>(connection.received / dialogue_.reply_size);
  connection.received %= dialogue_.reply_size;
  if (replies > connection.outstanding) {
    Fail(connection, "more bytes came back than were sent");
    return;
  }
  OnReplies(connection, replies, Now());
}

void LoadGenerator::OnReplies(Connection& connection, int count, int64_t now) {
  if (phase_ == Phase::kMeasure) {
    for (int i = 0; i < count; ++i) {
      result_.latency.Record(static_cast<uint64_t>(now - StartTime(connection, i)));
    }
    result_.requests += count;
  }
  connection.oldest = (connection.oldest + count) % options_.depth;
  connection.outstanding -= count;
  outstanding_ -= count;
  if (interval_ns_ == 0 && phase_ != Phase::kDrain) Issue(connection, count, now);
}

void LoadGenerator::Fail(Connection& connection, std::string_view what) {
  ++result_.errors;
  if (result_.first_error.empty()) {
    result_.first_error =
        absl::StrCat("connection ", &connection - connections_.data(), ": ", std::string(what));
  }
  outstanding_ -= connection.outstanding;
  connection.outstanding = 0;
  close(connection.fd);
  connection.fd = -1;
  --alive_;
}

}  // namespace penstock_bench
