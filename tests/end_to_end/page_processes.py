"""Runs a launcher as `python launchers/X.py ...` does, in a fork of a process that has imported everything already.

A dozen launchers that each import torch and DeepSpeed anew would take most of the time of a test on one core.
"""

import multiprocessing
import os
import runpy
import sys

HANGS_AFTER_S = 3600  # far above what a command takes beside other work: a test does not tell of the machine's speed
PRELOADED = [
    "torch",
    "deepspeed",
    "matplotlib.pyplot",
    "sklearn.manifold",
    "ace_dist.cluster.sweep",
    "ace_dist.tools.synonyms",
    "ace_dist.data.build.verify",
    "ace_dist.classifier",
    "ace_dist.evaluate.export",
    "ace_dist.evaluate.report",
    "ace_dist.train.dry_run",
    "ace_dist.train.trainer",
]


def start_server():
    """A process that imports and waits; every command is then a fork of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_script(argv, folder, log, environment):
    """In the fork: the script `argv[0]` as `__main__`, in `folder`, all output into the file `log`."""
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")


def run(context, argv, folder, environment=None):
    """Exit status and output of a script; `environment`: more variables for it. One that hangs is killed."""
    log = folder / "output.txt"
    process = context.Process(target=run_script, args=(argv, str(folder), str(log), environment or {}))
    process.start()
    process.join(HANGS_AFTER_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")
