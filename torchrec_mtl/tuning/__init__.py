"""Settings of a run searched for several tasks at once, and the trade-offs found."""
