//! A file, cut into its records: the lines of NDJSON, or the elements of a JSON array. One at a time, and none longer
//! than [`MAX_RECORD_BYTES`]: so gigabytes take no more memory than a kilobyte.

use std::io::{self, BufRead, ErrorKind, Read};

/// The longest record that is kept; what is longer is passed over and said. A server takes 1 MiB unless told otherwise.
pub(super) const MAX_RECORD_BYTES: usize = 8 << 20;

/// How records follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON object in every line: webhook events.
    Lines,
    /// The elements of one JSON array: the platform's REST export.
    Array,
}

/// A record that was read.
#[derive(Debug)]
pub(super) struct Record {
    /// Its bytes; none if it was too long, or if its line is empty.
    pub(super) bytes: Vec<u8>,
    /// The line on which it begins, the first is 1.
    pub(super) line: u64,
    pub(super) too_long: bool,
}

/// Reads records.
pub(super) struct Records<R> {
    input: R,
    form: Form,
    line: u64,
    /// The array's bracket was read.
    opened: bool,
    /// The array's closing bracket was read.
    closed: bool,
}

impl<R: BufRead> Records<R> {
    /// Of a file: the first byte that is not blank tells its form.
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut line = 1;
        let form = loop {
            let chunk = input.fill_buf()?;
            let Some(&byte) = chunk.first() else { break Form::Lines };
            // A byte order mark is none of anybody's records.
            let used = if chunk.starts_with(b"\xef\xbb\xbf") { 3 } else { usize::from(byte.is_ascii_whitespace()) };
            match (used, byte) {
                (0, b'[') => break Form::Array,
                (0, _) => break Form::Lines,
                _ => line += u64::from(byte == b'\n'),
            }
            input.consume(used);
        };
        Ok(Self { input, form, line, opened: false, closed: false })
    }

    pub(super) const fn form(&self) -> Form {
        self.form
    }

    /// The line that was read last.
    pub(super) const fn line(&self) -> u64 {
        self.line
    }

    /// The next one, if there is one.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        match self.form {
            Form::Lines => self.next_line(),
            Form::Array => self.next_element(),
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Record>> {
        let (mut bytes, line) = (Vec::new(), self.line);
        let limit = MAX_RECORD_BYTES as u64 + 1;
        if self.input.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        let too_long = bytes.len() > MAX_RECORD_BYTES && bytes.last() != Some(&b'\n');
        if too_long {
            bytes = Vec::new();
            self.input.skip_until(b'\n')?;
        }
        if bytes.trim_ascii().is_empty() {
            bytes.clear();
        }
        Ok(Some(Record { bytes, line, too_long }))
    }

    fn next_element(&mut self) -> io::Result<Option<Record>> {
        let mut record = Record { bytes: Vec::new(), line: self.line, too_long: false };
        let (mut started, mut depth, mut in_string, mut escaped) = (false, 0_u32, false, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return if self.closed {
                    Ok(None)
                } else {
                    Err(broken(ErrorKind::UnexpectedEof, "the array has no end: is the file complete?"))
                };
            }
            let mut used = 0;
            let mut end = false;
            let mut kept = 0..0;
            for &byte in chunk {
                used += 1;
                self.line += u64::from(byte == b'\n');
                if byte.is_ascii_whitespace() && !started {
                    continue;
                }
                if self.closed {
                    return Err(broken(ErrorKind::InvalidData, "something follows the array"));
                }
                if !self.opened {
                    self.opened = true;
                    continue;
                }
                if in_string {
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'[' | b'{' => depth += 1,
                        b']' if depth == 0 => {
                            self.closed = true;
                            end = true;
                        }
                        b',' if depth == 0 => end = true,
                        b']' | b'}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                }
                if end {
                    break;
                }
                if !started {
                    (started, record.line) = (true, self.line);
                    kept = used - 1..used - 1;
                }
                kept.end = used;
            }
            if started && kept.is_empty() && !end {
                kept = 0..used;
            }
            if record.bytes.len() + kept.len() > MAX_RECORD_BYTES {
                record.too_long = true;
            }
            if record.too_long {
                record.bytes = Vec::new();
            } else {
                record.bytes.extend_from_slice(&chunk[kept]);
            }
            self.input.consume(used);
            if end {
                // `[]` has no element, and neither has what follows a last comma.
                return if started || !self.closed { Ok(Some(record)) } else { self.next_element() };
            }
        }
    }
}

fn broken(kind: ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], buffer: usize) -> (Vec<(u64, String)>, Option<String>) {
        let mut records = Records::new(io::BufReader::with_capacity(buffer, text)).expect("a form");
        let mut told = Vec::new();
        loop {
            match records.next() {
                Ok(Some(record)) => told.push((record.line, String::from_utf8(record.bytes).expect("text").trim_end().to_owned())),
                Ok(None) => return (told, None),
                Err(error) => return (told, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = b"\xef\xbb\xbf\n{\"a\":1}\r\n\n{\"b\":2}";
        assert_eq!(read(text, 64), (vec![(2, "{\"a\":1}".into()), (3, String::new()), (4, "{\"b\":2}".into())], None));
        assert_eq!(read(b"", 64), (vec![], None));
    }

    #[test]
    fn elements_are_found_wherever_the_buffer_ends() {
        let text = br#"
          [ {"a": "x,]}\"[{\\"},
            {"b": [1, {"c": [2]}]} ,3,
            "]"
          ]
        "#;
        let expected = vec![
            (2, r#"{"a": "x,]}\"[{\\"}"#.to_owned()),
            (3, r#"{"b": [1, {"c": [2]}]}"#.to_owned()),
            (3, "3".to_owned()),
            (4, "\"]\"".to_owned()),
        ];
        for buffer in 1..60 {
            assert_eq!(read(text, buffer.max(3)), (expected.clone(), None), "{buffer}");
        }
    }

    #[test]
    fn arrays_that_are_none_are_said() {
        assert_eq!(read(b"[]", 8), (vec![], None));
        assert_eq!(read(b"[1,]", 8), (vec![(1, "1".into())], None));
        assert_eq!(read(b"[,1]", 8).0, [(1, String::new()), (1, "1".into())]);
        assert!(read(b"[1,2", 8).1.expect("an error").contains("no end"));
        assert!(read(b"[1] 2", 8).1.expect("an error").contains("follows"));
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let long = "x".repeat(MAX_RECORD_BYTES + 1);
        let mut lines = Records::new(io::Cursor::new(format!("{{\n{long}\n{{\n"))).expect("a form");
        let mut array = Records::new(io::Cursor::new(format!("[1,\"{long}\",2]"))).expect("a form");
        for records in [&mut lines, &mut array] {
            let told: Vec<_> = std::iter::from_fn(|| records.next().expect("a record")).map(|record| record.too_long).collect();
            assert_eq!(told, [false, true, false]);
        }
    }
}
