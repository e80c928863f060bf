// AbslView: hands a std::string_view to abseil, whose string_view is a type of its own in some
// builds and an alias in others.
//
// Stateless; any thread.
#ifndef PENSTOCK_BASE_ABSL_VIEW_H_
#define PENSTOCK_BASE_ABSL_VIEW_H_

#include <penstock/export.h>

#include <string_view>

#include "absl/strings/string_view.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline absl::string_view AbslView(std::string_view view) { return {view.data(), view.size()}; }

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_ABSL_VIEW_H_
