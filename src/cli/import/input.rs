//! What import reads from: each input is opened once, and what it is (compressed, in another encoding) is told by its first bytes,
//! not by its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};
use encoding_rs_io::DecodeReaderBytesBuilder;
use flate2::bufread::GzDecoder;

/// Bytes that are read from a file at once.
const BUFFER: usize = 64 << 10;
/// The longest mark that tells a format.
const HEAD: usize = 6;
/// How files begin that are refused, and what to do about each.
const REFUSED: [(&[u8], &str); 8] = [
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: give it as `zstd -dc FILE | leadfold import -`"),
    (b"\xfd7zXZ\0", "is compressed with xz: give it as `xz -dc FILE | leadfold import -`"),
    (b"BZh", "is compressed with bzip2: give it as `bzip2 -dc FILE | leadfold import -`"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4: give it as `lz4 -dc FILE | leadfold import -`"),
    (b"PK\x03\x04", "is a ZIP archive: unpack it, and name the files in it"),
    (b"PK\x05\x06", "is an empty ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it, and name the files in it"),
    (b"%PDF", "is a PDF document, where JSON is expected"),
];

/// Where stdin can be found.
pub(super) fn is_stdin(file: &Path) -> bool {
    ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|stdin| file == Path::new(stdin))
}

/// An input that is read.
pub(super) struct Input {
    /// What it says, in UTF-8.
    pub(super) text: Box<dyn Read>,
    has_junk: Arc<AtomicBool>,
}

impl Input {
    /// Opens it. Its bytes, as they are on disk, are added to `count`.
    pub(super) fn open(path: &Path, count: &Arc<AtomicU64>) -> io::Result<Self> {
        let raw: Box<dyn Read> = if is_stdin(path) { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
        let has_junk = Arc::new(AtomicBool::new(false));
        let text = decode(Box::new(Counted(raw, Arc::clone(count))), &has_junk, true)?;
        Ok(Self { text, has_junk })
    }

    /// Whether something that is not gzip followed what is.
    pub(super) fn has_junk(&self) -> bool {
        self.has_junk.load(Ordering::Relaxed)
    }
}

fn decode(mut raw: Box<dyn Read>, has_junk: &Arc<AtomicBool>, may_be_gzip: bool) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::with_capacity(HEAD);
    (&mut raw).take(HEAD as u64).read_to_end(&mut head)?;
    if let Some((_, what)) = REFUSED.iter().find(|(mark, _)| head.starts_with(mark)) {
        return Err(io::Error::new(ErrorKind::InvalidData, *what));
    }
    let encoding = utf_16(&head);
    let is_gzip = may_be_gzip && head.starts_with(b"\x1f\x8b");
    let raw = Cursor::new(head).chain(raw);
    if is_gzip {
        let gzip = Gzip::new(BufReader::with_capacity(BUFFER, raw), Arc::clone(has_junk));
        return decode(Box::new(gzip), has_junk, false);
    }
    match encoding {
        // It leaves out the byte order mark.
        Some(encoding) => Ok(Box::new(DecodeReaderBytesBuilder::new().encoding(Some(encoding)).build(raw))),
        None => Ok(Box::new(raw)),
    }
}

/// Whether it is UTF-16: it says so, or every other byte of its beginning, which can only be ASCII, is zero.
fn utf_16(head: &[u8]) -> Option<&'static Encoding> {
    match head {
        [0xff, 0xfe, ..] => Some(UTF_16LE),
        [0xfe, 0xff, ..] => Some(UTF_16BE),
        [b'{' | b'[' | b' ' | b'\r' | b'\n', 0, next, 0, ..] if *next != 0 => Some(UTF_16LE),
        [0, b'{' | b'[' | b' ' | b'\r' | b'\n', 0, next, ..] if *next != 0 => Some(UTF_16BE),
        _ => None,
    }
}

/// Counts what passes through.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads gzip as gzip does: several members one after the other are one file, zeros after them are padding, and anything else
/// after them is left out.
struct Gzip<R> {
    /// `None` only while it is replaced, and at the end.
    member: Option<GzDecoder<R>>,
    is_first: bool,
    /// Something of this member was read.
    has_begun: bool,
    has_junk: Arc<AtomicBool>,
}

