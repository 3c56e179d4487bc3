//! A machine becomes a QEMU command line.
