import pytest
import torch
from torch import nn

from secateur.calibrate.guard import Guard
from secateur.calibrate.stream import Stream
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from tests import pico


def stream_of(name, batches, held_out=0):
    model = pico.build(name)
    blocks = blocks_of(model, family_of(model))
    return model, blocks, Stream(model, blocks, batches, held_out=held_out)


@pytest.mark.parametrize("name", pico.ALL)
def test_hidden_states_are_those_of_the_whole_model(name):
    batches = [pico.tokens(2, 24), pico.tokens(2, 24, seed=2), pico.tokens(1, 20, seed=3)]
    model, blocks, stream = stream_of(name, batches)
    for i in range(len(blocks)):
        for hidden, batch in zip(stream.hidden, batches, strict=True):
            with torch.no_grad():
                expected = model(batch, output_hidden_states=True, use_cache=False).hidden_states[i]
            torch.testing.assert_close(hidden, expected)
        stream.advance(i)


@pytest.mark.parametrize("name", pico.ALL)
def test_statistics_are_of_what_enters_each_linear(name):
    batch = pico.tokens()
    model, blocks, stream = stream_of(name, [batch[:2], batch[2:]])
    stream.advance(0)
    stats = stream.observe(1)
    seen = {}
    handles = [
        blocks[1]
        .module.get_submodule(linear.name)
        .register_forward_pre_hook(
            lambda _, args, key=linear.name: seen.update({key: args[0].reshape(-1, args[0].shape[-1])})
        )
        for linear in blocks[1].linears
        if not linear.stack
    ]
    with torch.no_grad():
        model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    assert {linear.name for linear in blocks[1].linears} == set(stats) >= set(seen) != set()
    for key, inputs in seen.items():
        torch.testing.assert_close(stats[key].norm, inputs.norm(dim=0))
        torch.testing.assert_close(stats[key].sample, inputs)


@pytest.mark.parametrize("name", pico.ALL)
def test_observing_and_moving_on_in_one_pass_is_the_same(name):
    batches = [pico.tokens()]
    _, _, two = stream_of(name, batches)
    _, _, one = stream_of(name, batches)
    apart = two.observe(0)
    assert torch.equal(two.hidden[0], one.hidden[0])
    two.advance(0)
    together = one.observe(0, keep_output=True)
    assert torch.equal(two.hidden[0], one.hidden[0])
    for key in apart:
        assert torch.equal(apart[key].square_sum, together[key].square_sum)


def test_readers_at_one_place_share_statistics():
    _, _, stream = stream_of("llama-gqa-tied", [pico.tokens()])
    stats = stream.observe(0)
    assert stats["self_attn.q_proj"] is stats["self_attn.k_proj"] is stats["self_attn.v_proj"]
    assert stats["mlp.gate_proj"] is stats["mlp.up_proj"] is not stats["self_attn.q_proj"]


def test_arguments_that_do_not_differ_are_kept_once():
    _, _, stream = stream_of("llama-mha", [pico.tokens(2, 24), pico.tokens(2, 24, seed=9), pico.tokens(2, 20)])
    first, second, third = stream._calls[0]
    assert first is second is not third


def test_the_model_is_left_as_it_was():
    batch = pico.tokens()
    fresh = pico.build("mistral")(batch).logits
    model, _, stream = stream_of("mistral", [batch])
    stream.observe(0)
    torch.testing.assert_close(model(batch).logits, fresh)


def test_models_without_blocks_are_refused():
    with pytest.raises(InputError, match="no list of repeated blocks"):
        family_of(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"hold no nn\.Linear"):
        family_of(torch.nn.Sequential(torch.nn.ModuleList([torch.nn.LayerNorm(4)])))


