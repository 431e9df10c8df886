import pytest

from liquidmm.data.manifest import ShardStats
from liquidmm.encode.progress import (
    Counts,
    ErrorBudget,
    Progress,
    StoppedError,
    TaskProgress,
    progress_bar,
)
from liquidmm.errors import ConfigError, DataError, LiquidError


@pytest.fixture
def progress(tmp_path):
    progress = Progress(tmp_path / "counts")
    progress.clear()
    return progress


@pytest.fixture
def budget(tmp_path):
    return ErrorBudget(max_rate=0.1, min_records=100, rejected_file=tmp_path / "q.jsonl")


def stats(records, rejected):
    return ShardStats(records=records - rejected, rejected=rejected)


@pytest.mark.parametrize(
    ("records", "rejected", "exceeded"),
    [
        (99, 99, False),  # too early
        (100, 10, False),  # not more than a tenth
        (100, 11, True),
    ],
)
def test_error_budget_checks_share_of_rejected(budget, records, rejected, exceeded):
    counts = Counts(records=records, rejected=rejected, problem="a.png: is broken")
    if not exceeded:
        budget.check(counts)
        return
    message = rf"^{budget.rejected_file}: {rejected} of {records} .*0\.1.*a\.png: is broken$"
    with pytest.raises(DataError, match=message):
        budget.check(counts)


@pytest.mark.parametrize(
    ("before", "now", "exceeded"),
    [((1000, 0), (100, 100), False), ((1000, 100), (10, 2), True)],
)
def test_task_progress_counts_earlier_runs(progress, budget, before, now, exceeded):
    earlier = Counts(records=before[0], rejected=before[1])
    task = TaskProgress(progress, 0, budget, earlier)
    if not exceeded:
        task.finish_shard(stats(*now))
        return
    with pytest.raises(DataError, match=f"{before[1] + now[1]} of {before[0] + now[0]} "):
        task.finish_shard(stats(*now))


def test_progress_sums_tasks_and_restarts_them(progress, budget):
    first, second = (TaskProgress(progress, task, budget) for task in (0, 1))
    for _ in range(3):
        first.update(Counts(records=1))
    first.update(Counts(rejected=1, problem="a.png: is broken"))
    first.update(Counts(images=2))
    first.finish_shard(stats(3, 1))
    second.finish_shard(stats(5, 0))
    expected = Counts(records=8, rejected=1, images=2, shards=2, problem="a.png: is broken")
    assert progress.counts() == expected
    TaskProgress(progress, 0, budget).finish_shard(stats(4, 0))  # the task runs again
    assert progress.counts() == Counts(records=9, shards=2)
    progress.clear()
    assert progress.counts() == Counts()


def test_error_budget_covers_all_tasks(progress, budget):
    first, second = (TaskProgress(progress, task, budget) for task in (0, 1))
    first.finish_shard(stats(60, 3))
    with pytest.raises(DataError, match="23 of 120 records"):
        second.finish_shard(stats(60, 20))


def test_stop_flag_ends_other_tasks(progress, budget):
    task = TaskProgress(progress, 0, budget)
    progress.stop(LiquidError("the disk is full"))
    with pytest.raises(StoppedError):
        task.finish_shard(stats(1, 0))


def test_stop_keeps_first_error_and_its_kind(progress):
    assert progress.error() is None
    progress.stop(ConfigError("resolution: is odd."))
    progress.stop(LiquidError("the disk is full"))
    error = progress.error()
    assert type(error) is ConfigError
    assert str(error) == "resolution: is odd."


def test_progress_bar_on_a_terminal(progress, budget, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for records, shards, text in ((None, 4, "20/40"), (100, 4, "20/100"), (100, 2, "20/20")):
        with progress_bar(progress, Counts(records=10, shards=1), records, shards):
            task = TaskProgress(progress, 0, budget)
            task.update(Counts(images=7))
            task.finish_shard(stats(10, 2))
        shown = capsys.readouterr().err
        assert text in shown
        assert "images/s, 2 rejected" in shown
