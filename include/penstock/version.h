// The version of the library.
//
// The macros are the version of the headers a program was compiled against; Version() is the
// version of the library it runs with. They differ only when a shared library was replaced. The
// build reads its version from this file, so it is written down once. Callable from any thread.
#ifndef PENSTOCK_VERSION_H_
#define PENSTOCK_VERSION_H_

#include <string_view>

#include <penstock/export.h>

#define PENSTOCK_VERSION_MAJOR 0
#define PENSTOCK_VERSION_MINOR 1
#define PENSTOCK_VERSION_PATCH 0

PENSTOCK_BEGIN_NAMESPACE

// "major.minor.patch" of the library that is linked. The text is static.
PENSTOCK_EXPORT std::string_view Version();

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_VERSION_H_
