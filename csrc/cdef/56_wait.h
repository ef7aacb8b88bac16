/* Waiting for running BPF programs. -errno on failure. */

int pcl_wait_for_programs(void);
