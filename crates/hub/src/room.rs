//! Room on the disk.

use std::path::Path;

use crate::HubError;

/// Left free on the disk, in bytes.
const RESERVE: u64 = 64 << 20;

/// Makes sure that `needed` more bytes fit into `folder`, which need not be there yet, with a little left over.
///
/// # Errors
/// [`HubError::Room`] with both numbers.
pub fn check_room(folder: &Path, needed: u64) -> Result<(), HubError> {
    let there = |path: &&Path| path.exists();
    let above = folder.ancestors().filter(|path| !path.as_os_str().is_empty()).find(there);
    let path = above.unwrap_or(Path::new("."));
    let free = fs4::available_space(path).map_err(HubError::io(path))?;
    match needed.checked_add(RESERVE) {
        Some(needed) if needed <= free => Ok(()),
        _ => Err(HubError::Room { path: folder.to_owned(), free, needed: needed.saturating_add(RESERVE) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/yet/there");
        check_room(&later, 1).unwrap();
        check_room(Path::new("relative"), 1).unwrap();
        for huge in [1 << 60, u64::MAX] {
            assert!(matches!(check_room(&later, huge), Err(HubError::Room { .. })));
        }
    }
}
