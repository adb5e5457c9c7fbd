"""Metrics, the test protocol, the report, and the classifier of a finished run."""
