//! The smallest guests that show that a processor runs guests, each a few instructions by hand.
//!
//! They are firmware images, so that nothing but the accelerator is on trial: no BIOS, no loader,
//! no kernel. The x86 one does what every kernel does on its first page, because half-working
//! accelerators run plain real-mode code and stop at exactly this: paging, the way into 64-bit
//! mode, and an interrupt taken through a gate there.

use kiln_arch::Arch;

/// A guest and how it shows that it ran.
#[derive(Debug)]
pub(super) struct Payload {
    /// What QEMU loads as the board's firmware.
    pub(super) firmware: Vec<u8>,
    /// The board and what the guest talks to.
    pub(super) args: &'static [&'static str],
    pub(super) proof: Proof,
}

/// What only the guest's last instruction can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// QEMU's exit status.
    Exit(i32),
    /// QEMU ends with status 0 and has printed this on stdout.
    Output(&'static str),
}

/// The guest for the architecture, where kiln has one.
pub(super) fn for_arch(arch: Arch) -> Option<Payload> {
    match arch {
        Arch::X86_64 => Some(Payload {
            firmware: x86_rom(&X86.concat()),
            args: &[
                "-machine",
                "q35",
                "-device",
                "isa-debug-exit,iobase=0x501,iosize=2",
            ],
            // The device ends QEMU with twice the written value and one.
            proof: Proof::Exit((X86_SIGNAL as i32) << 1 | 1),
        }),
        Arch::Aarch64 => Some(Payload {
            firmware: in_words(&AARCH64),
            args: &[
                "-machine",
                "virt,gic-version=max",
                "-serial",
                "file:/dev/stdout",
            ],
            proof: Proof::Output("K"),
        }),
        Arch::I386 | Arch::S390x | Arch::Ppc64le => None,
    }
}

/// A guest of the architecture that counts in its memory and ends: how long it takes tells how
/// fast the accelerator is. Half of it is QEMU's
/// own start on a fast host, as it is with machines.
pub(super) fn busy(arch: Arch) -> Option<Payload> {
    let is_pc = arch == Arch::I386;
    let payload = for_arch(if is_pc { Arch::X86_64 } else { arch })?;
    let firmware = match payload.proof {
        Proof::Exit(_) => x86_rom(&X86_BUSY.concat()),
        Proof::Output(_) => in_words(&[&AARCH64_BUSY[..], &AARCH64].concat()),
    };
    Some(Payload {
        firmware,
        ..payload
    })
}

const X86_SIGNAL: u8 = 0x31;

/// The smallest ROM that QEMU takes.
const X86_ROM_SIZE: usize = 64 * 1024;

/// A 64 KiB ROM; its last 64 KiB below 1 MiB are a copy, so the code stands at 0xf0000.
fn x86_rom(code: &[u8]) -> Vec<u8> {
    const HALT: u8 = 0xf4;
    let mut rom = vec![HALT; X86_ROM_SIZE];
    rom[..code.len()].copy_from_slice(code);
    // The reset vector: jmp 0xf000:0
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    rom
}

