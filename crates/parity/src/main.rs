//! Prints how far this program is from those it must agree with; fails if that is too far.

use std::process::ExitCode;

use anyhow::Result;
use upg_parity::{golden, logits, templates, tokens};

fn main() -> Result<ExitCode> {
    let mut passed = true;

    println!("Worst relative errors of logits against transformers', and greedy choices that are the same");
    println!("{:<20} {:>9} {:>9} {:>9} {:>10}", "model", "reference", "session", "cpu", "greedy");
    for model in golden::folders("models")? {
        for outcome in logits::compare(&model)? {
            println!("{outcome}");
            passed &= outcome.passed();
        }
    }

    println!("\nTexts encoded and decoded as by tiktoken");
    let outcome = tokens::compare()?;
    println!("{outcome}");
    passed &= outcome.failures.is_empty();

    println!("\nConversations rendered as by transformers");
    for name in templates::names()? {
        let outcome = templates::compare(&name)?;
        println!("{outcome}");
        passed &= outcome.failures.is_empty();
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
