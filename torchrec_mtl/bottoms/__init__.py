"""Bottoms: features to a representation."""
