"""Where a kernel comes from: a Debian package, a file, a folder, this host; its image, modules and configuration."""

from harness.archive.offers import Offer, Stock
from harness.kernel.debian import available, cached
from harness.kernel.image import ImageKind, KernelImage, open_image
from harness.kernel.kconfig import Kconfig
from harness.kernel.modules import LoadOrder, Module, defined_symbols, has_symbol, load_order, read, why_missing
from harness.kernel.spec import Kernel, default_kernel
from harness.kernel.unpack import unpacked

__all__ = [
    "ImageKind",
    "Kconfig",
    "Kernel",
    "KernelImage",
    "LoadOrder",
    "Module",
    "Offer",
    "Stock",
    "available",
    "cached",
    "default_kernel",
    "defined_symbols",
    "has_symbol",
    "load_order",
    "open_image",
    "read",
    "unpacked",
    "why_missing",
]
