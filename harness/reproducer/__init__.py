"""Stand-alone C programs that show a bug of the kernel without hugepfn: reproducers/."""
