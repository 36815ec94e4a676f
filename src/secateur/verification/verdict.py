"""What is said of a model that was checked."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found.

    Attributes:
        model: the folder.
        checked: what was checked, in words.
        failures: per check that failed, the tensors that it failed on (or what was wrong).
        logit_difference: largest difference of a logit between the folded model and the unfolded masked
            dense one, as a share of the largest logit; None when no dense model was given.
        unchecked: what was not checked, in words.
    """

    model: str
    checked: list[str]
    failures: dict[str, list[str]] = field(default_factory=dict)
    logit_difference: float | None = None
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures
