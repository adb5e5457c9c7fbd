"""Synonym trees from a language model, from WordNet, or from a person's sheet."""

from ace_dist.tools.synonyms.build import BuildConfig, BuildResult, build
from ace_dist.tools.synonyms.sheet import export_sheet, import_sheet

__all__ = ["BuildConfig", "BuildResult", "build", "export_sheet", "import_sheet"]
