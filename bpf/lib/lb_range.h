/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which clients outside a service is for. */
#ifndef PCL_LB_RANGE_H
#define PCL_LB_RANGE_H

#include "lb.h"

/* Whether the service's source ranges let the client in. */
static __always_inline bool lb_admits(const struct lb_service *service, const struct addr *client)
{
	struct lb_range_key key = { .prefixlen = 32 + 128, .ranges = service->ranges, .addr = *client };
	__u32 *inside;

	if (!service->ranges)
		return true;
	inside = bpf_map_lookup_elem(&lb_ranges, &key);
	return (inside && *inside) == !(service->flags & LB_DENY_RANGES);
}

#endif
