"""What a team wants to know of its data before training: one pass over the rows, figures, and findings."""
