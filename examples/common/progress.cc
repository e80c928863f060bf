#include "common/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"

namespace examples {
namespace {

constexpr int kBarWidth = 30;

}  // namespace

std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1024;
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, bytes, kUnits[unit]);
}

Progress::Progress(uint64_t total)
    : total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      interval_(terminal_ ? absl::Milliseconds(100) : absl::Seconds(1)) {}

Progress::~Progress() {
  Show();
  if (terminal_) std::fputc('\n', stderr);
}

void Progress::Update(uint64_t done) {
  done_ = done;
  const absl::Duration now = watch_.elapsed();
  if (now - shown_ < interval_) return;
  shown_ = now;
  Show();
}

void Progress::Show() {
  const double seconds = std::max(absl::ToDoubleSeconds(watch_.elapsed()), 1e-6);
  const double rate = static_cast<double>(done_) / seconds;
  const double share = total_ == 0 ? 1.0 : static_cast<double>(done_) / static_cast<double>(total_);
  const std::string left =
      done_ == total_ ? absl::StrFormat("in %.1f s", seconds)
      : done_ == 0    ? "ETA unknown"
                      : absl::StrFormat("ETA %.0f s", static_cast<double>(total_ - done_) / rate);
  const std::string figures = absl::StrFormat(
      "%3.0f %%  %s of %s  %s/s  %s", 100 * share, FormatBytes(static_cast<double>(done_)),
      FormatBytes(static_cast<double>(total_)), FormatBytes(rate), left);
  if (!terminal_) {
    absl::FPrintF(stderr, "%s\n", figures);
    return;
  }
  const int filled = static_cast<int>(share * kBarWidth);
  // "\r" starts the line again, "ESC [ K" clears what was there (ECMA-48, EL).
  absl::FPrintF(stderr, "\r[%s%s] %s\033[K", std::string(static_cast<size_t>(filled), '#'),
                std::string(static_cast<size_t>(kBarWidth - filled), '-'), figures);
  std::fflush(stderr);
}

}  // namespace examples
