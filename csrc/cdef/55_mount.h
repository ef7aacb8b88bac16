/* The file systems that BPF needs. -errno on failure. */

int64_t pcl_filesystem_magic(int fd);
int pcl_mount_bpffs(const char *path);
