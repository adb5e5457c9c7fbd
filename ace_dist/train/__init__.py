"""The DeepSpeed engine, the loop, checkpoints, and what a run says about itself."""
