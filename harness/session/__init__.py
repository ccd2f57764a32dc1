"""Live machines that outlive a command: each in a process of its own, which other commands of this user talk to."""
