"""A machine that runs: booted, cloned or brought back, and the facade over all that can be done with it."""
