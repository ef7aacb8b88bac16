// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The backend's side of DSR, at tc: where answers go out, and where packets come in without XDP. */

#define PCL_TC
#include "lib/dsr_restore.h"
#include "lib/dsr_take.h"

SEC("tc")
int dsr_take_tc(struct __sk_buff *skb)
{
	return dsr_take(skb);
}

SEC("tc")
int dsr_restore_tc(struct __sk_buff *skb)
{
	return dsr_restore(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
