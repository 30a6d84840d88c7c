//! A file taken apart, so that an attack changes one thing and the rest stays sealed.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

const PREAMBLE: usize = 64;

/// A valid file's parts.
#[derive(Clone)]
pub struct Image {
    pub header: Value,
    pub header_length: usize,
    pub data: Vec<u8>,
}

impl Image {
    pub fn of(file: &[u8]) -> Self {
        let header_length = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
        let (header, data) = file[PREAMBLE..].split_at(header_length);
        Self { header: serde_json::from_slice(header).unwrap(), header_length, data: data.to_vec() }
    }

    /// The file, its lengths and the header's checksum right.
    pub fn seal(&self) -> Vec<u8> {
        seal(&serde_json::to_vec(&self.header).unwrap(), self.header_length, &self.data)
    }

    /// A tensor's record in the index.
    pub fn tensor(&mut self, name: &str) -> &mut Value {
        let tensors = self.header["tensors"].as_array_mut().unwrap();
        tensors.iter_mut().find(|t| t["name"] == name).unwrap()
    }

    /// The last tensor's record.
    pub fn last(&mut self) -> &mut Value {
        self.header["tensors"].as_array_mut().unwrap().last_mut().unwrap()
    }

    /// Adds to every tensor's offset.
    pub fn move_tensors(&mut self, by: i64) {
        for tensor in self.header["tensors"].as_array_mut().unwrap() {
            add(tensor, "offset", by);
        }
    }

    /// The tokenizer's record.
    pub fn blob(&mut self) -> &mut Value {
        &mut self.header["blobs"][0]
    }

    /// The data from a record's first byte on.
    pub fn bytes_of(&mut self, record: &Value) -> &mut [u8] {
        let start = record["offset"].as_u64().unwrap() as usize - PREAMBLE - self.header_length;
        &mut self.data[start..]
    }
}

/// A file of any header bytes, filled up to `header_length` where they are shorter.
pub fn seal(header: &[u8], header_length: usize, data: &[u8]) -> Vec<u8> {
    let header_length = header_length.max(header.len().next_multiple_of(64));
    let mut header = header.to_vec();
    header.resize(header_length, b' ');
    let mut file = b"\x8aUPG\r\n\x1a\n\x01\0\0\0\0\0\0\0".to_vec();
    file.extend((header_length as u64).to_le_bytes());
    file.extend(((PREAMBLE + header_length + data.len()) as u64).to_le_bytes());
    file.extend(blake3::hash(&header).as_bytes());
    file.extend(header);
    file.extend(data);
    file
}

/// Adds to a number in a record.
pub fn add(record: &mut Value, field: &str, n: i64) {
    record[field] = record[field].as_u64().unwrap().wrapping_add_signed(n).into();
}
