// SPDX-License-Identifier: Apache-2.0
/* Waiting for running BPF programs.
 *
 * They run inside RCU read-side sections, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu()
 * (kernel/sched/membarrier.c).
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "56_wait.h"

int pcl_wait_for_programs(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) ? -errno : 0;
}
