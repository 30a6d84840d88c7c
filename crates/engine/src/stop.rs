//! Texts that end an answer.

/// Looks for stop texts in a text that arrives in pieces. What may be the beginning of a stop text is held back, so
/// that no part of one is ever shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

impl StopTexts {
    /// `texts` are not empty.
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), held: String::new() }
    }

    /// Adds a piece, appends to `out` what is certainly before any stop text, and tells whether one was found. The
    /// rest of the piece is dropped then.
    pub(crate) fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.texts.is_empty() {
            out.push_str(piece);
            return false;
        }
        self.held.push_str(piece);
        let found = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min();
        let shown = found.unwrap_or_else(|| self.held.len() - self.partial());
        out.push_str(&self.held[..shown]);
        self.held.drain(..shown);
        if found.is_some() {
            self.held.clear();
        }
        found.is_some()
    }

    /// Appends what is still held back: the answer ended otherwise.
    pub(crate) fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Length of the longest end of the held text that begins a stop text.
    fn partial(&self) -> usize {
        let begins = |text: &String| {
            let cuts = text.char_indices().map(|(i, _)| i).rev();
            cuts.into_iter().find(|&i| self.held.ends_with(&text[..i])).unwrap_or(0)
        };
        self.texts.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each piece shows, what the end shows, and whether it stopped.
    fn run(texts: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        let mut stops = StopTexts::new(&texts);
        let mut shown = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let stopped = stops.push(piece, &mut out);
            shown.push(out);
            if stopped {
                return (shown, String::new(), true);
            }
        }
        let mut rest = String::new();
        stops.finish(&mut rest);
        (shown, rest, false)
    }

    #[test]
    fn a_stop_text_across_pieces_is_never_shown() {
        let (shown, _, stopped) = run(&["\n\nUser:"], &["Hello\n", "\nUs", "er", ": more"]);
        assert!(stopped);
        assert_eq!(shown, ["Hello", "", "", ""]);
    }

    #[test]
    fn what_only_looked_like_one_is_shown() {
        let (shown, rest, stopped) = run(&["END"], &["E", "N", "X", "E"]);
        assert!(!stopped);
        assert_eq!((shown.concat().as_str(), rest.as_str()), ("ENX", "E"));
    }

    #[test]
    fn the_first_of_several_wins() {
        assert_eq!(run(&["cd", "b"], &["abcd"]), (vec!["a".into()], String::new(), true));
    }

    #[test]
    fn overlapping_beginnings_are_kept_apart() {
        assert_eq!(run(&["aab"], &["aa", "ab"]).0, ["", "a"]);
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        let (shown, rest, stopped) = run(&["é€"], &["xé", "y€é"]);
        assert!(!stopped);
        assert_eq!((shown, rest.as_str()), (vec!["x".into(), "éy€".into()], "é"));
    }

    /// However a text is cut into pieces, the same is shown.
    #[test]
    fn pieces_do_not_matter() {
        let text = "one two <st <stop <stop> three";
        let whole = run(&["<stop>", "three"], &[text]).0.concat();
        assert_eq!(whole, "one two <st <stop ");
        for cut in 0..text.len() {
            for second in cut..text.len() {
                let pieces = [&text[..cut], &text[cut..second], &text[second..]];
                let (shown, _, stopped) = run(&["<stop>", "three"], &pieces);
                assert!(stopped);
                assert_eq!(shown.concat(), whole);
            }
        }
    }
}
