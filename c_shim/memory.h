/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that is to be there before a device may reach it. */
#ifndef VFIOTOOL_MEMORY_H
#define VFIOTOOL_MEMORY_H

#include <stdint.h>

/* declarations */

/*
 * Have all pages of a range that may be written present, so that a map has only to pin them, and
 * leave what is in them as it is. At most `threads` threads share the work, and no more than there
 * are CPUs to run on; 0 means one for each. All of them have ended when this returns.
 *
 * `page_size` is the size of the smallest page that may back the range, which starts and ends on one.
 * -EINVAL: not so, or a part may not be written or is a device's; -ENOMEM: no memory is left, or
 * nothing is mapped at a part; -EFAULT, -EHWPOISON: a page cannot be had. Before 5.14 it is -EFAULT
 * for all but the first. After a failure any part of the range may be present.
 */
int vt_prefault(uint64_t address, uint64_t size, uint64_t page_size, unsigned int threads);

/* end of declarations */

#endif
