//! What /set changes.

use std::str::FromStr;

use upg_engine::{GenerationOptions, Sampler};

/// The options by name, for people.
pub fn list(options: &GenerationOptions) -> String {
    let s = &options.sampling;
    let or_default = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.into());
    [
        ("temperature", s.temperature.to_string()),
        ("top_k", s.top_k.to_string()),
        ("top_p", s.top_p.to_string()),
        ("min_p", s.min_p.to_string()),
        ("repetition_penalty", s.repetition_penalty.to_string()),
        ("presence_penalty", s.presence_penalty.to_string()),
        ("frequency_penalty", s.frequency_penalty.to_string()),
        ("penalty_window", s.penalty_window.to_string()),
        ("seed", or_default(s.seed.map(|n| n.to_string()), "random")),
        ("max_tokens", or_default(options.max_tokens.map(|n| n.to_string()), "unlimited")),
    ]
    .map(|(name, value)| format!("{name:<20} {value}"))
    .join("\n")
}

/// `options` with one of them changed, if the sampler accepts them for this vocabulary.
pub fn set(
    options: &GenerationOptions,
    name: &str,
    value: &str,
    vocab: usize,
) -> Result<GenerationOptions, String> {
    let mut options = options.clone();
    let s = &mut options.sampling;
    match name {
        "temperature" => s.temperature = parse(value)?,
        "top_k" => s.top_k = parse(value)?,
        "top_p" => s.top_p = parse(value)?,
        "min_p" => s.min_p = parse(value)?,
        "repetition_penalty" => s.repetition_penalty = parse(value)?,
        "presence_penalty" => s.presence_penalty = parse(value)?,
        "frequency_penalty" => s.frequency_penalty = parse(value)?,
        "penalty_window" => s.penalty_window = parse(value)?,
        "seed" if value == "random" => s.seed = None,
        "seed" => s.seed = Some(parse(value)?),
        "max_tokens" if value == "unlimited" => options.max_tokens = None,
        "max_tokens" => options.max_tokens = Some(parse(value)?),
        _ => return Err(format!("there is no option {name}; /set lists them")),
    }
    Sampler::new(&options.sampling, vocab).map_err(|error| error.to_string())?;
    Ok(options)
}

fn parse<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value} is not a value for it; /set lists the options as they are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_or_say_why_not() {
        let options = GenerationOptions::default();
        let changed = set(&options, "top_k", "40", 1000).unwrap();
        assert_eq!(changed.sampling.top_k, 40);
        assert_eq!(set(&changed, "seed", "7", 1000).unwrap().sampling.seed, Some(7));
        assert_eq!(set(&changed, "max_tokens", "unlimited", 1000).unwrap().max_tokens, None);
        for (name, value) in [("top_k", "many"), ("top_p", "7"), ("temperature", "-1"), ("heat", "1")] {
            assert!(set(&options, name, value, 1000).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn every_listed_option_can_be_set() {
        let options = GenerationOptions::default();
        for line in list(&options).lines() {
            let (name, value) = line.split_once(' ').unwrap();
            assert_eq!(set(&options, name, value.trim(), 1000).unwrap(), options, "{name}");
        }
    }
}
