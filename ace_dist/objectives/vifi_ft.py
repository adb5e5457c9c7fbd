"""ViFi-CLIP, fully fine-tuned: CLIP's image tower on every frame, averaged; both encoders train on root labels."""

from __future__ import annotations

from ace_dist.objectives.label import LabelObjective
from ace_dist.objectives.method import Method, root_labels_only

METHOD = Method(prepare=root_labels_only, objective=LabelObjective)
