"""Asked to stop: a checkpoint after the step, and then, in every bit, as if nobody had asked."""

import os
import signal
import threading

import pytest

from ofq_core import checkpoints
from ofq_core.errors import DataError
from ofq_core.training import TrainingError, TrainingStopped, engine
from pipelines import stopping
from pipelines.stopping import stop_on_sigterm
from tests.training.conftest import without_times

# Six steps an epoch, two epochs of QAT, one of CGA; checkpoints only at the end and on request.
SELDOM = {"checkpoint_seconds": 1e9}
METHODS = [("ofq", {}), ("lsq_cga", {}), ("ofq", {"ema_decay": 0.9, "clip_grad": 0.5})]
NAMES = ["ofq", "lsq_cga", "ofq-ema-clip"]


class Asker:
    """Observes, and asks once `steps` have been observed."""

    def __init__(self, steps):
        self.steps, self.seen = steps, 0

    def __call__(self, event):
        self.seen += 1

    def asked(self):
        return self.seen >= self.steps


def summary(trainer):
    return without_times(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "tracker": trainer.tracker.state_dict(),
            "progress": trainer.progress.state_dict(),
            "layers": trainer.oscillation_layers,
            "averaged": {} if trainer.averaged is None else trainer.averaged.state_dict(),
        }
    )


@pytest.fixture(scope="module")
def undisturbed(micro, make_trainer, tmp_path_factory):
    made = {}

    def run(method, recipe):
        key = method, *recipe.items()
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            trainer = make_trainer(micro(method, recipe={**SELDOM, **recipe}), folder / "c.pt")
            trainer.run()
            made[key] = summary(trainer)
        return made[key]

    return run


@pytest.fixture
def stop(make_trainer, tmp_path):
    """Ask after so many steps of this attempt; where it stopped, and how many steps it took."""

    def run(settings, steps):
        asker = Asker(steps)
        trainer = make_trainer(
            settings, tmp_path / "c.pt", asker, log=str, asked_to_stop=asker.asked
        )
        with pytest.raises(TrainingStopped) as stopped:
            trainer.run()
        message = str(stopped.value)
        assert message.endswith("; run the same command again to go on")
        state = checkpoints.load(tmp_path / "c.pt")["progress"]
        where = state["epoch"], state["running"]["steps"]
        assert message.startswith("stopped on request after epoch {}, step {};".format(*where))
        return where, asker.seen

    return run


# Asked after a step has been seen, so the next step is the last.
@pytest.mark.parametrize(
    ("steps", "where"),
    [
        (0, (0, 1)),
        (3, (0, 4)),
        (4, (0, 5)),
        # In the sixth step: the epoch is finished first.
        (5, (1, 0)),
        (7, (1, 2)),
        # After the twelfth, which is the last of its epoch.
        (12, (2, 0)),
        (13, (2, 2)),
        (14, (2, 3)),
    ],
)
@pytest.mark.parametrize(("method", "recipe"), METHODS, ids=NAMES)
def test_bit_identical(
    steps, where, method, recipe, micro, make_trainer, stop, undisturbed, identical, tmp_path
):
    settings = micro(method, recipe={**SELDOM, **recipe})
    taken = 6 * where[0] + where[1]
    assert stop(settings, steps) == (where, taken)
    left = Asker(99)
    trainer = make_trainer(settings, tmp_path / "c.pt", left)
    trainer.run()
    assert left.seen == 18 - taken
    identical(summary(trainer), undisturbed(method, recipe))


def test_stopped_again_and_again(micro, make_trainer, stop, undisturbed, identical, tmp_path):
    settings = micro("ofq", recipe=SELDOM)
    places = [stop(settings, steps)[0] for steps in (0, 0, 3, 4, 0, 0)]
    assert places == [(0, 1), (0, 2), (1, 0), (1, 5), (2, 0), (2, 1)]
    trainer = make_trainer(settings, tmp_path / "c.pt")
    trainer.run()
    identical(summary(trainer), undisturbed("ofq", {}))


