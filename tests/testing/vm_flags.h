// What the kernel does with a piece of memory, as proc(5) tells in smaps.
//
// Stateless; any thread.
#ifndef PENSTOCK_TESTS_TESTING_VM_FLAGS_H_
#define PENSTOCK_TESTS_TESTING_VM_FLAGS_H_

#include <penstock/export.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The VmFlags of the mapping that holds `address`, each between two spaces: " dd " is left out of
// core dumps, " hg " asks for transparent huge pages, " ht " is made of huge pages.
inline std::string VmFlags(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool here = false;
  while (std::getline(maps, line)) {
    std::istringstream words(line);
    uintptr_t begin;
    uintptr_t end;
    char dash;
    if (words >> std::hex >> begin >> dash >> end && dash == '-') {
      here = begin <= reinterpret_cast<uintptr_t>(address) &&
             reinterpret_cast<uintptr_t>(address) < end;
    } else if (here && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_VM_FLAGS_H_
