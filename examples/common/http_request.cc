#include "common/http_request.h"

#include <algorithm>
#include <array>
#include <optional>

namespace examples {
namespace {

constexpr std::string_view kEndOfLine = "\r\n";

constexpr char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool EqualsNoCase(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](char x, char y) { return Lower(x) == Lower(y); });
}

// RFC 9110, 5.6.2.
constexpr std::array<bool, 256> kTokenCharacters = [] {
  std::array<bool, 256> table{};
  for (const char c : std::string_view("!#$%&'*+-.^_`|~")) table[static_cast<uint8_t>(c)] = true;
  for (int c = '0'; c <= '9'; ++c) table[static_cast<size_t>(c)] = true;
  for (int c = 'a'; c <= 'z'; ++c) table[static_cast<size_t>(c)] = true;
  for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<size_t>(c)] = true;
  return table;
}();

bool IsToken(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return kTokenCharacters[static_cast<uint8_t>(c)];
  });
}

// No control characters but tab (RFC 9110, 5.5); so no bare CR, LF or NUL.
bool IsFieldValue(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return c == '\t' || (static_cast<uint8_t>(c) >= 0x20 && c != 0x7f); });
}

std::string_view Trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// Takes the text before `end`, and `end`, off the front; all of it when there is no `end`.
std::string_view TakeUntil(std::string_view& text, std::string_view end) {
  const size_t at = text.find(end);
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at == text.npos ? text.size() : at + end.size());
  return taken;
}

std::optional<uint64_t> ParseLength(std::string_view digits) {
  if (digits.empty() || digits.size() > 18) return std::nullopt;  // 10^18 fits
  uint64_t value = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  return value;
}

// What the fields of one head say together.
struct Fields {
  int hosts = 0;
  std::optional<uint64_t> length;
  std::string_view transfer_encoding;
  bool close = false;
  bool keep_alive = false;
  bool expects_continue = false;
};

// 0, or the status to answer.
int ReadField(std::string_view line, Fields& fields) {
  const size_t colon = line.find(':');
  if (colon == line.npos) return 400;
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = Trim(line.substr(colon + 1));
  // A folded line begins with a blank and so has no token for a name.
  if (!IsToken(name) || !IsFieldValue(value)) return 400;
  if (EqualsNoCase(name, "host")) {
    ++fields.hosts;
  } else if (EqualsNoCase(name, "content-length")) {
    const std::optional<uint64_t> length = ParseLength(value);
    if (!length || (fields.length && *fields.length != *length)) return 400;
    fields.length = length;
  } else if (EqualsNoCase(name, "transfer-encoding")) {
    if (value.empty() || !fields.transfer_encoding.empty()) return 400;
    fields.transfer_encoding = value;
  } else if (EqualsNoCase(name, "connection")) {
    for (std::string_view rest = value; !rest.empty();) {
      const std::string_view option = Trim(TakeUntil(rest, ","));
      fields.close |= EqualsNoCase(option, "close");
      fields.keep_alive |= EqualsNoCase(option, "keep-alive");
    }
  } else if (EqualsNoCase(name, "expect")) {
    if (!EqualsNoCase(value, "100-continue")) return 417;
    fields.expects_continue = true;
  }
  return 0;
}

// 200, or the status to answer. Sets what the method and the version decide.
int ReadRequestLine(std::string_view line, HttpRequest& request) {
  const std::string_view method = TakeUntil(line, " ");
  const std::string_view target = TakeUntil(line, " ");
  const std::string_view version = line;
  if (!IsToken(method) || target.empty() || !IsFieldValue(target) ||
      target.find('\t') != target.npos) {
    return 400;
  }
  if (version.size() != 8 || !version.starts_with("HTTP/") || version[6] != '.') return 400;
  if (version[5] != '1') return version[5] >= '0' && version[5] <= '9' ? 505 : 400;
  if (version[7] < '0' || version[7] > '9') return 400;
  request.http10 = version[7] == '0';
  request.head_only = method == "HEAD";
  if (method == "GET" || method == "HEAD") return 200;
  static constexpr std::string_view kOthers[] = {"POST",    "PUT",     "DELETE", "PATCH",
                                                 "OPTIONS", "CONNECT", "TRACE"};
  return std::ranges::find(kOthers, method) != std::end(kOthers) ? 405 : 501;
}

// Puts the fields' meaning into `request`, whose status is that of the request line.
void Apply(const Fields& fields, HttpRequest& request) {
  const auto refuse = [&request](int status) {
    request.status = status;
    request.keep_alive = false;
  };
  request.keep_alive = request.http10 ? fields.keep_alive && !fields.close : !fields.close;
  if (fields.hosts > 1 || (fields.hosts == 0 && !request.http10)) return refuse(400);
  if (!fields.transfer_encoding.empty()) {
    // RFC 9112, 6.1 and 6.3: with both, or from HTTP/1.0, the framing cannot be trusted.
    if (fields.length || request.http10) return refuse(400);
    return refuse(EqualsNoCase(fields.transfer_encoding, "chunked") ? 411 : 501);
  }
  request.body_size = fields.length.value_or(0);
  if (request.body_size > kHttpBodyMax) return refuse(413);
  // The answer comes before the body, which the client may then keep to itself.
  if (fields.expects_continue && request.body_size > 0) refuse(request.status);
}

HttpRequest Refusal(int status) {
  HttpRequest request;
  request.head_size = 1;
  request.status = status;
  return request;
}

}  // namespace

HttpRequest ParseHttpRequest(std::string_view bytes) {
  const std::string_view window = bytes.substr(0, kHttpHeadMax);
  // Empty lines before a request are skipped (RFC 9112, 2.2).
  size_t skipped = 0;
  while (window.substr(skipped).starts_with(kEndOfLine)) skipped += kEndOfLine.size();
  const size_t end = window.find("\r\n\r\n", skipped);
  if (end == window.npos) {
    // A line that is broken already needs not be waited for.
    const std::string_view line = window.substr(skipped, window.find('\n', skipped) - skipped);
    if (window.size() > skipped + line.size() && !line.ends_with('\r')) return Refusal(400);
    return bytes.size() >= kHttpHeadMax ? Refusal(431) : HttpRequest();
  }

  std::string_view head = window.substr(skipped, end - skipped);
  HttpRequest request;
  request.status = ReadRequestLine(TakeUntil(head, kEndOfLine), request);
  if (request.status == 400 || request.status == 505) return Refusal(request.status);
  Fields fields;
  while (!head.empty()) {
    const int status = ReadField(TakeUntil(head, kEndOfLine), fields);
    if (status != 0) return Refusal(status);
  }
  request.head_size = end + 4;
  Apply(fields, request);
  return request;
}

std::string_view HttpReason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 405:
      return "Method Not Allowed";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 417:
      return "Expectation Failed";
    case 431:
      return "Request Header Fields Too Large";
    case 501:
      return "Not Implemented";
    case 505:
      return "HTTP Version Not Supported";
  }
  return "Error";
}

}  // namespace examples
