"""Losses: a task's logits and labels to an elementwise loss, and back to predictions on the label's scale."""