/// Page tables go to 0x10000, 0x11000 and 0x12000, the interrupt table to 0x13000, the stack below
/// 0x20000. One 2 MiB page maps itself.
const X86: &[&[u8]] = &[
    // 16-bit code, at 0
    &[0xfa],                                                       // cli
    &[0xfc],                                                       // cld
    &[0xb8, 0x00, 0x10],                                           // mov $0x1000, %ax
    &[0x8e, 0xc0],                                                 // mov %ax, %es
    &[0x31, 0xff],                                                 // xor %di, %di
    &[0x66, 0x31, 0xc0],                                           // xor %eax, %eax
    &[0xb9, 0x00, 0x0c],                                           // mov $0xc00, %cx
    &[0x66, 0xf3, 0xab],                                           // rep stosl
    &[0x26, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x07, 0x10, 0x01, 0x00], // movl $0x11007, %es:0
    &[0x26, 0x66, 0xc7, 0x06, 0x00, 0x10, 0x07, 0x20, 0x01, 0x00], // movl $0x12007, %es:0x1000
    &[0x26, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x87, 0x00, 0x00, 0x00], // movl $0x87, %es:0x2000
    &[0x2e, 0x66, 0x0f, 0x01, 0x16, 0xc8, 0x00],                   // lgdtl %cs:0xc8
    &[0x66, 0xb8, 0x00, 0x00, 0x01, 0x00],                         // mov $0x10000, %eax
    &[0x0f, 0x22, 0xd8],                                           // mov %eax, %cr3
    &[0x66, 0xb8, 0x20, 0x00, 0x00, 0x00],                         // mov $0x20, %eax   (PAE)
    &[0x0f, 0x22, 0xe0],                                           // mov %eax, %cr4
    &[0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0],                         // mov $0xc0000080, %ecx (EFER)
    &[0x0f, 0x32],                                                 // rdmsr
    &[0x66, 0x0d, 0x00, 0x01, 0x00, 0x00],                         // or $0x100, %eax   (LME)
    &[0x0f, 0x30],                                                 // wrmsr
    &[0x66, 0xb8, 0x01, 0x00, 0x00, 0x80],                         // mov $0x80000001, %eax (PG, PE)
    &[0x0f, 0x22, 0xc0],                                           // mov %eax, %cr0
    &[0x66, 0xea, 0x6a, 0x00, 0x0f, 0x00, 0x08, 0x00],             // ljmpl $8, $0xf006a
    // 64-bit code, at 0x6a
    &[0xb8, 0x10, 0x00, 0x00, 0x00], // mov $0x10, %eax
    &[0x8e, 0xd8],                   // mov %eax, %ds
    &[0x8e, 0xc0],                   // mov %eax, %es
    &[0x8e, 0xd0],                   // mov %eax, %ss
    &[0xbc, 0x00, 0x00, 0x02, 0x00], // mov $0x20000, %esp
    &[0x0f, 0x01, 0x1c, 0x25, 0xce, 0x00, 0x0f, 0x00], // lidt 0xf00ce
    // Gate 0x30 leads to 0xf00a6.
    &[
        0xc7, 0x04, 0x25, 0x00, 0x33, 0x01, 0x00, 0xa6, 0x00, 0x08, 0x00,
    ], // movl $0x800a6, 0x13300
    &[
        0xc7, 0x04, 0x25, 0x04, 0x33, 0x01, 0x00, 0x00, 0x8e, 0x0f, 0x00,
    ], // movl $0xf8e00, 0x13304
    &[
        0xc7, 0x04, 0x25, 0x08, 0x33, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
    ], // movl $0, 0x13308
    &[0xcd, 0x30], // int $0x30
    &[0xf4],       // hlt
    // What the gate leads to, at 0xa6
    &[0x66, 0xba, 0x01, 0x05], // mov $0x501, %dx
    &[0xb0, X86_SIGNAL],       // mov $0x31, %al
    &[0xee],                   // out %al, (%dx)
    &[0xf4],                   // hlt
    &[0xeb, 0xfd],             // jmp to the hlt
    // Segments, at 0xb0: none, 64-bit code, data
    &[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00],
    &[0x00, 0x00, 0x00, 0x00, 0x00, 0x92, 0x00, 0x00],
    // What lgdt reads, at 0xc8: 24 bytes at 0xf00b0
    &[0x17, 0x00, 0xb0, 0x00, 0x0f, 0x00],
    // What lidt reads, at 0xce: 1 KiB at 0x13000
    &[0xff, 0x03, 0x00, 0x30, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// 16-bit code: counts sixteen million times in the word at 0x2000.
const X86_BUSY: &[&[u8]] = &[
    &[0xfa],                               // cli
    &[0x66, 0xb9, 0x00, 0x00, 0x00, 0x01], // mov $0x1000000, %ecx
    &[0x66, 0xff, 0x06, 0x00, 0x20],       // incl 0x2000
    &[0x66, 0x49],                         // dec %ecx
    &[0x75, 0xf7],                         // jnz to the incl
    &[0xba, 0x01, 0x05],                   // mov $0x501, %dx
    &[0xb0, X86_SIGNAL],                   // mov $0x31, %al
    &[0xee],                               // out %al, (%dx)
    &[0xf4],                               // hlt
];

/// The same for the board `virt`, whose memory begins at 1 GiB; [`AARCH64`] follows.
const AARCH64_BUSY: [u32; 7] = [
    0xd2a0_2003, // movz x3, #0x100, lsl #16
    0xd2a8_0002, // movz x2, #0x4000, lsl #16
    0xb940_0044, // ldr w4, [x2]
    0x1100_0484, // add w4, w4, #1
    0xb900_0044, // str w4, [x2]
    0xf100_0463, // subs x3, x3, #1
    0x54ff_ff81, // b.ne to the ldr
];

fn in_words(code: &[u32]) -> Vec<u8> {
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// At address 0 of the board `virt`: a byte to the PL011, then PSCI's SYSTEM_OFF.
const AARCH64: [u32; 7] = [
    0xd2a1_2000, // movz x0, #0x900, lsl #16
    0x5280_0961, // movz w1, #'K'
    0x3900_0001, // strb w1, [x0]
    0x52b0_8000, // movz w0, #0x8400, lsl #16
    0x7280_0100, // movk w0, #8
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_in_the_x86_guest_are_where_things_stand() {
        let rom = x86_rom(&X86.concat());
        assert_eq!(rom[0x62..0x64], [0x66, 0xea], "the jump to 64-bit code");
        assert_eq!(rom[0xa3..0xa6], [0xcd, 0x30, 0xf4], "the interrupt");
        assert_eq!(
            rom[0xc8..0xcc],
            [0x17, 0x00, 0xb0, 0x00],
            "the segments' place"
        );
        assert_eq!(
            rom[0xce..0xd2],
            [0xff, 0x03, 0x00, 0x30],
            "the gates' place"
        );
        assert_eq!(X86.concat().len(), 0xd8);
        assert_eq!(rom.len(), X86_ROM_SIZE);
    }
}
