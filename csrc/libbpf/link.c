// SPDX-License-Identifier: Apache-2.0
/* Links by the raw system call.
 *
 * libbpf 1.1 predates tcx and netkit: neither its bpf_link_create() nor the headers it was built
 * with know their attach types or how to order programs. The structs below are the kernel's own
 * layout of these commands (union bpf_attr in include/uapi/linux/bpf.h); a kernel that knows
 * fewer fields accepts them as long as the rest is zero.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "50_link.h"

struct link_create_attr {
	uint32_t prog_fd;
	uint32_t target;
	uint32_t attach_type;
	uint32_t flags;
	uint32_t relative;
	uint32_t unused;
	uint64_t expected_revision;
};

struct query_attr {
	uint32_t target;
	uint32_t attach_type;
	uint32_t query_flags;
	uint32_t attach_flags;
	uint64_t prog_ids;
	uint32_t count;
	uint32_t unused;
	uint64_t prog_attach_flags;
	uint64_t link_ids;
	uint64_t link_attach_flags;
	uint64_t revision;
};

struct kernel_link_info {
	uint32_t type;
	uint32_t id;
	uint32_t prog_id;
	uint32_t unused;
	union {
		struct {
			uint32_t ifindex;
			uint32_t attach_type;
		} device; /* xdp (attach_type stays 0), tcx, netkit */
		struct {
			uint64_t cgroup_id;
			uint32_t attach_type;
		} cgroup;
		uint8_t room[128]; /* the other kinds of link need more than the two above */
	};
};

enum { LINK_TYPE_CGROUP = 3, LINK_TYPE_XDP = 6, LINK_TYPE_TCX = 11, LINK_TYPE_NETKIT = 13 };

static int sys_bpf(int command, void *attr, size_t size)
{
	long result = syscall(__NR_bpf, command, attr, size);

	return result < 0 ? -errno : (int)result;
}

int pcl_link_create(int prog_fd, uint32_t target, uint32_t attach_type, uint32_t flags,
		    uint32_t relative, uint64_t revision)
{
	struct link_create_attr attr = {
		.prog_fd = (uint32_t)prog_fd,
		.target = target,
		.attach_type = attach_type,
		.flags = flags,
		.relative = relative,
		.expected_revision = revision,
	};

	return sys_bpf(BPF_LINK_CREATE, &attr, sizeof(attr));
}

int pcl_link_update(int link_fd, int prog_fd)
{
	return bpf_link_update(link_fd, prog_fd, NULL);
}

int pcl_link_detach(int link_fd)
{
	return bpf_link_detach(link_fd);
}

int pcl_link_get_info(int link_fd, struct pcl_link_info *ret)
{
	struct kernel_link_info info = {0};
	uint32_t size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(link_fd, &info, &size);

	if (err)
		return err;
	memset(ret, 0, sizeof(*ret));
	ret->type = info.type;
	ret->id = info.id;
	ret->prog_id = info.prog_id;
	switch (info.type) {
	case LINK_TYPE_XDP:
	case LINK_TYPE_TCX:
	case LINK_TYPE_NETKIT:
		ret->ifindex = info.device.ifindex;
		ret->attach_type = info.device.attach_type;
		break;
	case LINK_TYPE_CGROUP:
		ret->cgroup_id = info.cgroup.cgroup_id;
		ret->attach_type = info.cgroup.attach_type;
		break;
	}
	return 0;
}

int pcl_link_fd_by_id(uint32_t id)
{
	return bpf_link_get_fd_by_id(id);
}

int pcl_attached(uint32_t target, uint32_t attach_type, uint32_t capacity, uint32_t *prog_ids,
		 uint32_t *link_ids, uint64_t *revision)
{
	struct query_attr attr = {
		.target = target,
		.attach_type = attach_type,
		.prog_ids = (uint64_t)(uintptr_t)prog_ids,
		.count = capacity,
		.link_ids = (uint64_t)(uintptr_t)link_ids,
	};
	int err = sys_bpf(BPF_PROG_QUERY, &attr, sizeof(attr));

	/* ENOSPC: there are more than `capacity`; the count is right all the same. */
	if (err && err != -ENOSPC)
		return err;
	*revision = attr.revision;
	return (int)attr.count;
}

int pcl_prog_fd_id(int prog_fd, uint32_t *ret)
{
	struct bpf_prog_info info = {0};
	uint32_t size = sizeof(info);
	int err = bpf_obj_get_info_by_fd(prog_fd, &info, &size);

	if (!err)
		*ret = info.id;
	return err;
}

int pcl_prog_id_name(uint32_t id, char ret[16])
{
	struct bpf_prog_info info = {0};
	uint32_t size = sizeof(info);
	int fd = bpf_prog_get_fd_by_id(id);
	int err;

	if (fd < 0)
		return fd;
	err = bpf_obj_get_info_by_fd(fd, &info, &size);
	close(fd);
	if (!err)
		memcpy(ret, info.name, 16);
	return err;
}

int pcl_xdp_attached(int ifindex, uint32_t *native, uint32_t *generic, uint32_t *offload)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	int err = bpf_xdp_query(ifindex, 0, &opts);

	if (err)
		return err;
	*native = opts.drv_prog_id;
	*generic = opts.skb_prog_id;
	*offload = opts.hw_prog_id;
	return 0;
}

static struct bpf_tc_hook clsact_hook(int ifindex, int egress)
{
	LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex,
		    .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);

	return hook;
}

int pcl_clsact_create(int ifindex)
{
	struct bpf_tc_hook hook = clsact_hook(ifindex, 0);
	int err = bpf_tc_hook_create(&hook);

	return err == -EEXIST ? 0 : err;
}

int pcl_clsact_attach(int ifindex, int egress, int prog_fd, uint32_t handle, uint32_t priority,
		      int replace)
{
	struct bpf_tc_hook hook = clsact_hook(ifindex, egress);
	LIBBPF_OPTS(bpf_tc_opts, opts, .prog_fd = prog_fd, .handle = handle, .priority = priority,
		    .flags = replace ? BPF_TC_F_REPLACE : 0);

	return bpf_tc_attach(&hook, &opts);
}

int pcl_clsact_detach(int ifindex, int egress, uint32_t handle, uint32_t priority)
{
	struct bpf_tc_hook hook = clsact_hook(ifindex, egress);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = handle, .priority = priority);

	return bpf_tc_detach(&hook, &opts);
}

int pcl_clsact_query(int ifindex, int egress, uint32_t handle, uint32_t priority,
		     uint32_t *prog_id)
{
	struct bpf_tc_hook hook = clsact_hook(ifindex, egress);
	LIBBPF_OPTS(bpf_tc_opts, opts, .handle = handle, .priority = priority);
	int err = bpf_tc_query(&hook, &opts);

	if (!err)
		*prog_id = opts.prog_id;
	return err;
}
