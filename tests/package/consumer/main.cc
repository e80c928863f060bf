// Uses the library as a stranger would. The unused variable is deliberate: were a warning flag of
// Penstock's own build to reach its consumers, -Werror with it, this file would not compile.
#include <cstdio>

#include <penstock/version.h>

int main() {
  int deliberately_unused = 0;
  const std::string_view version = penstock::Version();
  std::printf("penstock %.*s\n", static_cast<int>(version.size()), version.data());
  return 0;
}
