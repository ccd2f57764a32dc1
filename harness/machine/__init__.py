"""A running machine: booted, cloned or restored, and the facade over all that can be done with it."""
