"""Torch-Pruning, where it is installed, finds the same groups and the same importance by tracing the model."""

import pytest
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import read_orders
from tests.shrinking.test_shrink import batch, dense, lowest, shrinkage, text  # noqa: F401 (fixtures)

torch_pruning = pytest.importorskip("torch_pruning")


def importances(model, tokens):
    """Torch-Pruning's first-order importance of the channels of a group, by the linear that is its root."""
    model.config.use_cache = False
    model(tokens, labels=tokens).loss.backward()
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, tokens[:1], forward_fn=lambda model, inputs: model(inputs).logits, verbose=False
    )
    taylor = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, bias=True)

    def of(root):
        group = graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, idxs=[*range(root.out_features)])
        return taylor(group)

    return of


@pytest.mark.parametrize("name", ["llama-mha", "llama-biased"])
def test_the_same_channels_stay(name, dense, shrinkage, tmp_path):  # noqa: F811
    secateur.shrink(dense(name), tmp_path / "out", shrinkage(method="taylor"))
    kept = read_orders(tmp_path / "out", whole=False)
    model = AutoModelForCausalLM.from_pretrained(dense(name), attn_implementation="eager").eval()
    of = importances(model, batch(dense(name)))
    for index, layer in enumerate(model.model.layers):
        channels = of(layer.mlp.gate_proj)
        mlp = kept[f"model.layers.{index}.mlp"].tolist()
        assert mlp == lowest(channels, len(mlp))
        if name == "llama-mha":
            heads = kept[f"model.layers.{index}.heads"].tolist()
            assert heads == lowest(of(layer.self_attn.q_proj).view(4, 8).sum(1), len(heads))
