// The golden records of tests/vectors/alts_vectors.json: sealed by gRPC's Go implementation,
// recomputed independently, sealed to the same bytes by its C++ one. The file explains itself.
//
// Values; read once, any thread.
#ifndef PENSTOCK_TESTS_TESTING_RECORD_VECTORS_H_
#define PENSTOCK_TESTS_TESTING_RECORD_VECTORS_H_

#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "secure/key_schedule.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// One record. Long ones are told by their hash and their ends only.
struct FrameVector {
  std::string name;
  RecordProtocol protocol;
  RecordSender sender;
  uint64_t counter = 0;
  std::string plaintext;
  size_t frame_size = 0;
  std::string frame;         // empty when the file has only what follows
  std::string frame_sha256;  // hexadecimal
  std::string frame_first;
  std::string frame_last;
};

// What a sender makes of some writes.
struct StreamVector {
  std::string name;
  RecordProtocol protocol;
  RecordSender sender;
  uint64_t counter = 0;
  uint32_t frame_max = 0;
  std::vector<size_t> writes;
  std::vector<size_t> frame_sizes;
  size_t wire_size = 0;
  std::string wire_sha256;  // hexadecimal
};

// What a receiver gets and should say to it.
struct HostileVector {
  std::string name;
  RecordProtocol protocol;
  RecordSender sender;  // whom the receiver listens to
  uint64_t counter = 0;
  std::string wire;
  std::string want;
};

struct RecordVectors {
  std::map<RecordProtocol, std::string> keys;
  std::vector<FrameVector> frames;
  std::vector<StreamVector> streams;
  std::vector<HostileVector> hostile;

  // Aborts with a message when the file cannot be read.
  static const RecordVectors& Get();
};

// The plaintext of every long vector: byte i is (7 * i + 3) mod 256.
std::string VectorPlaintext(size_t size);
std::string Sha256Hex(std::string_view bytes);
std::string FromHex(std::string_view hex);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_RECORD_VECTORS_H_
