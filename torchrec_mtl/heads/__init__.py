"""Heads: a representation to one logit (or more) a task."""
