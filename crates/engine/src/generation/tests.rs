use std::sync::atomic::AtomicBool;

use upg_pdvm::MachineOptions;

use super::*;
use crate::{
    SamplingOptions,
    fixtures::{ScriptedMachine, VOCAB, byte_level},
};

const END: u32 = 261;

fn options(context: usize) -> MachineOptions {
    MachineOptions { context, max_batch: 4, ..MachineOptions::default() }
}

fn greedy() -> GenerationOptions {
    GenerationOptions { sampling: SamplingOptions::greedy(), ..GenerationOptions::default() }
}

/// A machine that answers the prompt "hi" with `text`.
fn answering(text: &str) -> ScriptedMachine {
    let tokens = byte_level().encode(text, true).unwrap();
    ScriptedMachine::saying(options(256), 2, tokens, END)
}

const HI: [u32; 2] = [104, 105];

struct Answer {
    pieces: Vec<Piece>,
    finish: FinishReason,
    stats: Stats,
}

impl Answer {
    fn texts(&self) -> Vec<&str> {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

fn answer(machine: &mut ScriptedMachine, prompt: &[u32], options: &GenerationOptions) -> Answer {
    let mut session = Session::open(machine).unwrap();
    let answer = answer_in(machine, &mut session, prompt, options);
    session.close(machine);
    answer
}

fn answer_in(
    machine: &mut ScriptedMachine,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerationOptions,
) -> Answer {
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END, 258] };
    let cancel = AtomicBool::new(false);
    let mut generation =
        Generation::start(machine, session, model, prompt, options, &cancel, &mut |_, _| ()).unwrap();
    let pieces: Vec<Piece> = generation.by_ref().map(Result::unwrap).collect();
    assert!(generation.next().is_none());
    Answer { pieces, finish: generation.finish().unwrap(), stats: generation.stats() }
}

#[test]
fn an_answer_arrives_in_pieces_and_stops() {
    let answer = answer(&mut answering("ab😀c"), &HI, &greedy());
    assert_eq!(answer.texts(), ["a", "b", "😀", "c"]);
    assert_eq!(answer.pieces[2].tokens.len(), 4);
    assert_eq!(answer.finish, FinishReason::Stop);
    assert_eq!((answer.stats.prompt_tokens, answer.stats.generated_tokens), (2, 8));
    assert_eq!(answer.stats.weight_bytes, 1000);
}

#[test]
fn every_stop_token_ends_an_answer() {
    let mut machine = ScriptedMachine::saying(options(64), 2, vec![97], 258);
    assert_eq!(answer(&mut machine, &HI, &greedy()).texts(), ["a"]);
    let on = GenerationOptions { ignore_stop_tokens: true, max_tokens: Some(5), ..greedy() };
    let answer = answer(&mut machine, &HI, &on);
    assert_eq!((answer.finish, answer.stats.generated_tokens), (FinishReason::Length, 5));
}

#[test]
fn stop_texts_end_an_answer_across_tokens() {
    let stop = GenerationOptions { stop: vec!["\nUser:".into(), "???".into()], ..greedy() };
    let answer = answer(&mut answering("yes\nUsual\nUser: no"), &HI, &stop);
    assert_eq!(answer.texts().concat(), "yes\nUsual");
    assert_eq!(answer.finish, FinishReason::Stop);
    assert_eq!(answer.stats.generated_tokens, "yes\nUsual\nUser:".len());
}

#[test]
fn what_was_held_back_is_shown_at_the_end() {
    let stop = GenerationOptions { stop: vec!["cde".into()], ..greedy() };
    let text = answer(&mut answering("abcd"), &HI, &stop);
    assert_eq!(text.texts(), ["a", "b", "cd"]);
    // An unfinished character too.
    let short = GenerationOptions { max_tokens: Some(3), ..greedy() };
    assert_eq!(answer(&mut answering("a😀"), &HI, &short).texts(), ["a", "\u{fffd}"]);
}

#[test]
fn max_tokens_is_a_length() {
    let answer_of =
        |n| answer(&mut answering("abcdef"), &HI, &GenerationOptions { max_tokens: Some(n), ..greedy() });
    assert_eq!(answer_of(3).texts(), ["a", "b", "c"]);
    assert_eq!(answer_of(3).finish, FinishReason::Length);
    assert_eq!(answer_of(6).finish, FinishReason::Length);
    assert_eq!(answer_of(7).finish, FinishReason::Stop);
    let none = answer_of(0);
    assert_eq!((none.pieces.len(), none.finish, none.stats.generated_tokens), (0, FinishReason::Length, 0));
}

