#include "testing/environment.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "testing/patient_poll.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Reached by hung tests alone.
std::chrono::seconds Patience() { return std::chrono::seconds(120); }

// Waits until a descriptor of `loops` is readable; false after `limit`.
bool AwaitReadable(std::span<Loop* const> loops, std::chrono::milliseconds limit) {
  std::vector<pollfd> descriptors;
  for (Loop* loop : loops)
    descriptors.push_back({.fd = loop->fd(), .events = POLLIN, .revents = 0});
  return PatientPoll(descriptors, static_cast<int>(limit.count())) > 0;
}

class KernelEnvironment final : public Environment {
 public:
  KernelEnvironment(EngineKind listens, EngineKind connects, int family)
      : listens_(listens), connects_(connects), family_(family) {}

  std::string missing() override {
    for (EngineKind engine : {listens_, connects_}) {
      if (std::string why = MissingEngine(engine); !why.empty()) return why;
    }
    return family_ == AF_INET6 ? MissingIpv6() : std::string();
  }

  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    options.engine = listens_;
    return Loop::Create(std::move(options));
  }

  SocketAddress NewAddress() override {
    switch (family_) {
      case AF_INET:
        return *SocketAddress::Parse("127.0.0.1:0");
      case AF_INET6:
        return *SocketAddress::Parse("[::1]:0");
      default:
        return *SocketAddress::Parse(absl::StrCat("unix:", scratch_.NewPath()));
    }
  }

  EngineKind listen_engine() const override { return listens_; }
  EngineKind connect_engine() const override { return connects_; }
  bool has_kernel() const override { return true; }
  bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) override {
    return DriveLoops(loops, done);
  }
  void Settle(std::span<Loop* const> loops) override { SettleLoops(loops); }

 private:
  static std::string MissingIpv6() {
    const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return "no IPv6 sockets on this machine";
    sockaddr_storage storage;
    const socklen_t length = SocketAddress::Parse("[::1]:0")->ToSockaddr(storage);
    const int bound = ::bind(fd, reinterpret_cast<sockaddr*>(&storage), length);
    ::close(fd);
    return bound == 0 ? "" : "no IPv6 loopback address on this machine";
  }

  EngineKind listens_;
  EngineKind connects_;
  int family_;
  ScratchFolder scratch_;
};

struct Family {
  const char* name;
  int family;
};

std::vector<EnvironmentCase> Combine(std::span<const Family> families) {
  const struct {
    const char* name;
    EngineKind listens;
    EngineKind connects;
  } pairs[] = {
      {"Epoll", EngineKind::kEpoll, EngineKind::kEpoll},
      {"Uring", EngineKind::kUring, EngineKind::kUring},
      {"EpollWithUring", EngineKind::kEpoll, EngineKind::kUring},
      {"UringWithEpoll", EngineKind::kUring, EngineKind::kEpoll},
  };
  std::vector<EnvironmentCase> cases;
  for (const auto& pair : pairs) {
    for (const Family& family : families) {
      cases.push_back({absl::StrCat(pair.name, family.name), [pair, family] {
                         return std::make_unique<KernelEnvironment>(pair.listens, pair.connects,
                                                                    family.family);
                       }});
    }
  }
  return cases;
}

}  // namespace

void PrintTo(const EnvironmentCase& which, std::ostream* out) { *out << which.name; }

std::vector<EnvironmentCase> KernelEnvironments() {
  constexpr Family kFamilies[] = {{"Ipv4", AF_INET}, {"Ipv6", AF_INET6}, {"Unix", AF_UNIX}};
  return Combine(kFamilies);
}

std::vector<EnvironmentCase> KernelEngines() {
  constexpr Family kFamilies[] = {{"", AF_INET}};
  return Combine(kFamilies);
}

#ifndef PENSTOCK_HAVE_SECURE
std::vector<EnvironmentCase> SealedEnvironments() { return {}; }
std::vector<EnvironmentCase> SealedEngines() { return {}; }
#endif
#ifndef PENSTOCK_HAVE_RDMA
std::vector<EnvironmentCase> RdmaStreamEnvironments() { return {}; }
#endif

bool IsSlow() {
  static const bool told = std::getenv("PENSTOCK_TESTS_SLOW") != nullptr;
  return kSanitized || told;
}

int Scaled(int count) { return IsSlow() ? (count + 9) / 10 : count; }

bool DriveLoops(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) {
  const auto give_up = std::chrono::steady_clock::now() + Patience();
  while (!done()) {
    bool more = false;
    for (Loop* loop : loops) more |= loop->Poll();
    if (more || done()) continue;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        give_up - std::chrono::steady_clock::now());
    if (left.count() <= 0 || !AwaitReadable(loops, left)) return done();
  }
  return true;
}

void SettleLoops(std::span<Loop* const> loops) {
  const auto give_up = std::chrono::steady_clock::now() + Patience();
  // What the kernel still carries from one socket to the other must have the time to come.
  const std::chrono::milliseconds calm(IsSlow() ? 5 : 1);
  do {
    bool more = true;
    while (more && std::chrono::steady_clock::now() < give_up) {
      more = false;
      for (Loop* loop : loops) more |= loop->Poll();
    }
  } while (AwaitReadable(loops, calm) && std::chrono::steady_clock::now() < give_up);
}

std::string MissingEngine(EngineKind engine) {
  // Asked once: a ring costs a millisecond, and every test asks.
  static std::map<EngineKind, std::string> known;
  const auto [row, is_new] = known.try_emplace(engine);
  if (is_new) {
    LoopOptions options;
    options.engine = engine;
    const absl::Status status = Loop::Create(std::move(options)).status();
    if (absl::IsUnimplemented(status)) {
      row->second = absl::StrCat(std::string(EngineKindName(engine)),
                                 " engine: ", std::string(status.message()));
    }
  }
  return row->second;
}

std::string MissingEngine() {
  std::string why = MissingEngine(EngineKind::kEpoll);
  return why.empty() ? MissingEngine(EngineKind::kUring) : why;
}

ScratchFolder::ScratchFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "penstock-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = std::move(pattern);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ScratchFolder::NewPath() { return absl::StrCat(path_, "/", next_++); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
