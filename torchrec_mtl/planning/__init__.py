"""A plan before any GPU is rented: TorchRec's planner on a model without memory, and what to do where none fits."""
