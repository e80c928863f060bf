// The load generator of the side-by-side bench. Prints one JSON line; see --help.
//
// Exits with 0 when every byte came back right, 1 when something went wrong on the way (the line is
// printed all the same), 2 for a wrong command line.
#include <inttypes.h>
#include <stdio.h>

#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "idle_holder.h"
#include "load_generator.h"
#include "socket.h"

ABSL_FLAG(std::string, connect, "", "server: 1.2.3.4:PORT, [::1]:PORT or unix:PATH");
ABSL_FLAG(int, connections, 1, "connections to open");
ABSL_FLAG(int64_t, size, 64, "bytes of each request");
ABSL_FLAG(
    bool, http, false,
    "the server is an HTTP server with one answer: requests are GETs of /, and --size does not "
    "count");
ABSL_FLAG(int, depth, 1, "requests in flight on each connection");
ABSL_FLAG(absl::Duration, warmup, absl::Milliseconds(200), "time before measuring, like 200ms");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(1), "time measured, like 1s");
ABSL_FLAG(
    double, rate, 0,
    "requests per second over all connections, latency counted from when each is due; 0 keeps "
    "--depth requests in flight all the time");
ABSL_FLAG(int, watch_pid, 0, "also report processor time and run-queue delay of this process");
ABSL_FLAG(int, idle, 0,
          "open this many connections and hold them; obeys the lines touch (one request of --size "
          "on each) and close from standard input, and ends with it");

namespace penstock_bench {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;
constexpr int64_t kSizeMax = 64 << 20;
constexpr int kDepthMax = 4096;

int Complain(std::string_view what) {
  fprintf(stderr, "loadgen: %.*s\n", static_cast<int>(what.size()), what.data());
  return kWrongUsage;
}

int Fail(const absl::Status& status) {
  fprintf(stderr, "loadgen: %s\n", status.ToString().c_str());
  return kFailed;
}

void AppendUsage(std::string& json, const char* name, const ProcessUsage& usage) {
  absl::StrAppendFormat(&json, ",\"%s_cpu_ns\":%d,\"%s_delay_ns\":%d", name, usage.cpu_ns, name,
                        usage.delay_ns);
}

void Print(const LoadOptions& options, const LoadResult& result) {
  double seconds = absl::ToDoubleSeconds(result.window);
  double rate = seconds > 0 ? static_cast<double>(result.requests) / seconds : 0;
  std::string json = absl::StrFormat(
      "{\"connections\":%d,\"size\":%d,\"depth\":%d,\"seconds\":%.6f,\"requests\":%d,"
      "\"requests_per_second\":%.1f,\"bytes_per_second\":%.0f,\"errors\":%d",
      options.connections, result.reply_bytes, options.depth, seconds, result.requests, rate,
      rate * static_cast<double>(result.reply_bytes), result.errors);
  constexpr struct {
    const char* name;
    double fraction;
  } kPercentiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99_9", 0.999}};
  for (const auto& percentile : kPercentiles) {
    absl::StrAppendFormat(&json, ",\"%s_us\":%.2f", percentile.name,
                          result.latency.Percentile(percentile.fraction) / 1000);
  }
  AppendUsage(json, "client", result.own);
  if (result.watched.has_value()) AppendUsage(json, "server", *result.watched);
  printf("%s}\n", json.c_str());
}

int RunLoad(const LoadOptions& options) {
  LoadGenerator generator(options);
  if (absl::Status status = generator.Connect(); !status.ok()) return Fail(status);
  LoadResult result = generator.Run();
  Print(options, result);
  if (result.errors == 0) return 0;
  fprintf(stderr, "loadgen: %" PRIu64 " errors, the first: %s\n", result.errors,
          result.first_error.c_str());
  return kFailed;
}

int Main() {
  absl::StatusOr<Address> address = ParseAddress(absl::GetFlag(FLAGS_connect));
  if (!address.ok()) return Complain(absl::StrCat("--connect: ", address.status().message()));
  LoadOptions options;
  options.address = *address;
  options.connections = absl::GetFlag(FLAGS_connections);
  options.depth = absl::GetFlag(FLAGS_depth);
  options.http = absl::GetFlag(FLAGS_http);
  options.warmup = absl::GetFlag(FLAGS_warmup);
  options.duration = absl::GetFlag(FLAGS_duration);
  options.rate_per_second = absl::GetFlag(FLAGS_rate);
  if (int pid = absl::GetFlag(FLAGS_watch_pid); pid > 0) options.watch_pid = pid;
  int64_t size = absl::GetFlag(FLAGS_size);
  int idle = absl::GetFlag(FLAGS_idle);

  size_t files = RaiseOpenFileLimit();
  constexpr size_t kFilesSpared = 16;  // standard streams, epoll and what the C library opens
  int connections = idle > 0 ? idle : options.connections;
  if (connections < 1 || static_cast<size_t>(connections) + kFilesSpared > files) {
    return Complain(absl::StrCat("connections must be from 1 to the limit on open files less ",
                                 kFilesSpared, " (", files - kFilesSpared, ")"));
  }
  if (size < 1 || size > kSizeMax) {
    return Complain(absl::StrCat("--size must be from 1 to ", kSizeMax));
  }
  if (options.depth < 1 || options.depth > kDepthMax) {
    return Complain(absl::StrCat("--depth must be from 1 to ", kDepthMax));
  }
  if (options.duration <= absl::ZeroDuration() || options.warmup < absl::ZeroDuration() ||
      options.rate_per_second < 0) {
    return Complain("--duration must be positive, --warmup and --rate not negative");
  }
  if (options.http && idle > 0) return Complain("--idle: not with --http");
  options.size_bytes = static_cast<size_t>(size);
  if (idle == 0) return RunLoad(options);
  absl::Status status = IdleHolder(options.address, idle, options.size_bytes).Run();
  return status.ok() ? 0 : Fail(status);
}

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "loadgen --connect=ADDRESS [flags]\n"
      "Loads an echo server, or one of HTTP, checks every byte that comes back, prints one JSON "
      "line.");
  if (absl::ParseCommandLine(argc, argv).size() > 1) {
    return penstock_bench::Complain("takes flags only; see --help");
  }
  return penstock_bench::Main();
}
