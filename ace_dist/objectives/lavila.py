"""LaViLa: its space-time tower and CLIP's text tower, both trained on root labels at a fixed temperature."""

from __future__ import annotations

from ace_dist.objectives.label import LabelObjective
from ace_dist.objectives.method import Method, root_labels_only

METHOD = Method(prepare=root_labels_only, objective=LabelObjective)
