"""What the tests of the endpoint programs share: one namespace and one loaded object a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf import harness


@pytest.fixture(scope="session")
def where() -> Iterator[harness.Devices]:
    """A namespace with the devices of the endpoints."""
    with harness.devices() as made:
        yield made


@pytest.fixture(scope="session")
def loaded_rig(where: harness.Devices) -> Iterator[harness.Rig]:
    """The endpoint programs with the default configuration; take `rig` instead."""
    with harness.rig(where) as made:
        yield made


@pytest.fixture
def rig(loaded_rig: harness.Rig) -> harness.Rig:
    """The same as new: two endpoints, everything denied, no flows."""
    loaded_rig.reset()
    return loaded_rig
