"""Regularisers of the attention distribution."""

from ats_core.keras import MultinomialEntropy, multinomial_entropy

__all__ = ["MultinomialEntropy", "multinomial_entropy"]
