"""Look for faults in synonym trees: `python launchers/inspect_synonyms.py trees=FILE [actions=FILE] [embed=minilm]`."""

from ace_dist.config import run_launcher, typed_settings
from ace_dist.tools.synonyms.commands import InspectConfig, inspect_command

if __name__ == "__main__":
    run_launcher(lambda argv: inspect_command(typed_settings(argv, InspectConfig)))
