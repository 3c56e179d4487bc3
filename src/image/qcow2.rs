//! The header of a qcow2 image, parsed and judged; pure.
//!
//! After QEMU's `docs/interop/qcow2.rst`. What would make QEMU open another file, or lean on what
//! kiln does not know, is refused here, before QEMU sees the image. So are tables that lie outside
//! the file, which is how a truncated download shows.

/// Of an image's beginning, this much is enough to judge its header: the largest cluster.
pub const HEADER_LIMIT: u64 = 1 << 21;

/// The largest disk that kiln takes, in bytes: 64 TiB. An image's tables grow with it, and a
/// petabyte of nothing takes only megabytes on disk.
pub const LARGEST_DISK: u64 = 64 << 40;

pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// QEMU's own limits on table sizes, in bytes.
const LARGEST_L1_TABLE: u64 = 32 << 20;
const LARGEST_REFCOUNT_TABLE: u64 = 8 << 20;
const MOST_SNAPSHOTS: u32 = 65_536;

const V2_HEADER_LENGTH: u32 = 72;
const V3_HEADER_LENGTH: u32 = 104;

const FEATURE_DIRTY: u64 = 1 << 0;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;
const KNOWN_FEATURES: u64 =
    FEATURE_DIRTY | FEATURE_CORRUPT | FEATURE_DATA_FILE | FEATURE_COMPRESSION | FEATURE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// What a sound header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The disk's size as the guest sees it, in bytes.
    pub virtual_size: u64,
    /// 9 to 21: clusters are 512 bytes to 2 MiB.
    pub cluster_bits: u32,
    /// Whether a cluster's entry also says which of its parts are there.
    pub extended_l2: bool,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table begins; inside the file with all its entries.
    pub l1_offset: u64,
}

/// Why an image's header is not to be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it does not begin with qcow2's magic bytes")]
    Magic,
    #[error("its header ends after {found} bytes")]
    Short { found: u64 },
    #[error("it is of qcow2 version {version}; only 2 and 3 are known")]
    Version { version: u32 },
    #[error("its header says that it is {length} bytes long")]
    HeaderLength { length: u32 },
    #[error("its clusters are of 2^{bits} bytes; 2^9 to 2^21 are allowed")]
    ClusterBits { bits: u32 },
    #[error("its disk is of {size} bytes; at most {LARGEST_DISK} (64 TiB) are allowed")]
    TooLarge { size: u64 },
    #[error("its disk is empty")]
    Empty,
    #[error("it has a backing file")]
    BackingFile,
    #[error("it keeps its data in another file")]
    DataFile,
    #[error("it is encrypted")]
    Encrypted,
    #[error("it is marked as corrupt")]
    Corrupt,
    #[error("it needs features that are not known: {bits:#x}")]
    Features { bits: u64 },
    #[error("its compression method {method} is not known")]
    Compression { method: u8 },
    #[error("its reference counts are of 2^{order} bits; at most 2^6 are allowed")]
    RefcountOrder { order: u32 },
    #[error("its header extensions do not end within the first cluster")]
    Extensions,
    #[error("its {table} lies outside the file or is misplaced: the image is cut off or damaged")]
    Outside { table: &'static str },
    #[error("its {table} is larger than any that QEMU makes")]
    HugeTable { table: &'static str },
    #[error("its L1 table is too short for its disk")]
    ShortL1,
    #[error(
        "its data ends at byte {file_length}, before the {what} at byte {offset}: the image is cut off or damaged"
    )]
    CutOff {
        what: &'static str,
        offset: u64,
        file_length: u64,
    },
}

/// Judges the header of a file that is `file_length` bytes long and begins with `bytes`.
///
/// `bytes` are the whole file or at least its first [`HEADER_LIMIT`] bytes.
pub fn parse(bytes: &[u8], file_length: u64) -> Result<Header, Refused> {
    parse_with(bytes, file_length, Backing::Refused)
}

/// As [`parse`], for an overlay that kiln made and a guest has had since: that it names a backing
/// file is no harm, because QEMU and qemu-img are told which one it is.
pub fn parse_overlay(bytes: &[u8], file_length: u64) -> Result<Header, Refused> {
    parse_with(bytes, file_length, Backing::Told)
}

/// What the name of a backing file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Refused,
    /// The name is never followed.
    Told,
}

