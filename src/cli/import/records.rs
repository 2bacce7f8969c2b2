//! A file, cut into its records: JSON objects that follow each other, one a line (NDJSON) or over several lines, and the elements
//! of JSON arrays. One at a time, and none longer than [`MAX_RECORD_BYTES`]: so gigabytes take no more memory than a kilobyte.
//!
//! A record that has no end, since a line was cut off or the file was, costs only itself: reading goes on at the next line that
//! begins like a record.

use std::io::{self, ErrorKind, Read};

use super::scan::{Scan, Step};

/// The longest record that is kept; what is longer is passed over and reported. A server takes 1 MiB unless told otherwise.
pub(super) const MAX_RECORD_BYTES: usize = 8 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Bytes in which a file has to show a line that begins like JSON.
const MAX_PREAMBLE: usize = 64 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A record that was read.
#[derive(Debug)]
pub(super) struct Record {
    /// Its bytes; none if it was too long, or if its line is empty.
    pub(super) bytes: Vec<u8>,
    /// The line on which it begins, the first is 1.
    pub(super) line: u64,
    pub(super) too_long: bool,
    /// It is an element of an array.
    pub(super) is_element: bool,
}

/// Reads records.
pub(super) struct Records<R> {
    input: R,
    buffer: Vec<u8>,
    /// Where in the buffer the next record begins.
    start: usize,
    /// Why there is nothing more to read.
    ended: Option<io::Result<()>>,
    /// The line of `start`, and how many blanks it begins with.
    line: u64,
    indent: usize,
    /// Something other than blanks was on this line already.
    line_is_used: bool,
    in_array: bool,
    /// Something was read that is JSON.
    begun: bool,
    /// Lines are passed over until one begins like a record, with no more blanks before it than this.
    resync: Option<usize>,
    /// The last element of an array has no end.
    is_cut_off: bool,
}

