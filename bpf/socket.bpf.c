// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Load balancing at the sockets of a cgroup: one that asks for a service is connected to a backend,
 * and goes on seeing the service. No packet is touched.
 */

#include <linux/errno.h>

#include "lib/lb_socket.h"
#include "lib/metrics.h"

CONFIG(bool, set_retval, "bpf_set_retval is there (Linux 6.1): what is refused has its own error") = false;

#define AF_INET 2
#define REFUSE 0
#define ALLOW 1

/* The caller gets EPERM where the kernel does not let a program choose. */
static __always_inline int refuse(int error)
{
	if (set_retval)
		bpf_set_retval(-error);
	return REFUSE;
}

/* Counts what became of a translation, and says whether the call goes on. */
static __always_inline int verdict(int result)
{
	if (result == NOT_OURS)
		return ALLOW;
	metrics_count(DIRECTION_EGRESS, result, 0);
	return result ? refuse(EHOSTUNREACH) : ALLOW;
}

static __always_inline struct lb_place place_ipv4(const struct bpf_sock_addr *ctx)
{
	struct lb_place place = { .port = READ_ONCE(ctx->user_port) };

	addr_from_v4(&place.addr, READ_ONCE(ctx->user_ip4));
	return place;
}

/* IPv4 at an IPv6 socket is v4-mapped here too. */
static __always_inline struct lb_place place_ipv6(const struct bpf_sock_addr *ctx)
{
	struct lb_place place = { .port = READ_ONCE(ctx->user_port) };

	place.addr.words[0] = READ_ONCE(ctx->user_ip6[0]);
	place.addr.words[1] = READ_ONCE(ctx->user_ip6[1]);
	place.addr.words[2] = READ_ONCE(ctx->user_ip6[2]);
	place.addr.words[3] = READ_ONCE(ctx->user_ip6[3]);
	return place;
}

static __always_inline void write_ipv4(struct bpf_sock_addr *ctx, const struct lb_place *place)
{
	ctx->user_ip4 = place->addr.words[3];
	ctx->user_port = place->port;
}

static __always_inline void write_ipv6(struct bpf_sock_addr *ctx, const struct lb_place *place)
{
	ctx->user_ip6[0] = place->addr.words[0];
	ctx->user_ip6[1] = place->addr.words[1];
	ctx->user_ip6[2] = place->addr.words[2];
	ctx->user_ip6[3] = place->addr.words[3];
	ctx->user_port = place->port;
}

/* ---------------------------------------------------------------- to a service */

/* A socket that connects is done with what it asked for before. */
static __always_inline int to_service_ipv4(struct bpf_sock_addr *ctx, bool connects)
{
	struct lb_place to = place_ipv4(ctx);
	int result = lb_socket_translate(ctx, &to);

	if (!result)
		write_ipv4(ctx, &to);
	else if (connects)
		lb_socket_forget(ctx, &to);
	return verdict(result);
}

static __always_inline int to_service_ipv6(struct bpf_sock_addr *ctx, bool connects)
{
	struct lb_place to = place_ipv6(ctx);
	int result = lb_socket_translate(ctx, &to);

	if (!result)
		write_ipv6(ctx, &to);
	else if (connects)
		lb_socket_forget(ctx, &to);
	return verdict(result);
}

SEC("cgroup/connect4")
int socket_connect4(struct bpf_sock_addr *ctx)
{
	return to_service_ipv4(ctx, true);
}

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *ctx)
{
	return to_service_ipv6(ctx, true);
}

SEC("cgroup/sendmsg4")
int socket_sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_service_ipv4(ctx, false);
}

SEC("cgroup/sendmsg6")
int socket_sendmsg6(struct bpf_sock_addr *ctx)
{
	return to_service_ipv6(ctx, false);
}

/* ---------------------------------------------------------------- from a backend */

