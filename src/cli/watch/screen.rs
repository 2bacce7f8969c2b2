//! Lines that are drawn again in the place where they were.

use std::io::Write as _;

use console::Term;

/// A part of the terminal, below what stands there.
#[derive(Debug)]
pub(super) struct Screen {
    term: Term,
    drawn: usize,
    size: (u16, u16),
    /// Rows above it that should stay in sight, where there is room.
    above: usize,
}

impl Screen {
    /// Of stdout, if that is a terminal that can do it.
    pub(super) fn open(above: usize) -> Option<Self> {
        let term = Term::buffered_stdout();
        if !term.is_term() || std::env::var_os("TERM").is_none_or(|kind| kind == "dumb" || kind.is_empty()) {
            return None;
        }
        let _ = term.hide_cursor();
        Some(Self { size: term.size(), term, drawn: 0, above })
    }

    /// Rows and columns that may be drawn on.
    pub(super) fn room(&self) -> (usize, usize) {
        let (rows, columns) = self.term.size();
        let rows = usize::from(rows).saturating_sub(1);
        let below = rows.saturating_sub(self.above);
        (if below >= 12 { below } else { rows.max(1) }, usize::from(columns).max(20))
    }

    /// Draws in place of what was drawn before.
    pub(super) fn draw(&mut self, lines: &[String]) -> std::io::Result<()> {
        let (rows, columns) = self.room();
        let size = self.term.size();
        if size != self.size {
            // The terminal has folded the old lines anew: nobody knows where they are.
            self.term.clear_screen()?;
            (self.size, self.drawn) = (size, 0);
        }
        // Drawn at once, by terminals that know how; others pass over it.
        write!(self.term, "\u{1b}[?2026h")?;
        self.term.move_cursor_up(self.drawn)?;
        for line in lines.iter().take(rows) {
            self.term.clear_line()?;
            writeln!(self.term, "{}", console::truncate_str(line, columns, "…"))?;
        }
        self.term.clear_to_end_of_screen()?;
        write!(self.term, "\u{1b}[?2026l")?;
        self.drawn = lines.len().min(rows);
        self.term.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.term.show_cursor();
        let _ = self.term.flush();
    }
}
