#include "common/json.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace examples {
namespace {

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\u%04x", c);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace

void JsonLine::AddKey(std::string_view key) {
  absl::StrAppend(&text_, text_.empty() ? "{" : ", ", Quoted(key), ": ");
}

JsonLine& JsonLine::Add(std::string_view key, uint64_t value) {
  AddKey(key);
  absl::StrAppend(&text_, value);
  return *this;
}

JsonLine& JsonLine::Add(std::string_view key, double value) {
  AddKey(key);
  absl::StrAppendFormat(&text_, "%.3f", value);
  return *this;
}

JsonLine& JsonLine::Add(std::string_view key, std::string_view value) {
  AddKey(key);
  absl::StrAppend(&text_, Quoted(value));
  return *this;
}

void JsonLine::Print() const {
  const std::string line = text_ + "}\n";
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace examples
