// What every example program does with its command line: absl flags, with dashes allowed in names,
// a short --help, and errors that name the flag, what was wrong and what is accepted. And the few
// checks of flag values that several programs share.
#ifndef PENSTOCK_EXAMPLES_COMMON_PROGRAM_H_
#define PENSTOCK_EXAMPLES_COMMON_PROGRAM_H_

#include <penstock/address.h>
#include <penstock/loop.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace examples {

// Parses the flags and returns the other arguments. `usage` is "ARGUMENTS\n\nWhat it does."; --help
// prints it with the flags and ends the program with status 0.
std::vector<std::string> ParseCommandLine(int argc, char** argv, std::string_view usage);

// Whether the command line that was parsed has this flag, even with its default value. `name` as
// ABSL_FLAG has it.
bool IsFlagGiven(std::string_view name);

// ParseCommandLine for programs that take flags only.
void ParseFlagsOnly(int argc, char** argv, std::string_view usage);

// ParseCommandLine for programs that send a file or receive one: "send FILE" with the address of
// flag --connect, or "receive OUT" with that of --listen.
struct FileTransfer {
  bool sends;
  std::string path;
  penstock::SocketAddress address;
};
FileTransfer ParseFileTransfer(int argc, char** argv, std::string_view usage,
                               const absl::Flag<std::string>& connect,
                               const absl::Flag<std::string>& listen);

// "PROGRAM: message" on stderr, and the end of the program with status 1.
[[noreturn]] void Fail(std::string_view message);
void Complain(std::string_view message);

// Each ends the program with an error that names `flag` when the value is not acceptable.
penstock::SocketAddress AddressOrFail(std::string_view flag, const std::string& value);
penstock::EngineKind EngineOrFail(std::string_view flag, const std::string& value);
void RangeOrFail(std::string_view flag, int64_t value, int64_t least, int64_t most);
// Zero, for never, or 1ms and more.
absl::Duration IntervalOrFail(std::string_view flag, absl::Duration interval);
// 1ms and more, or infinite, for never.
absl::Duration TimeoutOrFail(std::string_view flag, absl::Duration timeout);
absl::Duration NotNegativeOrFail(std::string_view flag, absl::Duration duration);

// Lets the process have as many descriptors as the hard limit allows.
void RaiseDescriptorLimit();

// How many descriptors the process has (proc(5)); 0 where that cannot be told.
uint64_t DescriptorsOpen();

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_PROGRAM_H_
