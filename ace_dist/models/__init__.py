"""The encoders: TimeSformer, text towers, phrase bank, and their weight files."""
