"""What is counted, on functions whose numbers are known by hand."""

import torch

from benchmarks.counting import Counter, Saved


def test_operators_and_bytes_by_hand():
    x = torch.ones(1000)
    with Counter() as counter:
        counter.ignore([x])
        y = x + 1  # 4,000 bytes
        z = y * 2  # and 4,000 more
        del y  # 4,000 are left
        view = z.view(10, 100)  # no bytes of its own
        view.add_(1)
    assert counter.operators == 4
    assert (counter.live, counter.peak) == (4000, 8000)
    del z
    assert counter.live == 4000  # the view holds them
    del view
    assert counter.live == 0


def test_a_place_that_is_taken_again_counts_again():
    with Counter() as counter:
        for _ in range(10):
            x = torch.empty(1000)
            del x
    assert (counter.live, counter.peak) == (0, 4000)


def test_saved_storages_count_once_and_parameters_do_not():
    weight = torch.ones(100, requires_grad=True)
    x = torch.ones(100)
    saved = Saved([weight, x])
    with saved.watch():
        y = weight * x  # saves both, which are known
        z = y.exp()  # saves its result: 400 bytes
        (z * z.view(100)).sum()  # saves the same storage twice
    assert saved.bytes == 400
