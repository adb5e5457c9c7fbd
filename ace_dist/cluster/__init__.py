"""Jobs: where they run, what runs in each of their tasks, sweeps of them, and what a machine must have for them."""
