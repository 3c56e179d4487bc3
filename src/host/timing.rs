//! How much longer a guest may take where the processor is emulated.

use std::time::Duration;

/// By how much TCG stretches a default deadline that waits for a guest.
///
/// Translated code runs 5 to 20 times slower than under KVM, but a boot also waits for disks,
/// timers and the network, which TCG does not slow down. What the user said in so many words is
/// never stretched.
pub const TCG_FACTOR: u32 = 4;

/// A default deadline for a guest, as meant for KVM, under TCG.
pub fn stretched_for_tcg(deadline: Duration) -> Duration {
    deadline.saturating_mul(TCG_FACTOR)
}
