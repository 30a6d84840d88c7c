use super::*;

/// Options that change nothing about the model's distribution.
fn plain(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: 1.0, top_p: 1.0, seed: Some(seed), ..SamplingOptions::default() }
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn counts(options: &SamplingOptions, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(options, logits.len()).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap().token as usize] += 1;
    }
    counts
}

/// Pearson's statistic of counts against a distribution; its degrees of freedom are the tokens less one.
fn chi_squared(counts: &[usize], expected: &[f64]) -> f64 {
    let draws: usize = counts.iter().sum();
    let term = |(&n, &p): (&usize, &f64)| {
        let mean = p * draws as f64;
        if mean == 0.0 {
            assert_eq!(n, 0, "drew a token of probability 0")
        }
        if mean == 0.0 { 0.0 } else { (n as f64 - mean).powi(2) / mean }
    };
    counts.iter().zip(expected).map(term).sum()
}

const LOGITS: [f32; 8] = [0.3, -1.0, 2.0, 1.1, -0.4, 0.0, 1.9, -2.5];

#[test]
fn draws_follow_the_distribution() {
    for temperature in [0.5, 1.0, 2.0] {
        let counts = counts(&SamplingOptions { temperature, ..plain(7) }, &LOGITS, 40_000);
        let chi = chi_squared(&counts, &softmax(&LOGITS, temperature));
        // 24.3 is exceeded once in a thousand with 7 degrees of freedom.
        assert!(chi < 24.3, "temperature {temperature}: {chi}");
    }
}

/// The distribution that a mask leaves, renormalised.
fn masked(keep: impl Fn(usize, &[f64]) -> bool) -> Vec<f64> {
    let p = softmax(&LOGITS, 1.0);
    let sum: f64 = (0..p.len()).filter(|&i| keep(i, &p)).map(|i| p[i]).sum();
    (0..p.len()).map(|i| if keep(i, &p) { p[i] / sum } else { 0.0 }).collect()
}

#[test]
fn masks_keep_what_they_promise() {
    let mass_before = |i: usize, p: &[f64]| p.iter().filter(|&&q| q > p[i]).sum::<f64>();
    let rank = |i: usize, p: &[f64]| p.iter().filter(|&&q| q > p[i]).count();
    let cases = [
        (SamplingOptions { top_k: 3, ..plain(1) }, masked(|i, p| rank(i, p) < 3)),
        (SamplingOptions { top_p: 0.8, ..plain(2) }, masked(|i, p| mass_before(i, p) < 0.8)),
        (SamplingOptions { min_p: 0.2, ..plain(3) }, masked(|i, p| p[i] >= 0.2 * p[2])),
        (SamplingOptions { top_p: 1e-6, ..plain(4) }, masked(|i, _| i == 2)),
        (SamplingOptions { top_k: 1, ..plain(5) }, masked(|i, _| i == 2)),
    ];
    for (options, expected) in cases {
        let chi = chi_squared(&counts(&options, &LOGITS, 20_000), &expected);
        assert!(chi < 24.3, "{options:?}: {chi}");
    }
}

#[test]
fn the_nucleus_of_a_large_vocabulary_is_exact() {
    let mut random = SplitMix64(3);
    for p in [0.1, 0.9, 0.9999] {
        let scores: Vec<f32> = (0..5000).map(|_| (random.next() >> 40) as f32 / 1e7).collect();
        let mut candidates: Vec<_> =
            scores.iter().enumerate().map(|(i, &score)| Candidate { token: i as u32, score }).collect();
        keep_nucleus(&mut candidates, p);

        let mut order: Vec<u32> = (0..5000).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        let goal = p * scores.iter().map(|&s| f64::from(s)).sum::<f64>();
        let mut sum = 0.0;
        let fewest = order.iter().position(|&t| {
            sum += f64::from(scores[t as usize]);
            sum >= goal
        });
        let kept: Vec<u32> = candidates.iter().map(|c| c.token).collect();
        assert_eq!(kept, order[..=fewest.unwrap()]);
    }
}

