"""Gradient rules: how the tasks' gradients meet at the boundary."""
