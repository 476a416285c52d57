"""The packaged configuration of agents."""
