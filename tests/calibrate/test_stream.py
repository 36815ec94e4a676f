import pytest
import torch

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
    seen, expected = (x.observe(0, gram=True, keep_output=keep_output) for x in (stream, part))
    if not keep_output:
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
