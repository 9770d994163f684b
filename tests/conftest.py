"""What the whole suite shares: golden numbers, the comparison with them, hypothesis' settings.

torch is imported inside the fixtures, so that tests of tables and tracking stay fast to start.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from tests.patience import PATIENCE

# One thread, in this process and in all that it starts: the tensors here are tiny, and how a sum is
# cut among threads decides its last bits. numpy and torch read it when they are imported.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
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
def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: the worker with the tests on the cluster mostly waits."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, but what uses the one cluster on one worker: its tests wait for each other."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            alone = file.endswith("/test_without_a_cluster.py")
            return "tests/slurm" if file.startswith("tests/slurm/") and not alone else file

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
            torch.as_tensor(expected, dtype=actual.dtype),
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


@pytest.fixture(scope="session")
def in_two_processes():
    """Run a module of the tests in two gloo processes on a folder; what each of them left there."""
    import torch

    def run(module, folder):
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.processes", "2", module, str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run


@pytest.fixture(scope="session")
def in_fp64():
    """Turn a model with the numbers of a golden file to FP64, all but the quantizer of its pixels.

    The golden numbers are of FP32 on one machine. On another one a sum is rounded otherwise, and an
    activation within rounding of a threshold gets another code, which is no mistake: in FP64 none
    is near enough. Pixels do stand on thresholds, so they are quantized as they were: in FP32, by
    operations on single numbers, which are the same on every machine.
    """

    def turn(model):
        model.double()
        pixels = model.patch_embed.proj.input_quantizer.float()
        pixels.register_forward_pre_hook(lambda module, inputs: inputs[0].float())
        pixels.register_forward_hook(lambda module, inputs, output: output.double())
        return model

    return turn


@pytest.fixture(scope="session")
def torch_as_before():
    """A context that undoes what `make_deterministic` sets for the whole process."""
    import torch

    @contextmanager
    def context():
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        filled = torch.utils.deterministic.fill_uninitialized_memory
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = filled
            torch.set_rng_state(state)

    return context


@pytest.fixture(scope="session")
def draw_weights():
    """Give every parameter of a model a value that differs from its initial one, biases too."""
    import torch

    def draw(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.1 * noise)
                elif parameter.ndim >= 2 and name.endswith("weight"):
                    parameter.copy_(noise / parameter[0].numel() ** 0.5)
                else:
                    parameter.copy_(0.3 * noise)
        return model

    return draw


@pytest.fixture(scope="session")
def copy_working_tree():
    """Copy the files of the working tree: what is tracked, and what is new and not ignored."""

    def copy(folder):
        words = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            # The lock belongs to the results of the working tree, which are not copied.
            if name != "dvc.lock" and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        return folder

    return copy
