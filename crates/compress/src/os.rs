//! What only the operating system knows.

/// The most memory this process has held so far, in bytes, where the system tells.
pub fn peak_rss() -> Option<u64> {
    // Elsewhere the call is `getrusage`, whose unit differs between systems: better no number than a wrong one.
    if !cfg!(target_os = "linux") {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_peak_covers_what_was_touched() {
        let touched = vec![1_u8; 32 << 20];
        assert!(super::peak_rss().is_some_and(|peak| peak >= touched.len() as u64));
    }
}