#[test]
fn a_full_context_ends_the_answer_and_a_long_prompt_is_an_error() {
    let letters = vec![97; 100];
    let mut machine = ScriptedMachine::saying(options(10), 2, letters, END);
    let full = answer(&mut machine, &HI, &greedy());
    // Eight fit behind the prompt, and one more is known without a place.
    assert_eq!((full.stats.generated_tokens, full.finish), (9, FinishReason::Length));
    assert_eq!(answer(&mut machine, &[97; 10], &greedy()).stats.generated_tokens, 1);

    let error = start_error(&mut machine, &[97; 11], &greedy());
    assert!(
        matches!(error, EngineError::PromptTooLong { prompt: 11, context: 10, model: 1_048_576 }),
        "{error}"
    );
    assert!(matches!(start_error(&mut machine, &[], &greedy()), EngineError::EmptyPrompt));
}

fn start_error(machine: &mut ScriptedMachine, prompt: &[u32], options: &GenerationOptions) -> EngineError {
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let mut session = Session::open(machine).unwrap();
    let cancel = AtomicBool::new(false);
    let started = Generation::start(machine, &mut session, model, prompt, options, &cancel, &mut |_, _| ());
    let error = started.err().unwrap();
    session.close(machine);
    error
}

#[test]
fn wrong_options_are_errors() {
    let mut machine = answering("a");
    for options in [
        GenerationOptions { stop: vec![String::new()], ..greedy() },
        GenerationOptions { stop: vec!["x".into(); 65], ..greedy() },
        GenerationOptions { stop: vec!["x".repeat(4097)], ..greedy() },
    ] {
        assert!(matches!(
            start_error(&mut machine, &HI, &options),
            EngineError::Option { option: "stop", .. }
        ));
    }
    let hot = GenerationOptions {
        sampling: SamplingOptions { temperature: -1.0, ..SamplingOptions::default() },
        ..greedy()
    };
    assert!(matches!(start_error(&mut machine, &HI, &hot), EngineError::Sampling(_)));
    assert_eq!(machine.kv().used(), 0);
}

#[test]
fn prompts_run_in_batches_and_tell_their_progress() {
    let mut machine = answering("");
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let mut session = Session::open(&mut machine).unwrap();
    let cancel = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut progress = |done, all| seen.push((done, all));
    Generation::start(&mut machine, &mut session, model, &[97; 10], &greedy(), &cancel, &mut progress)
        .unwrap();
    assert_eq!(seen, [(4, 10), (8, 10), (10, 10)]);
    assert_eq!(machine.runs, [4, 4, 2]);
}

#[test]
fn a_prompts_beginning_is_not_run_again() {
    let mut machine = answering("abc");
    let mut session = Session::open(&mut machine).unwrap();
    answer_in(&mut machine, &mut session, &HI, &greedy());
    assert_eq!(session.tokens(), [104, 105, 97, 98, 99]);
    machine.runs.clear();

    // The conversation goes on: only what is new is run.
    let next = answer_in(&mut machine, &mut session, &[104, 105, 97, 98, 99, END, 120], &greedy());
    assert_eq!((next.stats.cached_tokens, machine.runs.as_slice()), (5, &[2][..]));
    // Another turn: what differs is forgotten.
    machine.runs.clear();
    let other = answer_in(&mut machine, &mut session, &[104, 105, 97, 120], &greedy());
    assert_eq!((other.stats.cached_tokens, machine.runs[0]), (3, 1));
    // The very same prompt: its last token is run for its logits.
    machine.runs.clear();
    let same = answer_in(&mut machine, &mut session, &[104, 105, 97, 120], &greedy());
    assert_eq!((same.stats.cached_tokens, machine.runs[0]), (3, 1));
    assert_eq!(same.texts(), other.texts());
    session.close(&mut machine);
    assert_eq!(machine.kv().used(), 0);
}

