/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The backend's side of DSR, where packets come in: takes off what a balancer put around or into
 * them, so that the stack gets what the client sent, and remembers for which service each flow is.
 */
#ifndef PCL_DSR_TAKE_H
#define PCL_DSR_TAKE_H

#include "dsr_flow.h"
#include "dsr_option.h"
#include "dsr_tunnel.h"
#include "metrics.h"

static __noinline bool dsr_parse(CTX *ctx, struct lb_packet *packet)
{
	return lb_parse(ctx, packet);
}

/* Takes off what there is, and fills in the client's packet and what it told. */
static __always_inline int dsr_take_any(CTX *ctx, struct lb_packet *packet, struct dsr_told *told)
{
	struct lb_packet outer = {};
	int reason = dsr_take_ipip(ctx);

	if (reason != DSR_PASS || !dsr_parse(ctx, packet))
		return reason;
	reason = dsr_take_option(ctx, packet->ipv6, told);
	if (reason != DSR_PASS || packet->key.proto != IPPROTO_UDP ||
	    packet->key.service_port != geneve_port || packet->fragment || packet->quoted)
		return reason;
	outer = *packet;
	reason = dsr_take_geneve(ctx, &outer, told);
	if (reason)
		return reason;
	*packet = (struct lb_packet){};
	/*
	 * Datagrams that are yet to be cut keep it that they were in a tunnel, and so the stack would
	 * cut them at the wrong place and lose them. Their sender's device can cut them (see the docs).
	 */
	if (dsr_parse(ctx, packet) && packet->key.proto == IPPROTO_UDP && ctx_segment(ctx))
		return DROP_DSR_UNSUPPORTED;
	return 0;
}

/* What becomes of a packet that comes in: an action of the hook. */
static __always_inline int dsr_take(CTX *ctx)
{
	struct lb_packet packet = {};
	struct dsr_told told = {};
	int reason;

	ctx_pull(ctx);
	reason = dsr_take_any(ctx, &packet, &told);
	if (told.told && !reason && packet.fragment != FRAGMENT_LATER)
		reason = dsr_flow_learn(&packet, &told.service, told.port);
	else if (!told.told && reason <= 0)
		dsr_flow_note(&packet);
	if (reason == DSR_PASS)
		return CTX_PASS;
	metrics_count(DIRECTION_INGRESS, reason, ctx_length(ctx) - ETHER_LEN);
	return reason ? CTX_DROP : CTX_PASS;
}

#endif
