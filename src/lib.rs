//! kiln boots clusters of Ignition-configured machines straight on QEMU.
