"""Expert pruning: the experts that add least go, with all that lies along them and nothing else."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

import secateur
from secateur import data
from secateur.checkpoint import ORDERS, Source
from secateur.console.models import shrinking_text
from secateur.data.sources import Text
from secateur.models.blocks import blocks_of, family_of
from secateur.shrinkage import Shrinkage
from secateur.shrinking.experts import experts_of
from secateur.shrinking.target import remainder
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
SAMPLES, LENGTH, EXPERTS = 4, 32, 8


def sized(kind: type[PreTrainedConfig], **more: object) -> PreTrainedConfig:
    sizes = {
        "vocab_size": pico.VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return kind(**{**sizes, **more})


LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": EXPERTS, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "n_shared_experts": 1}
GROUPED = {"n_group": 2, "topk_group": 1}
MODELS = {
    "mixtral": lambda: sized(MixtralConfig, num_local_experts=EXPERTS),
    "qwen2-moe": lambda: sized(
        Qwen2MoeConfig, num_experts=EXPERTS, moe_intermediate_size=8, shared_expert_intermediate_size=8
    ),
    "qwen3-moe": lambda: sized(
        Qwen3MoeConfig, num_experts=EXPERTS, moe_intermediate_size=8, head_dim=8, mlp_only_layers=[0]
    ),
    "olmoe": lambda: sized(OlmoeConfig, num_experts=EXPERTS),
    "gpt-oss": lambda: sized(GptOssConfig, num_local_experts=EXPERTS, head_dim=8, sliding_window=16),
    "glm4-moe": lambda: sized(Glm4MoeConfig, **ROUTED, n_group=1, topk_group=1, head_dim=8),
    "deepseek-v2": lambda: sized(
        DeepseekV2Config, **LATENT, **ROUTED, **GROUPED, topk_method="group_limited_greedy", routed_scaling_factor=1.5
    ),
    "deepseek-v3": lambda: sized(DeepseekV3Config, **LATENT, **ROUTED, **GROUPED),
}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """The folder of a tiny model, by its name."""
    root = tmp_path_factory.mktemp("dense")

    def folder(name):
        if not (root / name).exists():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(MODELS[name](), dtype=torch.float32)
            for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)):
                torch.nn.init.normal_(tensor, mean=1.0 if tensor.ndim == 1 else 0.0, std=0.2)
            model.save_pretrained(root / name)
            pico.tokenizer().save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture
def shrinkage(text):
    given = {"calibration": text, "samples": SAMPLES, "length": LENGTH, "dtype": "float32", "experts": 0.5}
    return lambda **options: Shrinkage(**given | options)


def outline(config):
    """The model of a config, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()


def modules_of(model):
    """The modules of experts, by the prefix of their block."""
    stacked = [
        path for path, module in model.named_modules() if hasattr(module, "down_proj") and path.endswith("experts")
    ]
    found = {path: model.get_submodule(path) for path in stacked if "shared" not in path}
    return {path.split(".mlp.")[0] + ".": module for path, module in found.items()}


def naive(folder):
    """REAP's score of each expert of each block: every expert is run on every token, and those it was not given count
    for nothing."""
    model, scores = loaded(folder), dict[str, list[float]]()
    tokens = data.calibration_samples(Text("text", [TEXT]), Source(folder).tokenizer(), SAMPLES, LENGTH, 0)

    def watch(prefix):
        def hook(module, inputs, _):
            states, chosen, gates = inputs
            scores[prefix] = []
            for expert in range(EXPERTS):
                alone = torch.full((len(states), 1), expert)
                outputs = module.forward(states, alone, torch.ones(len(states), 1))
                gate = (gates * (chosen == expert)).sum(1)
                routed = (chosen == expert).any(1)
                score = (gate * outputs.norm(dim=1))[routed].mean() if routed.any() else torch.tensor(0.0)
                scores[prefix].append(score.item())

        return hook

    for prefix, module in modules_of(model).items():
        module.register_forward_hook(watch(prefix))
    with torch.no_grad():
        model(tokens)
    return scores


