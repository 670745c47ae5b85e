"""Emulated hosts for machine code: fetch a kernel, build an initramfs, boot it, relay a program."""
