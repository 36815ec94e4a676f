import torch

from secateur.stats.inputs import InputStats


def gather(*batches, stride=1):
    stats = InputStats(batches[0].shape[-1], stride)
    for batch in batches:
        stats.update(batch)
    return stats


def test_merged_parts_equal_the_whole():
    x = torch.randn(60, 8)
    whole, parts = gather(x), gather(x[:20], x[20:35])
    parts.merge(gather(x[35:]))
    assert parts.tokens == whole.tokens == 60
    torch.testing.assert_close(parts.square_sum, whole.square_sum, rtol=1e-6, atol=0)
    assert torch.equal(parts.sample, whole.sample)


def test_gram_matrices_merge_and_follow_an_order():
    x, order = torch.randn(60, 8), torch.randperm(8)
    whole, parts = (InputStats(8, gram=True) for _ in range(2))
    whole.update(x)
    for part in (x[:20], x[20:]):
        other = InputStats(8, gram=True)
        other.update(part)
        parts.merge(other)
    torch.testing.assert_close(parts.gram, x.T @ x)
    chosen = whole.select(order)
    torch.testing.assert_close(chosen.gram, x[:, order].T @ x[:, order])
    assert torch.equal(chosen.norm, whole.norm[order])
    assert torch.equal(chosen.sample, x[:, order])


def test_products_of_bfloat16_inputs_lose_nothing(monkeypatch):
    monkeypatch.undo()  # by whatever this processor has for them
    x = torch.randn(300, 64).bfloat16()
    stats = InputStats(64, gram=True)
    stats.update(x)
    exact = x.double().T @ x.double()
    assert stats.gram is not None
    assert (stats.gram - exact).abs().max() < 1e-6 * exact.max()


def test_norm_is_that_of_each_channel_over_all_tokens():
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(gather(x).norm, x.reshape(-1, 8).norm(dim=0))


def test_half_precision_inputs_do_not_overflow():
    x = torch.full((100, 2), 300.0, dtype=torch.float16)  # 300² > 65504
    torch.testing.assert_close(gather(x).norm, torch.full((2,), 3000.0))


def test_sample_does_not_depend_on_batches():
    x = torch.arange(50.0).reshape(50, 1)
    assert torch.equal(gather(x, stride=7).sample, x[::7])
    assert torch.equal(gather(x[:13], x[13:14], x[14:], stride=7).sample, x[::7])


def test_many_small_tokens_beside_a_large_one_are_not_lost():
    stats = gather(torch.tensor([[1e4]]), *[torch.ones(1000, 1)] * 100)
    assert stats.square_sum.item() == 1e8 + 1e5


def test_ranks_sample_the_rows_that_one_would():
    x = torch.arange(50.0).reshape(50, 1)
    before, after = gather(x[:13], stride=7), InputStats(1, 7, first=13)
    after.update(x[13:])
    assert torch.equal(torch.cat([before.sample, after.sample]), x[::7])


def test_divided_statistics_are_those_of_divided_inputs():
    draw = torch.Generator().manual_seed(0)
    inputs, order = torch.randn(3, 40, 16, generator=draw), torch.randperm(16, generator=draw)
    scales = torch.randint(-3, 4, (16,), generator=draw).float().exp2()
    whole, divided = (InputStats(16, stride=7, gram=True) for _ in range(2))
    whole.update(inputs)
    divided.update(inputs / scales)
    assert whole.damped is not whole.divided(scales).damped  # what has been computed is of what was there
    for found, expected in [
        (whole.divided(scales), divided),
        (whole.divided(scales).select(order), divided.select(order)),
        (whole.select(order).divided(scales[order]), divided.select(order)),
        (whole.divided(scales).divided(1 / scales), whole),
    ]:
        assert (found.tokens, found.sequences) == (expected.tokens, expected.sequences)
        torch.testing.assert_close(found.gram, expected.gram)
        torch.testing.assert_close(found.damped.matrix, expected.damped.matrix)
        torch.testing.assert_close(found.square_sum, expected.square_sum)
        assert torch.equal(found.sample, expected.sample)
