"""A reader process that is killed, as by the kernel when memory runs out."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import pytest
import torch
from torch import distributed as dist

from ofq_core.data import Share, loading, prepare_data, worker_deaths
from ofq_core.errors import DataError
from tests.patience import PATIENCE


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone, as under a launcher."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Deadly:
    """A source one of whose images kills whoever reads it, or stops it for ever."""

    def __init__(self, origin, victim, number=signal.SIGKILL):
        self.origin, self.victim, self.number = origin, victim, number

    def image(self, name, place, size):
        if name == self.victim:
            os.kill(os.getpid(), self.number)
        return self.origin.image(name, place, size)


@pytest.mark.usefixtures("pets")
def test_killed_worker(opened, recipe, monkeypatch, cpu):
    """The message says what to do; afterwards the same data can be read again."""
    monkeypatch.setenv("OFQ_WORKERS", "1")
    data = opened()
    origin = data.prepared.origin
    victim = data.prepared.splits["train"].name(20)
    data._images["train"].origin = Deadly(origin, victim)
    with pytest.raises(DataError) as error:
        list(data.train_batches(recipe(batch_size=34), 0, 0, 0, Share(), cpu))
    message = str(error.value)
    assert "\n" not in message
    assert "a process that reads images died" in message
    assert "OFQ_WORKERS" in message
    assert "run the same command again" in message
    data._images["train"].origin = origin
    assert len(list(data.train_batches(recipe(), 0, 0, 0, Share(), cpu))) == 4


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 12) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "DataLoader worker (pid 12) exited unexpectedly with exit code 1. Details are lost.",
    ],
)
def test_a_death_noticed_elsewhere_is_explained(message):
    """PyTorch's signal handler raises wherever the main thread is, such as in the model."""
    with pytest.raises(DataError, match=r"died \(DataLoader worker"), worker_deaths():
        raise RuntimeError(message)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"), worker_deaths():
        raise RuntimeError("CUDA out of memory")


def test_readers_beside_a_process_group_are_not_forked(
    pets, opened, recipe, monkeypatch, cpu, group
):
    """Which would hang now and then; what they read is the same, from epoch to epoch."""
    alone = opened()
    monkeypatch.setenv("OFQ_WORKERS", "1")
    helped = opened()
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    for epoch in range(2):
        streams = [
            [batch.images for batch in data.train_batches(recipe(), 0, epoch, 0, Share(), cpu)]
            for data in (alone, helped)
        ]
        assert all(map(torch.equal, *streams))
    pairs = [next(iter(d.eval_batches("test", 15, Share(), cpu))) for d in (alone, helped)]
    assert torch.equal(pairs[0].images, pairs[1].images)
    assert forks == []


@pytest.mark.usefixtures("pets", "group")
def test_killed_worker_beside_a_process_group(opened, recipe, monkeypatch, cpu):
    """It is no child of this process: nothing but the next look finds out."""
    monkeypatch.setattr(loading, "LOOK", 0.5)
    test_killed_worker(opened, recipe, monkeypatch, cpu)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.usefixtures("pets")
def test_worker_that_gives_nothing(split, opened, recipe, monkeypatch, cpu):
    """Stopped, so that it obeys no signal but one: it is given up, and is gone."""
    monkeypatch.setenv("OFQ_WORKERS", "1")
    monkeypatch.setattr(loading, "LOOK", 0.5)
    monkeypatch.setattr(loading, "PATIENCE", 1.0)
    data = opened()
    victim = data.prepared.splits[split].name(0)
    data._images[split].origin = Deadly(data.prepared.origin, victim, signal.SIGSTOP)
    before = set(multiprocessing.active_children())
    if split == "train":
        batches = data.train_batches(recipe(batch_size=34), 0, 0, 0, Share(), cpu)
    else:
        batches = data.eval_batches("test", 4, Share(), cpu)
    with pytest.raises(DataError) as error:
        list(batches)
    assert "gave no batch for a long time" in str(error.value)
    assert "OFQ_WORKERS=0" in str(error.value)
    for reader in set(multiprocessing.active_children()) - before:
        reader.join(PATIENCE)
        assert not reader.is_alive()


@pytest.mark.usefixtures("pets")
def test_slow_workers_are_waited_for(opened, recipe, monkeypatch, cpu):
    """Many a look later; and readers that do not answer at once in a second epoch are replaced."""
    monkeypatch.setenv("OFQ_WORKERS", "1")
    streams = []
    for look in (loading.LOOK, 0.001):
        monkeypatch.setattr(loading, "LOOK", look)
        data = opened()
        for epoch in range(2):
            batches = data.train_batches(recipe(), 0, epoch, 0, Share(), cpu)
            streams.append(torch.stack([batch.images for batch in batches]))
    assert torch.equal(streams[0], streams[2])
    assert torch.equal(streams[1], streams[3])


@pytest.mark.usefixtures("pets", "group")
def test_fork_server_that_died(opened, recipe, monkeypatch, cpu):
    """As when SIGTERM comes to all processes of a job; the next run starts another."""
    monkeypatch.setenv("OFQ_WORKERS", "1")
    data = opened()

    def killing(self):
        # Between the look whether it lives and the request.
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        raise EOFError("unexpected EOF")

    list(data.eval_batches("test", 4, Share(), cpu))
    with monkeypatch.context() as patch:
        patch.setattr(forkserver, "read_signed", killing)
        with pytest.raises(DataError) as error:
            list(data.eval_batches("test", 4, Share(), cpu))
    assert "could not be started (EOFError: unexpected EOF). Most often memory" in str(error.value)
    assert len(list(data.train_batches(recipe(), 0, 0, 0, Share(), cpu))) == 4


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_readers_end_with_their_process(end, pets, image_settings, recipe, tmp_path):
    """Also when it takes nothing apart, as every stage; and they say nothing."""
    prepare_data(image_settings(), tmp_path / "data" / "pets")
    program = f"""
import os, signal, sys
from multiprocessing import active_children, forkserver
from pathlib import Path
import torch
from torch import distributed as dist
from ofq_core.data import Share, open_data
from ofq_core.settings import ImageSettings, RecipeSettings
if __name__ == "__main__":
    store = dist.FileStore({str(tmp_path / "store")!r}, 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    data = open_data(
        ImageSettings.model_validate_json({image_settings().model_dump_json()!r}),
        Path({str(tmp_path / "data" / "pets")!r}),
    )
    recipe = RecipeSettings.model_validate_json({recipe().model_dump_json()!r})
    list(data.train_batches(recipe, 0, 0, 0, Share(), torch.device("cpu")))
    pids = [child.pid for child in active_children()] + [forkserver._forkserver._forkserver_pid]
    print(*pids, flush=True)
    {end}
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env={**os.environ, "OFQ_WORKERS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    until = time.monotonic() + PATIENCE
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.01)