def test_asked_in_the_last_step_it_finishes(micro, make_trainer, undisturbed, identical, tmp_path):
    asker = Asker(17)
    trainer = make_trainer(
        micro("ofq", recipe=SELDOM), tmp_path / "c.pt", asker, asked_to_stop=asker.asked
    )
    trainer.run()
    identical(summary(trainer), undisturbed("ofq", {}))
    assert checkpoints.load(tmp_path / "c.pt")["progress"]["epoch"] == 3


def test_asked_while_validating_it_stops_after_the_epoch(
    micro, make_trainer, monkeypatch, tmp_path
):
    asked = []
    evaluate = engine.evaluate

    def ask(*arguments):
        asked.append(True)
        return evaluate(*arguments)

    monkeypatch.setattr(engine, "evaluate", ask)
    settings = micro("ofq", recipe=SELDOM)
    trainer = make_trainer(settings, tmp_path / "c.pt", asked_to_stop=lambda: bool(asked))
    with pytest.raises(TrainingStopped, match="after epoch 1, step 0;"):
        trainer.run()
    assert len(checkpoints.load(tmp_path / "c.pt")["progress"]["history"]) == 1


def test_killed_in_the_validation_before_it_stops(
    micro, make_trainer, undisturbed, identical, monkeypatch, tmp_path
):
    """Whoever asked does not wait for ever: the checkpoint was written before the validation."""
    settings = micro("ofq", recipe=SELDOM)
    asker = Asker(17)

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        evaluate = engine.evaluate
        patch.setattr(engine, "evaluate", lambda *a: die() if asker.seen == 18 else evaluate(*a))
        with pytest.raises(KeyboardInterrupt):
            make_trainer(settings, tmp_path / "c.pt", asker, asked_to_stop=asker.asked).run()
    left = Asker(99)
    trainer = make_trainer(settings, tmp_path / "c.pt", left)
    trainer.run()
    assert left.seen == 0
    identical(summary(trainer), undisturbed("ofq", {}))


# The signal


def terminate(error=None):
    os.kill(os.getpid(), signal.SIGTERM)
    if error is not None:
        raise error


def test_sigterm_is_a_wish_inside_the_block_only():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as asked:
        assert not asked()
        terminate()
        assert asked()
        terminate()
        assert asked()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_earlier_handler_comes_back():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: came.append(arguments))
    try:
        with pytest.raises(ZeroDivisionError), stop_on_sigterm() as asked:
            terminate(ZeroDivisionError())
        assert asked()
        assert came == []
        terminate()
        assert len(came) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with stop_on_sigterm() as asked:
            found.extend([asked(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, before]


WORKER = "DataLoader worker (pid 12) is killed by signal: Terminated. "


def test_readers_that_die_of_the_same_signal():
    with (
        pytest.raises(TrainingStopped, match=r"^stopped on request; run the same command again"),
        stop_on_sigterm(),
    ):
        terminate(RuntimeError(WORKER))


def test_readers_that_die_a_little_earlier(monkeypatch):
    monkeypatch.setattr(stopping.time, "sleep", lambda seconds: terminate())
    with pytest.raises(TrainingStopped), stop_on_sigterm():
        raise RuntimeError(WORKER)


def test_readers_that_die_of_something_else(monkeypatch):
    monkeypatch.setattr(stopping, "SPREAD_SECONDS", 0.01)
    with pytest.raises(DataError, match="a process that reads images died"), stop_on_sigterm():
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")


def test_an_error_while_stopping_is_told():
    message = (
        r"^stopped on request \(disk full\); run the same command again to go on from the last"
    )
    with pytest.raises(TrainingStopped, match=message), stop_on_sigterm():
        terminate(TrainingError("disk full"))


def test_errors_that_nobody_asked_for_stay(monkeypatch):
    waits = []
    monkeypatch.setattr(stopping.time, "sleep", waits.append)
    with pytest.raises(TrainingError, match=r"^loss$"), stop_on_sigterm():
        raise TrainingError("loss")
    assert waits == []


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"), stop_on_sigterm():
        terminate(RuntimeError("shapes"))
