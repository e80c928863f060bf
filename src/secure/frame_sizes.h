// The record sizes that one side wants, from HandshakeOptions.
//
// Pure; any thread.
#ifndef PENSTOCK_SECURE_FRAME_SIZES_H_
#define PENSTOCK_SECURE_FRAME_SIZES_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <cstdint>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Whole records in bytes, length field included.
struct FrameSizes {
  uint32_t send_max = 0;
  uint32_t receive_max = 0;
};

// The mode's defaults where `options` has zeros. InvalidArgument for sizes that no record has.
absl::StatusOr<FrameSizes> ChooseFrameSizes(RecordMode mode, const HandshakeOptions& options);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_FRAME_SIZES_H_
