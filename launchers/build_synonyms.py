"""Build synonym trees: `python launchers/build_synonyms.py actions=FILE output=FILE source=wordnet children=6`.

With a language model: `source=model model=NAME domain="toy assembly" [base_url=URL]`, the key in OPENAI_API_KEY.
By hand: `manual=export trees=FILE sheet=FILE.csv`, edit, `manual=import trees=FILE sheet=FILE.csv output=FILE`.
"""

from ace_dist.config import run_launcher, typed_settings
from ace_dist.tools.synonyms.build import BuildConfig
from ace_dist.tools.synonyms.commands import build_command

if __name__ == "__main__":
    run_launcher(lambda argv: build_command(typed_settings(argv, BuildConfig)))
