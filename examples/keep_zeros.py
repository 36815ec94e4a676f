"""Fine-tune a pruned model so that what is zero stays zero: a callback for ``transformers.Trainer``.

    trainer = Trainer(model=model, args=args, train_dataset=dataset, callbacks=[KeepZeros()])

Where training cannot be told (another trainer, an adapter that is merged afterwards), record the mask before it and put
it on again after it: ``secateur mask`` and ``secateur apply``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class KeepZeros(TrainerCallback):
    """Puts back to zero, after each step of the optimizer, the weights of matrices that are zero before the first."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **more: Any) -> None:
        """Remember where the zeros are: one byte for each weight."""
        matrices = [weight for weight in model.parameters() if weight.ndim > 1 and weight.requires_grad]
        self.zeros: list[tuple[Tensor, Tensor]] = [(weight, weight == 0) for weight in matrices]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Momentum and weight decay may have moved them."""
        for weight, zero in self.zeros:
            weight.masked_fill_(zero, 0)
