// SPDX-License-Identifier: Apache-2.0
/* The file systems that BPF needs: what os.statvfs() and the os module do not offer. */
#include <errno.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/vfs.h>

#include "55_mount.h"

int64_t pcl_filesystem_magic(int fd)
{
	struct statfs info;

	if (fstatfs(fd, &info))
		return -errno;
	return (uint32_t)info.f_type;
}

int pcl_mount_bpffs(const char *path)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	return mount("bpffs", path, "bpf", flags, "mode=0700") ? -errno : 0;
}
