/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that must be present before it is mapped for a device. */
#ifndef VFIOTOOL_MEMORY_H
#define VFIOTOOL_MEMORY_H

#include <stdint.h>

/* declarations */

/*
 * Make all pages of a writable range present, without changing their contents, so that a map has only
 * to pin them. At most `threads` threads share the work, and no more than there are CPUs to run on; 0
 * means one thread for each CPU. All threads have ended when the function returns.
 *
 * `page_size` is the size of the smallest page that may back the range; the range is aligned to it.
 * -EINVAL: the range is not aligned, or a part is not writable or belongs to a device; -ENOMEM: no memory
 * is left, or a part is not mapped; -EFAULT, -EHWPOISON: a page cannot be made present. Before 5.14
 * the errno is -EFAULT for all but the first. After a failure any part of the range may be present.
 */
int vt_prefault(uint64_t address, uint64_t size, uint64_t page_size, unsigned int threads);

/* end of declarations */

#endif
