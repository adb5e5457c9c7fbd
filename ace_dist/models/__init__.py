"""The encoders: TimeSformer, text towers, text feature cache, and their weight files."""
