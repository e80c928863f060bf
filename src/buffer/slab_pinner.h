// SlabPinner: a SlabObserver that has told a device where the pages of a pool's slabs lie. While a
// pool has one, Trim leaves the pages of its slabs where they are (it still unmaps empty slabs, of
// which the observer hears): a page that was given back and is touched again is another page, and
// the device would go on with the first.
#ifndef PENSTOCK_BUFFER_SLAB_PINNER_H_
#define PENSTOCK_BUFFER_SLAB_PINNER_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SlabPinner : public SlabObserver {};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_SLAB_PINNER_H_