@pytest.mark.parametrize("keep_output", [True, False])
def test_no_statistic_sees_what_is_held_out_but_it_moves_along(keep_output):
    batches = [pico.tokens(2, 24), pico.tokens(1, 20, seed=3), pico.tokens(2, 24, seed=2)]
    _, _, part = stream_of("llama-gqa-tied", batches[:2])
    _, _, all_of_it = stream_of("llama-gqa-tied", batches)
    _, _, stream = stream_of("llama-gqa-tied", batches, held_out=1)
    assert stream.tokens == part.tokens == 68
    guard = Guard(stream, 0)
    seen, expected = (x.observe(0, gram=True, keep_output=keep_output) for x in (stream, part))
    if keep_output:
        guard.advance()
    else:
        stream.advance(0)
    all_of_it.advance(0)
    for name, stats in seen.items():
        assert torch.equal(stats.gram, expected[name].gram)
    for ours, theirs in zip(stream.hidden, all_of_it.hidden, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_an_expert_that_one_batch_leaves_out_ends_no_other_pass_early(name):
    batches = list(pico.tokens(12, 4).split(1))
    _, _, early = stream_of(name, batches)
    _, _, whole = stream_of(name, batches)
    for model in (early, whole):
        model.blocks[0].module.mlp.experts.config._experts_implementation = "eager"
    seen, expected = early.observe(0), whole.observe(0, keep_output=True)
    assert {name: x.tokens for name, x in seen.items()} == {name: x.tokens for name, x in expected.items()}


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_each_expert_sees_the_tokens_that_are_routed_to_it(name):
    model, blocks, stream = stream_of(name, [pico.tokens()])
    model.config._experts_implementation = "eager"
    seen = {}

    def route(module, args):
        hidden, experts, _ = args
        for e in range(len(module.down_proj)):
            inputs = hidden[(experts == e).any(-1)]
            gate, up = inputs.mm(module.gate_up_proj[e].T).chunk(2, -1)
            seen[f"mlp.experts.{e}.gate_up_proj"] = inputs
            seen[f"mlp.experts.{e}.down_proj"] = module.act_fn(gate) * up

    handle = blocks[0].module.mlp.experts.register_forward_pre_hook(route)
    stats = stream.observe(0, keep_output=True)
    handle.remove()
    assert sum(stats[name].tokens for name in seen) == 2 * 2 * 96
    for key, inputs in seen.items():
        assert stats[key].tokens == len(inputs)
        torch.testing.assert_close(stats[key].square_sum.float(), inputs.square().sum(0))


class Blocks(nn.Module):
    """No model of any library: blocks of some kind, one after the other."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(kind() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Residual(nn.Module):
    """Adds to its input: a copy, or in place."""

    def __init__(self, in_place=False):
        super().__init__()
        self.linear, self.in_place = nn.Linear(8, 8), in_place

    def forward(self, x):
        return x.add_(self.linear(x)) if self.in_place else x + self.linear(x)


class Looped(nn.Module):
    """Runs its two linears twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(2):
            x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return x


def stream_through(kind, batches):
    model = Blocks(kind)
    return model, Stream(model, blocks_of(model, family_of(model)), batches)


@pytest.mark.parametrize("keep_output", [True, False])
def test_a_block_that_works_in_place_changes_nothing_that_is_kept(keep_output):
    batches = [{"x": torch.randn(2, 5, 8)} for _ in range(3)]
    given = [batch["x"].clone() for batch in batches]
    streams = [stream_through(lambda: Residual(in_place), batches)[1] for in_place in (True, False)]  # noqa: B023
    for index in range(2):
        in_place, plain = (stream.observe(index, gram=True, keep_output=keep_output) for stream in streams)
        assert torch.equal(in_place["linear"].gram, plain["linear"].gram)
        if not keep_output:
            for stream in streams:
                assert torch.equal(stream.run(index, 0), stream.run(index, 0))
                stream.advance(index)
        for ours, expected in zip(streams[0].hidden, streams[1].hidden, strict=True):
            assert torch.equal(ours, expected)
    assert all(torch.equal(batch["x"], before) for batch, before in zip(batches, given, strict=True))


@pytest.mark.parametrize("keep_output", [True, False])
def test_a_linear_that_is_used_twice_counts_twice(keep_output):
    batches = [{"x": torch.randn(2, 5, 8)} for _ in range(3)]
    model, stream = stream_through(Looped, batches)
    seen: dict[str, list[torch.Tensor]] = {"first": [], "second": []}
    hooks = [
        model.blocks[0].get_submodule(name).register_forward_pre_hook(lambda _, args, to=inputs: to.append(args[0]))
        for name, inputs in seen.items()
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    stats = stream.observe(0, keep_output=keep_output)
    for name, inputs in seen.items():
        expected = torch.cat(inputs).flatten(0, 1)
        assert stats[name].tokens == len(expected) == 2 * 30
        torch.testing.assert_close(stats[name].square_sum.float(), expected.square().sum(0))


def padded(samples, side):
    """Token ids of several lengths as one batch, and its attention mask."""
    longest = max(map(len, samples))
    ids, mask = torch.zeros(2, len(samples), longest, dtype=torch.int64)
    for row, sample in enumerate(samples):
        place = slice(longest - len(sample), None) if side == "left" else slice(len(sample))
        ids[row, place], mask[row, place] = sample, 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "gpt2", "opt"])
