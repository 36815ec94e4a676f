"""The models of a sweep: where they are, which they are, and what can be known of them before they are read."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from secateur.checkpoint import check_there, context_of, local_folder, outline
from secateur.checkpoint.config import read_written
from secateur.checkpoint.layout import COMPANIONS
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.evaluation.memory import BYTES_PER_LOGIT, MOST_ON_CPU
from secateur.evaluation.perplexity import window_of
from secateur.pruning.prepare import prepare
from secateur.quantizing import select
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.shrinkage import Shrinkage
from secateur.shrinking.target import remainder
from secateur.sweeps.chains import Chain
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
        quantized: whether it is of few bits.
        files: SHA-256 of its files by name: which model it is.
    """

    label: str
    name: str
    described: PreTrainedModel
    quantized: bool
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
            return cls(label, name, described, False, {path.name: file_digest(path)})
        with nullcontext(path) if path.exists() else local_folder(name) as folder:
            return cls(label, name, described, read_written(folder).scheme is not None, _digests(folder))

    def check(self, protocol: Protocol) -> None:
        """Raise :class:`InputError` when it cannot be measured so."""
        if protocol.data:
            window_of(self.described.config, protocol.window)

    def check_steps(self, steps: Chain) -> None:
        """Raise :class:`InputError` when one of the steps cannot be done to what those before it make of the model."""
        model, quantized = self.described, self.quantized
        for step in steps:
            if quantized and not isinstance(step, Recipe):
                raise InputError("what is quantized already can be pruned, but neither be shrunk nor quantized again")
            if isinstance(step, Shrinkage):
                model = remainder(model, step)
            elif isinstance(step, QuantizationRecipe):
                select(model, step)
            elif isinstance(step, Recipe):
                prepare(model, step)
            quantized = isinstance(step, QuantizationRecipe)
            longest = context_of(model.config)
            if step.needs_inputs and longest is not None and step.length > longest:
                raise InputError(f"samples of {step.length} tokens exceed the model's context of {longest} (length)")

    def folder(self, stack: ExitStack, scratch: Path) -> Path:
        """Its folder of safetensors, in which it is unpacked once for all rows where it has to be."""
        path = stack.enter_context(local_folder(self.name, scratch))
        return path.absolute()

    def memory(self, steps: Chain) -> int:
        """About how many bytes a row takes: the whole model to measure it, its logits, the hidden states of samples."""
        config = self.described.config.get_text_config()
        weights = sum(parameter.numel() for parameter in self.described.parameters())
        tokens = max((step.samples * step.length for step in steps if step.needs_inputs), default=0)
        logits = MOST_ON_CPU * BYTES_PER_LOGIT * config.vocab_size
        return OVERHEAD + (4 + 2) * weights + logits + 2 * 4 * tokens * config.hidden_size


def _digests(folder: Path) -> dict[str, str]:
    names = {*COMPANIONS, *(path.name for path in folder.glob("*.safetensors*"))}
    return {name: file_digest(folder / name) for name in sorted(names) if (folder / name).is_file()}
