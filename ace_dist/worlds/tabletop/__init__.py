"""The embedded world: rendered clips of a hand doing things to objects on a table, in two domains."""
