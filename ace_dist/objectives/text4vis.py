"""Text4Vis: an image tower and a transformer over its frames train; the labels' text embeddings are the classifier."""

from __future__ import annotations

from ace_dist.objectives.label import LabelObjective
from ace_dist.objectives.method import Method, root_labels_only, with_text_frozen

METHOD = Method(prepare=lambda config: with_text_frozen(root_labels_only(config)), objective=LabelObjective)
