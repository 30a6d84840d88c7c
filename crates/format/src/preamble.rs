use crate::{FormatError, encoding::ALIGNMENT};

/// The first bytes of every file. As in PNG, the byte above 127 and the line ends show transfers that took the file
/// for text, and ^Z stops a terminal's `type`.
const MAGIC: [u8; 8] = *b"\x8aUPG\r\n\x1a\n";

/// The version that this program writes, and the latest that it reads.
pub(crate) const VERSION: u32 = 1;

/// No honest header is longer: a model of 1024 layers needs about 4 MiB.
pub(crate) const MAX_HEADER: u64 = 16 << 20;

/// The fixed start of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    /// Bytes of the header that follows; a multiple of [`ALIGNMENT`].
    pub header_length: u64,
    /// Bytes of the file.
    pub file_length: u64,
    /// BLAKE3 of the header.
    pub checksum: [u8; 32],
}

impl Preamble {
    /// Bytes of a preamble; the header starts here.
    pub const LENGTH: usize = 64;

    /// The preamble as it stands in a file.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.header_length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.file_length.to_le_bytes());
        bytes[32..].copy_from_slice(&self.checksum);
        bytes
    }

    /// Reads a preamble and holds it against the `actual` length of the file, so that the header may be read.
    pub fn parse(bytes: &[u8; Self::LENGTH], actual: u64) -> Result<Self, FormatError> {
        if field::<8>(bytes, 0) != MAGIC {
            return Err(FormatError::Magic);
        }
        // The version comes first of all that follows: a later one may give the other fields another meaning.
        match u32::from_le_bytes(field(bytes, 8)) {
            VERSION => {}
            0 => return Err(FormatError::Preamble("its version is 0")),
            found => return Err(FormatError::FutureVersion { found, known: VERSION }),
        }
        if field::<4>(bytes, 12) != [0; 4] {
            return Err(FormatError::Preamble("its reserved bytes are not zero"));
        }
        let header_length = u64::from_le_bytes(field(bytes, 16));
        let stated = u64::from_le_bytes(field(bytes, 24));
        if header_length > MAX_HEADER {
            return Err(FormatError::HeaderTooLarge { length: header_length, cap: MAX_HEADER });
        }
        if stated > actual {
            return Err(FormatError::Truncated { stated, actual });
        }
        if stated < actual {
            return Err(FormatError::TrailingBytes { stated, actual });
        }
        // No overflow: the cap was checked.
        let past_end = Self::LENGTH as u64 + header_length > stated;
        if header_length == 0 || !header_length.is_multiple_of(ALIGNMENT) || past_end {
            return Err(FormatError::HeaderLength { length: header_length, file_length: stated });
        }
        Ok(Self { header_length, file_length: stated, checksum: field(bytes, 32) })
    }

    /// The first byte behind the header: where the data starts.
    pub fn header_end(&self) -> u64 {
        Self::LENGTH as u64 + self.header_length
    }
}

/// `N` bytes of the preamble; every call's range is inside it.
fn field<const N: usize>(bytes: &[u8; Preamble::LENGTH], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_inverts_to_bytes() {
        let preamble = Preamble { header_length: 128, file_length: 4096, checksum: [7; 32] };
        assert_eq!(Preamble::parse(&preamble.to_bytes(), 4096).unwrap(), preamble);
    }

    /// The tables are part of the format: files hold codes, not the values they stand for.
    #[test]
    fn version_1_has_these_tables() {
        let mut hasher = blake3::Hasher::new();
        for bits in upg_codec::Bits::ALL {
            let table = bits.table();
            hasher.update(bytemuck::cast_slice(&table.low)).update(bytemuck::cast_slice(&table.high));
        }
        let hash = hasher.finalize().to_hex();
        assert_eq!(
            hash.as_str(),
            "824baf262d38cf5a769239ae8e0577f7ce4a1e791d6cfd77a106b47d3b62afc3",
            "other tables need another VERSION"
        );
    }
}
