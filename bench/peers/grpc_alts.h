// gRPC C++'s own sealing, its ALTS frame protector, for the programs that speak to Penstock's
// sealed streams or are compared with them: the flags that choose a key, and one end of a
// connection.
//
// The protector is what libgrpc of Debian 12 exports (1.51.1; src/core/tsi/alts/frame_protector);
// that library installs no header for it, so grpc_alts.cc declares the five functions used here.
#ifndef PENSTOCK_BENCH_PEERS_GRPC_ALTS_H_
#define PENSTOCK_BENCH_PEERS_GRPC_ALTS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct tsi_frame_protector;

namespace penstock_bench {

struct AltsOptions {
  std::string key;               // 44 bytes with rekeying, else 16
  bool rekey = true;             // ALTSRP_GCM_AES128_REKEY, not ALTSRP_GCM_AES128
  size_t frame_max = 16 * 1024;  // bytes of the largest record sent, header and tag included
  bool tell_records = false;     // a server says which records came
};

// Takes `--key-hex=HEX`, `--record-protocol=NAME`, `--max-frame=BYTES` and `--tell-records` out of
// the command line, leaving the rest in order. On wrong ones prints what is accepted and exits with
// status 2.
AltsOptions TakeAltsFlags(int& argc, char** argv);

// Bytes that grow at the end and are not set to anything before they are written.
class WireBuffer {
 public:
  std::string_view view() const { return {data_.get(), size_}; }
  void Clear() { size_ = 0; }
  // Room for `room` bytes after the end; what Extend then counts as written.
  char* Room(size_t room);
  void Extend(size_t size) { size_ += size; }

 private:
  std::unique_ptr<char[]> data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

// One end of a connection. Every call that fails fails for good: the connection is to be closed.
class AltsProtector {
 public:
  enum class Side { kClient, kServer };

  // Prints why and exits with status 1 when the library refuses.
  AltsProtector(const AltsOptions& options, Side side);
  AltsProtector(const AltsProtector&) = delete;
  AltsProtector& operator=(const AltsProtector&) = delete;
  ~AltsProtector();

  // Takes plaintext, and appends the records that it fills; Flush appends the last, unfilled one.
  bool Seal(std::string_view plain, WireBuffer& wire);
  bool Flush(WireBuffer& wire);

  // Takes bytes off the front of `wire` and writes plaintext of one record at most to `plain`,
  // which has `room` bytes; `room` becomes how many were written. All that has come is out when
  // `wire` is empty and there was room left. False: a record is not what the peer sealed.
  bool Open(std::string_view& wire, char* plain, size_t& room);

 private:
  tsi_frame_protector* protector_ = nullptr;
  size_t frame_max_;
};

// Finds the ends of records in the bytes of a stream, by their length fields alone.
class RecordCounter {
 public:
  void Take(std::string_view wire) {
    while (!wire.empty()) {
      if (header_size_ < sizeof header_) {
        header_[header_size_++] = static_cast<uint8_t>(wire[0]);
        wire.remove_prefix(1);
        if (header_size_ < sizeof header_) continue;
        left_ = header_[0] | header_[1] << 8 | header_[2] << 16 | uint32_t{header_[3]} << 24;
        largest_ = std::max<uint64_t>(largest_, left_ + sizeof header_);
      }
      const size_t run = std::min<size_t>(left_, wire.size());
      wire.remove_prefix(run);
      left_ -= static_cast<uint32_t>(run);
      if (left_ > 0) continue;
      ++records_;
      header_size_ = 0;
    }
  }
  bool between_records() const { return header_size_ == 0; }
  uint64_t records() const { return records_; }
  uint64_t largest() const { return largest_; }  // whole, in bytes on the wire

 private:
  uint8_t header_[4];
  size_t header_size_ = 0;
  uint32_t left_ = 0;
  uint64_t records_ = 0;
  uint64_t largest_ = 0;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_PEERS_GRPC_ALTS_H_
