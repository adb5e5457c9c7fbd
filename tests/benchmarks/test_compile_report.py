"""What the compiler makes of the Triton kernels, without a GPU: no spills, and assertions where values are on a GPU."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REGISTERS_OF_A_THREAD = 255  # CUDA C++ Programming Guide, technical specifications; what exceeds it is spilled


def run_python(*arguments):
    """A Python of its own: Triton decides once a process whether it compiles or interprets."""
    dropped = ("ACE_KERNELS", "TRITON_INTERPRET")
    environment = {k: v for k, v in os.environ.items() if k not in dropped} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT / "benchmarks"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_default_shapes_compile_without_spills():
    """Ahead of time for sm_80 and sm_90: registers and stack as the machine code records them."""
    frozen = ["frozen_30", "frozen_gelu"]
    shapes = ["train_ata", "train_ata_gathered", "kinetics", "temporal_8", "temporal_30", "wide_heads", *frozen]
    rows = list(csv.DictReader(io.StringIO(run_python("compile_report.py", *shapes))))
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"} and {row["shape"] for row in rows} == set(shapes)
    for row in rows:
        assert row["spill_bytes"] == "0" and int(row["registers"]) <= REGISTERS_OF_A_THREAD, row


ASSERTIONS = """
from triton.backends.compiler import GPUTarget
import compile_report
with compile_report.recording() as launches:
    compile_report.ConceptShape("small", 4, 3, 2, width=32, gathered=True).launch_all()
for launch in launches:
    if launch.kernel.__name__ == "means_kernel":  # as when offsets and rows are on the GPU
        launch.arguments["CHECK"] = True
        launch.settings |= {"debug": True, "sanitize_overflow": False}
    ptx = compile_report.compile_launch(launch, GPUTarget("cuda", 90, 32)).asm["ptx"]
    print(launch.kernel.__name__, "__assertfail" in ptx)
"""


def test_values_on_the_device_are_asserted_by_the_kernels():
    """Labels, offsets and rows that live on a GPU are checked there: the machine code holds the assertions.

    (Triton's interpreter leaves them out. On a GPU a subprocess of `test_triton.py` sees one fail.)
    """
    found = [line.split() for line in run_python("-c", ASSERTIONS).splitlines()]
    assert ["means_kernel", "True"] in found and ["logits_kernel", "True"] in found
    assert ["row_gradients_kernel", "False"] in found  # what the forward asserted is not asserted again
