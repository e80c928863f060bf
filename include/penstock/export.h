// Symbol visibility and the versioned namespace.
//
// Every public declaration lives in `penstock::v0`, an inline namespace, so that two incompatible
// builds of the library meet at link time and not at run time. The shared library exports only what
// is marked PENSTOCK_EXPORT; consumers of the shared library get PENSTOCK_SHARED from its target.
#ifndef PENSTOCK_EXPORT_H_
#define PENSTOCK_EXPORT_H_

#if defined(PENSTOCK_SHARED)
#define PENSTOCK_EXPORT __attribute__((visibility("default")))
#else
#define PENSTOCK_EXPORT
#endif

#define PENSTOCK_BEGIN_NAMESPACE \
  namespace penstock {           \
  inline namespace v0 {
#define PENSTOCK_END_NAMESPACE \
  }                            \
  }

#endif  // PENSTOCK_EXPORT_H_
