"""The models of a sweep: where they are, which they are, and what can be known of them before they are read."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from secateur.checkpoint import check_there, context_of, local_folder, outline
from secateur.checkpoint.layout import COMPANIONS
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.evaluation.memory import BYTES_PER_LOGIT, MOST_ON_CPU
from secateur.evaluation.perplexity import window_of
from secateur.pruning.prepare import prepare
from secateur.recipe import Recipe
from secateur.sweeps.grid import Protocol

# torch, transformers and what they hold.
OVERHEAD = 1 << 30


@dataclass(frozen=True)
class Subject:
    """A model that is swept over.

    Attributes:
        label: what the grid calls it.
        name: what a user calls it.
        described: without its weights.
        files: SHA-256 of its files by name: which model it is.
    """

    label: str
    name: str
    described: PreTrainedModel
    files: dict[str, str]

    @classmethod
    def find(cls, label: str, name: str) -> "Subject":
        """Find a model; one on the hub is fetched.

        Raises:
            InputError: when there is none, or it cannot be read safely.
        """
        check_there(name)
        described, path = outline(name), Path(name)
        if path.suffix == ".gguf":
            return cls(label, name, described, {path.name: file_digest(path)})
        if path.exists():
            return cls(label, name, described, _digests(path))
        with local_folder(name) as folder:
            return cls(label, name, described, _digests(folder))

    def check(self, protocol: Protocol) -> None:
        """Raise :class:`InputError` when it cannot be measured so."""
        if protocol.data:
            window_of(self.described.config, protocol.window)

    def check_recipe(self, recipe: Recipe | None) -> None:
        """Raise :class:`InputError` when it cannot be pruned so; without a recipe it can."""
        if recipe is None:
            return
        prepare(self.described, recipe)
        longest = context_of(self.described.config)
        if recipe.needs_inputs and longest is not None and recipe.length > longest:
            raise InputError(f"samples of {recipe.length} tokens exceed the model's context of {longest} (length)")

    def folder(self, stack: ExitStack, scratch: Path) -> Path:
        """Its folder of safetensors, in which it is unpacked once for all rows where it has to be."""
        path = stack.enter_context(local_folder(self.name, scratch))
        return path.absolute()

    def memory(self, recipe: Recipe | None) -> int:
        """About how many bytes a row takes: the whole model to measure it, its logits, the hidden states of samples."""
        config = self.described.config.get_text_config()
        weights = sum(parameter.numel() for parameter in self.described.parameters())
        inputs = recipe.samples * recipe.length * config.hidden_size if recipe and recipe.needs_inputs else 0
        return OVERHEAD + (4 + 2) * weights + MOST_ON_CPU * BYTES_PER_LOGIT * config.vocab_size + 2 * 4 * inputs


def _digests(folder: Path) -> dict[str, str]:
    names = {*COMPANIONS, *(path.name for path in folder.glob("*.safetensors*"))}
    return {name: file_digest(folder / name) for name in sorted(names) if (folder / name).is_file()}
