"""What the whole suite shares: golden numbers, the comparison with them, hypothesis' settings.

torch is imported inside the fixtures, so that tests of tables and tracking stay fast to start.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden" / "quantizers.json"

# derandomize: the same examples on every machine and in every run, so CI cannot be flaky.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "golden(*keys): run once per case of these groups of golden/quantizers.json"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With OFQ_REQUIRE_ALL, as in CI, a test that lacks its program fails and is not skipped."""
    report = yield
    if report.skipped and os.environ.get("OFQ_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, but all of tests/slurm on one worker: its tests wait for each other's cluster."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/slurm" if file.startswith("tests/slurm/") else file

    return ByFileAndCluster(config, log)


def pytest_generate_tests(metafunc):
    """Give a test marked `golden` one `case` after the other, with the `group` it is from."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    everything = json.loads(GOLDEN.read_text())
    rows = []
    for key in marker.args:
        group = {**everything[key], "key": key}
        for number, case in enumerate(group.get("cases", [group])):
            bits = f"-{case['bits']}bit" if "bits" in case else ""
            rows.append(pytest.param(group, case, id=f"{key}-{number}{bits}"))
    metafunc.parametrize(("group", "case"), rows)


@pytest.fixture(scope="session")
def golden():
    """All golden numbers, measured from the released code (spec, section 12)."""
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="session")
def close():
    """Compare a tensor with golden numbers: same shape, rtol 2e-5, atol 2e-6."""
    import torch

    def check(actual, expected, what=""):
        torch.testing.assert_close(
            actual.detach(),
            torch.as_tensor(expected, dtype=torch.float32),
            rtol=2e-5,
            atol=2e-6,
            msg=lambda message: f"{what}: {message}",
        )

    return check


@pytest.fixture(scope="session")
def exact():
    """Compare codes or masks with golden numbers: every entry equal."""
    import torch

    def check(actual, expected):
        assert torch.equal(actual.detach().long(), torch.tensor(expected))

    return check
