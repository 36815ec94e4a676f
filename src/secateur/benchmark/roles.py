"""The roles of linears in their blocks, the rows of tables of times and sizes: those of the RIA paper's Table 5."""

from secateur.models.spaces import Linear

ATTENTION, WIDENING, NARROWING = "Q/K/V/Out", "Up/Gate", "Down"
_ATTENTION_SPACES = {"query", "key", "value", "latent"}
_MLP_SPACES = {"mlp", "feed_forward", "block_sparse_moe"}


def role_of(linear: Linear) -> str:
    """What ``linear`` is to its block, by its channel spaces; where these are unknown, the last part of its name."""
    reads = _space(linear.reads)
    writes = {_space(space) for space in linear.parts}
    if reads in _MLP_SPACES:
        role = NARROWING
    elif _MLP_SPACES & writes:
        role = WIDENING
    elif _ATTENTION_SPACES & {reads, *writes}:
        role = ATTENTION
    else:
        role = linear.name.rpartition(".")[2]
    return f"{role} of experts" if linear.stack else role


def _space(name: str | None) -> str:
    """The space, or for that of one expert (``mlp.3``) what they have in common."""
    return (name or "").partition(".")[0]
