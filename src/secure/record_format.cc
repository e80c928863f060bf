#include "secure/record_format.h"

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
absl::Status CheckRecordHeader(std::string_view prefix, uint32_t frame_max) {
  if (prefix.size() < kRecordLengthSize) return absl::OkStatus();
  const auto length = LoadLittle<uint32_t>(prefix.data());
  if (length < kRecordLengthMin) {
    return absl::InvalidArgumentError(absl::StrCat("open record: length ", length, " is below ",
                                                   kRecordLengthMin, ", the size of type and tag"));
  }
  if (length > frame_max - kRecordLengthSize) {
    return absl::InvalidArgumentError(absl::StrCat("open record: length ", length, " is above ",
                                                   frame_max - kRecordLengthSize,
                                                   ", the largest that is accepted"));
  }
  char type[4];
  StoreLittle(type, kRecordTypeData);
  const std::string_view given = prefix.substr(kRecordLengthSize);
  if (given != std::string_view(type, given.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("open record: its type is not ", kRecordTypeData));
  }
  return absl::OkStatus();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
