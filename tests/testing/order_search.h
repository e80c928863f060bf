// Looks at every world that any order of events leads to, the near ones first, for what is wrong in
// one of them.
//
// A World is a value: Choices() tells how many steps it could take now, Take(i) takes one of them,
// last() names it, wrong() says what was wrong then, and two worlds of the same Key() go on alike.
// The caller's thread.
#ifndef PENSTOCK_TESTS_TESTING_ORDER_SEARCH_H_
#define PENSTOCK_TESTS_TESTING_ORDER_SEARCH_H_

#include <penstock/export.h>

#include <cstddef>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct OrderSearch {
  std::string wrong;  // the first that was, with the shortest way to it
  size_t worlds = 0;  // different ones
  size_t steps = 0;   // that the farthest of them is away from the first, at least
};

// `at_end` is called with each world where nothing more can happen, and says what is wrong there.
template <typename World, typename AtEnd>
OrderSearch SearchOrders(World first, AtEnd at_end) {
  struct Node {
    World world;
    std::string path;
  };
  OrderSearch result;
  std::unordered_set<std::string> seen;
  std::vector<Node> level;
  level.push_back({.world = std::move(first), .path = ""});
  for (; !level.empty(); ++result.steps) {
    std::vector<Node> next_level;
    for (Node& node : level) {
      const size_t choices = node.world.Choices();
      if (choices == 0) {
        if (const std::string wrong = at_end(node.world); !wrong.empty()) {
          result.wrong = absl::StrCat(wrong, node.path);
          return result;
        }
      }
      for (size_t choice = 0; choice < choices; ++choice) {
        Node next = {.world = node.world, .path = node.path};
        next.world.Take(choice);
        absl::StrAppend(&next.path, "\n  ", next.world.last());
        if (!next.world.wrong().empty()) {
          result.wrong = absl::StrCat(next.world.wrong(), next.path);
          return result;
        }
        if (seen.insert(next.world.Key()).second) next_level.push_back(std::move(next));
      }
    }
    level = std::move(next_level);
  }
  result.worlds = seen.size();
  return result;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ORDER_SEARCH_H_
