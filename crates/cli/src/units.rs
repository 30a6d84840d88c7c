//! Sizes and numbers, as people write and read them.

const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Bytes from `5.5GiB`, `500 MB`, `123B` or a plain number.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    let number: f64 =
        number.trim().parse().map_err(|_| "write it like 5.5GiB, 500MB or 123456".to_owned())?;
    let bytes = number * unit as f64;
    // Up to 2^53 a float counts bytes exactly.
    if (1.0..=9e15).contains(&bytes) {
        Ok(bytes.round() as u64)
    } else {
        Err("it must be between one byte and 9 PB".into())
    }
}

/// `5.50 GiB`, `92.6 MiB`, `123 B`: three digits or more.
pub fn bytes(count: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| count >= *unit) {
        None => format!("{count} B"),
        Some((name, unit)) => format!("{} {name}", three_digits(count as f64 / unit as f64)),
    }
}

/// `14.66 B`, `134.5 M`, `9.8 K`: a count of parameters.
pub fn count(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 / 1e9),
        1_000_000.. => format!("{:.1} M", n as f64 / 1e6),
        1_000.. => format!("{:.1} K", n as f64 / 1e3),
        _ => n.to_string(),
    }
}

/// `1.23 s`, `45.6 ms`, `2 min 03 s`.
pub fn seconds(seconds: f64) -> String {
    if seconds >= 60.0 {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if seconds >= 1.0 {
        format!("{} s", three_digits(seconds))
    } else {
        format!("{} ms", three_digits(seconds * 1e3))
    }
}

/// Three significant digits, never fewer than all before the point: `5.50`, `92.6`, `1023`.
pub fn three_digits(x: f64) -> String {
    let digits = if x < 10.0 {
        2
    } else if x < 100.0 {
        1
    } else {
        0
    };
    format!("{x:.digits$}")
}

/// A Markdown table; numbers to the right from column `right_from` on.
pub fn table(header: &[&str], rows: &[Vec<String>], right_from: usize) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
            if i >= right_from { format!(" {cell:>width$} ") } else { format!(" {cell:<width$} ") }
        });
        format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
    };
    let rule = widths.iter().enumerate().map(|(i, &width)| {
        let dashes = "-".repeat(width);
        if i >= right_from { format!(" {dashes}:") } else { format!(" {dashes} ") }
    });
    let mut text = line(header);
    text += &format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("5.5GiB"), Ok(5_905_580_032));
        assert_eq!(parse_size("500 MB"), Ok(500_000_000));
        assert_eq!(parse_size("1kB"), Ok(1000));
        assert_eq!(parse_size("123B"), Ok(123));
        assert_eq!(parse_size("123"), Ok(123));
        for wrong in ["", "GiB", "-1GiB", "0", "nan", "inf", "1e30", "5.5 Gigs"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_written() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(5_905_580_032), "5.50 GiB");
        assert_eq!(bytes(98_362_432), "93.8 MiB");
        assert_eq!(count(14_659_507_200), "14.66 B");
        assert_eq!(seconds(0.0456), "45.6 ms");
        assert_eq!(seconds(123.0), "2 min 03 s");
    }

    #[test]
    fn tables_line_up() {
        let text = table(&["a", "bits"], &[vec!["long".into(), "3".into()]], 1);
        assert_eq!(text, "| a    | bits |\n| ---- | ----:|\n| long |    3 |\n");
    }
}