@pytest.mark.parametrize("name", MODELS)
def test_the_experts_that_add_least_go_and_the_rest_keeps_its_bits(name, dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense(name), tmp_path / "out", shrinkage())
    kept, scores = load_file(tmp_path / "out" / ORDERS), naive(dense(name))
    assert kept.keys() == {f"{prefix}experts" for prefix in scores}
    groups = 2 if name.startswith("deepseek") else 1
    for prefix, found in scores.items():
        each = EXPERTS // groups
        of_groups = [range(group * each, group * each + each) for group in range(groups)]
        best = [expert for some in of_groups for expert in sorted(some, key=lambda e: -found[e])[: each // 2]]
        assert kept[f"{prefix}experts"].tolist() == sorted(best)
    small, whole = loaded(tmp_path / "out"), loaded(dense(name))
    before, after = whole.state_dict(), small.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert len(changed) >= 3 * len(scores)  # two stacks and a router
    for key, tensor in before.items():
        prefix = next((prefix for prefix in scores if key.startswith(prefix)), None)
        expected = tensor[kept[f"{prefix}experts"]] if key in changed else tensor
        assert torch.equal(after[key], expected)
    assert {key for key, value in manifest["config"].items()} <= {
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
    }
    assert secateur.verify(tmp_path / "out", dense(name)).passed


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3"])
def test_a_smaller_model_computes_what_the_dense_one_does_without_those_experts(name, dense, shrinkage, tmp_path):
    """The dense model whose router never chooses what went."""
    secateur.shrink(dense(name), tmp_path / "out", shrinkage())
    kept = load_file(tmp_path / "out" / ORDERS)
    whole = loaded(dense(name))
    for prefix in modules_of(whole):
        router = whole.get_submodule(f"{prefix}mlp.gate")
        gone = [e for e in range(EXPERTS) if e not in kept[f"{prefix}experts"].tolist()]
        if name == "mixtral":
            router.register_forward_hook(lambda _, __, output, gone=gone: without(output[0], gone))
        else:  # by its bias it chooses, and does not weigh
            router.e_score_correction_bias[gone] = -1e9
    with torch.no_grad():
        expected, found = (model(pico.tokens()).logits for model in (whole, loaded(tmp_path / "out")))
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


def without(logits, gone):
    """Mixtral's two best experts of those that are not ``gone``, and their gates."""
    best = logits.index_fill(1, torch.tensor(gone), -torch.inf).softmax(1).topk(2)
    return logits, best.values / best.values.sum(1, keepdim=True), best.indices


def test_what_has_lost_experts_can_be_pruned(dense, shrinkage, tmp_path):
    manifest = secateur.shrink(dense("mixtral"), tmp_path / "small", shrinkage(experts=0.25))
    assert "25.00% of the experts were to go" in shrinking_text(manifest).plain
    secateur.prune(tmp_path / "small", tmp_path / "out", secateur.Recipe(score="magnitude", pattern="2:4"))
    assert "lasby2026reap" in (tmp_path / "small" / "README.md").read_text()
    experts = {name for name in pico.linears(tmp_path / "out") if "experts" in name}
    assert len(experts) == 2 * 2 * 6
    assert secateur.verify(tmp_path / "out", tmp_path / "small").passed


# ---------------------------------------------------------------- what is refused, and what is noticed


@pytest.mark.parametrize(
    ("config", "share", "message"),
    [
        (lambda: pico.KNOWN["llama-mha"](), 0.5, "names no one number of experts"),
        (MODELS["mixtral"], 0.05, "less than half of one: at least 12.5% can go"),
        (MODELS["mixtral"], 0.9, r"routed to 2 experts \(num_experts_per_tok\), and of 8 there would be 1"),
        (MODELS["deepseek-v3"], 0.4, "as many must of each of 2 groups .* a multiple of 0.25"),
        (lambda: sized(DeepseekV3Config, **LATENT, **ROUTED, n_group=4, topk_group=1), 0.5, "would be 1 in the groups"),
        (lambda: sized(DeepseekV3Config, **LATENT, **ROUTED, n_group=4, topk_group=2), 0.5, "best two experts"),
    ],
)
def test_what_no_router_could_choose_from_is_refused(config, share, message):
    model = outline(config())
    with pytest.raises(secateur.InputError, match=message):
        remainder(model, Shrinkage(experts=share))


def test_a_table_of_experts_is_refused():
    """One that says by the token which experts it has, as hash routers have: what it says would be of others."""
    model = outline(MODELS["mixtral"]())
    blocks, smaller = (blocks_of(one, family_of(one)) for one in (model, remainder(model, Shrinkage(experts=0.5))))
    assert experts_of(blocks, smaller).keys() == {0, 1}
    for block in (*blocks, *smaller):
        block.module.get_submodule("mlp.gate").register_buffer("of_token", torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(secateur.InputError, match="of_token may call experts by their numbers"):
        experts_of(blocks, smaller)


@pytest.mark.parametrize(
    "options", [{"experts": 0.0}, {"experts": 1.0}, {"experts": float("nan")}, {"sparsity": 0.3}, {"in_place": True}]
)
def test_options_that_make_no_sense_with_experts_are_refused(options):
    with pytest.raises(secateur.InputError, match="experts"):
        Shrinkage(**{"experts": 0.5} | options)


def test_verify_sees_other_experts(dense, shrinkage, tmp_path):
    out = tmp_path / "out"
    secateur.shrink(dense("mixtral"), out, shrinkage())
    record = out / ORDERS
    kept = load_file(record)
    first = kept["model.layers.0.experts"]
    gone = next(e for e in range(EXPERTS) if e not in first.tolist())
    save_file({**kept, "model.layers.0.experts": first.clone().index_fill_(0, torch.tensor(0), gone)}, record)
    failures = secateur.verify(out, dense("mixtral")).failures
    assert failures.keys() == {"files", "dense"}
    assert any("gate.weight" in name for name in failures["dense"])
    save_file({**kept, "model.layers.0.experts": first[:2]}, record)
    with pytest.raises(secateur.InputError, match="does not name 4 of 8 experts of block 0"):
        secateur.verify(out, dense("mixtral"))
