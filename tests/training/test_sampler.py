"""The order of problems depends on the seed and the epoch, whether the run was resumed or not."""

from __future__ import annotations

from trl.trainer.utils import RepeatSampler

from gtpo.training.sampler import EpochOrder


def host(**options):
    return RepeatSampler(range(10), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=4, **options)


def test_each_epoch_has_the_order_that_the_host_gives_it_in_an_unbroken_run():
    unbroken = host()
    epochs = [list(unbroken) for _ in range(4)]
    assert epochs[0] != epochs[1]
    for done, order in enumerate(epochs):
        assert list(EpochOrder(host(), lambda done=done: done)) == order, "as after a resume"
    done = iter(range(4))
    ours = EpochOrder(host(), lambda: next(done))
    assert [list(ours) for _ in range(4)] == epochs
    assert len(ours) == len(epochs[0])


def test_an_order_that_is_not_shuffled_stays():
    assert list(EpochOrder(host(shuffle=False), lambda: 3)) == list(host(shuffle=False))
