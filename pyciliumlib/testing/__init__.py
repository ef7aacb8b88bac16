"""Doubles that meet the library's protocols, so that its users can test without root."""

from __future__ import annotations

from pyciliumlib.testing.fake_kernel import FakeKernel
from pyciliumlib.testing.fake_map import FakeMap

__all__ = ["FakeKernel", "FakeMap"]
