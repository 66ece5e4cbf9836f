"""Consistency regularization: predictions of one image under several noise draws are pulled together.

Jeong and Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", NeurIPS 2020, equation 7:
with F the softmax outputs under m noise draws and M their mean, the loss of an image gains

    lambda * mean_i KL(M || F_i) + eta * H(M).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from intcert.runtime.errors import IntcertError


@dataclass(frozen=True)
class Consistency:
    """The regularizer's numbers; by default a setting that its authors published for CIFAR-10 at sigma = 0.25.

    strength: lambda; eta: weight of the mean prediction's entropy; noises: m, noise draws an image.

    Raises:
        IntcertError: fewer than two draws, or a negative weight.
    """

    strength: float = 20.0
    eta: float = 0.5
    noises: int = 2

    def __post_init__(self) -> None:
        if self.noises < 2:
            raise IntcertError(f"consistency compares noise draws of one image, but m = {self.noises}; give at least 2")
        if self.strength < 0 or self.eta < 0:
            raise IntcertError(f"lambda = {self.strength} and eta = {self.eta} are weights; give none below 0")

    def __call__(self, logits: Tensor) -> Tensor:
        """The regularizer's mean over a batch, a scalar. logits: float ``[m * B, classes]``, draw by draw."""
        log_softmax = functional.log_softmax(logits.reshape(self.noises, -1, logits.shape[-1]), dim=-1)
        log_mean = log_softmax.logsumexp(0) - log_softmax.new_tensor(self.noises).log()
        mean = log_mean.exp()
        divergence = (mean * (log_mean - log_softmax)).sum(-1).mean(0)
        entropy = -(mean * log_mean).sum(-1)
        return (self.strength * divergence + self.eta * entropy).mean()
