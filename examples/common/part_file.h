// A file that appears under its name only when it is complete: written beside it under a name of
// its own, synchronised, then renamed. Dropping an uncommitted one removes it.
#ifndef PENSTOCK_EXAMPLES_COMMON_PART_FILE_H_
#define PENSTOCK_EXAMPLES_COMMON_PART_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace examples {

class PartFile {
 public:
  // Makes "PATH.part-<process>-<n>", which must not exist (O_EXCL, open(2)).
  static absl::StatusOr<PartFile> Create(const std::string& path);
  PartFile(PartFile&& other) noexcept;
  PartFile& operator=(PartFile&&) = delete;
  ~PartFile();

  absl::Status Write(std::string_view bytes);
  // Puts the file under its final name, in place of what was there, and on the disk.
  absl::Status Commit();

 private:
  PartFile(std::string path, std::string part, int fd);
  std::string path_;
  std::string part_;  // empty once committed
  int fd_;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_PART_FILE_H_
