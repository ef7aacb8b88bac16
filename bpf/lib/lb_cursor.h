/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reading a packet from its beginning, header by header. */
#ifndef PCL_LB_CURSOR_H
#define PCL_LB_CURSOR_H

#include "ctx.h"
#include "packet.h"

#define PROTO_IPIP 4
#define PROTO_IPV6 41

/* A range of the packet: `next` moves on, `end` stays; `off` is where in the frame `next` is. */
struct cursor {
	void *next;
	void *end;
	__u32 off;
};

/* The next `size` bytes, or NULL if the packet is shorter. */
#define TAKE(cursor, size) \
	({ void *taken = (cursor)->next; \
	   if (taken + (size) > (cursor)->end) { taken = NULL; } \
	   else { (cursor)->next = taken + (size); (cursor)->off += (size); } \
	   taken; })

#endif
