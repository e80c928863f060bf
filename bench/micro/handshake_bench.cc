// What a handshake costs each side: processor time, and heap from the first byte to the switch and
// after it. Both sides run on one thread; every step is charged to the side that takes it.
#include <benchmark/benchmark.h>
#include <malloc.h>
#include <penstock/handshake.h>
#include <penstock/tls_handshake.h>

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/certificates.h"

namespace penstock_bench {
namespace {

using penstock::CredentialsPtr;
using penstock::Handshaker;
using penstock::internal::TestAuthority;

// clock_gettime(2) of the processor time costs 0.2 us, a step 50 and more.
int64_t ThreadNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

struct Side {
  std::unique_ptr<Handshaker> handshaker;
  int64_t nanoseconds = 0;

  void Start(const CredentialsPtr& credentials, const penstock::HandshakeOptions& options) {
    const int64_t begin = ThreadNanoseconds();
    handshaker = *credentials->NewHandshaker(options);
    nanoseconds += ThreadNanoseconds() - begin;
  }
  // Empty once nothing is to be said.
  std::string Step(const std::string& in) {
    const int64_t begin = ThreadNanoseconds();
    Handshaker::Progress progress = handshaker->Step(in);
    std::string out = std::move(progress.out);
    if (progress.state == Handshaker::State::kAuthorize) {
      progress = handshaker->Authorize(absl::OkStatus());
      out += progress.out;
    }
    state = progress.state;
    nanoseconds += ThreadNanoseconds() - begin;
    return out;
  }
  Handshaker::State state = Handshaker::State::kMore;
};

struct Pair {
  Side client, server;
  std::string to_server;  // the last flight, when it has been held back

  void Start(const CredentialsPtr& client_keys, const CredentialsPtr& server_keys, bool named) {
    client.Start(client_keys, {.verify_name = named ? "server.test" : ""});
    server.Start(server_keys, {.server = true});
  }
  void RunToLastFlight() { to_server = client.Step(server.Step(client.Step({}))); }
  bool Finish() {
    client.Step(server.Step(to_server));
    return client.state == Handshaker::State::kDone && server.state == Handshaker::State::kDone;
  }
};

void Measure(benchmark::State& state, const CredentialsPtr& client, const CredentialsPtr& server,
             bool named) {
  int64_t client_time = 0;
  int64_t server_time = 0;
  for (auto _ : state) {
    Pair pair;
    pair.Start(client, server, named);
    pair.RunToLastFlight();
    if (!pair.Finish()) return state.SkipWithError("a handshake failed");
    client_time += pair.client.nanoseconds;
    server_time += pair.server.nanoseconds;
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["client_us"] = static_cast<double>(client_time) / iterations / 1000;
  state.counters["server_us"] = static_cast<double>(server_time) / iterations / 1000;

  constexpr size_t kHeld = 100;
  std::vector<Pair> held(kHeld);
  const size_t before = mallinfo2().uordblks;
  for (Pair& pair : held) {
    pair.Start(client, server, named);
    pair.RunToLastFlight();
  }
  const size_t during = mallinfo2().uordblks;
  for (Pair& pair : held) {
    if (!pair.Finish()) return state.SkipWithError("a handshake failed");
    pair.to_server = {};
  }
  const size_t after = mallinfo2().uordblks;
  // What a stream keeps is the result alone.
  for (Pair& pair : held) {
    pair.client.handshaker.reset();
    pair.server.handshaker.reset();
  }
  const size_t dropped = mallinfo2().uordblks;
  const auto each = [](size_t high, size_t low) {
    return static_cast<double>(high) / (2.0 * kHeld) - static_cast<double>(low) / (2.0 * kHeld);
  };
  state.counters["heap_during"] = each(during, before);
  state.counters["heap_switched"] = each(after, before);
  state.counters["heap_dropped"] = each(dropped, before);
}

void BM_HandshakeCertificates(benchmark::State& state) {
  const TestAuthority authority;
  const CredentialsPtr server =
      authority.Credentials({.common_name = "server", .names = {"DNS:server.test"}});
  const CredentialsPtr client = authority.Credentials({.common_name = "client"});
  Measure(state, client, server, /*named=*/true);
}
BENCHMARK(BM_HandshakeCertificates)->Unit(benchmark::kMicrosecond);

void BM_HandshakePsk(benchmark::State& state) {
  const CredentialsPtr keys = *penstock::TlsPskCredentials(
      {{.identity = "pump", .key = penstock::SecretKey(std::string(32, 'k'))}});
  Measure(state, keys, keys, /*named=*/false);
}
BENCHMARK(BM_HandshakePsk)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace penstock_bench
