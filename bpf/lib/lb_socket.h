/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The choice of a backend for a socket, and what it asked for, so that it goes on seeing that: the
 * service's address as its peer's, and in what it receives.
 */
#ifndef PCL_LB_SOCKET_H
#define PCL_LB_SOCKET_H

#include <linux/in.h>

#include "drop.h"
#include "lb_affinity.h"
#include "lb_filter.h"

CONFIG(bool, host_only, "translate sockets of the node's own network namespace alone") = false;
CONFIG(__u64, host_netns, "cookie of the node's own network namespace, 0: the initial one") = 0;

/* Beside the drop reasons: what the socket asks for is no service's. */
#define NOT_OURS -1
/* A backend that goes just when it was chosen is chosen anew, by what holds then. */
#define LB_SOCKET_TRIES 3

/* Where a socket sends to. */
struct lb_place {
	struct addr addr;
	__be16 port;
};

struct lb_reverse_key {
	__u64 socket;		/* its cookie */
	struct addr addr;	/* the backend's */
	__be16 port;
	__u8 pad[6];
};

struct lb_reverse {
	struct addr addr;	/* the service's */
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u32 service;
	__u32 backend;
	__u32 backend_rev;
};

/* By socket and backend, since one that is not connected may talk to many. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_reverse_key);
	__type(value, struct lb_reverse);
} lb_reverse_sk SEC(".maps");

/* By number: how many connects and datagrams were translated. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} lb_socket_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} lb_socket_backends SEC(".maps");

static __always_inline void lb_socket_count(void *counters, __u32 id)
{
	__u64 *counter = bpf_map_lookup_elem(counters, &id);

	if (counter)
		(*counter)++;
}

/* Whether a socket is in the node's own network namespace. */
static __always_inline bool lb_in_host_netns(void *ctx)
{
	__u64 host = host_netns;

	if (!host)
		host = bpf_get_netns_cookie(NULL);
	return bpf_get_netns_cookie(ctx) == host;
}

/* A loopback address, or the unspecified one, which leads there as well. */
static __always_inline bool lb_is_loopback(const struct addr *addr)
{
	if (addr_is_v4(addr))
		return addr->bytes[12] == 127 || !addr->words[3];
	return !addr->halves[0] && !addr->words[2] &&
	       (!addr->words[3] || addr->words[3] == bpf_htonl(1));
}

/*
 * The service that a socket finds at a place, or the entry for the other ports of its address; NULL
 * if there is none. `key` is changed.
 */
static __always_inline struct lb_service *lb_service_of(void *ctx, struct lb_service_key *key)
{
	struct lb_service *service;

	key->scope = LB_INTERNAL;
	if (lb_is_loopback(&key->addr)) {
		key->addr.words[3] = 0;
		return lb_in_host_netns(ctx) ? bpf_map_lookup_elem(&lb_services, key) : NULL;
	}
	if (!lb_filter_has(&key->addr, lb_filter_port(key->port, key->proto)) &&
	    !lb_filter_has(&key->addr, LB_FILTER_OTHER_PORTS))
		return NULL;
	service = bpf_map_lookup_elem(&lb_services, key);
	if (service)
		return service;
	key->scope = LB_EXTERNAL;
	service = bpf_map_lookup_elem(&lb_services, key);
	/* UDP connects to port 0 to learn its route, and sends nothing there. */
	if (service || !key->port)
		return service;
	key->port = 0;
	key->proto = 0;
	return bpf_map_lookup_elem(&lb_services, key);
}

/* Remembers what the socket asked for; false if there is no room. */
static __always_inline bool lb_remember_socket(const struct lb_reverse_key *key,
					       const struct lb_reverse *asked)
{
	struct lb_reverse *known = bpf_map_lookup_elem(&lb_reverse_sk, key);

	if (known && !__builtin_memcmp(known, asked, sizeof(*asked)))
		return true;
	return !bpf_map_update_elem(&lb_reverse_sk, key, asked, BPF_ANY);
}

static __always_inline struct lb_reverse_key lb_reverse_key_of(__u64 socket,
							       const struct lb_place *backend)
{
	struct lb_reverse_key key = {
		.socket = socket,
		.addr = backend->addr,
		.port = backend->port,
	};

	return key;
}

/* Puts a backend into the place that a socket sends to; 0, NOT_OURS, or the reason to refuse. */
static __always_inline int lb_socket_translate(struct bpf_sock_addr *ctx, struct lb_place *to)
{
	struct lb_affinity_key client = { .netns = addr_is_v4(&to->addr) ? 4 : 6 };
	struct lb_reverse asked = { .addr = to->addr, .port = to->port };
	struct lb_reverse_key key;
	struct lb_backend *backend;
	struct lb_service *service;
	__u32 proto = READ_ONCE(ctx->protocol);
	bool affinity;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return NOT_OURS;
	if (host_only && !lb_in_host_netns(ctx))
		return NOT_OURS;
	asked.proto = proto;
	for (int i = 0; i < LB_SOCKET_TRIES; i++) {
		struct lb_service_key wanted = {
			.addr = asked.addr,
			.port = asked.port,
			.proto = proto,
		};

		service = lb_service_of(ctx, &wanted);
		if (!service)
			return NOT_OURS;
		if (service->flags & LB_OTHER_PORTS)
			return DROP_NO_SERVICE_BACKEND;
		asked.service = service->id;
		asked.backend = 0;
		affinity = service->affinity;
		if (affinity) {
			client.client.halves[1] = bpf_get_netns_cookie(ctx);
			client.service = service->id;
			asked.backend = lb_remembered(service, &client, LB_INTERNAL);
		}
		if (!asked.backend)
			asked.backend = lb_backend_in(service, bpf_get_prandom_u32());
		backend = bpf_map_lookup_elem(&lb_backends, &asked.backend);
		if (backend && backend->revision & 1)
			goto found;
	}
	return DROP_NO_SERVICE_BACKEND;
found:
	asked.backend_rev = backend->revision;
	to->addr = backend->addr;
	to->port = backend->port;
	key = lb_reverse_key_of(bpf_get_socket_cookie(ctx), to);
	if (!lb_remember_socket(&key, &asked))
		return DROP_FLOW_INSERT;
	if (affinity)
		lb_remember(&client, asked.backend);
	lb_socket_count(&lb_socket_services, asked.service);
	lb_socket_count(&lb_socket_backends, asked.backend);
	return 0;
}

/* Puts the service back that the socket asked for; false if it asked for this place itself. */
static __always_inline bool lb_socket_reverse(struct bpf_sock_addr *ctx, struct lb_place *from)
{
	struct lb_reverse_key key = lb_reverse_key_of(bpf_get_socket_cookie(ctx), from);
	struct lb_reverse *asked = bpf_map_lookup_elem(&lb_reverse_sk, &key);

	if (!asked)
		return false;
	from->addr = asked->addr;
	from->port = asked->port;
	return true;
}

/* The socket is closed, or asks for this place itself: it is no backend of its any more. */
static __always_inline void lb_socket_forget(void *ctx, const struct lb_place *backend)
{
	struct lb_reverse_key key = lb_reverse_key_of(bpf_get_socket_cookie(ctx), backend);

	bpf_map_delete_elem(&lb_reverse_sk, &key);
}

#endif