fn parse_with(bytes: &[u8], file_length: u64, backing: Backing) -> Result<Header, Refused> {
    let fields = Fields(bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err(Refused::Magic);
    }
    let version = fields.u32(4)?;
    let (length, incompatible, refcount_order) = match version {
        2 => (V2_HEADER_LENGTH, 0, 4),
        3 => (fields.u32(100)?, fields.u64(72)?, fields.u32(96)?),
        _ => return Err(Refused::Version { version }),
    };
    let cluster_bits = fields.u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Refused::ClusterBits { bits: cluster_bits });
    }
    let cluster = 1_u64 << cluster_bits;
    if version == 3 && (length < V3_HEADER_LENGTH || length % 8 != 0 || u64::from(length) > cluster)
    {
        return Err(Refused::HeaderLength { length });
    }
    check_features(incompatible)?;
    if refcount_order > 6 {
        return Err(Refused::RefcountOrder {
            order: refcount_order,
        });
    }
    if incompatible & FEATURE_COMPRESSION != 0 {
        // 1 is Zstandard; 0, deflate, needs no feature bit.
        let method = if length > V3_HEADER_LENGTH {
            fields.u8(104)?
        } else {
            0
        };
        if method != 1 {
            return Err(Refused::Compression { method });
        }
    }
    let names_backing = fields.u64(8)? != 0 || fields.u32(16)? != 0;
    if names_backing && backing == Backing::Refused {
        return Err(Refused::BackingFile);
    }
    if fields.u32(32)? != 0 {
        return Err(Refused::Encrypted);
    }
    check_extensions(&fields, length, cluster, backing)?;

    let virtual_size = fields.u64(24)?;
    match virtual_size {
        0 => return Err(Refused::Empty),
        size if size > LARGEST_DISK => return Err(Refused::TooLarge { size }),
        _ => {}
    }
    let header = Header {
        version,
        virtual_size,
        cluster_bits,
        extended_l2: incompatible & FEATURE_EXTENDED_L2 != 0,
        l1_size: fields.u32(36)?,
        l1_offset: fields.u64(40)?,
    };
    check_tables(&fields, &header, file_length)?;
    Ok(header)
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of one cluster's entry in an L2 table.
    pub(super) fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }
}

fn check_features(incompatible: u64) -> Result<(), Refused> {
    let unknown = incompatible & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(Refused::Features { bits: unknown });
    }
    if incompatible & FEATURE_DATA_FILE != 0 {
        return Err(Refused::DataFile);
    }
    if incompatible & FEATURE_CORRUPT != 0 {
        return Err(Refused::Corrupt);
    }
    Ok(())
}

/// Extensions lie between the header and the end of the first cluster. Those that name files are
/// refused even where the matching feature bit is not set; unknown ones may be ignored by the
/// format's rules.
fn check_extensions(
    fields: &Fields<'_>,
    header_length: u32,
    cluster: u64,
    backing: Backing,
) -> Result<(), Refused> {
    let mut at = u64::from(header_length);
    loop {
        if at + 8 > cluster {
            // A version 2 header may fill its cluster with nothing after it.
            return if at == cluster {
                Ok(())
            } else {
                Err(Refused::Extensions)
            };
        }
        let kind = fields.u32(at)?;
        let length = u64::from(fields.u32(at + 4)?);
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_BACKING_FORMAT if backing == Backing::Refused => {
                return Err(Refused::BackingFile);
            }
            EXTENSION_DATA_FILE => return Err(Refused::DataFile),
            EXTENSION_ENCRYPTION => return Err(Refused::Encrypted),
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
}

fn check_tables(fields: &Fields<'_>, header: &Header, file_length: u64) -> Result<(), Refused> {
    let cluster = header.cluster_size();
    let inside = |table: &'static str, offset: u64, length: u64| {
        let end = offset.checked_add(length);
        let sound = offset.is_multiple_of(cluster)
            && offset >= cluster
            && end.is_some_and(|end| end <= file_length);
        if sound {
            Ok(())
        } else {
            Err(Refused::Outside { table })
        }
    };

    let l1_length = u64::from(header.l1_size) * 8;
    if l1_length > LARGEST_L1_TABLE {
        return Err(Refused::HugeTable { table: "L1 table" });
    }
    let per_l2_table = cluster / header.l2_entry_size() * cluster;
    if u64::from(header.l1_size) < header.virtual_size.div_ceil(per_l2_table) {
        return Err(Refused::ShortL1);
    }
    inside("L1 table", header.l1_offset, l1_length)?;

    let refcount_length = u64::from(fields.u32(56)?) * cluster;
    if refcount_length > LARGEST_REFCOUNT_TABLE {
        return Err(Refused::HugeTable {
            table: "refcount table",
        });
    }
    if refcount_length == 0 {
        return Err(Refused::Outside {
            table: "refcount table",
        });
    }
    inside("refcount table", fields.u64(48)?, refcount_length)?;

    let snapshots = fields.u32(60)?;
    if snapshots > MOST_SNAPSHOTS {
        return Err(Refused::HugeTable {
            table: "snapshot table",
        });
    }
    if snapshots > 0 {
        // The smallest entry is of 40 bytes.
        inside("snapshot table", fields.u64(64)?, u64::from(snapshots) * 40)?;
    }
    Ok(())
}

/// Big-endian numbers at places in the header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Refused> {
        usize::try_from(at)
            .ok()
            .and_then(|at| self.0.get(at..)?.first_chunk::<N>())
            .copied()
            .ok_or(Refused::Short {
                found: self.0.len() as u64,
            })
    }

    fn u8(&self, at: u64) -> Result<u8, Refused> {
        self.bytes::<1>(at).map(|[byte]| byte)
    }

    fn u32(&self, at: u64) -> Result<u32, Refused> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, Refused> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests;
