"""Live machines that outlive a command. Each has its own process, and all commands of the same user can talk to it."""
