/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How the packet gets to its backend, and learns it which service it is for (DSR). */
#ifndef PCL_LB_DISPATCH_H
#define PCL_LB_DISPATCH_H

#include "lb_dsr.h"
#include "lb_encap.h"
#include "lb_flow.h"
#include "lb_geneve.h"
#include "lb_route.h"

/* By how many bytes of IP the packet grows on its way. */
static __always_inline __u32 lb_growth(const struct lb_packet *packet, const struct lb_flow *flow)
{
	__u32 header = packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);

	if (!(flow->flags & (LB_FLOW_OPTION | LB_FLOW_GENEVE)))
		return header;
	if (flow->flags & LB_FLOW_OPTION) {
		if (!lb_tells(packet))
			return 0;
		return packet->ipv6 ? sizeof(struct dsr_ipv6) : sizeof(struct dsr_ipv4);
	}
	if (lb_tells(packet))
		header += packet->ipv6 ? sizeof(struct geneve_dsr_ipv6) :
					 sizeof(struct geneve_dsr_ipv4);
	return header + LB_GENEVE_BYTES;
}

static __always_inline int lb_dispatch_option(CTX *ctx, const struct lb_packet *packet,
					      const struct lb_backend *backend,
					      const __u8 *ethernet)
{
	int reason;

	if (!lb_to_backend(ctx, packet, backend))
		return DROP_WRITE_ERROR;
	reason = lb_route(ctx, packet->ipv6, ethernet);
	if (!reason && lb_tells(packet))
		reason = lb_put_option(ctx, packet);
	return reason;
}

static __always_inline int lb_dispatch_geneve(CTX *ctx, const struct lb_packet *packet,
					      const struct lb_backend *backend,
					      const __u8 *ethernet)
{
	bool done;

	if (!lb_to_backend(ctx, packet, backend))
		return DROP_WRITE_ERROR;
	if (packet->ipv6)
		done = lb_geneve_ipv6(ctx, packet, lb_tells(packet), &backend->addr, ethernet);
	else
		done = lb_geneve_ipv4(ctx, packet, lb_tells(packet), backend->addr.words[3],
				      ethernet);
	return done ? 0 : DROP_WRITE_ERROR;
}

static __always_inline int lb_dispatch_ipip(CTX *ctx, const struct lb_packet *packet,
					    const struct lb_backend *backend, const __u8 *ethernet)
{
	bool done;

	if (packet->ipv6)
		done = lb_encap_ipv6(ctx, packet, &backend->addr, ethernet);
	else
		done = lb_encap_ipv4(ctx, packet, backend->addr.words[3], ethernet);
	return done ? 0 : DROP_WRITE_ERROR;
}

/* Makes the packet one for its backend; 0 or a drop reason. */
static __always_inline int lb_dispatch(CTX *ctx, const struct lb_packet *packet,
				       const struct lb_flow *flow,
				       const struct lb_backend *backend, const __u8 *ethernet)
{
	if (flow->flags & LB_FLOW_OPTION)
		return lb_dispatch_option(ctx, packet, backend, ethernet);
	if (flow->flags & LB_FLOW_GENEVE)
		return lb_dispatch_geneve(ctx, packet, backend, ethernet);
	return lb_dispatch_ipip(ctx, packet, backend, ethernet);
}

#endif
