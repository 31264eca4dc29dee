"""What training minimises: targets from label maps, Hungarian matching, and the losses of Eq. 8-10."""

from qdformer.loss.criterion import Criterion

__all__ = ["Criterion"]
