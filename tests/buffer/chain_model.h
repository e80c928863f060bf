// ChainModel: a few BufferChains beside as many strings that must hold the same bytes, driven by a
// source of choices: a seeded generator in the test, an input in the fuzz target.
//
// One thread. The pool serves nobody else.
#ifndef PENSTOCK_TESTS_BUFFER_CHAIN_MODEL_H_
#define PENSTOCK_TESTS_BUFFER_CHAIN_MODEL_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "buffer/pool_cache.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ChainModel {
 public:
  // `below(bound)` chooses from [0, bound).
  ChainModel(BufferPool& pool, std::function<size_t(size_t)> below)
      : pool_(pool), below_(std::move(below)), cache_(pool_.core()), scope_(cache_) {}

  // One operation. Says where chains and strings differ; empty when they agree.
  std::string Step() {
    if (std::string difference = Operate(); !difference.empty()) return difference;
    for (size_t i = 0; i < kChains; ++i) {
      if (std::string difference = Compare(chains_[i], texts_[i]); !difference.empty()) {
        return difference;
      }
    }
    return "";
  }

  // Empties the chains: every block comes back.
  std::string End() {
    for (BufferChain& chain : chains_) chain.Clear();
    return pool_.Stats().live == 0 ? "" : "blocks were lost";
  }

 private:
  static constexpr size_t kChains = 3;

  Buffer NewBuffer(std::string* text) {
    const size_t size = below_(4) == 0 ? 0 : 1 + below_(below_(2) == 0 ? 8 : 700);
    text->clear();
    const size_t first = below_(26);
    for (size_t i = 0; i < size; ++i) text->push_back(static_cast<char>('a' + (first + i) % 26));
    Buffer buffer = *pool_.Copy(*text);
    if (below_(3) == 0) {
      const size_t cut = below_(size + 1);
      buffer.TrimFront(cut);
      text->erase(0, cut);
    }
    if (below_(3) == 0) {
      const size_t kept = below_(text->size() + 1);
      buffer.Truncate(kept);
      text->resize(kept);
    }
    return below_(3) == 0 ? buffer.Share() : std::move(buffer);
  }

  std::string Operate() {
    const size_t i = below_(kChains);
    const size_t j = (i + 1 + below_(kChains - 1)) % kChains;
    BufferChain& chain = chains_[i];
    std::string& text = texts_[i];
    std::string piece;
    switch (below_(8)) {
      case 0:
        chain.Append(NewBuffer(&piece));
        text += piece;
        break;
      case 1:
        chain.Prepend(NewBuffer(&piece));
        text.insert(0, piece);
        break;
      case 2:
        chain.Append(std::move(chains_[j]));
        text += std::exchange(texts_[j], {});
        break;
      case 3: {
        const size_t n = below_(text.size() + 1);
        chains_[j].Append(chain.SplitFront(n));
        texts_[j] += text.substr(0, n);
        text.erase(0, n);
        break;
      }
      case 4: {
        const size_t n = below_(text.size() + 1);
        chain.TrimFront(n);
        text.erase(0, n);
        break;
      }
      case 5: {
        const Buffer front = chain.PopFront();
        if (front.view() != std::string_view(text).substr(0, front.size())) return "PopFront";
        if (front.empty() != text.empty()) return "PopFront of an empty chain";
        text.erase(0, front.size());
        break;
      }
      case 6: {
        Buffer front = chain.PopFront();
        Buffer head = front.SplitFront(below_(front.size() + 1));
        chain.Prepend(std::move(front));
        chain.Prepend(std::move(head));
        break;
      }
      default:
        if (below_(8) == 0) {
          chain.Clear();
          text.clear();
        }
        break;
    }
    return "";
  }

  static std::string Compare(const BufferChain& chain, const std::string& text) {
    if (chain.size() != text.size()) return "size";
    if (chain.empty() != text.empty()) return "empty";
    if (chain.ToString() != text) return "ToString";
    if (chain.front() != std::string_view(text).substr(0, chain.front().size())) return "front";
    if (chain.front().empty() != text.empty()) return "front of an empty chain";
    std::vector<iovec> parts(chain.buffer_count() + 1);
    if (chain.FillIovec(parts) != chain.buffer_count()) return "buffer_count";
    std::string gathered;
    for (size_t i = 0; i < chain.buffer_count(); ++i) {
      if (parts[i].iov_len == 0) return "an empty buffer is queued";
      gathered.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
    }
    return gathered == text ? "" : "FillIovec";
  }

  BufferPool& pool_;
  std::function<size_t(size_t)> below_;
  PoolCache cache_;
  PoolCache::Scope scope_;
  std::array<BufferChain, kChains> chains_;
  std::array<std::string, kChains> texts_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_BUFFER_CHAIN_MODEL_H_
