"""The owner of one file descriptor of the kernel."""

from __future__ import annotations

import os
import warnings
from types import TracebackType

from typing_extensions import Self

from pyciliumlib.errors import ClosedError
