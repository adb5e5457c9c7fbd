"""ACE: stochastic synonyms and shadow negatives, both towers trained as the configuration says (paper, section 3)."""

from __future__ import annotations

from ace_dist.objectives.method import Method

# The configuration as it stands: the four ablations of Table 3 are `method.*` settings.
METHOD = Method(prepare=lambda config: config)
