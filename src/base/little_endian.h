// Little-endian words in a run of bytes, as records and messages have them, whatever the machine's
// order.
//
// Pure; any thread. One move each on a little-endian machine, which g++ 12 does not make of a loop
// over the bytes.
#ifndef PENSTOCK_BASE_LITTLE_ENDIAN_H_
#define PENSTOCK_BASE_LITTLE_ENDIAN_H_

#include <penstock/export.h>

#include <algorithm>
#include <bit>
#include <cstring>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// sizeof(Word) bytes each.
template <typename Word>
void StoreLittle(void* to, Word word) {
  auto* const bytes = static_cast<unsigned char*>(to);
  std::memcpy(bytes, &word, sizeof word);
  if constexpr (std::endian::native == std::endian::big) std::reverse(bytes, bytes + sizeof word);
}

template <typename Word>
Word LoadLittle(const void* from) {
  unsigned char bytes[sizeof(Word)];
  std::memcpy(bytes, from, sizeof bytes);
  if constexpr (std::endian::native == std::endian::big) std::reverse(bytes, bytes + sizeof bytes);
  return std::bit_cast<Word>(bytes);
}

// The same, and past it.
template <typename Word>
void PutLittle(char*& to, Word word) {
  StoreLittle(to, word);
  to += sizeof word;
}

template <typename Word>
Word TakeLittle(const char*& from) {
  const Word word = LoadLittle<Word>(from);
  from += sizeof word;
  return word;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_LITTLE_ENDIAN_H_
