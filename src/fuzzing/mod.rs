//! What must hold of any bytes from outside: the properties that the fuzz targets in `fuzz/` try to break. Each
//! takes the fuzzer's bytes and panics where a property does not hold.
//!
//! They live in here because much of what they look at is private. They are compiled for tests, which replay the
//! corpora, and for the fuzzer; never into a program.

mod cost;
mod dead_letter;
mod event;
mod hostile;
mod page_token;
mod record;
mod signature;

pub use cost::cost;
pub use dead_letter::dead_letter;
pub use event::event;
pub use page_token::page_token;
pub use record::record;
pub use signature::signature;

/// The bytes in front of the first `separator` and those behind it; without one, all are in front.
fn split_at_first(data: &[u8], separator: u8) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == separator) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, property: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files = std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let mut replayed = 0;
        for file in files {
            let path = file.expect("a file").path();
            println!("{}", path.display()); // shown when it fails: the last one is the culprit
            property(&std::fs::read(&path).expect("its bytes"));
            replayed += 1;
        }
        assert!(replayed > 5, "a corpus of {replayed} files is none");
    }

    #[test]
    fn the_corpus_of_costs_holds() {
        replay("cost", super::cost);
    }

    #[test]
    fn the_corpus_of_events_holds() {
        replay("event", super::event);
    }

    #[test]
    fn the_corpus_of_dead_letters_holds() {
        replay("dead_letter", super::dead_letter);
    }

    #[test]
    fn the_corpus_of_page_tokens_holds() {
        replay("page_token", super::page_token);
    }

    #[test]
    fn the_corpus_of_records_holds() {
        replay("record", super::record);
    }

    #[test]
    fn the_corpus_of_signatures_holds() {
        replay("signature", super::signature);
    }
}
