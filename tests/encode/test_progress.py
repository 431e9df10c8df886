import pytest

from liquidmm.data.manifest import ShardStats
from liquidmm.encode.part import Seen
from liquidmm.encode.progress import Counts, Limit, Progress, StoppedError, TaskProgress, shown
from liquidmm.errors import ConfigError, DataError, LiquidError


@pytest.fixture
def progress(tmp_path):
    progress = Progress(tmp_path / "counts")
    progress.clear()
    return progress


@pytest.fixture
def limit(tmp_path):
    return Limit(share=0.1, least=100, before=Counts(), quarantine=tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("before", "now", "exceeded"),
    [
        ((0, 0), (99, 99), False),  # too early to tell
        ((0, 0), (100, 10), False),  # not more than a tenth
        ((0, 0), (100, 11), True),
        ((1000, 0), (100, 100), False),
        ((1000, 100), (10, 2), True),
    ],
)
def test_the_limit_counts_earlier_runs(limit, before, now, exceeded):
    earlier = Counts(entries=before[0], refused=before[1])
    limit = Limit(share=0.1, least=100, before=earlier, quarantine=limit.quarantine)
    error = limit.exceeded(Counts(entries=now[0], refused=now[1], problem="a.png: is broken"))
    assert (error is not None) == exceeded
    if error is not None:
        assert isinstance(error, DataError)
        assert str(error).startswith(f"{limit.quarantine}: {before[1] + now[1]} of ")
        assert str(error).endswith("The first reason: a.png: is broken")


def test_at_the_end_all_counts_whatever_their_number(limit):
    assert limit.broken(ShardStats(records=9, rejected=1), "") is None
    error = limit.broken(ShardStats(records=8, rejected=1), "a.png: is broken")
    assert str(error).startswith(f"{limit.quarantine}: 1 of 9 entries were refused")
    assert limit.broken(ShardStats(), "") is None


def test_tasks_are_added_up_and_begin_anew(progress, limit):
    first, second = (TaskProgress(progress, task, limit) for task in (0, 1))
    for _ in range(3):
        first.tell(Seen(entries=1))
    first.tell(Seen(problem="a.png: is broken"))
    first.tell(Seen(pictures=2))
    first.finish_part(3, 1)
    second.finish_part(5, 0)
    expected = Counts(entries=8, refused=1, pictures=2, parts=2, problem="a.png: is broken")
    assert progress.counts() == expected
    TaskProgress(progress, 0, limit).finish_part(4, 0)  # another process does the task again
    assert progress.counts() == Counts(entries=9, parts=2)
    progress.clear()
    assert progress.counts() == Counts()


def test_one_task_stops_all(progress, limit):
    first, second = (TaskProgress(progress, task, limit) for task in (0, 1))
    first.finish_part(60, 3)
    with pytest.raises(StoppedError):
        second.finish_part(60, 20)
    with pytest.raises(StoppedError):
        first.finish_part(1, 0)
    assert "23 of 120 entries were refused" in str(progress.error())


def test_the_first_reason_stays_and_keeps_its_kind(progress):
    assert progress.error() is None
    progress.stop(ConfigError("size: is odd. Take another."))
    progress.stop(LiquidError("the disk is full"))
    error = progress.error()
    assert type(error) is ConfigError
    assert str(error) == "size: is odd. Take another."


def test_a_bar_on_a_terminal(progress, limit, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for entries, parts, words in ((None, 4, "20/40"), (100, 4, "20/100"), (100, 2, "20/20")):
        with shown(progress, Counts(entries=10, parts=1), entries, parts):
            task = TaskProgress(progress, 0, limit)
            task.tell(Seen(pictures=7))
            task.finish_part(10, 2)
        text = capsys.readouterr().err
        assert words in text
        assert "images/s, 2 refused" in text
