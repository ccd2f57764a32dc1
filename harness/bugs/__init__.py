"""Known bugs of the kernel for a maintainer: stand-alone programs that show them, and mails that report them."""
