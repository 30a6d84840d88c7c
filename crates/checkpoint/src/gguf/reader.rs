use super::GgufError;

/// The most bytes of a string: chat templates are the longest real ones.
const STRING_CAP: u64 = 1 << 24;

/// Reads little-endian values, one after the other, and never past the end.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Position in the bytes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub(super) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(GgufError::Truncated { what, at: self.at })?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let at = self.at;
        self.take(N, what)?.try_into().map_err(|_| GgufError::Truncated { what, at })
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `min_bytes` each: capped by `cap` and by what is left of the file.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        cap: u64,
        min_bytes: usize,
    ) -> Result<usize, GgufError> {
        let at = self.at;
        let count = self.u64(what)?;
        if count > cap {
            return Err(GgufError::TooMany { what, count, cap });
        }
        let count = usize::try_from(count).map_err(|_| GgufError::TooMany { what, count, cap })?;
        if count.checked_mul(min_bytes).is_none_or(|bytes| bytes > self.rest()) {
            return Err(GgufError::Truncated { what, at });
        }
        Ok(count)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, GgufError> {
        let len = self.count("bytes of a string", STRING_CAP, 1)?;
        let at = self.at;
        str::from_utf8(self.take(len, "a string")?).map_err(|_| GgufError::Text { at })
    }
}
