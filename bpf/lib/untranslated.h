/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What path.h asks about services, for a program without any. */
#ifndef PCL_UNTRANSLATED_H
#define PCL_UNTRANSLATED_H

#include "path.h"

static __always_inline int translate_find(enum hook hook)
{
	return 0;
}

static __always_inline int translate_again(void)
{
	return 0;
}

static __always_inline bool translate_serves(const struct flow *flow, __u32 from)
{
	return true;
}

static __always_inline __u32 translate_changes(const struct flow *flow)
{
	return flow_changes();
}

static __always_inline __u64 translate_revision(const struct flow *flow,
						const struct flow_key *key)
{
	return flow_address_revision(&key->low, &key->high);
}

#endif
