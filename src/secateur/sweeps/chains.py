"""What becomes of a model on its way to a row: a chain of steps, each of which makes a folder of the one before.

The steps are, in this order: shrink, prune, quantize. ``quantize.first`` lets the last two change places. A grid says
the options of pruning by their names, and those of another step under the name of the step, ``quantize.bits`` or

    quantize: {method: gptq, bits: 4}
    quantize: gptq                      # its method alone
    quantize: none                      # without that step
    score: none                         # without pruning

so that whatever layer says one of them, it is one option among others. A step that is not named is not done, but for
pruning. How samples are drawn and where is computed the steps have in common, unless a step says otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from secateur.errors import InputError
from secateur.options import Options, WalkOptions
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.shrinkage import Shrinkage
from secateur.sweeps.plain import known_keys

Chain = tuple[Options, ...]

# What a step is told, by the name of its command.
STEPS: dict[str, type[Options]] = {"shrink": Shrinkage, "prune": Recipe, "quantize": QuantizationRecipe}
BESIDE = ("shrink", "quantize")
FIRST = "quantize.first"
NONE = (None, "none")


def _names(options: type[Options]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(options))


# What steps have in common: all that is not about certain layers.
_SHARED = [name for name in _names(WalkOptions) if name != "skip"]
_OWN = {step: (*_names(STEPS[step]), *(["first"] if step == "quantize" else [])) for step in BESIDE}
# All that a grid may say of a chain, each by one name.
NAMES = (*_names(Recipe), *(f"{step}.{name}" for step in BESIDE for name in _OWN[step]))


def by_name(option: str, value: Any, where: str) -> dict[str, Any]:
    """What a grid says of an option, or of a step as a whole, by :data:`NAMES`.

    Raises:
        InputError: when a step has no such option.
    """
    if option not in BESIDE:
        return {option: value}
    if not isinstance(value, dict):
        return {f"{option}.method": value}
    given = known_keys(value, _OWN[option], f"{where}: {option}")
    return {f"{option}.{name}": one for name, one in given.items()}


def chain_of(options: Mapping[str, Any]) -> Chain:
    """The steps that ``options`` ask for, by :data:`NAMES`; none for the model as it is.

    What does nothing in a step is at one value, so that chains that do the same are equal.

    Raises:
        InputError: when one of them makes no sense, or not beside the others.
    """
    own = {name: value for name, value in options.items() if "." not in name}
    prunes = own.get("score", Recipe.score) not in NONE
    recipe = Recipe.from_dict(own if prunes else {name: value for name, value in own.items() if name != "score"})
    shrinkage, quantization = (_beside(step, options, recipe) for step in BESIDE)
    pruning = recipe if prunes else None
    if not isinstance(first := options.get(FIRST, False), bool):
        raise InputError(f"{FIRST} is true or false, not {first!r}")
    steps = (shrinkage, quantization, pruning) if first else (shrinkage, pruning, quantization)
    if pruning and quantization:
        _check_both(pruning, first)
    return tuple(step.essence for step in steps if step)


def _beside(step: str, options: Mapping[str, Any], recipe: Recipe) -> Options | None:
    """A step besides pruning, if it is asked for; what it does not say itself is as ``recipe`` has it."""
    own = {name.removeprefix(f"{step}."): value for name, value in options.items() if name.startswith(f"{step}.")}
    if not own or own.get("method", "") in NONE:
        return None
    own.pop("first", None)
    shared = {name: getattr(recipe, name) for name in _SHARED if name in _OWN[step]}
    return STEPS[step].from_dict(shared | own, step)


def _check_both(pruning: Recipe, quantizes_first: bool) -> None:
    if quantizes_first and pruning.changes_weights:
        raise InputError(
            f"{'tuning' if pruning.tune else pruning.reconstruct} changes the weights that stay, which would leave the "
            "levels that they were quantized to: prune first"
        )
    if not quantizes_first and pruning.orders_channels and pruning.fold == "gather":
        raise InputError("what is written with fold gather only loads through Secateur, and cannot be quantized")


def named(step: Options) -> str:
    """The name of the command that does a step."""
    return next(name for name, kind in STEPS.items() if isinstance(step, kind))


def as_data(chain: Chain) -> list[dict[str, Any]]:
    """The steps as plain data: the options of each under its name.

    What is said by layer stays one text, since its order counts, and that of a mapping in JSON need not.
    """
    return [{named(step): msgspec.to_builtins(step)} for step in chain]
