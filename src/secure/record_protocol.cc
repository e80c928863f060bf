#include <penstock/record_protocol.h>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE

std::string_view RecordProtocolName(RecordProtocol protocol) {
  return protocol == RecordProtocol::kGcmAes128 ? "ALTSRP_GCM_AES128" : "ALTSRP_GCM_AES128_REKEY";
}

absl::StatusOr<RecordProtocol> ParseRecordProtocol(std::string_view name) {
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    if (name == RecordProtocolName(protocol)) return protocol;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("record protocol '", absl::string_view(name.data(), name.size()),
                   "': ALTSRP_GCM_AES128 and ALTSRP_GCM_AES128_REKEY are known"));
}

size_t RecordKeySize(RecordProtocol protocol) {
  return protocol == RecordProtocol::kGcmAes128 ? 16 : 44;
}

PENSTOCK_END_NAMESPACE
