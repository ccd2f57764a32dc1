"""The explorer: draws sequences of operations, runs them, and checks what the kernel did after each."""
