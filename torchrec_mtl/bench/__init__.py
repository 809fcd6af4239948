"""Fair comparisons: data sets x models x seeds with one equal budget of tuning, and the tables they end in."""
