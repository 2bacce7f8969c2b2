//! Finds the end of a JSON value, or that it has none, without reading what is in it.

/// Values over several lines are no deeper: no event is half as deep.
const MAX_DEPTH: u32 = 128;

/// What a byte means for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to it.
    More,
    /// It is its last one.
    End,
    /// It cannot belong to it: the value has no end.
    Broken,
}

/// The state within a value that begins with a bracket, a brace or a quote.
#[derive(Debug)]
pub(super) struct Scan {
    at: usize,
    depth: u32,
    /// Which of the open brackets are braces: the last bit is the innermost one.
    braces: u128,
    in_string: bool,
    escaped: bool,
    /// The last byte that is neither blank nor within a string.
    previous: u8,
    first_newline: Option<usize>,
}

impl Scan {
    pub(super) const fn new() -> Self {
        Self { at: 0, depth: 0, braces: 0, in_string: false, escaped: false, previous: b':', first_newline: None }
    }

    /// Where its second line begins, if it has one.
    pub(super) const fn first_newline(&self) -> Option<usize> {
        self.first_newline
    }

    pub(super) fn step(&mut self, byte: u8) -> Step {
        self.at += 1;
        if self.in_string {
            return self.step_in_string(byte);
        }
        match byte {
            b'\n' => {
                self.first_newline.get_or_insert(self.at);
                return Step::More;
            }
            b' ' | b'\t' | b'\r' => return Step::More,
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                // Within one line this is a mistake of that line. Over several it shows that an earlier one was cut off.
                if self.first_newline.is_some() && (self.depth >= MAX_DEPTH || !self.value_can_begin()) {
                    return Step::Broken;
                }
                self.depth = self.depth.saturating_add(1);
                self.braces = self.braces << 1 | u128::from(byte == b'{');
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.braces >>= 1;
            }
            _ => {}
        }
        self.previous = byte;
        if self.depth == 0 && !self.in_string { Step::End } else { Step::More }
    }

    fn step_in_string(&mut self, byte: u8) -> Step {
        // JSON has no line breaks in strings.
        if byte == b'\n' {
            return Step::Broken;
        }
        self.in_string = self.escaped || byte != b'"';
        self.escaped = !self.escaped && byte == b'\\';
        if self.depth == 0 && !self.in_string { Step::End } else { Step::More }
    }

    const fn value_can_begin(&self) -> bool {
        let in_object = self.braces & 1 == 1;
        match self.previous {
            b':' => true,
            b',' | b'[' => !in_object,
            _ => false,
        }
    }
}
