// SimChoices: enumerates the decisions of a story, depth first, where SimRandom would draw them:
// the story is told again and again, each time decided otherwise, until every way has been told.
// The story must be deterministic apart from what it asks here. A value; one thread.
//
//   SimChoices choices;
//   do {
//     Tell(choices);  // calls Choose, or draws from a SimRandom that follows `choices`
//   } while (choices.Next());
#ifndef PENSTOCK_TESTS_TESTING_SIM_CHOICES_H_
#define PENSTOCK_TESTS_TESTING_SIM_CHOICES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock::testing {

class SimChoices {
 public:
  // In [0, n).
  uint64_t Choose(uint64_t n) {
    if (n <= 1) return 0;
    if (at_ == path_.size()) path_.push_back({0, n});
    return path_[at_++].taken;
  }
  // Begins the next story; false when there is none.
  bool Next() {
    at_ = 0;
    while (!path_.empty() && ++path_.back().taken == path_.back().of) path_.pop_back();
    return !path_.empty();
  }

 private:
  struct Choice {
    uint64_t taken;
    uint64_t of;
  };
  std::vector<Choice> path_;
  size_t at_ = 0;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_CHOICES_H_