impl<R: Read> Records<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            start: 0,
            ended: None,
            line: 1,
            indent: 0,
            line_is_used: false,
            in_array: false,
            begun: false,
            resync: None,
            is_cut_off: false,
        }
    }

    /// The line that was read last.
    pub(super) const fn line(&self) -> u64 {
        self.line
    }

    /// The next one, if there is one.
    ///
    /// # Errors
    /// The input cannot be read on, or is no JSON at all. All whole records before that have been returned.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(byte) = self.peek(0) else { return self.end() };
            if byte == BYTE_ORDER_MARK[0] && (1..3).all(|at| self.peek(at) == Some(BYTE_ORDER_MARK[at])) {
                self.start += BYTE_ORDER_MARK.len();
                continue;
            }
            if byte == b'\n' {
                let is_blank = !std::mem::replace(&mut self.line_is_used, false) && !self.in_array && self.resync.is_none();
                let line = self.line;
                self.consume(1);
                if is_blank && self.begun {
                    return Ok(Some(Record { bytes: Vec::new(), line, too_long: false, is_element: false }));
                }
                continue;
            }
            if is_blank(byte) {
                self.consume(1);
                continue;
            }
            if let Some(indent) = self.resync {
                let begins = matches!(byte, b'{' | b'[') || byte == b']' && self.in_array;
                if self.line_is_used || !begins || self.indent > indent {
                    self.skip_line();
                    continue;
                }
                self.resync = None;
            }
            if !self.begun {
                self.expect_json()?;
                self.begun = true;
            }
            match (byte, self.in_array) {
                (b'[', false) => self.punctuation(true),
                (b']', true) => self.punctuation(false),
                (b',', true) => self.punctuation(true),
                (b',', false) => self.punctuation(false),
                (b'{', _) | (b'[' | b'"', true) => {
                    if let Some(record) = self.value() {
                        return Ok(Some(record));
                    }
                }
                (_, true) => return Ok(Some(self.until(|byte| matches!(byte, b',' | b']') || byte.is_ascii_whitespace()))),
                (_, false) => return Ok(Some(self.until(|byte| byte == b'\n'))),
            }
        }
    }

    fn end(&mut self) -> io::Result<Option<Record>> {
        if let Some(Err(error)) = self.ended.replace(Ok(())) {
            return Err(error);
        }
        if self.in_array || self.is_cut_off {
            (self.in_array, self.is_cut_off) = (false, false);
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the array has no end: is the file complete?"));
        }
        Ok(None)
    }

    fn punctuation(&mut self, in_array: bool) {
        self.in_array = in_array;
        self.line_is_used = true;
        self.consume(1);
    }

    /// A value that has a beginning and an end; `None`: it is the last element of an array, and has no end.
    fn value(&mut self) -> Option<Record> {
        let (line, indent) = (self.line, self.indent);
        let mut scan = Scan::new();
        let (mut at, mut too_long) = (0, false);
        let step = loop {
            let Some(byte) = self.peek(at) else { break Step::Broken };
            let step = scan.step(byte);
            if step == Step::Broken {
                break step;
            }
            at += 1;
            if step == Step::End {
                break step;
            }
            if at > MAX_RECORD_BYTES {
                // A line that was cut off would go on for ever.
                if scan.first_newline().is_some_and(|newline| self.next_beginning(newline, at, indent).is_some()) {
                    break Step::Broken;
                }
                too_long = true;
            }
            if too_long {
                self.consume(at);
                at = 0;
            }
        };
        let is_element = self.in_array;
        if too_long {
            self.consume(at);
            self.line_is_used = true;
            self.resync = (step == Step::Broken).then_some(indent);
            return Some(Record { bytes: Vec::new(), line, too_long, is_element });
        }
        if step == Step::End {
            if !is_element {
                at = self.with_what_follows(at);
            }
            return Some(self.take(at, line, is_element));
        }
        // Which byte breaks it is known to be the beginning of something else.
        let seen = at + usize::from(self.peek(at).is_some());
        match scan.first_newline() {
            // It has no end on its line: it is that line.
            None if self.peek(at) == Some(b'\n') => self.resync = Some(indent),
            None if self.peek(at).is_some() => return Some(self.until(|byte| byte == b'\n')),
            None => {}
            Some(newline) => match self.next_beginning(newline, seen, indent) {
                Some(beginning) => at = beginning,
                None => self.resync = Some(indent),
            },
        }
        if is_element && self.peek(at).is_none() {
            self.is_cut_off = true;
            self.consume(at);
            return None;
        }
        Some(self.take(at, line, is_element))
    }

    /// Where the first line between two places begins that begins like a record.
    fn next_beginning(&self, from: usize, to: usize, indent: usize) -> Option<usize> {
        let window = self.buffer.get(self.start..self.start + to)?;
        let mut line = from;
        while line < window.len() {
            let rest = &window[line..];
            let blanks = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t'))?;
            if blanks <= indent && (matches!(rest[blanks], b'{' | b'[') || self.in_array && rest[blanks] == b']') {
                return Some(line);
            }
            line += rest.iter().position(|&byte| byte == b'\n')? + 1;
        }
        None
    }

    /// What follows a record on its line belongs to it, unless another one begins there: together they are no JSON.
    fn with_what_follows(&mut self, end: usize) -> usize {
        let mut at = end;
        loop {
            match self.peek(at) {
                Some(b'\n' | b'{' | b'[' | b',' | b'\xef') | None => return end,
                Some(byte) if is_blank(byte) => at += 1,
                Some(_) => break,
            }
        }
        while at < MAX_RECORD_BYTES && self.peek(at).is_some_and(|byte| byte != b'\n') {
            at += 1;
        }
        at
    }

    /// What is no value that has an end.
    fn until(&mut self, ends: impl Fn(u8) -> bool) -> Record {
        let line = self.line;
        let mut at = 0;
        let mut too_long = false;
        while let Some(byte) = self.peek(at)
            && (at == 0 && !too_long || !ends(byte))
        {
            at += 1;
            if at > MAX_RECORD_BYTES {
                too_long = true;
                self.consume(at);
                at = 0;
            }
        }
        let mut record = self.take(at, line, self.in_array);
        if too_long {
            (record.bytes, record.too_long) = (Vec::new(), true);
        }
        record
    }

    fn take(&mut self, length: usize, line: u64, is_element: bool) -> Record {
        let bytes = self.buffer[self.start..self.start + length].to_vec();
        self.consume(length);
        self.line_is_used = bytes.last() != Some(&b'\n');
        Record { bytes, line, too_long: false, is_element }
    }

    fn skip_line(&mut self) {
        self.line_is_used = true;
        while self.peek(0).is_some_and(|byte| byte != b'\n') {
            self.consume(1);
        }
    }

    /// Looks at what a file begins with, where that is no JSON: there may be a line in front of the records, but not pages.
    fn expect_json(&mut self) -> io::Result<()> {
        let mut at = 0;
        let mut at_line_start = true;
        while let Some(byte) = self.peek(at)
            && at < MAX_PREAMBLE
        {
            if at_line_start && matches!(byte, b'{' | b'[') {
                return Ok(());
            }
            at_line_start = byte == b'\n' || at_line_start && is_blank(byte);
            at += 1;
        }
        let text = &self.buffer[self.start..self.start + at];
        let first_line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let what = if text.iter().any(|&byte| byte < 0x20 && !byte.is_ascii_whitespace() && byte != 0x1b) {
            "is not text, nor compressed in a way that is known here"
        } else if text.starts_with(b"<") {
            "is HTML or XML, where JSON is expected: was a page saved in place of the data?"
        } else if first_line.iter().any(|byte| matches!(byte, b',' | b';' | b'\t')) {
            "looks like CSV, where JSON is expected: convert it first"
        } else {
            "is text, but not JSON"
        };
        Err(io::Error::new(ErrorKind::InvalidData, what))
    }

    /// A byte from here on, if there is one.
    fn peek(&mut self, at: usize) -> Option<u8> {
        while self.start + at >= self.buffer.len() {
            if self.ended.is_some() {
                return None;
            }
            self.fill();
        }
        Some(self.buffer[self.start + at])
    }

    fn fill(&mut self) {
        if self.start >= CHUNK && self.start * 2 >= self.buffer.len() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + CHUNK, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let count = match read {
            Ok(0) => {
                self.ended = Some(Ok(()));
                0
            }
            Ok(count) => count,
            Err(error) => {
                self.ended = Some(Err(error));
                0
            }
        };
        self.buffer.truncate(length + count);
    }

    fn consume(&mut self, count: usize) {
        for &byte in &self.buffer[self.start..self.start + count] {
            if byte == b'\n' {
                (self.line, self.indent) = (self.line + 1, 0);
                self.line_is_used = false;
            } else if !self.line_is_used {
                self.indent += usize::from(matches!(byte, b' ' | b'\t'));
            }
        }
        self.start += count;
    }
}

