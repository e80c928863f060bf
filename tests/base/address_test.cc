#include <penstock/address.h>

#include <net/if.h>
#include <netinet/in.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/sys.h"

namespace penstock {
namespace {

using internal::RealSys;
using internal::UniqueFd;
using namespace std::string_view_literals;

SocketAddress Parsed(std::string_view text) {
  absl::StatusOr<SocketAddress> address = SocketAddress::Parse(text);
  EXPECT_TRUE(address.ok()) << address.status();
  return address.value_or(SocketAddress());
}

// Through the kernel's form and back.
SocketAddress RoundTrip(const SocketAddress& address) {
  sockaddr_storage storage;
  const socklen_t length = address.ToSockaddr(storage);
  return SocketAddress::FromSockaddr(reinterpret_cast<const sockaddr*>(&storage), length);
}

TEST(SocketAddress, ReadsAndWritesEveryForm) {
  for (const std::string_view text :
       {"127.0.0.1:80", "0.0.0.0:0", "255.255.255.255:65535", "[::1]:80", "[::]:443",
        "[2001:db8::ff:1]:1", "[::ffff:127.0.0.1]:80", "unix:/run/x.sock", "unix:relative",
        "unix:@name", "unix:./@file"}) {
    const SocketAddress address = Parsed(text);
    EXPECT_EQ(address.ToString(), text);
    EXPECT_EQ(RoundTrip(address), address) << text;
    EXPECT_EQ(Parsed(address.ToString()), address);
  }
}

TEST(SocketAddress, KnowsItsParts) {
  EXPECT_EQ(Parsed("127.0.0.1:80").family(), AF_INET);
  EXPECT_EQ(Parsed("127.0.0.1:80").port(), 80);
  EXPECT_EQ(Parsed("[::1]:81").family(), AF_INET6);
  EXPECT_EQ(Parsed("[::1]:81").port(), 81);
  EXPECT_EQ(Parsed("unix:/a").family(), AF_UNIX);
  EXPECT_EQ(Parsed("unix:/a").path(), "/a");
  EXPECT_EQ(Parsed("unix:@a").path(), "@a");
  EXPECT_EQ(Parsed("unix:/a").port(), 0);
  EXPECT_EQ(Parsed("[::1]:81").path(), "");
}

TEST(SocketAddress, TheStarIsAnyAddressOfBothFamilies) {
  EXPECT_EQ(Parsed("*:80"), Parsed("[::]:80"));
}

TEST(SocketAddress, ReadsScopesByNameAndByIndex) {
  const unsigned int loopback = ::if_nametoindex("lo");
  if (loopback == 0) GTEST_SKIP() << "there is no interface named lo here";
  const SocketAddress address = Parsed("[fe80::1%lo]:80");
  EXPECT_EQ(address, Parsed(absl::StrCat("[fe80::1%", loopback, "]:80")));
  EXPECT_EQ(address.ToString(), "[fe80::1%lo]:80");
  EXPECT_EQ(RoundTrip(address), address);
  EXPECT_FALSE(address == Parsed("[fe80::1]:80"));
  sockaddr_storage storage;
  address.ToSockaddr(storage);
  EXPECT_EQ(reinterpret_cast<sockaddr_in6&>(storage).sin6_scope_id, loopback);
  // An index without a name keeps its number.
  EXPECT_EQ(Parsed("[fe80::1%4000000000]:80").ToString(), "[fe80::1%4000000000]:80");
}

TEST(SocketAddress, ErrorsSayWhatIsWrongAndWhatIsAccepted) {
  const std::string too_long = absl::StrCat("unix:/", std::string(107, 'x'));
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"", "there is no port"},
      {"127.0.0.1", "there is no port"},
      {"127.0.0.1:", "not a number from 0 to 65535"},
      {"127.0.0.1:http", "not a number from 0 to 65535"},
      {"127.0.0.1:65536", "not a number from 0 to 65535"},
      {"127.0.0.1:-1", "not a number from 0 to 65535"},
      {"127.0.0.1:+1", "not a number from 0 to 65535"},
      {"127.0.0.1: 1", "not a number from 0 to 65535"},
      {"127.0.0.1:1 ", "not a number from 0 to 65535"},
      {"127.0.0.1:0x50", "not a number from 0 to 65535"},
      {":80", "penstock::Resolve"},
      {"localhost:80", "penstock::Resolve"},
      {"127.1:80", "not a numeric address"},
      {"127.0.0.256:80", "not a numeric address"},
      {"127.0.0.1\0x:80"sv, "not a numeric address"},
      {"::1:80", "needs brackets"},
      {"[::1]", "not a number"},
      {"[::1:80", "needs brackets"},
      {"[]:80", "not an IPv6 address"},
      {"[127.0.0.1]:80", "not an IPv6 address"},
      {"[::1%nosuchinterface]:80", "no network interface"},
      {"[::1%]:80", "no network interface"},
      {"[::1%0]:80", "no network interface"},
      {"unix:", "path is empty"},
      {"unix:@", "path is empty"},
      {"unix:/a\0b"sv, "zero byte"},
      {too_long, "longer than 107 bytes"},
  };
  for (const auto& [text, reason] : cases) {
    const absl::Status status = SocketAddress::Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    const std::string message(status.message());
    EXPECT_NE(message.find(reason), std::string::npos) << message;
    EXPECT_NE(message.find("accepted are 127.0.0.1:80, [::1]:80"), std::string::npos) << message;
    EXPECT_NE(message.find(absl::StrCat("\"", std::string(text), "\"")), std::string::npos)
        << message;
  }
}

