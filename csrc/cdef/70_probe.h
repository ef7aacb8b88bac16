/* What feature probes need: raw attempts, whose errno is the answer. */

/* A file descriptor or -errno; the verifier's log (cut at `log_size`) is put into `log`. */
int pcl_probe_prog(uint32_t type, uint32_t attach_type, const void *insns, uint32_t count,
		   char *log, uint32_t log_size);
int pcl_probe_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		  uint32_t flags, int inner_fd);

/* 0 or -errno: one entry written as a batch. */
int pcl_probe_batch(int map_fd, const void *key, const void *value);

/* 1 if the program runs as machine code, 0 if it is interpreted, or -errno. */
int pcl_probe_jited(int prog_fd);

/* -errno of a bpf(2) command that no kernel has. */
int pcl_probe_syscall(void);

/* Put the calling thread, and only it, into a new network namespace. 0 or -errno. */
int pcl_unshare_net(void);
