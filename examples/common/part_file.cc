#include "common/part_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

namespace examples {
namespace {

constexpr int kNamesTried = 100;

absl::Status Failed(std::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(std::string(what), " ", path));
}

// Makes a rename last (fsync(2): the directory needs its own).
absl::Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "."
                                : slash == 0               ? "/"
                                                           : path.substr(0, slash);
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Failed("open", directory);
  absl::Status status = fsync(fd) == 0 ? absl::OkStatus() : Failed("fsync", directory);
  close(fd);
  return status;
}

}  // namespace

PartFile::PartFile(std::string path, std::string part, int fd)
    : path_(std::move(path)), part_(std::move(part)), fd_(fd) {}

PartFile::PartFile(PartFile&& other) noexcept
    : path_(std::move(other.path_)),
      part_(std::exchange(other.part_, "")),
      fd_(std::exchange(other.fd_, -1)) {}

PartFile::~PartFile() {
  if (fd_ >= 0) close(fd_);
  if (!part_.empty()) unlink(part_.c_str());
}

absl::StatusOr<PartFile> PartFile::Create(const std::string& path) {
  struct stat there;
  if (stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a regular file, which alone can be replaced"));
  }
  for (int i = 0; i < kNamesTried; ++i) {
    std::string part = absl::StrCat(path, ".part-", getpid(), "-", i);
    const int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return PartFile(path, std::move(part), fd);
    if (errno != EEXIST) return Failed("create", part);
  }
  return absl::AlreadyExistsError(absl::StrCat("too many leftovers ", path, ".part-*"));
}

absl::Status PartFile::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return Failed("write", part_);
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status PartFile::Commit() {
  if (fsync(fd_) != 0) return Failed("fsync", part_);
  if (close(std::exchange(fd_, -1)) != 0) return Failed("close", part_);
  if (rename(part_.c_str(), path_.c_str()) != 0) return Failed("rename to", path_);
  part_.clear();
  return SyncDirectoryOf(path_);
}

}  // namespace examples
