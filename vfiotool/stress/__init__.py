"""Stress tests of binding and of the group life cycle, judged against a model."""