def test_padding_counts_in_no_statistic(name, side):
    samples = [pico.tokens(1, length, seed=length)[0] for length in (24, 17, 9, 20)]
    _, _, together = stream_of(name, [padded(samples[:2], side), padded(samples[2:], side)])
    _, _, apart = stream_of(name, [sample[None] for sample in samples])
    assert together.tokens == apart.tokens == 70
    for index in range(2):
        ours, expected = (stream.observe(index, stride=7, gram=True) for stream in (together, apart))
        for key, stats in ours.items():
            assert (stats.tokens, stats.sequences) == (70, 4)
            torch.testing.assert_close(stats.gram, expected[key].gram, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(stats.sample, expected[key].sample, atol=1e-4, rtol=1e-4)
        for stream in (together, apart):
            stream.advance(index)


def test_the_guard_does_not_judge_by_padding():
    samples = [pico.tokens(1, length, seed=length)[0] for length in (24, 9)]
    errors = []
    for batches, held_out in (([padded(samples, "right")] * 2, 1), ([sample[None] for sample in samples] * 2, 2)):
        _, blocks, stream = stream_of("llama-mha", batches, held_out)
        guard = Guard(stream, 0)
        blocks[0].weight(blocks[0].linears[-1]).mul_(0.5)
        errors.append(guard.error())
    assert errors[0] == pytest.approx(errors[1], rel=1e-4) != 0


@pytest.mark.parametrize("name", ["gpt-oss", "llama4"])
def test_transposed_experts_see_the_tokens_that_are_routed_to_them(name):
    """GPT-OSS multiplies with one layer at a time; Llama 4 with all at once, of which tokens of others are zero."""
    model, blocks, stream = stream_of(name, [pico.tokens()])
    model.config._experts_implementation = "eager"
    stream.advance(0)
    block, seen = blocks[1], {}
    path = "feed_forward" if name == "llama4" else "mlp"

    def route(_, args):
        inputs = args[0].view(4, 96, 32) if name == "llama4" else [args[0][(args[1] == e).any(-1)] for e in range(4)]
        seen.update({f"{path}.experts.{e}.gate_up_proj": rows[rows.any(-1)] for e, rows in enumerate(inputs)})

    handle = block.module.get_submodule(f"{path}.experts").register_forward_pre_hook(route)
    stats = stream.observe(1, keep_output=True)
    handle.remove()
    assert sum(stats[key].tokens for key in seen) == 2 * 96
    for key, inputs in seen.items():
        assert stats[key].tokens == stats[key.replace("gate_up", "down")].tokens == len(inputs)
        torch.testing.assert_close(stats[key].square_sum.float(), inputs.square().sum(0))


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_padding_that_cannot_be_told_is_refused(name):
    batch = padded([pico.tokens(1, length, seed=length)[0] for length in (24, 9)], "right")
    _, _, stream = stream_of(name, [batch])
    stream.blocks[0].module.mlp.experts.config._experts_implementation = "eager"
    with pytest.raises(InputError, match=r"experts\.\d.* reads .* padded batch \(2, 24\).*without padding"):
        stream.observe(0)
    audio = {"input_ids": batch["input_ids"], "attention_mask": torch.eye(2, 50)}
    model = WithMask()
    with pytest.raises(InputError, match=r"batch 0 is padded by its attention_mask \(2, 50\)"):
        Stream(model, blocks_of(model, family_of(model)), [audio])


class WithMask(nn.Module):
    """Takes a mask of no use."""

    def __init__(self):
        super().__init__()
        self.inner = Blocks(Residual)

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids[..., None].float().expand(-1, -1, 8))


def test_a_cache_that_the_caller_asks_for_is_refused():
    batch = {"input_ids": pico.tokens(), "use_cache": True}
    with pytest.raises(InputError, match="passes a cache to its blocks"):
        stream_of("llama-mha", [batch])


def test_one_block_that_runs_several_times_is_refused():
    model = Blocks(Residual)
    model.blocks = nn.ModuleList([model.blocks[0]] * 2)
    with pytest.raises(InputError, match="runs one block more than once"):
        blocks_of(model, family_of(model))
