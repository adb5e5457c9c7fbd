"""Bring others' weights in: `python launchers/import_weights.py source=FILE output=FILE.safetensors [tower=NAME]`."""

from ace_dist.config import run_launcher, typed_settings
from ace_dist.models.convert.importing import ImportConfig, import_command

if __name__ == "__main__":
    run_launcher(lambda argv: import_command(typed_settings(argv, ImportConfig)))