#[test]
fn tokens_that_the_machine_chooses_ahead_change_no_answer() {
    let text = "abcdefghij";
    for options in [
        greedy(),
        GenerationOptions { max_tokens: Some(7), ..greedy() },
        GenerationOptions { stop: vec!["ef".into()], ..greedy() },
        GenerationOptions {
            sampling: SamplingOptions { logprobs: Some(1), ..SamplingOptions::greedy() },
            ..greedy()
        },
    ] {
        let expected = answer(&mut answering(text), &HI, &options);
        for ahead in [2, 3, 8] {
            let mut machine = answering(text);
            machine.greedy = ahead;
            let mut session = Session::open(&mut machine).unwrap();
            let found = answer_in(&mut machine, &mut session, &HI, &options);
            assert_eq!(found.texts(), expected.texts());
            assert_eq!(found.finish, expected.finish);
            assert_eq!(found.stats.generated_tokens, expected.stats.generated_tokens);
            // What it ran for nothing is forgotten: the conversation goes on.
            let said: Vec<u32> = session.tokens().to_vec();
            let next = answer_in(&mut machine, &mut session, &[&said[..], &[120]].concat(), &options);
            assert_eq!(next.stats.cached_tokens, said.len());
            session.close(&mut machine);
            assert_eq!(machine.kv().used(), 0);
        }
    }
    // The context's end is met exactly.
    let say = vec![97; 20];
    for ahead in [1, 4] {
        let mut machine = ScriptedMachine::saying(options(10), 2, say.clone(), END);
        machine.greedy = ahead;
        let full = answer(&mut machine, &HI, &greedy());
        assert_eq!((full.stats.generated_tokens, full.finish), (9, FinishReason::Length));
    }
}

#[test]
fn cancelling_ends_an_answer_and_a_prompt() {
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let mut machine = answering("abcdef");
    let mut session = Session::open(&mut machine).unwrap();
    let cancel = AtomicBool::new(false);
    let mut generation =
        Generation::start(&mut machine, &mut session, model, &HI, &greedy(), &cancel, &mut |_, _| ())
            .unwrap();
    assert_eq!(generation.next().unwrap().unwrap().text, "a");
    cancel.store(true, Ordering::Relaxed);
    assert!(generation.next().is_none());
    assert_eq!(generation.finish(), Some(FinishReason::Cancelled));

    // During the prompt, after its first run.
    cancel.store(false, Ordering::Relaxed);
    let mut stop = |_, _| cancel.store(true, Ordering::Relaxed);
    let mut generation =
        Generation::start(&mut machine, &mut session, model, &[98; 9], &greedy(), &cancel, &mut stop)
            .unwrap();
    assert!(generation.next().is_none());
    assert_eq!(generation.finish(), Some(FinishReason::Cancelled));
    assert_eq!(session.tokens(), [98; 4]);
}

#[test]
fn a_failing_machine_ends_the_answer_with_its_error() {
    let mut machine = answering("abc");
    machine.fail_at = Some(2);
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let mut session = Session::open(&mut machine).unwrap();
    let cancel = AtomicBool::new(false);
    let mut generation =
        Generation::start(&mut machine, &mut session, model, &HI, &greedy(), &cancel, &mut |_, _| ())
            .unwrap();
    assert_eq!(generation.next().unwrap().unwrap().text, "a");
    assert_eq!(generation.next().unwrap().unwrap().text, "b");
    assert!(matches!(generation.next(), Some(Err(EngineError::Machine(_)))));
    assert!(generation.next().is_none());
    // The session's books agree with the machine's: it can go on.
    drop(generation);
    machine.fail_at = None;
    assert_eq!(session.tokens(), [104, 105, 97]);
    assert_eq!(answer_in(&mut machine, &mut session, &HI, &greedy()).texts().concat(), "abc");
}

#[test]
fn log_probabilities_come_with_the_tokens() {
    let sampling = SamplingOptions { logprobs: Some(2), ..SamplingOptions::greedy() };
    let answer = answer(&mut answering("a"), &HI, &GenerationOptions { sampling, ..greedy() });
    let step = &answer.pieces[0].tokens[0];
    // One logit of 10 among zeros.
    let expected = 10.0 - ((VOCAB - 1) as f32 + 10f32.exp()).ln();
    assert!((step.logprob.unwrap() - expected).abs() < 1e-5);
    assert_eq!(step.top.iter().map(|t| t.0).collect::<Vec<_>>(), [97, 0]);
}

/// A machine that finds the letters a to h about equally likely.
fn dicing(context: usize, sequences: usize) -> ScriptedMachine {
    let options = MachineOptions { context, sequences, max_batch: 4, ..MachineOptions::default() };
    ScriptedMachine::new(
        options,
        Box::new(|seen, logits| {
            logits.fill(f32::NEG_INFINITY);
            for (i, logit) in logits[97..105].iter_mut().enumerate() {
                *logit = ((i * 7 + seen.len()) % 5) as f32 * 0.2;
            }
        }),
    )
}

fn seeded(seed: u64) -> GenerationOptions {
    let sampling = SamplingOptions { temperature: 1.0, seed: Some(seed), ..SamplingOptions::default() };
    GenerationOptions { sampling, max_tokens: Some(20), ..GenerationOptions::default() }
}

