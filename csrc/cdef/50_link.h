/* Links: the programs attached to devices and cgroups.
 *
 * Every function returns 0 (or what it says) on success and -errno on failure.
 */

struct pcl_link_info {
	uint32_t type;        /* enum bpf_link_type of the running kernel */
	uint32_t id;
	uint32_t prog_id;
	uint32_t ifindex;     /* xdp, tcx, netkit; 0 once the device is gone */
	uint32_t attach_type; /* tcx, netkit, cgroup */
	uint64_t cgroup_id;   /* cgroup; 0 once the cgroup is gone */
};

/* The new link's file descriptor. `target` is an ifindex or a cgroup's descriptor. `relative` and
 * `revision` order programs (tcx, netkit) and must be 0 elsewhere. */
int pcl_link_create(int prog_fd, uint32_t target, uint32_t attach_type, uint32_t flags,
		    uint32_t relative, uint64_t revision);
int pcl_link_update(int link_fd, int prog_fd);
int pcl_link_detach(int link_fd);
int pcl_link_get_info(int link_fd, struct pcl_link_info *ret);
int pcl_link_fd_by_id(uint32_t id);

/* The number of programs that are attached; `prog_ids` and `link_ids` hold the first `capacity`. */
int pcl_attached(uint32_t target, uint32_t attach_type, uint32_t capacity, uint32_t *prog_ids,
		 uint32_t *link_ids, uint64_t *revision);

int pcl_prog_fd_id(int prog_fd, uint32_t *ret);
int pcl_prog_id_name(uint32_t id, char ret[16]);

/* The ids of the XDP programs of a device by mode; 0 where there is none. */
int pcl_xdp_attached(int ifindex, uint32_t *native, uint32_t *generic, uint32_t *offload);

int pcl_clsact_create(int ifindex);
int pcl_clsact_attach(int ifindex, int egress, int prog_fd, uint32_t handle, uint32_t priority,
		      int replace);
int pcl_clsact_detach(int ifindex, int egress, uint32_t handle, uint32_t priority);
int pcl_clsact_query(int ifindex, int egress, uint32_t handle, uint32_t priority,
		     uint32_t *prog_id);
