// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The backend's side of DSR, in XDP: where packets come in. Answers go out at tc. */

#include "lib/dsr_take.h"

SEC("xdp")
int dsr_take_xdp(struct xdp_md *ctx)
{
	return dsr_take(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
