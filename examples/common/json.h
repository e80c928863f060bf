// One flat JSON object on one line (RFC 8259), in the order in which its members were added.
#ifndef PENSTOCK_EXAMPLES_COMMON_JSON_H_
#define PENSTOCK_EXAMPLES_COMMON_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace examples {

class JsonLine {
 public:
  JsonLine& Add(std::string_view key, uint64_t value);
  JsonLine& Add(std::string_view key, double value);  // three decimals
  JsonLine& Add(std::string_view key, std::string_view value);

  // Writes the object and a newline to stdout at once, so that lines of threads do not mix.
  void Print() const;

 private:
  void AddKey(std::string_view key);
  std::string text_;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_JSON_H_
