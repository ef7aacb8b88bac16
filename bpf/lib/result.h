/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a step of a program returns: a tc action (0..7), or a drop reason (from 130 up).
 * The two ranges do not meet, so one int carries either.
 */
#ifndef PCL_RESULT_H
#define PCL_RESULT_H

#include <linux/pkt_cls.h>

#include "common.h"

static __always_inline bool is_drop(int result)
{
	return result >= 130;
}

#endif
