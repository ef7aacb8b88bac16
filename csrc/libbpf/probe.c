// SPDX-License-Identifier: Apache-2.0
/* Attempts for feature probes. The verdicts are drawn in Python, from errno and the log. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "70_probe.h"

int pcl_probe_prog(uint32_t type, uint32_t attach_type, const void *insns, uint32_t count,
		   char *log, uint32_t log_size)
{
	/* Raw, since bpf_prog_load() tries again with other arguments and thereby hides the first
	 * answer. */
	union bpf_attr attr = {
		.prog_type = type,
		.insn_cnt = count,
		.insns = (uint64_t)(uintptr_t)insns,
		.license = (uint64_t)(uintptr_t)"Dual BSD/GPL",
		.log_level = 1,
		.log_size = log_size,
		.log_buf = (uint64_t)(uintptr_t)log,
		.expected_attach_type = attach_type,
	};
	long fd;

	log[0] = '\0';
	fd = syscall(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	return fd < 0 ? -errno : (int)fd;
}

int pcl_probe_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		  uint32_t flags, int inner_fd)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags);

	if (inner_fd >= 0)
		opts.inner_map_fd = (uint32_t)inner_fd;
	return bpf_map_create(type, NULL, key_size, value_size, max_entries, &opts);
}

int pcl_probe_batch(int map_fd, const void *key, const void *value)
{
	uint32_t count = 1;

	return bpf_map_update_batch(map_fd, key, value, &count, NULL);
}

int pcl_probe_jited(int prog_fd)
{
	struct bpf_prog_info info = {0};
	uint32_t size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(prog_fd, &info, &size);

	return err ? err : info.jited_prog_len > 0;
}

int pcl_probe_syscall(void)
{
	long result = syscall(__NR_bpf, -1, NULL, 0);

	return result < 0 ? -errno : 0;
}

int pcl_unshare_net(void)
{
	return unshare(CLONE_NEWNET) ? -errno : 0;
}
