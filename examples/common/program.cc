#include "common/program.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/time.h"

namespace examples {
namespace {

std::string program_name = "example";
std::set<std::string, std::less<>> flags_given;

std::string WithDashes(absl::string_view name) { return absl::StrReplaceAll(name, {{"_", "-"}}); }

// What the values of a flag look like.
std::string_view KindOf(const absl::CommandLineFlag& flag) {
  if (flag.IsOfType<bool>()) return "true or false";
  if (flag.IsOfType<absl::Duration>()) return "a duration such as 500ms, 10s or 2m";
  if (flag.IsOfType<int32_t>() || flag.IsOfType<int64_t>()) return "a whole number";
  return "a text";
}

// Flags of the examples, not those that abseil brings along.
std::map<std::string, absl::CommandLineFlag*> OwnFlags() {
  std::map<std::string, absl::CommandLineFlag*> own;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!absl::StrContains(flag->Filename(), "absl")) own[std::string(name)] = flag;
  }
  return own;
}

[[noreturn]] void PrintHelp(std::string_view usage) {
  std::string text = absl::StrCat("usage: ", program_name, " ", std::string(usage), "\n\nFlags:\n");
  for (const auto& [name, flag] : OwnFlags()) {
    absl::StrAppend(&text, "  --", WithDashes(name), "  ", flag->Help());
    const std::string value = flag->DefaultValue();
    absl::StrAppend(&text, value.empty() ? "\n" : absl::StrCat(" (default ", value, ")\n"));
  }
  std::fputs(text.c_str(), stdout);
  std::exit(0);
}

enum class Value { kGiven, kNext, kTrue };

// Checks `--name=value`, `--name value` and, for bools, `--name` before absl does: its own errors
// do not say what is accepted. Says where the value is.
Value CheckFlag(std::string_view name, const char* value) {
  absl::CommandLineFlag* flag =
      absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()));
  const std::string shown =
      absl::StrCat("--", WithDashes(absl::string_view(name.data(), name.size())));
  if (flag == nullptr) Fail(absl::StrCat(shown, ": there is no such flag; --help lists them"));
  if (value == nullptr) return flag->IsOfType<bool>() ? Value::kTrue : Value::kNext;
  std::string error;
  if (!flag->ParseFrom(value, &error)) {
    Fail(absl::StrCat(shown, ": '", value, "' is not ", std::string(KindOf(*flag))));
  }
  return Value::kGiven;
}

}  // namespace

std::vector<std::string> ParseCommandLine(int argc, char** argv, std::string_view usage) {
  const std::string_view path = argv[0];
  program_name = std::string(path.substr(path.rfind('/') + 1));
  absl::SetProgramUsageMessage(std::string(usage));

  // absl knows flags by their names with underscores alone.
  std::vector<std::string> words(argv, argv + argc);
  for (size_t i = 1; i < words.size(); ++i) {
    std::string& word = words[i];
    if (word == "--") break;
    if (word == "--help" || word == "-h") PrintHelp(usage);
    if (!absl::StartsWith(word, "--")) {
      // absl would take it for a flag by its own name of it.
      if (word.size() > 1 && word[0] == '-') {
        Fail(absl::StrCat("'", word, "': flags begin with two dashes, see --help"));
      }
      continue;
    }
    const size_t equals = std::min(word.find('='), word.size());
    std::replace(word.begin() + 2, word.begin() + static_cast<std::ptrdiff_t>(equals), '-', '_');
    const std::string name = word.substr(2, equals - 2);
    const char* value = equals < word.size() ? word.c_str() + equals + 1 : nullptr;
    flags_given.insert(name);
    switch (CheckFlag(name, value)) {
      case Value::kGiven:
        break;
      case Value::kTrue:
        // absl, as a shared library, does not know a bool of ours when it sees one.
        word += "=true";
        break;
      case Value::kNext:
        ++i;
        if (i == words.size()) Fail(absl::StrCat("--", WithDashes(name), ": a value is missing"));
        CheckFlag(name, words[i].c_str());
    }
  }

  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  std::vector<std::string> rest;
  for (char* word : absl::ParseCommandLine(argc, pointers.data())) rest.emplace_back(word);
  rest.erase(rest.begin());
  return rest;
}

