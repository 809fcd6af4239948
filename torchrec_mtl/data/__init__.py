"""Parquet columns to batches."""
