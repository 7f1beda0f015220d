from __future__ import annotations

from collections.abc import Iterator

import pytest

core = pytest.importorskip("bitwright._core", reason="bitwright was installed without a compiler")


@pytest.fixture(params=core.cpu_info()["levels"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = core.isa()
    core.set_isa(request.param)
    yield request.param
    core.set_isa(before)
