#include "secure/chain_cursor.h"

#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;
using penstock::internal::ChainCursor;

TEST(ChainCursor, WalksPieceByPieceAndTakesNothing) {
  BufferPool pool;
  BufferChain chain;
  for (const char* piece : {"abc", "d", "ef"}) chain.Append(*pool.Copy(piece));
  std::string seen;
  ChainCursor cursor(chain);
  while (cursor.room() > 0) {
    seen += std::string(cursor.here(), cursor.room()) + "|";
    cursor.Skip(cursor.room() > 1 ? cursor.room() - 1 : 1);
  }
  EXPECT_EQ(seen, "abc|c|d|ef|f|");
  EXPECT_EQ(chain.ToString(), "abcdef");
}

TEST(ChainCursor, ReadsAndAdvancesAcrossPieces) {
  BufferPool pool;
  const std::string text = "abcdef";
  for (size_t passed = 0; passed <= text.size(); ++passed) {
    for (size_t read = 0; read <= text.size() - passed; ++read) {
      BufferChain chain;
      for (const char* piece : {"abc", "d", "ef"}) chain.Append(*pool.Copy(piece));
      ChainCursor cursor(chain);
      cursor.Advance(passed);
      std::string got(read, '-');
      cursor.Read(got.data(), read);
      EXPECT_EQ(got, text.substr(passed, read));
      EXPECT_EQ(cursor.room() == 0, passed + read == text.size());
    }
  }
}

TEST(ChainCursor, AnEmptyChainHasNoRoom) {
  const BufferChain chain;
  EXPECT_EQ(ChainCursor(chain).room(), 0u);
}

}  // namespace