TEST(SocketAddress, TheLongestUnixNamesFit) {
  for (const char first : {'/', '@'}) {
    const size_t size = first == '@' ? 108 : 107;
    const SocketAddress address =
        Parsed(absl::StrCat("unix:", std::string(1, first), std::string(size - 1, 'x')));
    sockaddr_storage storage;
    EXPECT_EQ(address.ToSockaddr(storage), sizeof(sockaddr_un));
    EXPECT_EQ(RoundTrip(address), address);
  }
}

TEST(SocketAddress, AbstractNamesMayHoldAnyByte) {
  const SocketAddress address = Parsed("unix:@a\0b"sv);
  EXPECT_EQ(address.path(), "@a\0b"sv);
  EXPECT_EQ(RoundTrip(address), address);
}

TEST(SocketAddress, AFileNamedLikeAnAbstractNameStaysAFile) {
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  std::strcpy(un.sun_path, "@file");
  const SocketAddress address =
      SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&un), sizeof(un));
  EXPECT_EQ(address.ToString(), "unix:./@file");
}

TEST(SocketAddress, TheEmptyAddressIsUnnamed) {
  const SocketAddress empty;
  EXPECT_EQ(empty.family(), AF_UNSPEC);
  EXPECT_EQ(empty.ToString(), "unnamed");
  EXPECT_EQ(RoundTrip(empty), empty);
  EXPECT_EQ(empty.WithPort(80), empty);
}

TEST(SocketAddress, ShortOrForeignKernelAddressesAreEmpty) {
  sockaddr_storage storage;
  const auto* generic = reinterpret_cast<const sockaddr*>(&storage);
  Parsed("127.0.0.1:80").ToSockaddr(storage);
  EXPECT_EQ(SocketAddress::FromSockaddr(generic, 0), SocketAddress());
  EXPECT_EQ(SocketAddress::FromSockaddr(generic, sizeof(sockaddr_in) - 1), SocketAddress());
  Parsed("[::1]:80").ToSockaddr(storage);
  EXPECT_EQ(SocketAddress::FromSockaddr(generic, sizeof(sockaddr_in)), SocketAddress());
  storage.ss_family = AF_NETLINK;
  EXPECT_EQ(SocketAddress::FromSockaddr(generic, sizeof(storage)), SocketAddress());
}

TEST(SocketAddress, CopiesAreIndependent) {
  SocketAddress original = Parsed("unix:/a");
  SocketAddress copy = original;
  original = Parsed("127.0.0.1:1");
  EXPECT_EQ(copy.path(), "/a");
  copy = *&copy;
  EXPECT_EQ(copy.path(), "/a");
  const SocketAddress moved = std::move(copy);
  EXPECT_EQ(moved.ToString(), "unix:/a");
}

TEST(SocketAddress, WithPortChangesThePortAlone) {
  EXPECT_EQ(Parsed("127.0.0.1:1").WithPort(80).ToString(), "127.0.0.1:80");
  EXPECT_EQ(Parsed("[::1]:1").WithPort(80).ToString(), "[::1]:80");
  EXPECT_EQ(Parsed("unix:/a").WithPort(80), Parsed("unix:/a"));
}

TEST(SocketAddress, DiffersInEveryPart) {
  const std::array<std::string_view, 7> texts = {
      "127.0.0.1:80", "127.0.0.1:81", "127.0.0.2:80", "[::1]:80", "unix:/a", "unix:/b", "unix:@a"};
  for (const std::string_view a : texts) {
    for (const std::string_view b : texts) EXPECT_EQ(Parsed(a) == Parsed(b), a == b);
  }
}

TEST(SocketAddress, TheKernelTakesAndGivesBackTheSame) {
  internal::Sys& sys = RealSys();
  const std::string path = ::testing::TempDir() + "penstock_address_test.sock";
  sys.Unlink(path.c_str());
  for (const std::string& text : {std::string("127.0.0.1:0"), absl::StrCat("unix:", path),
                                  absl::StrCat("unix:@penstock_address_test.", ::getpid())}) {
    SCOPED_TRACE(text);
    const SocketAddress address = Parsed(text);
    const UniqueFd fd(sys, sys.Socket(address.family(), SOCK_STREAM, 0));
    ASSERT_TRUE(fd);
    sockaddr_storage storage;
    socklen_t length = address.ToSockaddr(storage);
    auto* generic = reinterpret_cast<sockaddr*>(&storage);
    ASSERT_EQ(sys.Bind(fd.get(), generic, length), 0);
    length = sizeof(storage);
    ASSERT_EQ(sys.LocalName(fd.get(), generic, &length), 0);
    const SocketAddress bound = SocketAddress::FromSockaddr(generic, length);
    EXPECT_EQ(bound.WithPort(0), address);
    EXPECT_EQ(bound.port() != 0, address.family() == AF_INET);
  }
  EXPECT_EQ(sys.Unlink(path.c_str()), 0);
}

TEST(SocketAddress, AnUnboundUnixSocketIsUnnamed) {
  internal::Sys& sys = RealSys();
  const UniqueFd fd(sys, sys.Socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_storage storage;
  socklen_t length = sizeof(storage);
  ASSERT_EQ(sys.LocalName(fd.get(), reinterpret_cast<sockaddr*>(&storage), &length), 0);
  EXPECT_EQ(SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), length).ToString(),
            "unnamed");
}

}  // namespace
}  // namespace penstock
