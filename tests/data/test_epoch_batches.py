"""The order of images is a function of seed and epoch, and the processes share it."""

from hypothesis import given
from hypothesis import strategies as st

from dino.data.datasets import Share
from dino.data.epoch_batches import EpochBatches


def read_batches(
    count: int, batch_size: int, share: Share, *, seed: int, epoch: int
) -> list[set[int]]:
    batches = EpochBatches(count, batch_size, seed=seed, share=share)
    batches.begin(epoch)
    return [{index for _, index in batch} for batch in batches]


@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_processes_share_the_batches_of_one(
    count: int, batch_size: int, world_size: int, seed: int, epoch: int
) -> None:
    shares = [Share(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [read_batches(count, batch_size, share, seed=seed, epoch=epoch) for share in shares]
    whole = read_batches(count, batch_size * world_size, Share(), seed=seed, epoch=epoch)
    assert [set.union(*batch) for batch in zip(*parts, strict=True)] == whole
    assert all(len(batch) == batch_size for part in parts for batch in part)


@given(
    count=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 9),
    start=st.integers(0, 9),
)
def test_a_short_rest_is_dropped_and_no_image_comes_twice(
    count: int, batch_size: int, seed: int, start: int
) -> None:
    batches = EpochBatches(count, batch_size, seed=seed, share=Share())
    whole = list(batches)
    seen = [index for batch in whole for _, index in batch]
    assert len(whole) == len(batches) == count // batch_size
    assert len(seen) == len(set(seen)) == count - count % batch_size
    assert set(seen) <= set(range(count))
    batches.begin(0, start)
    assert list(batches) == whole[start:]


def test_every_epoch_and_every_seed_has_another_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(50, 50, seed=seed, share=Share())
        batches.begin(epoch)
        return [index for _, index in next(iter(batches))]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len(set(map(tuple, orders))) == 9
    assert order(1, 2) == order(1, 2)
