//! How much longer a guest may take where the processor is emulated.

use std::time::Duration;

use kiln_arch::Arch;

/// By how much emulation stretches a default deadline on a host where the counting guest of
/// [`super::tcg`] takes [`REFERENCE`], and on one where it was not timed.
///
/// Translated code runs 5 to 20 times slower than under KVM, but a boot also waits for disks,
/// timers and the network, which TCG does not slow down.
const FACTOR: f64 = 4.0;

/// Measured where [`FACTOR`] leaves room enough: two cores of 2023 that are rented by the hour.
const REFERENCE: Duration = Duration::from_millis(200);

/// However the host does: a guest that fell silent has to be told of some day.
const LEAST: f64 = 2.0;
const MOST: f64 = 8.0;

/// A default deadline for a guest, as meant for KVM, under TCG on a host where the counting guest
/// takes `counted`. What the user said in so many words is never stretched.
pub fn stretched(deadline: Duration, arch: Arch, counted: Option<Duration>) -> Duration {
    let host = counted.map_or(FACTOR, |counted| {
        FACTOR * counted.div_duration_f64(REFERENCE)
    });
    deadline.mul_f64((host * slowness(arch)).clamp(LEAST, MOST))
}

/// How long the tiny guest takes to boot, emulated, beside one of x86_64: 4.5 s, 5.2 s (aarch64),
/// 6.3 s (i386), 8.8 s (s390x); ppc64le 4.4 s, and 10.1 s where it boots through SLOF.
fn slowness(arch: Arch) -> f64 {
    match arch {
        Arch::X86_64 | Arch::Aarch64 => 1.0,
        Arch::I386 => 1.5,
        Arch::S390x | Arch::Ppc64le => 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_follow_the_host_and_the_architecture_within_bounds() {
        let minutes = |arch, millis: Option<u64>| {
            let counted = millis.map(Duration::from_millis);
            stretched(Duration::from_secs(60), arch, counted).as_secs() / 60
        };
        assert_eq!(minutes(Arch::X86_64, None), 4);
        assert_eq!(minutes(Arch::X86_64, Some(200)), 4);
        assert_eq!(minutes(Arch::X86_64, Some(400)), 8);
        assert_eq!(minutes(Arch::X86_64, Some(1)), 2);
        assert_eq!(minutes(Arch::X86_64, Some(2000)), 8);
        assert_eq!(minutes(Arch::S390x, Some(200)), 8);
        assert_eq!(minutes(Arch::S390x, Some(400)), 8);
        assert_eq!(minutes(Arch::I386, None), 6);
    }
}