#[test]
fn temperature_zero_is_greedy_and_ties_go_to_the_lower_token() {
    let mut sampler = Sampler::new(&SamplingOptions::greedy(), 4).unwrap();
    assert_eq!(sampler.sample(&[0.0, 5.0, 5.0, 1.0]).unwrap().token, 1);
    assert_eq!(sampler.sample(&[0.0, f32::NEG_INFINITY, -3.0, -1.0]).unwrap().token, 0);
}

#[test]
fn a_tiny_temperature_is_greedy_too() {
    let counts = counts(&SamplingOptions { temperature: 1e-30, ..plain(1) }, &LOGITS, 100);
    assert_eq!(counts[2], 100);
}

#[test]
fn seeds_repeat_and_differ() {
    let draw = |seed| {
        let mut sampler = Sampler::new(&plain(seed), LOGITS.len()).unwrap();
        (0..64).map(|_| sampler.sample(&LOGITS).unwrap().token).collect::<Vec<_>>()
    };
    assert_eq!(draw(11), draw(11));
    assert_ne!(draw(11), draw(12));
    // Part of the interface: an answer can be repeated with a later version.
    assert_eq!(draw(0)[..8], [6, 2, 0, 6, 2, 2, 2, 6]);
}

#[test]
fn a_fresh_seed_is_told_and_repeats() {
    let options = SamplingOptions { seed: None, ..plain(0) };
    let mut first = Sampler::new(&options, LOGITS.len()).unwrap();
    let mut again = Sampler::new(&plain(first.seed()), LOGITS.len()).unwrap();
    for _ in 0..32 {
        assert_eq!(first.sample(&LOGITS), again.sample(&LOGITS));
    }
    assert_ne!(first.seed(), Sampler::new(&options, 8).unwrap().seed());
}

#[test]
fn penalties_are_those_of_the_papers() {
    let options = SamplingOptions {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        penalty_window: 3,
        ..SamplingOptions::greedy()
    };
    let mut sampler = Sampler::new(&options, 3).unwrap();
    for token in [2, 0, 0, 1] {
        sampler.accept(token); // 2 falls out of the window
    }
    sampler.list_candidates(&[4.0, -1.0, 3.0]);
    sampler.penalise();
    let scores: Vec<f32> = sampler.candidates.iter().map(|c| c.score).collect();
    assert_eq!(scores, [4.0 / 2.0 - 0.25 - 2.0 * 0.5, -2.0 - 0.25 - 0.5, 3.0]);
    assert_eq!(sampler.sample(&[4.0, -1.0, 3.0]).unwrap().token, 2);
}

#[test]
fn the_window_counts_what_a_plain_count_counts() {
    let mut random = SplitMix64(5);
    let mut window = Window::new(10);
    let mut all = Vec::new();
    for _ in 0..500 {
        let token = (random.next() % 6) as u32;
        window.push(token);
        all.push(token);
        let last = &all[all.len().saturating_sub(10)..];
        for t in 0..6 {
            let count = window.position(t).map_or(0, |i| window.counts[i].1);
            assert_eq!(count as usize, last.iter().filter(|&&l| l == t).count());
        }
    }
}

#[test]
fn log_probabilities_are_the_models_own() {
    let options = SamplingOptions {
        logprobs: Some(3),
        top_k: 1,
        repetition_penalty: 1.5,
        temperature: 0.3,
        ..plain(1)
    };
    let mut sampler = Sampler::new(&options, LOGITS.len()).unwrap();
    sampler.accept(2);
    let choice = sampler.sample(&LOGITS).unwrap();
    assert_eq!(choice.token, 6); // token 2 is penalised below it
    let p = softmax(&LOGITS, 1.0);
    assert!((f64::from(choice.logprob.unwrap()) - p[6].ln()).abs() < 1e-6);
    assert_eq!(sampler.top().iter().map(|t| t.0).collect::<Vec<_>>(), [2, 6, 3]);
    assert!(sampler.top().iter().all(|&(t, l)| (f64::from(l) - p[t as usize].ln()).abs() < 1e-6));
}

