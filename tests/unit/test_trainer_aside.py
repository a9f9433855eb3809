"""Notes beside the training: nobody waits for them, and the newest is not lost."""

import threading

from lmtraining_trainer.run.aside import Aside

DEADLINE_SECONDS = 30.0


def test_of_what_is_offered_while_storage_is_slow_the_newest_is_written() -> None:
    aside, written = Aside(), []
    begun, goes_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert goes_on.wait(DEADLINE_SECONDS)
        written.append("first")

    aside.offer(slow)
    assert begun.wait(DEADLINE_SECONDS)
    aside.offer(lambda: written.append("second"))
    aside.offer(lambda: written.append("third"))
    goes_on.set()
    aside.finish(DEADLINE_SECONDS)
    assert written == ["first", "third"]


def test_what_cannot_be_written_stops_nobody() -> None:
    aside, written = Aside(), []

    def fails() -> None:
        raise OSError("no space left")

    aside.offer(fails)
    aside.finish(DEADLINE_SECONDS)
    aside.offer(lambda: written.append("later"))
    aside.finish(DEADLINE_SECONDS)
    assert written == ["later"]
