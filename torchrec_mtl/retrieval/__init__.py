"""What serves retrieval students: an index of items, which needs neither torch nor torchrec."""
