// SetEmpty: puts a callback where there is none.
//
// Pure; any thread.
#ifndef PENSTOCK_BASE_SET_EMPTY_H_
#define PENSTOCK_BASE_SET_EMPTY_H_

#include <penstock/export.h>

#include <memory>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `empty` holds nothing. Each assignment of an AnyInvocable is three indirect calls; this is one,
// and several callbacks are moved in every request.
template <typename Callback>
void SetEmpty(Callback& empty, Callback&& callback) {
  std::construct_at(&empty, std::move(callback));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_SET_EMPTY_H_
