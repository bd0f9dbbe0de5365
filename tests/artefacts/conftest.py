from __future__ import annotations

import pytest
from disks import disk as disk
from example_run import make_events

from sea_peft.loop.events import Event


@pytest.fixture
def events() -> list[Event]:
    return make_events()