#[test]
fn broken_logits_are_errors() {
    let mut sampler = Sampler::new(&plain(1), 3).unwrap();
    for (logits, token) in
        [(vec![0.0, f32::NAN, 0.0], 1), (vec![0.0, 0.0, f32::INFINITY], 2), (vec![f32::NEG_INFINITY; 3], 0)]
    {
        let error = sampler.sample(&logits).unwrap_err();
        assert!(matches!(error, SamplingError::Logit { token: t, .. } if t == token), "{error}");
    }
    assert_eq!(sampler.sample(&[0.0; 4]), Err(SamplingError::Length { found: 4, vocab: 3 }));
}

#[test]
fn options_out_of_range_are_named_with_their_range() {
    let base = SamplingOptions::default();
    let cases = [
        (SamplingOptions { temperature: -0.1, ..base.clone() }, "temperature is -0.1"),
        (
            SamplingOptions { temperature: f32::NAN, ..base.clone() },
            "temperature is NaN but must be from 0 to 100",
        ),
        (SamplingOptions { top_p: 0.0, ..base.clone() }, "top_p is 0 but must be above 0 and up to 1"),
        (SamplingOptions { top_p: 1.5, ..base.clone() }, "top_p is 1.5"),
        (SamplingOptions { min_p: 2.0, ..base.clone() }, "min_p is 2"),
        (SamplingOptions { repetition_penalty: 0.0, ..base.clone() }, "repetition_penalty is 0"),
        (SamplingOptions { presence_penalty: 3.0, ..base.clone() }, "presence_penalty is 3"),
        (SamplingOptions { frequency_penalty: -3.0, ..base.clone() }, "frequency_penalty is -3"),
        (SamplingOptions { penalty_window: 1 << 20, ..base.clone() }, "penalty_window is 1048576"),
        (SamplingOptions { logprobs: Some(1001), ..base.clone() }, "logprobs is 1001"),
    ];
    for (options, message) in cases {
        let error = Sampler::new(&options, 8).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn buffers_are_taken_once() {
    let options =
        SamplingOptions { top_p: 0.9, min_p: 0.01, logprobs: Some(2), frequency_penalty: 0.1, ..plain(1) };
    let mut sampler = Sampler::new(&options, LOGITS.len()).unwrap();
    sampler.sample(&LOGITS).unwrap();
    let buffers = |s: &Sampler| (s.candidates.as_ptr(), s.top.as_ptr(), s.window.counts.as_ptr());
    let before = buffers(&sampler);
    for i in 0..200 {
        sampler.accept(i % 8);
        sampler.sample(&LOGITS).unwrap();
    }
    assert_eq!(buffers(&sampler), before);
}

/// More entries than are compared at a time, and no whole number of lanes.
#[test]
fn the_likeliest_of_a_large_vocabulary() {
    let base: Vec<f32> = (0..2500).map(|i| (i % 17) as f32 - 20.0).collect();
    let mut sampler = Sampler::new(&SamplingOptions::greedy(), base.len()).unwrap();
    for at in [0, 15, 1023, 1024, 2047, 2496, 2499] {
        let mut logits = base.clone();
        logits[at] = 1.0;
        // A tie goes to the lower token.
        logits[2498.max(at)] = 1.0;
        assert_eq!(sampler.sample(&logits).unwrap().token, at as u32);
        logits[at] = f32::NAN;
        let bad = sampler.sample(&logits).unwrap_err();
        assert!(matches!(bad, SamplingError::Logit { token, .. } if token == at as u32), "{bad}");
    }
}
