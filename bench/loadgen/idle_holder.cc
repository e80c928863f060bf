#include "idle_holder.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"

namespace penstock_bench {
namespace {

// Small enough that both socket buffers together hold it: a blocking send cannot wait for a server
// that waits for us.
constexpr size_t kStep = 16 * 1024;

void Say(const char* event, size_t connections) {
  printf("{\"event\":\"%s\",\"connections\":%zu}\n", event, connections);
  fflush(stdout);
}

}  // namespace

IdleHolder::IdleHolder(const Address& address, int connections, size_t size_bytes)
    : address_(address),
      connections_wanted_(connections),
      size_bytes_(size_bytes),
      buffer_(kStep) {}

IdleHolder::~IdleHolder() { CloseAll(); }

absl::Status IdleHolder::Run() {
  if (absl::Status status = ConnectAll(); !status.ok()) return status;
  Say("connected", connections_.size());
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line == "touch") {
      if (absl::Status status = Touch(); !status.ok()) return status;
      Say("touched", connections_.size());
    } else if (line == "close") {
      CloseAll();
      Say("closed", 0);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("command '", line, "' is not known; accepted are touch and close"));
    }
  }
  return absl::OkStatus();
}

absl::Status IdleHolder::ConnectAll() {
  while (connections_.size() < connections_wanted_) {
    absl::StatusOr<int> fd = ConnectTo(address_);
    if (!fd.ok()) {
      return absl::Status(fd.status().code(),
                          absl::StrCat("connection ", connections_.size() + 1, " of ",
                                       connections_wanted_, ": ", fd.status().message()));
    }
    connections_.push_back(*fd);
  }
  return absl::OkStatus();
}

absl::Status IdleHolder::Touch() {
  for (size_t i = 0; i < connections_.size(); ++i) {
    absl::Status status = TouchOne(connections_[i], pattern_.StartOf(static_cast<uint32_t>(i)));
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("connection ", i, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status IdleHolder::TouchOne(int fd, uint32_t offset) {
  for (size_t done = 0; done < size_bytes_;) {
    size_t step = std::min(size_bytes_ - done, kStep);
    for (size_t sent = 0; sent < step;) {
      ssize_t size = send(fd, pattern_.At(offset) + sent, step - sent, MSG_NOSIGNAL);
      if (size < 0) return absl::ErrnoToStatus(errno, "send");
      sent += size;
    }
    ssize_t got = recv(fd, buffer_.data(), step, MSG_WAITALL);
    if (got < 0) return absl::ErrnoToStatus(errno, "recv");
    if (got < static_cast<ssize_t>(step)) return absl::OutOfRangeError("the server closed");
    if (!pattern_.Matches(offset, buffer_.data(), step)) {
      return absl::DataLossError("wrong bytes came back");
    }
    offset = pattern_.Advance(offset, step);
    done += step;
  }
  return absl::OkStatus();
}

void IdleHolder::CloseAll() {
  for (int fd : connections_) close(fd);
  connections_.clear();
}

}  // namespace penstock_bench
