"""ProcVLR, ACE's one-to-one baseline: the same video encoder on root labels alone, the text tower frozen."""

from __future__ import annotations

from ace_dist.objectives.method import Method, root_labels_only, with_text_frozen

METHOD = Method(prepare=lambda config: with_text_frozen(root_labels_only(config)))
