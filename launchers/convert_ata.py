"""Makes the manifest of `dataset=ata` out of ATA: `python launchers/convert_ata.py root=DIR output=FILE.csv`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("convert_ata"))
