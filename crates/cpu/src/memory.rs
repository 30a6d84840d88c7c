//! Memory for weights and the KV cache: anonymous mappings in huge pages where the system grants them.
//!
//! A pure read of weights in 2 MiB pages is about half as fast again as one of 4 KiB pages. Mappings are committed as
//! they are touched, so that what is reserved and never used costs nothing.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::{MmapOptions, MmapRaw};
use upg_pdvm::MachineError;

/// Regions start at a multiple of this: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// Bytes mapped at a time: the tail of a mapping that no region takes is never touched.
const MAPPING: usize = 1 << 30;

/// Hands out regions of a few large mappings. They live as long as any region of theirs.
#[derive(Default)]
pub(crate) struct Arena {
    current: Mutex<Option<Current>>,
}

struct Current {
    mapping: Arc<MmapRaw>,
    used: usize,
}

impl Arena {
    /// A region of zeroes that nobody else has.
    ///
    /// # Errors
    /// Where the system has no room for it.
    pub(crate) fn take(&self, len: usize) -> Result<RegionMut, MachineError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |c: &Current| c.mapping.len() - c.used >= len;
        if !current.as_ref().is_some_and(fits) {
            *current = Some(Current { mapping: Arc::new(map(len.max(MAPPING))?), used: 0 });
        }
        let Some(current) = current.as_mut() else { return Err(no_room(len)) };
        let start = current.used;
        current.used = (start + len).next_multiple_of(ALIGN).min(current.mapping.len());
        Ok(RegionMut(Region { mapping: Arc::clone(&current.mapping), start, len }))
    }
}

fn map(len: usize) -> Result<MmapRaw, MachineError> {
    let mapping = MmapOptions::new().len(len).map_anon().map_err(|_| no_room(len))?;
    // Where the system refuses, ordinary pages serve: slower, and `huge_pages` says so.
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(mapping.into())
}

fn no_room(len: usize) -> MachineError {
    MachineError::Device(format!(
        "the system has no {} MiB of memory left: close other programs, or use a smaller model or context",
        len >> 20
    ))
}

/// A part of a mapping that is only read from now on.
pub(crate) struct Region {
    mapping: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Region {
    /// Its first byte. Aligned to a cache line; writing through it is sound only where nobody else reads or writes
    /// the same bytes.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.mapping.as_mut_ptr().wrapping_add(self.start)
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the arena made the region inside the mapping, which lives as long as the region's `Arc`.
        unsafe { std::slice::from_raw_parts(self.as_mut_ptr(), self.len) }
    }
}

/// A region while it is filled.
pub(crate) struct RegionMut(Region);

impl RegionMut {
    /// Ends the filling.
    pub(crate) fn freeze(self) -> Region {
        self.0
    }
}

impl Deref for RegionMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for RegionMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `Region::deref`; regions never overlap and this one has not been frozen, so it is borrowed
        // only through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr(), self.0.len) }
    }
}

/// What the system says of huge pages, for people.
pub(crate) fn huge_pages() -> String {
    match granted() {
        Some(0) => "no huge pages (see /sys/kernel/mm/transparent_hugepage/enabled)".into(),
        Some(bytes) => format!("{:.2} GiB in huge pages", bytes as f64 / f64::from(1 << 30)),
        None => "huge pages unknown".into(),
    }
}

/// Bytes of this process that lie in anonymous huge pages.
#[cfg(target_os = "linux")]
fn granted() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(not(target_os = "linux"))]
fn granted() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let mut a = arena.take(100).unwrap();
        let mut b = arena.take(3).unwrap();
        assert!(a.iter().chain(b.iter()).all(|&x| x == 0));
        a.fill(1);
        b.fill(2);
        let (a, b) = (a.freeze(), b.freeze());
        drop(arena);
        assert!(a.iter().all(|&x| x == 1) && b.iter().all(|&x| x == 2));
        assert_eq!((a.as_mut_ptr() as usize % ALIGN, b.as_mut_ptr() as usize % ALIGN), (0, 0));
    }

    #[test]
    fn a_region_larger_than_a_mapping_gets_its_own() {
        let arena = Arena::default();
        let a = arena.take(MAPPING - 10).unwrap();
        let b = arena.take(MAPPING + 10).unwrap();
        assert_eq!((a.len(), b.len()), (MAPPING - 10, MAPPING + 10));
        assert!(arena.take(usize::MAX / 2).is_err());
    }
}
