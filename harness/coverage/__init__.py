"""Which lines of a kernel were executed: built to count them, counted in each test, and told."""