static __always_inline int reverse_ipv4(struct bpf_sock_addr *ctx)
{
	struct lb_place from = place_ipv4(ctx);

	if (lb_socket_reverse(ctx, &from))
		write_ipv4(ctx, &from);
	return ALLOW;
}

static __always_inline int reverse_ipv6(struct bpf_sock_addr *ctx)
{
	struct lb_place from = place_ipv6(ctx);

	if (lb_socket_reverse(ctx, &from))
		write_ipv6(ctx, &from);
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int socket_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse_ipv4(ctx);
}

SEC("cgroup/recvmsg6")
int socket_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse_ipv6(ctx);
}

SEC("cgroup/getpeername4")
int socket_peer4(struct bpf_sock_addr *ctx)
{
	return reverse_ipv4(ctx);
}

SEC("cgroup/getpeername6")
int socket_peer6(struct bpf_sock_addr *ctx)
{
	return reverse_ipv6(ctx);
}

/* ---------------------------------------------------------------- at the node's own ports */

/* Whether a socket of the node would take what is sent to a NodePort, and never get it. */
static __always_inline bool takes_node_port(struct bpf_sock *ctx, struct lb_service_key *key)
{
	struct lb_service *service = lb_service_of(ctx, key);

	return service && service->flags & LB_NODE_PORT;
}

static __always_inline bool may_be_node_port(struct bpf_sock *ctx)
{
	__u32 proto = READ_ONCE(ctx->protocol);

	return (proto == IPPROTO_TCP || proto == IPPROTO_UDP) && lb_in_host_netns(ctx);
}

SEC("cgroup/post_bind4")
int socket_bind4(struct bpf_sock *ctx)
{
	struct lb_service_key key = {};

	if (!may_be_node_port(ctx))
		return ALLOW;
	key.port = bpf_htons(READ_ONCE(ctx->src_port));
	key.proto = READ_ONCE(ctx->protocol);
	addr_from_v4(&key.addr, ctx->src_ip4);
	return takes_node_port(ctx, &key) ? refuse(EADDRINUSE) : ALLOW;
}

SEC("cgroup/post_bind6")
int socket_bind6(struct bpf_sock *ctx)
{
	struct lb_service_key key = {}, ipv4 = {};

	if (!may_be_node_port(ctx))
		return ALLOW;
	key.port = bpf_htons(READ_ONCE(ctx->src_port));
	key.proto = READ_ONCE(ctx->protocol);
	key.addr.words[0] = ctx->src_ip6[0];
	key.addr.words[1] = ctx->src_ip6[1];
	key.addr.words[2] = ctx->src_ip6[2];
	key.addr.words[3] = ctx->src_ip6[3];
	/* A socket at the unspecified IPv6 address takes IPv4 too. */
	if (!key.addr.halves[0] && !key.addr.halves[1]) {
		ipv4 = key;
		addr_from_v4(&ipv4.addr, 0);
		if (takes_node_port(ctx, &ipv4))
			return refuse(EADDRINUSE);
	}
	return takes_node_port(ctx, &key) ? refuse(EADDRINUSE) : ALLOW;
}

/* ---------------------------------------------------------------- the end */

SEC("cgroup/sock_release")
int socket_release(struct bpf_sock *ctx)
{
	struct lb_place to = { .port = ctx->dst_port };

	if (!to.port)
		return ALLOW;
	if (READ_ONCE(ctx->family) == AF_INET) {
		addr_from_v4(&to.addr, READ_ONCE(ctx->dst_ip4));
		lb_socket_forget(ctx, &to);
		return ALLOW;
	}
	to.addr.words[0] = READ_ONCE(ctx->dst_ip6[0]);
	to.addr.words[1] = READ_ONCE(ctx->dst_ip6[1]);
	to.addr.words[2] = READ_ONCE(ctx->dst_ip6[2]);
	to.addr.words[3] = READ_ONCE(ctx->dst_ip6[3]);
	lb_socket_forget(ctx, &to);
	return ALLOW;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
