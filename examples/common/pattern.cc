#include "common/pattern.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace examples {
namespace {

constexpr size_t kPeriod = 65521;
constexpr uint64_t kConnectionStep = 7919;

// Two periods in a row, so that a run of up to one period is contiguous wherever it starts.
const std::vector<char>& Table() {
  static const std::vector<char> table = [] {
    std::vector<char> bytes(2 * kPeriod);
    uint64_t state = 0x9e3779b97f4a7c15;  // xorshift64: any seed but zero
    for (size_t i = 0; i < kPeriod; ++i) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      bytes[i] = bytes[i + kPeriod] = static_cast<char>(state >> 32);
    }
    return bytes;
  }();
  return table;
}

const char* Expected(uint64_t connection, uint64_t position) {
  return Table().data() + (position % kPeriod + connection * kConnectionStep % kPeriod) % kPeriod;
}

}  // namespace

void FillPattern(std::span<char> out, uint64_t connection, uint64_t position) {
  for (size_t done = 0; done < out.size();) {
    const size_t run = std::min(out.size() - done, kPeriod);
    std::memcpy(out.data() + done, Expected(connection, position + done), run);
    done += run;
  }
}

std::optional<size_t> FindMismatch(std::string_view data, uint64_t connection, uint64_t position) {
  for (size_t done = 0; done < data.size();) {
    const size_t run = std::min(data.size() - done, kPeriod);
    const char* expected = Expected(connection, position + done);
    if (std::memcmp(data.data() + done, expected, run) != 0) {
      const auto [wrong, right] = std::mismatch(expected, expected + run, data.data() + done);
      return done + static_cast<size_t>(wrong - expected);
    }
    done += run;
  }
  return std::nullopt;
}

}  // namespace examples