#[test]
fn seeds_repeat_an_answer() {
    let text = |seed| answer(&mut dicing(64, 1), &HI, &seeded(seed)).texts().concat();
    assert_eq!(text(3), text(3));
    assert_ne!(text(3), text(4));
}

#[test]
fn penalties_see_the_prompt_and_the_answer() {
    let sampling = SamplingOptions { presence_penalty: 2.0, ..SamplingOptions::greedy() };
    let penalised = GenerationOptions { sampling, max_tokens: Some(7), ..greedy() };
    let text = answer(&mut dicing(64, 1), &[97, 98], &penalised).texts().concat();
    let mut letters: Vec<char> = text.chars().collect();
    letters.sort_unstable();
    letters.dedup();
    // Six letters that are not in the prompt, then one again.
    assert_eq!(letters.iter().filter(|c| !"ab".contains(**c)).count(), 6);
}

fn batch(
    machine: &mut ScriptedMachine,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    cancel: &AtomicBool,
) -> (Result<Vec<Completion>, EngineError>, Vec<String>) {
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let mut texts = vec![String::new(); prompts.len()];
    let work = Batched { model, prompts, options, cancel };
    let completions = generate_batch(machine, &work, &mut |i, piece| texts[i].push_str(&piece.text));
    (completions, texts)
}

#[test]
fn a_batch_gives_the_answers_of_single_prompts() {
    let prompts: Vec<Vec<u32>> = (1..8).map(|n| (0..n).map(|i| 97 + i % 8).collect()).collect();
    for sequences in [1, 3, 7] {
        let mut machine = dicing(64, sequences);
        let (completions, texts) = batch(&mut machine, &prompts, &seeded(5), &AtomicBool::new(false));
        for (i, completion) in completions.unwrap().into_iter().enumerate() {
            let single = answer(&mut dicing(64, 1), &prompts[i], &seeded(5 + i as u64));
            assert_eq!(completion.text, single.texts().concat(), "prompt {i}, {sequences} sequences");
            assert_eq!(texts[i], completion.text);
            assert_eq!(completion.finish, FinishReason::Length);
            assert_eq!((completion.seed, completion.stats.generated_tokens), (5 + i as u64, 20));
        }
        assert_eq!(machine.kv().used(), 0);
        assert!(machine.runs.contains(&sequences.min(4)), "answers run together");
    }
}

#[test]
fn a_batch_that_fails_or_is_cancelled_gives_its_sequences_back() {
    let prompts = vec![vec![97, 98], vec![99], vec![100]];
    let mut machine = dicing(64, 2);
    machine.fail_at = Some(6);
    assert!(batch(&mut machine, &prompts, &seeded(1), &AtomicBool::new(false)).0.is_err());
    assert_eq!(machine.kv().used(), 0);
    machine.fail_at = None;
    let cancelled = batch(&mut machine, &prompts, &seeded(1), &AtomicBool::new(true)).0.unwrap();
    assert!(cancelled.iter().all(|c| c.finish == FinishReason::Cancelled && c.text.is_empty()));
    let long = [prompts, vec![vec![97; 65]]].concat();
    machine.runs.clear();
    assert!(batch(&mut machine, &long, &seeded(1), &AtomicBool::new(false)).0.is_err());
    assert!(machine.runs.is_empty(), "nothing runs before every prompt is known to fit");
    assert!(batch(&mut machine, &[], &seeded(1), &AtomicBool::new(false)).0.unwrap().is_empty());
}

#[test]
fn answers_of_two_sessions_take_turns() {
    let tokenizer = byte_level();
    let model = Model { tokenizer: &tokenizer, stop_tokens: &[END] };
    let say = tokenizer.encode("abcd", true).unwrap();
    let mut machine = ScriptedMachine::saying(MachineOptions { sequences: 2, ..options(256) }, 2, say, END);
    let cancel = AtomicBool::new(false);
    let mut answers: Vec<_> = (0..2)
        .map(|_| {
            let mut session = Session::open(&mut machine).unwrap();
            let start = super::Answer::start;
            let answer =
                start(&mut machine, &mut session, model, &HI, &greedy(), &cancel, &mut |_, _| ()).unwrap();
            (session, answer, String::new())
        })
        .collect();
    while answers.iter().any(|(_, answer, _)| answer.finish().is_none()) {
        for (session, answer, text) in &mut answers {
            let piece = answer.advance(&mut machine, session, model, &cancel).unwrap();
            text.push_str(&piece.map_or(String::new(), |piece| piece.text));
        }
    }
    assert!(answers.iter().all(|(_, answer, text)| {
        text == "abcd" && answer.finish() == Some(FinishReason::Stop) && answer.stats().generated_tokens == 5
    }));
}
