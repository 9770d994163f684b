"""A reader process that is killed, as by the kernel when memory runs out."""

import os
import signal

import pytest

from ofq_core.data import Share, worker_deaths
from ofq_core.errors import DataError


class Deadly:
    """A source one of whose images kills whoever reads it."""

    def __init__(self, origin, victim):
        self.origin, self.victim = origin, victim

    def image(self, name, place, size):
        if name == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)
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
