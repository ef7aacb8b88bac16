/* Live maps, element by element. */
struct bpf_map_create_opts {
	size_t sz;
	__u32 inner_map_fd;
	__u32 map_flags;
	__u32 numa_node;
	...;
};
struct bpf_map_info {
	__u32 type;
	__u32 id;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	char name[16];
	__u32 btf_id;
	__u32 btf_key_type_id;
	__u32 btf_value_type_id;
	...;
};

int bpf_map_create(enum bpf_map_type map_type, const char *map_name, __u32 key_size,
		   __u32 value_size, __u32 max_entries, const struct bpf_map_create_opts *opts);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_freeze(int fd);
