//! What was measured, for people and programs.

use std::path::Path;

use serde::Serialize;
use upg_engine::eval::{Comparison, Estimate, Perplexity};

/// What was measured.
#[derive(Serialize)]
pub struct Report<'a> {
    pub model: &'a Path,
    pub against: Option<&'a Path>,
    pub text: &'a Path,
    pub device: String,
    pub against_device: Option<String>,
    #[serde(flatten)]
    pub result: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Alone(Perplexity),
    Against(Comparison),
}

fn settings(p: &Perplexity) -> String {
    format!("{} chunks of {} tokens, the second half of each scored: {} tokens", p.chunks, p.ctx, p.scored)
}

impl Report<'_> {
    /// A Markdown row for the model under a line that says how it was measured.
    pub fn markdown(&self) -> String {
        let (columns, own, rest) = match &self.result {
            Outcome::Alone(own) => ("", own, String::new()),
            Outcome::Against(c) => (
                " perplexity ratio | mean KL | median | 99 % | 99.9 % | top-1 |",
                &c.model,
                format!(
                    " {:.4} | {} | {:.4} | {:.4} | {:.4} | {} |",
                    c.ratio,
                    plus_minus(c.kl, 4),
                    c.kl_median,
                    c.kl_p99,
                    c.kl_p999,
                    percent(c.top1)
                ),
            ),
        };
        let against = self.against.map(|path| format!(", against {}", path.display())).unwrap_or_default();
        format!(
            "{}, {}{against}; {}\n\n| model | perplexity |{columns}\n|---|--:|{}\n| {} | {} |{rest}",
            self.text.display(),
            settings(own),
            self.device,
            "--:|".repeat(columns.matches('|').count()),
            self.model.display(),
            plus_minus(own.perplexity, 2),
        )
    }

    pub fn text(&self) -> String {
        match &self.result {
            Outcome::Alone(own) => format!(
                "text        {}, {}\nperplexity  {}",
                self.text.display(),
                settings(own),
                plus_minus(own.perplexity, 3)
            ),
            Outcome::Against(c) => [
                format!("text        {}, {}", self.text.display(), settings(&c.model)),
                format!("perplexity  {}", plus_minus(c.model.perplexity, 3)),
                format!("against     {} (ratio {:.4})", plus_minus(c.reference.perplexity, 3), c.ratio),
                format!(
                    "KL          mean {}, median {:.4}, 99 % {:.4}, 99.9 % {:.4}, largest {:.4}",
                    plus_minus(c.kl, 4),
                    c.kl_median,
                    c.kl_p99,
                    c.kl_p999,
                    c.kl_max
                ),
                format!("top-1       {}", percent(c.top1)),
            ]
            .join("\n"),
        }
    }
}

fn percent(share: Estimate) -> String {
    plus_minus(Estimate { value: share.value * 100.0, error: share.error * 100.0 }, 2) + " %"
}

fn plus_minus(estimate: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", estimate.value, estimate.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64) -> Estimate {
        Estimate { value, error: value / 10.0 }
    }

    #[test]
    fn markdown_has_as_many_cells_as_columns() {
        let own =
            Perplexity { perplexity: estimate(30.0), nll: estimate(3.4), chunks: 2, ctx: 512, scored: 510 };
        let against = Comparison {
            model: own.clone(),
            reference: own.clone(),
            ratio: 1.1,
            kl: estimate(0.1),
            kl_median: 0.05,
            kl_p99: 1.0,
            kl_p999: 2.0,
            kl_max: 3.0,
            top1: estimate(0.8),
        };
        for result in [Outcome::Alone(own), Outcome::Against(against)] {
            let report = Report {
                model: Path::new("m.upg"),
                against: None,
                text: Path::new("t.txt"),
                device: "cpu".into(),
                against_device: None,
                result,
            };
            let text = report.markdown();
            let cells: Vec<usize> = text.lines().skip(2).map(|line| line.matches('|').count()).collect();
            assert!(cells.len() == 3 && cells.iter().all(|n| *n == cells[0]), "{text}");
        }
    }
}
