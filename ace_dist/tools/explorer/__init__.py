"""A local page on which one asks a trained model about clips and words."""
