// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The same at tc. */

#define PCL_TC
#include "translate.bpf.c"