bool IsFlagGiven(std::string_view name) { return flags_given.contains(name); }

void ParseFlagsOnly(int argc, char** argv, std::string_view usage) {
  const std::vector<std::string> rest = ParseCommandLine(argc, argv, usage);
  if (!rest.empty()) {
    Fail(absl::StrCat("'", rest[0], "' was not expected: only flags are accepted, see --help"));
  }
}

FileTransfer ParseFileTransfer(int argc, char** argv, std::string_view usage,
                               const absl::Flag<std::string>& connect,
                               const absl::Flag<std::string>& listen) {
  const std::vector<std::string> words = ParseCommandLine(argc, argv, usage);
  const bool sends = !words.empty() && words[0] == "send";
  if (words.size() != 2 || (!sends && words[0] != "receive")) {
    Fail("'send FILE' or 'receive OUT' was expected, see --help");
  }
  const char* const flag = sends ? "connect" : "listen";
  const std::string text = absl::GetFlag(sends ? connect : listen);
  if (text.empty()) {
    Fail(absl::StrCat(words[0], " needs --", flag, "=ADDRESS, such as 127.0.0.1:7000"));
  }
  return {sends, words[1], AddressOrFail(flag, text)};
}

void Complain(std::string_view message) {
  std::fprintf(stderr, "%s: %.*s\n", program_name.c_str(), static_cast<int>(message.size()),
               message.data());
}

void Fail(std::string_view message) {
  Complain(message);
  std::exit(1);
}

penstock::SocketAddress AddressOrFail(std::string_view flag, const std::string& value) {
  absl::StatusOr<penstock::SocketAddress> address = penstock::SocketAddress::Parse(value);
  if (!address.ok()) {
    Fail(absl::StrCat("--", std::string(flag), ": ", address.status().message()));
  }
  return *std::move(address);
}

penstock::EngineKind EngineOrFail(std::string_view flag, const std::string& value) {
  absl::StatusOr<penstock::EngineKind> engine = penstock::ParseEngineKind(value);
  if (!engine.ok()) Fail(absl::StrCat("--", std::string(flag), ": ", engine.status().message()));
  return *engine;
}

void RangeOrFail(std::string_view flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  Fail(absl::StrCat("--", std::string(flag), ": ", value, " is out of range, ", least, " to ", most,
                    " is accepted"));
}

absl::Duration IntervalOrFail(std::string_view flag, absl::Duration interval) {
  if (interval != absl::ZeroDuration() && interval < absl::Milliseconds(1)) {
    Fail(absl::StrCat("--", std::string(flag), ": ", absl::FormatDuration(interval),
                      "; 1ms and more is accepted, and 0 for never"));
  }
  return interval;
}

absl::Duration TimeoutOrFail(std::string_view flag, absl::Duration timeout) {
  if (timeout < absl::Milliseconds(1)) {
    Fail(absl::StrCat("--", std::string(flag), ": ", absl::FormatDuration(timeout),
                      "; 1ms and more is accepted, and inf for never"));
  }
  return timeout;
}

absl::Duration NotNegativeOrFail(std::string_view flag, absl::Duration duration) {
  if (duration < absl::ZeroDuration()) {
    Fail(absl::StrCat("--", std::string(flag), ": a negative duration; zero and more is accepted"));
  }
  return duration;
}

void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // the soft limit stays when it is refused
}

uint64_t DescriptorsOpen() {
  std::error_code error;
  const std::filesystem::directory_iterator all("/proc/self/fd", error);
  if (error) return 0;
  // One of them is what lists them.
  return static_cast<uint64_t>(std::distance(begin(all), end(all))) - 1;
}

}  // namespace examples