/// Between records: preallocated files have zeros, JSON text sequences record separators.
const fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, 0 | 0x1e)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn read_slowly(text: &[u8], bytes: usize) -> (Vec<(u64, String)>, Option<String>) {
        let mut records = Records::new(Slow(text, bytes));
        let mut told = Vec::new();
        loop {
            match records.next() {
                Ok(Some(record)) => told.push((record.line, String::from_utf8(record.bytes).expect("text").trim_end().to_owned())),
                Ok(None) => return (told, None),
                Err(error) => return (told, Some(error.to_string())),
            }
        }
    }

    /// Whatever the pieces are in which it comes.
    fn read(text: &str) -> (Vec<(u64, String)>, Option<String>) {
        let whole = read_slowly(text.as_bytes(), usize::MAX);
        for bytes in 1..text.len().min(60) {
            assert_eq!(read_slowly(text.as_bytes(), bytes), whole, "{bytes} bytes at a time");
        }
        whole
    }

    fn records(of: &[(u64, &str)]) -> Vec<(u64, String)> {
        of.iter().map(|&(line, text)| (line, text.to_owned())).collect()
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "\u{feff}\n{\"a\":1}\r\n\n{\"b\":2}";
        assert_eq!(read(text), (records(&[(2, "{\"a\":1}"), (3, ""), (4, "{\"b\":2}")]), None));
        for empty in ["", "\n\n", "\u{feff}", " \0\0"] {
            assert_eq!(read(empty), (vec![], None));
        }
    }

    #[test]
    fn objects_may_take_several_lines_and_share_one() {
        let pretty = "{\n  \"a\": {\n    \"b\": [\n      {},\n      1\n    ]\n  }\n}";
        assert_eq!(read(&format!("{pretty}\n{pretty}\n{{}}")), (records(&[(1, pretty), (9, pretty), (17, "{}")]), None));
        assert_eq!(
            read("{\"a\":1}{\"b\":2} {},\n{}\u{feff}{}"),
            (records(&[(1, "{\"a\":1}"), (1, "{\"b\":2}"), (1, "{}"), (2, "{}"), (2, "{}")]), None)
        );
        // What follows on the line and is no record makes the line none.
        assert_eq!(read("{}}\n{} x\n{}"), (records(&[(1, "{}}"), (2, "{} x"), (3, "{}")]), None));
    }

    #[test]
    fn elements_are_found_wherever_the_input_pauses() {
        let text = r#"
          [ {"a": "x,]}\"[{\\"},
            {"b": [1, {"c": [2]}]} ,3,
            "]"
          ]
          [{"d":4}][][5]{"e":6}
        "#;
        let expected = [
            (2, r#"{"a": "x,]}\"[{\\"}"#),
            (3, r#"{"b": [1, {"c": [2]}]}"#),
            (3, "3"),
            (4, "\"]\""),
            (6, r#"{"d":4}"#),
            (6, "5"),
            (6, r#"{"e":6}"#),
        ];
        assert_eq!(read(text), (records(&expected), None));
        for (text, elements) in [("[]", &[][..]), ("[1,]", &[(1, "1")]), ("[,1]", &[(1, "1")]), ("[[1],{}]", &[(1, "[1]"), (1, "{}")])] {
            assert_eq!(read(text), (records(elements), None), "{text}");
        }
    }

    #[test]
    fn what_has_no_end_costs_only_itself() {
        for (text, expected) in [
            // Lines that were cut off, at every kind of place.
            ("{\"a\":\n{\"b\":2}\n{\"c\":3}", &[(1, "{\"a\":"), (2, "{\"b\":2}"), (3, "{\"c\":3}")][..]),
            ("{\"a\":1,\n{\"b\":2}", &[(1, "{\"a\":1,"), (2, "{\"b\":2}")]),
            ("{\"a\":1\n{\"b\":2}", &[(1, "{\"a\":1"), (2, "{\"b\":2}")]),
            ("{\n{\"b\":2}", &[(1, "{"), (2, "{\"b\":2}")]),
            ("{\"a\":\"x\n{\"b\":2}", &[(1, "{\"a\":\"x"), (2, "{\"b\":2}")]),
            ("{\"a\":[{\"x\":1\n{\"b\":2}\n{\"c\":3}", &[(1, "{\"a\":[{\"x\":1"), (2, "{\"b\":2}"), (3, "{\"c\":3}")]),
            ("{\"a\":1}\n{\"b\":", &[(1, "{\"a\":1}"), (2, "{\"b\":")]),
            ("nonsense\n{\"b\":2}\nmore", &[(1, "nonsense"), (2, "{\"b\":2}"), (3, "more")]),
            // An object over several lines that was cut off is one record, not one a line.
            ("{}\n{\n  \"a\": [\n    {\n", &[(1, "{}"), (2, "{\n  \"a\": [\n    {")]),
            ("{\n  \"a\": \"x\n  \"b\": {\n    \"c\": 1\n  }\n}\n{}", &[(1, "{\n  \"a\": \"x"), (7, "{}")]),
            ("[\n  {\n    \"a\": 1\n  {\n    \"b\": 2\n  }\n]\n{}", &[(2, "{\n    \"a\": 1"), (4, "{\n    \"b\": 2\n  }"), (8, "{}")]),
        ] {
            assert_eq!(read(text), (records(expected), None), "{text}");
        }
    }

    #[test]
    fn arrays_that_were_cut_off_give_what_is_whole() {
        for text in
            ["[{},{}", "[{},{},", "[{},{},{", "[{},{},{\"a\":\"x", "[{},\n{},\n{\n\"a\":", "[{},\n  {},\n  {\n    \"a\": [\n      {\n"]
        {
            let (told, error) = read(text);
            assert_eq!(told.len(), 2, "{text}: {told:?}");
            assert!(error.expect("an error").contains("no end"), "{text}");
        }
    }

    #[test]
    fn a_file_of_something_else_is_refused_as_a_whole() {
        for (text, word) in [
            ("<!DOCTYPE html>\n<p>{", "HTML"),
            ("id,lead\n1,2\n", "CSV"),
            ("a\tb", "CSV"),
            ("hello\nworld", "not JSON"),
            ("x\u{1}y", "not text"),
        ] {
            let (told, error) = read(text);
            assert!(told.is_empty() && error.as_ref().is_some_and(|error| error.contains(word)), "{text}: {told:?} {error:?}");
        }
        assert_eq!(read("a heading\n\n{}").0.len(), 3, "a line before the records is only that");
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let long = "x".repeat(MAX_RECORD_BYTES + 1);
        let pretty = format!("{{\n  \"a\": \"{long}\"\n}}\n");
        for text in [
            format!("{{}}\n{long}\n{{}}\n"),
            format!("{{}}\n{{\"a\":\"{long}\"}}\n{{}}\n"),
            format!("{{}}\n{{\"a\":\"{long}\n{{}}\n"),
            format!("{{}}\n{pretty}{{}}\n"),
            format!("[1,\"{long}\",2]"),
            format!("[1,{{\"a\":\"{long}\"}},2]"),
        ] {
            let mut records = Records::new(text.as_bytes());
            let told: Vec<_> = std::iter::from_fn(|| records.next().expect("a record")).map(|record| record.too_long).collect();
            assert_eq!(told, [false, true, false], "{}", &text[..20]);
        }
        // A cut line before more lines than a record can have.
        let lines = format!("{{\"a\":\n{}", "{\"b\":1}\n".repeat(MAX_RECORD_BYTES / 8 + 10));
        let mut records = Records::new(lines.as_bytes());
        let count = std::iter::from_fn(|| records.next().expect("a record")).filter(|record| !record.too_long).count();
        assert_eq!(count, MAX_RECORD_BYTES / 8 + 11);
    }
}
