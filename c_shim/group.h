/* SPDX-License-Identifier: Apache-2.0 */
/* The life cycle of containers and groups. */
#ifndef VFIOTOOL_GROUP_H
#define VFIOTOOL_GROUP_H

#include <stdint.h>

/* declarations */

/* Open the container node (/dev/vfio/vfio) or a group node (/dev/vfio/N); returns a fd. */
int vt_open(const char *path);

/* Return the container's API version; VFIO_API_VERSION is the only version so far. */
int vt_container_api_version(int container);

/* Return the result of VFIO_CHECK_EXTENSION: 0 for "no", a positive number for "yes". */
int vt_container_check_extension(int container, int extension);

/* Set the IOMMU type of a container that has a group. */
int vt_container_set_iommu(int container, int iommu);

/* Return the group's VFIO_GROUP_FLAGS_*. */
int vt_group_status(int group);

int vt_group_set_container(int group, int container);
int vt_group_unset_container(int group);

/* Return a fd of the device `name`: a PCI address, optionally with a VF token. */
int vt_group_device_fd(int group, const char *name);

/* end of declarations */

#endif
