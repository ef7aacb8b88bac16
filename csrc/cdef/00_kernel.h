/* Words that every topic uses: kernel integers and the numbers of programs, maps and attach points. */
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef int32_t __s32;
typedef uint64_t __u64;
typedef int64_t __s64;

enum bpf_map_type { BPF_MAP_TYPE_UNSPEC, ... };
enum bpf_prog_type { BPF_PROG_TYPE_UNSPEC, ... };
enum bpf_attach_type { BPF_CGROUP_INET_INGRESS, ... };

const char *libbpf_version_string(void);
const char *libbpf_bpf_map_type_str(enum bpf_map_type t);
const char *libbpf_bpf_prog_type_str(enum bpf_prog_type t);
const char *libbpf_bpf_attach_type_str(enum bpf_attach_type t);
int libbpf_num_possible_cpus(void);

/* Pins, and objects by their number: the same calls for maps, programs and links. */
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);
int bpf_map_get_fd_by_id(__u32 id);
int bpf_prog_get_fd_by_id(__u32 id);
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, __u32 *info_len);
