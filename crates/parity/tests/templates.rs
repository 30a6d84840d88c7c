//! Chat templates make the bytes that transformers makes of them.

use upg_parity::templates;

#[test]
fn prompts_are_those_of_transformers() -> anyhow::Result<()> {
    let names = templates::names()?;
    assert_eq!(names.len(), 7);
    for name in names {
        let outcome = templates::compare(&name)?;
        println!("{outcome}");
        assert!(outcome.failures.is_empty(), "{outcome}");
        assert_eq!(outcome.passed, 38);
    }
    Ok(())
}
