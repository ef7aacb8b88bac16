/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the packets of a translated flow change into. */
#ifndef PCL_TRANSLATE_CHANGE_H
#define PCL_TRANSLATE_CHANGE_H

#include "rewrite.h"
#include "service.h"

/* What one end of a packet changes into. */
struct new_end {
	struct addr from;
	struct addr to;
	__be16 port;
	enum end_kind end;
};

/*
 * An answer is from the service, anything else for the backend. Of a flow with itself also the other
 * end, which `self` says, gets another address; it keeps its port, and `port` what it was.
 */
static __always_inline bool translate_change(struct new_end *change, __u32 frontend_id,
					     __u32 backend_id, bool answer, bool self)
{
	struct lb_frontend *frontend = lb_frontend(frontend_id);
	struct lb_backend *backend = lb_backend(backend_id);
	struct addr loopback;

	if (!frontend || !backend)
		return false;
	if (self) {
		service_loopback(&loopback, !addr_is_v4(&backend->addr));
		change->from = answer ? loopback : backend->addr;
		change->to = answer ? backend->addr : loopback;
	} else {
		change->from = answer ? backend->addr : frontend->addr;
		change->to = answer ? frontend->addr : backend->addr;
		change->port = answer ? frontend->port : backend->port;
	}
	change->end = answer != self ? SOURCE : DESTINATION;
	return true;
}

#endif