impl<R: BufRead> Gzip<R> {
    fn new(input: R, has_junk: Arc<AtomicBool>) -> Self {
        Self { member: Some(GzDecoder::new(input)), is_first: true, has_begun: false, has_junk }
    }

    /// The next member, if there is one.
    fn next_member(&mut self, mut input: R) -> io::Result<()> {
        loop {
            let chunk = input.fill_buf()?;
            let zeros = chunk.iter().take_while(|&&byte| byte == 0).count();
            match chunk.get(zeros) {
                _ if chunk.is_empty() => return Ok(()),
                None => input.consume(zeros),
                Some(0x1f) => {
                    input.consume(zeros);
                    (self.is_first, self.has_begun) = (false, false);
                    self.member = Some(GzDecoder::new(input));
                    return Ok(());
                }
                Some(_) => {
                    self.has_junk.store(true, Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            match member.read(buffer) {
                Ok(0) => {
                    if let Some(member) = self.member.take() {
                        self.next_member(member.into_inner())?;
                    }
                }
                Ok(count) => {
                    self.has_begun = true;
                    return Ok(count);
                }
                // It only looked like another member.
                Err(error) if error.kind() == ErrorKind::InvalidInput && !self.is_first && !self.has_begun => {
                    self.has_junk.store(true, Ordering::Relaxed);
                    self.member = None;
                }
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), "its gzip data is cut off: is the file complete?"));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => return Err(io::Error::new(error.kind(), format!("its gzip data is damaged: {error}"))),
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &str) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).expect("compressed");
        gzip.finish().expect("compressed")
    }

    /// What is read, whether there is junk, and the error at the end.
    fn read(bytes: &[u8]) -> (String, bool, Option<String>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).expect("written");
        let mut input = match Input::open(&path, &Arc::default()) {
            Ok(input) => input,
            Err(error) => return (String::new(), false, Some(error.to_string())),
        };
        let mut text = Vec::new();
        let error = input.text.read_to_end(&mut text).err().map(|error| error.to_string());
        (String::from_utf8(text).expect("text"), input.has_junk(), error)
    }

    #[test]
    fn gzip_is_read_as_gzip_does() {
        let (one, two) = (gzip("one\n"), gzip("two\n"));
        let joined = [&one[..], &two].concat();
        for (bytes, text, has_junk) in [
            (joined.clone(), "one\ntwo\n", false),
            ([&one[..], &[0; 1024], &two, &[0; 70_000]].concat(), "one\ntwo\n", false),
            ([&joined[..], b"junk"].concat(), "one\ntwo\n", true),
            ([&joined[..], &[0; 9], b"junk"].concat(), "one\ntwo\n", true),
            ([&one[..], b"\x1fnothing of gzip's, although it begins like that"].concat(), "one\n", true),
            (gzip(""), "", false),
        ] {
            assert_eq!(read(&bytes), (text.to_owned(), has_junk, None));
        }
        let long = gzip(&"one line and another\n".repeat(10_000));
        let (text, _, error) = read(&long[..long.len() - 9]);
        assert!(text.len() > 100_000 && error.is_some_and(|error| error.contains("cut off")), "{}", text.len());
        let mut damaged = long.clone();
        *damaged.last_mut().expect("a byte") ^= 1;
        assert!(read(&damaged).2.is_some_and(|error| error.contains("damaged")));
    }

    #[test]
    fn encodings_and_formats_are_told_by_the_first_bytes() {
        let utf_16 = |text: &str, big: bool| -> Vec<u8> {
            text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        for big in [false, true] {
            for text in ["\u{feff}{\"a\":\"é\u{1f600}\"}", "{\"a\":\"é\"}", "\u{feff}"] {
                let expected = text.trim_start_matches('\u{feff}').to_owned();
                assert_eq!(read(&utf_16(text, big)), (expected.clone(), false, None), "{text:?}");
            }
        }
        assert_eq!(read(b"{}").0, "{}");
        assert_eq!(read(b"").0, "");
        for (bytes, word) in
            [(&b"\x28\xb5\x2f\xfd\0\0"[..], "zstd"), (b"PK\x03\x04rest", "ZIP"), (b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0", "xz")]
        {
            assert!(read(bytes).2.is_some_and(|error| error.contains(word)), "{word}");
        }
    }
}
