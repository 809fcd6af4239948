"""What a run is: pydantic models of the YAML, their loading, and the checks across sections."""
