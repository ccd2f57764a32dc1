"""Live machines that outlive a command. Each has its own process, and other commands of the same user talk to it."""
