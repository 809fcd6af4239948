"""For all tests."""

from hypothesis import settings

# On a busy machine an example may take any time; no test is of times.
settings.register_profile("any time", deadline=None)
settings.load_profile("any time")
